"""Samples as tasks of lm-evaluation-harness: two YAML files and the documents they ask, one an answer.

    hop_documents.jsonl   {"prompt": "... Follow 1 hop: a1f ->", "answer": " 9c2", "said": "9c2", ...}
    hop.yaml              loglikelihood: acc is the share that greedy decoding says, as `evaluate answers` counts
    hop_generate.yaml     generate_until: exact_match of what is written, as far as an answer goes

Every question is asked after the true answers before it. The harness itself is not needed to write them.
"""

from __future__ import annotations

import json
import os
import re
from itertools import zip_longest
from pathlib import Path

from memory_titan.tasks.sample import read_samples

_SPARE = 8  # tokens that an answer may be longer than it has characters


def write_task(samples: Path, folder: Path, name: str = "", force: bool = False) -> tuple[list[Path], int]:
    """Write a file of samples as tasks.

    Args:
        samples: JSON lines, as `memory-titan data` draws them.
        folder: where the three files go; it is made if it is not there. The YAML files name the documents by their
            absolute path, as the harness needs it: to move the folder, write it anew.
        name: of the task, letters, digits, _ and -; empty: the samples' file name.
        force: overwrite what is there.

    Returns:
        the YAML files, and the number of documents.

    Raises:
        SampleError: a line is no sample.
        ValueError: the name cannot be one, a file is there, or the samples themselves would be overwritten.
    """
    name = name or re.sub(r"\W+", "_", samples.stem)
    if not re.fullmatch(r"[\w-]+", name):
        raise ValueError(f"a task's name must be of letters, digits, _ and -; got {name!r}")
    documents, yaml, generate = (folder / f"{name}{end}" for end in ("_documents.jsonl", ".yaml", "_generate.yaml"))
    if documents.resolve() == samples.resolve():
        raise ValueError(f"the documents would take the place of the samples, {samples}; choose another name")
    for path in (documents, yaml, generate):
        if path.exists() and not force:
            raise ValueError(f"{path} exists; --force overwrites it")
    answers: list[str] = []
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f".{name}.{os.getpid()}.unfinished"
    try:
        with unfinished.open("w", encoding="ascii", newline="\n") as file:
            for sample in read_samples(samples):
                for number, answer in enumerate(sample.answers):
                    said = sample.cut(answer.span)
                    answers.append(said.strip())
                    document = {
                        "prompt": sample.text[: answer.span[0]], "answer": said, "said": said.strip(),
                        "task": sample.task, "index": sample.index, "number": number, "length": sample.length,
                        "nearest": answer.nearest,
                    }  # fmt: skip
                    file.write(json.dumps(document) + "\n")
        unfinished.replace(documents)
    finally:
        unfinished.unlink(missing_ok=True)
    head = f"""dataset_path: json
dataset_kwargs:
  data_files:
    test: {json.dumps(str(documents.resolve()))}
test_split: test
doc_to_text: prompt
target_delimiter: ""
metadata:
  version: 1.0
"""
    yaml.write_text(
        f"""task: {name}
{head}output_type: loglikelihood
doc_to_target: answer
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
""",
        "utf-8",
    )
    generate.write_text(
        f"""task: {name}_generate
{head}output_type: generate_until
doc_to_target: said
generation_kwargs:
  until: ["\\n"]
  do_sample: false
  max_gen_toks: {max(map(len, answers)) + _SPARE}
filter_list:
  - name: answer
    filter:
      - function: regex
        regex_pattern: {json.dumps(_pattern(answers))}
      - function: take_first
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
""",
        "utf-8",
    )
    return [yaml, generate], len(answers)


def _pattern(answers: list[str]) -> str:
    """What of a written line is the answer, where all answers are alike: words joined alike, else the whole line.

    Words as long in all answers are taken at that length: a model trained on answers alone never learned to end them.
    """
    word = r"\w+(?:-\w+)*"
    between = {tuple(re.split(word, answer)) for answer in answers}
    if len(between) > 1:
        return r"^\s*(.*)"
    lengths = [set(map(len, words)) for words in zip(*(re.findall(word, answer) for answer in answers), strict=True)]
    taken = [rf"[\w-]{{{each.pop()}}}" if len(each) == 1 else word for each in lengths]
    joins = map(re.escape, between.pop())
    return rf"^\s*({''.join(join + part for join, part in zip_longest(joins, taken, fillvalue=''))})"
