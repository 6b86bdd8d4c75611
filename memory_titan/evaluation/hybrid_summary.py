"""The figures of `evaluate hybrid`, out of its jobs: counts and seconds, no text."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from memory_titan.evaluation.hybrid_arms import ARMS
from memory_titan.evaluation.hybrid_marking import OVERLAPS, VALUES, erasures, holder, written

Record = dict[str, Any]
Count = list[int]  # of how many: [right, asked]
BINS = 5
CURVE = ("memory", "context", "retrieval")  # of the curves, the three that one would choose among
FORMS = ("full", "new", "elliptical")


def summarise(record: Record) -> Record:
    """All figures of what `evaluate_hybrid` returned; a part that was not asked is empty."""
    settings, jobs = record["settings"], record["jobs"]
    main = f"facts {settings['facts']}"
    facts = {arm: _jobs(jobs, main, arm) for arm in ARMS}
    return {
        "settings": settings,
        "facts": {arm: _facts(found) for arm, found in facts.items() if found},
        "since": {arm: _since(found, settings["turns"]) for arm, found in facts.items() if _rows(found)},
        "curve": _curve(jobs, settings["asked"]),
        "told": _told(_jobs(jobs, main, "read"), _rows(facts["memory"])),
        "corrections": {arm: _corrections(found) for arm in ARMS if _rows(found := _jobs(jobs, "corrections", arm))},
        "erased": _erased(_jobs(jobs, "corrections", "read")),
        "several": {arm: _several(found) for arm in ARMS if _rows(found := _jobs(jobs, "several", arm))},
        "unknown": _unknown(jobs),
        "general": _general(jobs),
        "timing": _timing(_jobs(jobs, "timing", "memory")),
    }


def _jobs(jobs: Record, chat: str, arm: str) -> list[Record]:
    """A job a seed."""
    names = sorted(name for name in jobs if name.split("/")[1:] == [chat, arm])
    return [jobs[name] for name in names]


def _rows(jobs: Iterable[Record]) -> list[Record]:
    return [row for job in jobs for row in job["answers"] or []]


def _count(rows: Iterable[Any], right: Callable[[Any], object]) -> Count:
    all_of_them = list(rows)
    return [sum(bool(right(row)) for row in all_of_them), len(all_of_them)]


def _facts(jobs: list[Record]) -> Record:
    if any(job["answers"] is None for job in jobs):
        return _no_room(jobs)
    rows = _rows(jobs)
    return {
        "right": [_count(job["answers"], lambda row: row["right"]) for job in jobs],
        "overlap": {
            name: _count((row for row in rows if row["overlap"] == name), lambda row: row["right"])
            for name in OVERLAPS
        },
        "stages": dict(Counter(row["stage"] for row in rows if "stage" in row)),
        "seconds": sum(job["seconds"] for job in jobs) / max(1, len(rows)),
        **{key: [job[key] for job in jobs] for key in ("bytes", "left_out") if key in jobs[0]},
    }  # fmt: skip


def _no_room(jobs: list[Record]) -> Record:
    return {key: max(job.get(key, 0) for job in jobs) for key in ("tokens", "positions")}


def _since(jobs: list[Record], turns: int) -> list[Count]:
    """By turns since it was told, in equal bins, the latest told first."""
    rows = _rows(jobs)
    return [
        _count((row for row in rows if row["since"] * BINS // turns == place), lambda row: row["right"])
        for place in range(BINS)
    ]


def _curve(jobs: Record, asked: int) -> Record:
    """By arm and facts told: right and asked, a seed each; or why there are none."""
    found: Record = {}
    held = sorted({int(name.split("/")[1].split()[1]) for name in jobs if name.split("/")[1].startswith("facts ")})
    for arm in CURVE:
        for facts in held:
            there = _jobs(jobs, f"facts {facts}", arm)
            if any(job["answers"] is None for job in there):
                found.setdefault(arm, {})[str(facts)] = _no_room(there)
            elif there:
                found.setdefault(arm, {})[str(facts)] = {
                    "right": [
                        _count((row for row in job["answers"] if row["rank"] < asked), lambda row: row["right"])
                        for job in there
                    ]
                }
    return found


def _told(jobs: list[Record], rows: list[Record]) -> Record:
    """What the memory wrote of the main chat; `rows`: its answers."""
    if not jobs:
        return {}
    small = [turn for job in jobs for turn in job["turns"] if turn["kind"] == "small talk"]

    def wrote(turn: Record) -> bool:
        return any(each["written"] for each in turn["readings"])

    return {
        "bytes": jobs[0]["bytes"],
        "seconds_a_turn": sum(job["seconds"] for job in jobs) / max(1, sum(len(job["turns"]) for job in jobs)),
        "small_talk_written": _count(small, wrote),
        "by_sort": {
            about: _count((turn for turn in small if turn["about"] == about), wrote)
            for about in sorted({turn["about"] for turn in small})
        },
        "facts_not_written": _count(rows, lambda row: not row["written"]),
        "erased": sum(len(erasures(job["turns"])) for job in jobs),
    }


def _corrections(jobs: list[Record]) -> Record:
    rows = _rows(jobs)
    by_form = {form: [row for row in rows if row["form"] == form] for form in FORMS}
    return {
        form: {value: sum(row["value"] == value for row in some) for value in VALUES}
        for form, some in {"all": rows, **by_form}.items()
    }


def _erased(jobs: list[Record]) -> Record:
    """Of the corrections told: those that took out what they correct; and what else was taken out."""
    if not jobs:
        return {}
    corrected: set[tuple[int, str]] = set()
    other = total = kept = 0
    for number, job in enumerate(jobs):
        turns = job["turns"]
        corrections = [at for at, turn in enumerate(turns) if turn["kind"] == "correction"]
        total += len(corrections)
        kept += sum(written(turns, [at], ()) for at in corrections)
        for at, text in erasures(turns):
            held = holder(turns, text, at)
            if held is not None and held != at and turns[held]["name"] == turns[at]["name"]:
                corrected.add((number, turns[at]["name"]))
            else:
                other += 1
    return {"corrections": total, "written": kept, "took_out_the_old": len(corrected), "took_out_something_else": other}


def _several(jobs: list[Record]) -> Record:
    rows = _rows(jobs)
    return {
        "all": _count(rows, lambda row: row["right"]),
        "some": _count(rows, lambda row: 0 < row["said"] < row["parts"]),
        "parts": [sum(row["said"] for row in rows), sum(row["parts"] for row in rows)],
        "stages": dict(Counter(row["stage"] for row in rows if "stage" in row)),
    }


def _numbers(jobs: Record, part: str) -> list[str]:
    """How many facts were held where a part was asked."""
    chats = {name.split("/")[1] for name in jobs if name.split("/")[1].startswith(f"{part} ")}
    return sorted((chat.split()[1] for chat in chats), key=int)


def _unknown(jobs: Record) -> Record:
    return {
        facts: [_count(job["answers"], lambda row: row["spoke"]) for job in _jobs(jobs, f"unknown {facts}", "memory")]
        for facts in _numbers(jobs, "unknown")
    }


def _general(jobs: Record) -> Record:
    """By arm and facts held: answers that are the bare model's, word for word."""
    bare = {row["name"]: row["answer"] for row in _rows(_jobs(jobs, "general", "bare"))}
    found: Record = {}
    for facts in _numbers(jobs, "general"):
        for arm in CURVE:
            there = _jobs(jobs, f"general {facts}", arm)
            if _rows(there) and all(row["name"] in bare for row in _rows(there)):  # an interrupted run may lack them
                found.setdefault(arm, {})[facts] = [
                    _count(job["answers"], lambda row: row["answer"] == bare[row["name"]]) for job in there
                ]
    return found


def _timing(jobs: list[Record]) -> Record:
    """The median over seeds of each median."""
    return {name: statistics.median(job[name] for job in jobs) for name in jobs[0]} if jobs else {}
