"""`memory-titan train ...`: a graft trained on samples with answers; language models in train_lm.py."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import click

from memory_titan.cli.common import Refusal, both, plainly, steps
from memory_titan.cli.train_lm import lm


@click.group()
def train() -> None:
    """Train what stands on a memory."""


train.add_command(lm)


def parse_layers(text: str) -> Any:
    """ "all", "20-29", "3,7,11" or a mixture, as layer numbers.

    Raises:
        ValueError: it is none of these.
    """
    if text == "all":
        return "all"
    layers: list[int] = []
    for part in text.split(","):
        begin, dash, end = part.strip().partition("-")
        if not begin.isdigit() or (dash and not end.isdigit()):
            raise ValueError(f'layers must be "all", or numbers and ranges such as 3,7,20-29; got {text!r}')
        layers += range(int(begin), int(end or begin) + 1)
    return layers


@train.command("mag")
@click.option(*both("model_name"), default="smollm2", show_default=True, help="smollm2, or any supported causal LM.")
@click.option(*both("data_path"), required=True, type=click.Path(path_type=Path), help="JSON lines of `data`.")
@click.option(*both("output_dir"), required=True, type=click.Path(path_type=Path), help="For latest/ and best/.")
@click.option(
    *both("resume_from"),
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Start from this graft's weights and configuration, as one phase from the one before.",
)
@click.option("--resume", is_flag=True, help="Go on exactly where OUTPUT_DIR/latest stands.")
@click.option(*both("eval_path"), type=click.Path(path_type=Path), help="Samples to evaluate on.  [default: a tenth]")
@click.option(*both("learning_rate"), type=float, default=1e-3, show_default=True)
@click.option(*both("num_epochs"), type=click.IntRange(1), default=3, show_default=True)
@click.option(*both("batch_size"), type=click.IntRange(1), default=4, show_default=True)
@click.option(*both("max_steps"), type=click.IntRange(1), help="Stop after so many steps.")
@click.option(
    "--backprop",
    type=click.IntRange(1),
    default=2048,
    show_default=True,
    help="Tokens that the gradient goes back through.",
)
@click.option(
    "--recompute",
    is_flag=True,
    help="Run each segment again in the backward pass, and keep less meanwhile: less memory, more time.",
)
@click.option("--success", type=click.FloatRange(0, 1), help="Stop once this share of answers is right.")
@click.option(
    *both("gate_price"),
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="Of gates that are open where no answer is said.",
)
@click.option(
    *both("write_price"), type=click.FloatRange(0), default=0.0, show_default=True, help="Of writing; see the docs."
)
@click.option(
    "--prose",
    metavar="FILE",
    help='Text to read as well, in which nothing is asked and gates should stay shut; "topics": Python\'s help.',
)
@click.option(
    *both("prose_share"),
    type=click.FloatRange(0, 1, max_open=True),
    default=0.25,
    show_default=True,
    help="Of the texts, how many are pieces of it.",
)
@click.option(
    *both("cache_lower"),
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Keep there what enters the first grafted layer: later epochs and runs need not compute it.",
)
@click.option(*both("max_length"), type=click.IntRange(2), help="Tokens of the longest sample allowed.")
@click.option(
    *both("too_long"),
    type=click.Choice(["refuse", "truncate", "skip"]),
    default="refuse",
    show_default=True,
    help="What becomes of longer ones.",
)
@click.option("--limit", type=click.IntRange(1), help="Use the first so many samples.")
@click.option(*both("evaluate_every"), type=click.IntRange(1), default=100, show_default=True, help="Steps.")
@click.option(*both("save_every"), type=click.IntRange(1), default=50, show_default=True, help="Steps.")
@click.option(
    *both("log_dir"), type=click.Path(path_type=Path), metavar="FOLDER", help="Write scalars for TensorBoard there."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--bf16", is_flag=True, help="Autocast the frozen model to bfloat16.")
@click.option("--layers", help='Layers that get a memory: "all", or numbers and ranges.  [default: all]')
@click.option("--window", type=click.IntRange(1), help="Tokens that the frozen attention may see.  [default: all]")
@click.option("--sinks", type=click.IntRange(0), help="First tokens that it sees as well.  [default: 0]")
@click.option(*both("sink_distance"), type=click.IntRange(1), help="They never look further away.  [default: they do]")
@click.option("--source", type=click.Choice(["learned", "frozen", "tokens"]), help="Of q, k, v.  [default: learned]")
@click.option("--ngram", type=click.IntRange(0), help="Tokens that a key stands for at the start.  [default: 1]")
@click.option(
    "--calibrate",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Samples from which a new graft takes its start; see the docs.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Of the frozen model.",
)
@click.option(*both("memory_dim"), type=click.IntRange(1), help="Width of each memory.  [default: the model's]")
@click.option(*both("memory_heads"), type=click.IntRange(1), help="Of each memory.  [default: the attention's]")
@click.option(*both("memory_layers"), type=click.IntRange(1, 4), help="Depth of each memory.  [default: 2]")
@click.option(*both("n_persistent_tokens"), type=click.IntRange(0), help="[default: 16]")
@click.option(*both("chunk_size"), type=click.IntRange(1), help="Of the memory.  [default: 64]")
@click.option("--gate", type=click.Choice(["hard", "sigmoid"]), help="Whether gates can be exactly 0.  [default: hard]")
@click.option(*both("gate_bias"), type=float, help="How far gates lean to attention.  [default: -2]")
@click.option(
    "--query_refinement/--no_query_refinement",
    "--query-refinement/--no-query-refinement",
    default=None,
    help="Whether a query knows what the memory below has answered.  [default: yes]",
)
@click.option("--expansion", type=click.IntRange(1), help="Of the memory's hidden layers.  [default: 4]")
@click.option(
    "--lora", type=click.IntRange(1), metavar="RANK", help="Train a LoRA of the frozen model too; see the docs."
)
@click.option("--memory", "memory_options", metavar="JSON", help="Further options of the memory, a JSON object.")
@plainly
def mag(**options: Any) -> None:
    """Graft memories on a frozen model and train them, and only them, on samples with answers.

    Writes OUTPUT_DIR/latest (every --save_every steps) and OUTPUT_DIR/best (of the evaluations). Ctrl-C and worse lose
    at most the steps since the last one; --resume goes on from there exactly.
    """
    import torch

    from memory_titan.graft.calibrate import calibrate
    from memory_titan.graft.config import MAGConfig
    from memory_titan.graft.model import MemoryModel, get_memory_model
    from memory_titan.hybrid.frozen import load_frozen
    from memory_titan.tasks.examples import Example, load_examples, load_prose
    from memory_titan.training.checkpoint import CheckpointError, find_checkpoint

    try:
        from memory_titan.training.loop import TrainingError
        from memory_titan.training.mag import TrainConfig
        from memory_titan.training.mag import train as run
    except ImportError as error:
        raise Refusal(f"training needs more ({error.name} is missing): pip install 'memory-titan[train]'") from None

    if options["log_dir"] is not None:
        from memory_titan.training.log import summary_writer

        summary_writer()  # is it there? before anything takes time
    output: Path = options["output_dir"]
    resume: Path | None = None
    try:
        resume = find_checkpoint(output / "latest")  # or what a run killed between two renames has left
    except CheckpointError:
        if options["resume"]:
            raise
    if resume is not None and not options["resume"]:
        raise Refusal(f"{output} holds a run already; --resume goes on with it")
    chosen = {f.name: options[f.name] for f in fields(MAGConfig) if options.get(f.name) is not None}
    if "layers" in chosen:
        chosen["layers"] = parse_layers(chosen["layers"])
    if options["lora"] is not None:
        chosen["lora"] = {"r": options["lora"], "lora_alpha": options["lora"]}
    if options["memory_options"]:
        try:
            chosen["memory"] = json.loads(options["memory_options"])
        except json.JSONDecodeError as error:
            raise Refusal(f"--memory is not JSON: {error}") from None
    given = {f.name: options[f.name] for f in fields(TrainConfig) if f.name in options}
    config = TrainConfig(**given, mixed_precision="bf16" if options["bf16"] else "no")

    frozen = load_frozen(options["model_name"])
    limits = options["max_length"], options["too_long"], options["limit"]
    examples = load_examples(options["data_path"], frozen.tokenizer, *limits)
    if options["eval_path"] is not None:
        held_out = load_examples(options["eval_path"], frozen.tokenizer, *limits[:2])
    else:
        held_out = examples[: max(1, len(examples) // 10)]
        examples = examples[len(held_out) :]
        if not examples:
            raise Refusal(f"{options['data_path']} has one sample; with a tenth set aside, none is left to train on")
    prose: list[Example] = []
    if options["prose"] is not None and options["prose_share"]:
        share, length = options["prose_share"], sorted(len(e.ids) for e in examples)[len(examples) // 2]
        prose = load_prose(options["prose"], frozen.tokenizer, length, round(len(examples) * share / (1 - share)))
    if options["dtype"] == "bfloat16":
        frozen.model.bfloat16()
    start = resume or options["resume_from"]
    torch.manual_seed(config.seed)
    if start is not None:
        model = MemoryModel.from_pretrained(frozen.model, str(start), **chosen)
    else:
        model = get_memory_model(frozen.model, MAGConfig(**chosen))
        if options["calibrate"]:
            calibrate(model, [example.ids[None] for example in examples[-options["calibrate"] :]], config.seed)
    if options["cache_lower"] is not None:
        from memory_titan.training.lower_cache import with_lower

        with steps(len(examples) + len(prose) + len(held_out), "frozen layers") as advance:
            examples, prose, held_out = (
                with_lower(model, part, options["cache_lower"], partial(advance, "frozen layers"))
                for part in (examples, prose, held_out)
            )
    click.echo(
        f"{len(examples)} samples to train on, {len(held_out)} to evaluate; "
        f"{model.count_trainable_parameters():,} trainable parameters",
        err=True,
    )
    try:
        with _log(options["log_dir"], model, resume) as report:
            progress = run(model, examples, held_out, config, output, resume=resume, report=report, prose=prose)
    except TrainingError as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        kept = (output / "latest").exists()
        click.echo(f"interrupted; {f'{output} goes on with --resume' if kept else 'no checkpoint yet'}", err=True)
        raise SystemExit(130) from None
    click.echo(f"{progress['step']} steps, {progress['seconds']:.0f} s; best {progress['best']:.3f}: {output / 'best'}")


@contextmanager
def _log(folder: Path | None, model: Any, resume: Path | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Tells, and writes to the folder, if there is to be one."""
    if folder is None:
        yield _tell
        return
    from memory_titan.training.checkpoint import PROGRESS
    from memory_titan.training.log import TensorBoardLog

    step = 0 if resume is None else json.loads((resume / PROGRESS).read_text("utf-8"))["step"]
    with TensorBoardLog(folder, model, step) as log:

        def report(record: dict[str, Any]) -> None:
            _tell(record)
            log(record)

        yield report


def _tell(record: dict[str, Any]) -> None:
    shown = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in record.items()}
    click.echo(" ".join(f"{key} {value}" for key, value in shown.items()), err=True)


@train.command("curriculum")
@click.option("--preset", type=click.Choice(["cpu", "gpu"]), help="One of the package's own.  [default: cpu]")
@click.option("--config", type=click.Path(path_type=Path), help="A YAML file instead; the presets show its form.")
@click.option(*both("output_dir"), required=True, type=click.Path(path_type=Path), help="For data and checkpoints.")
@click.option(*both("model_name"), default="smollm2", show_default=True, help="smollm2, or any supported causal LM.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default="bfloat16",
    show_default=True,
    help="Of the frozen model.",
)
@click.option(*both("cache_lower"), type=click.Path(path_type=Path), metavar="FOLDER", help="As of `train mag`.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@plainly
def curriculum_command(
    preset: str | None,
    config: Path | None,
    output_dir: Path,
    model_name: str,
    dtype: str,
    cache_lower: Path | None,
    seed: int,
) -> None:
    """Train a graft in phases, each from the one before: hash-hop, dependencies, code.

    Phases that are done are not done again; one that was interrupted goes on where it stood.
    """
    import torch

    from memory_titan.hybrid.frozen import load_frozen

    try:
        from memory_titan.training.curriculum import load_curriculum, run
        from memory_titan.training.loop import TrainingError
    except ImportError as error:
        raise Refusal(f"training needs more ({error.name} is missing): pip install 'memory-titan[train]'") from None
    if preset is not None and config is not None:
        raise Refusal("--preset and --config are two answers to one question")
    chosen = load_curriculum(str(config) if config is not None else preset or "cpu")
    frozen = load_frozen(model_name)
    frozen.model.to(getattr(torch, dtype))

    def tell(phase: str, record: dict[str, Any]) -> None:
        _tell({"phase": phase, **record})

    try:
        done = run(chosen, frozen.model, frozen.tokenizer, output_dir, cache=cache_lower, seed=seed, report=tell)
    except TrainingError as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        click.echo(f"interrupted; the same command goes on in {output_dir}", err=True)
        raise SystemExit(130) from None
    for name, phase in done.items():
        click.echo(
            f"{name}, {phase['goal']}: {phase['step']} steps, {phase['seconds']:.0f} s, best {phase['best']:.3f}"
        )
