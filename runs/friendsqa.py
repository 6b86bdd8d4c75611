"""FriendsQA (Z. Yang and J. Choi, SIGDIAL 2019) as conversations: a season's scenes are the sessions of one.

    git clone https://github.com/emorynlp/FriendsQA
    python runs/friendsqa.py FriendsQA/dat/friendsqa_dev.json dev.jsonl
    memory-titan evaluate store dev.jsonl

Evidence is every utterance that an annotator marked an answer in.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from memory_titan.tasks.conversations import Conversation, Question, Session, Turn, write_conversations


def plain(text: str) -> str:
    """Without the spaces that tokenizing put before punctuation and clitics."""
    return re.sub(r"\( ", "(", re.sub(r" (n't|'\w+|[.,!?;:%)])", r"\1", text))


def read(path: Path) -> list[Conversation]:
    """A conversation a season, its scenes in the order of their titles, s01_e23_c06."""
    seasons = defaultdict(list)
    for scene in json.loads(path.read_text("utf-8"))["data"]:
        seasons[scene["title"][:3]].append(scene)
    return [conversation(f"{path.stem}-{name}", seasons[name]) for name in sorted(seasons)]


def conversation(name: str, scenes: list[dict[str, Any]]) -> Conversation:
    """Of the scenes of a season."""
    sessions, questions = [], []
    for scene in sorted(scenes, key=lambda scene: str(scene["title"])):
        title, content = scene["title"], scene["paragraphs"][0]
        turns = tuple(
            Turn(f"{title}:{said['uid']}", ", ".join(said["speakers"]), plain(said["utterance"]))
            for said in content["utterances:"]
        )
        sessions.append(Session(title, turns))
        for asked in content["qas"]:
            evidence = sorted({f"{title}:{answer['utterance_id']}" for answer in asked["answers"]})
            answers = tuple(answer["answer_text"] for answer in asked["answers"])
            questions.append(Question(plain(asked["question"]), tuple(evidence), answers))
    return Conversation(name, tuple(sessions), tuple(questions))


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("source", type=Path, help="dat/friendsqa_dev.json or another of the repository's files")
    arguments.add_argument("output", type=Path, help="JSON lines")
    given = arguments.parse_args()
    found = read(given.source)
    write_conversations(given.output, found)
    print(f"{given.output}: {len(found)} conversations, {sum(len(each.questions) for each in found)} questions")
