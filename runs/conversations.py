"""Evidence recall of the store's ranking and its baselines, on conversations in files of JSON lines.

    python runs/conversations.py MODEL                                  drawn ones: 20 of the seed
    python runs/conversations.py MODEL human.jsonl                      a file, as `tasks/conversations.py` reads it
    python runs/conversations.py MODEL human.jsonl --without window     with one part of the score off

MODEL is a folder or name that sentence-transformers loads; the docs' figures are all-MiniLM-L6-v2's.
"""

from __future__ import annotations

from dataclasses import replace

import click

from memory_titan.evaluation.conversations import compare_searches
from memory_titan.store.ranking import RankingConfig
from memory_titan.tasks.conversations import ConversationTask, read_conversations


@click.command()
@click.argument("model")
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False))
@click.option("--without", type=click.Choice(["lexical", "dense", "window", "speaker", "length", "neighbours"]))
@click.option("--k", default=10, show_default=True)
@click.option("--seed", default=0, show_default=True, help="of the drawn ones")
@click.option("--count", default=20, show_default=True, help="how many to draw")
def main(model: str, files: tuple[str, ...], without: str | None, k: int, seed: int, count: int) -> None:
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(model, device="cpu")

    def embed(texts):  # type: ignore[no-untyped-def]
        return encoder.encode(list(texts), batch_size=64, normalize_embeddings=True, show_progress_bar=False)

    config = RankingConfig()
    if without:
        config = replace(config, **{without: () if without == "neighbours" else 0.0})
    sets = {path: read_conversations(path) for path in files}
    for name, conversations in (sets or {"drawn": [ConversationTask().draw(seed, i) for i in range(count)]}).items():
        for method, result in compare_searches(conversations, embed, k, config).items():
            figures = "  ".join(f"{key} {value:.3f}" for key, value in result.summary().items() if key != "questions")
            click.echo(f"{name}  {method:8s} {figures}  ({len(result.recall)} questions)")


if __name__ == "__main__":
    main()
