"""The tables of a speed benchmark, for a terminal and for the docs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

NAMES = {
    "ours-exact": "exact",
    "ours-anchored": "anchored",
    "ours-recompute": "exact, recomputing",
    "ours-pieces": "exact, in recomputed pieces",
    "peer-chunked": "peer, chunked",
    "peer-default": "peer, default",
}
NOTE = (
    "exact, anchored: NeuralMemory with either rule; anchored is the paper's and the peer's. peer: titans-pytorch, "
    "chunked (each chunk's surprise at the weights that the last chunk left) or default (every surprise at the weights "
    "the call began with). It is not quite the same work: ours updates at every token, and a token is read right after "
    "it was written; the peer's momentum and decay act once a chunk, and its tokens read the weights of the last whole "
    "chunk. x exact, x anchored: how many times ours, median over neighbouring turns, with the range for wall time. "
    "peak: the resident high-water mark of the first call over what was resident before it. share: the formula's FLOPs "
    "a second over those of the same matrix products alone, for the memory op by itself and for the whole layer."
)
_SETTLED = 10_000  # tokens of a stream after which its memory is looked at first
_BEGIN, _END = "<!-- bench memory: begin -->", "<!-- bench memory: end -->"


@dataclass
class Table:
    """Cells as they are shown. An empty `rows` means that there is nothing to show."""

    title: str
    header: list[str]
    rows: list[list[str]] = field(default_factory=list)

    def rich(self) -> RichTable:
        """For a terminal."""
        table = RichTable(box=box.SIMPLE_HEAD, title=escape(self.title), title_justify="left", padding=(0, 1, 0, 0))
        for name in self.header:
            table.add_column(escape(name), no_wrap=True)
        for row in self.rows:
            table.add_row(*map(escape, row))
        return table

    def markdown(self) -> str:
        """For a document."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        return f"### {self.title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tables(record: dict[str, Any]) -> list[Table]:
    """All tables that have rows."""
    titles = {
        "forward": "Forward",
        "training": "Forward and backward",
        "recompute": "Forward and backward, states recomputed",
    }
    found = [_sequences(title, _of_kind(record, kind)) for kind, title in titles.items()]
    found += [_tokens(_of_kind(record, "token")), _streams(_of_kind(record, "stream"))]
    return [table for table in found if table.rows]


def failures(record: dict[str, Any]) -> list[str]:
    """One line for each contender that failed somewhere, or whose numbers were not finite."""
    lines = []
    for point in record["points"]:
        where = (
            f"{point['kind']}, dim {point['dim']}, heads {point['heads']}, {point['tokens']} tokens, {point['dtype']}"
        )
        for name, result in point["results"].items():
            if result["error"]:
                lines.append(f"{where}: {name} failed: {result['error']}")
            if not all(sample["finite"] for sample in result["samples"]):
                lines.append(f"{where}: {name} gave numbers that are not finite")
    return lines


def circumstances(record: dict[str, Any]) -> str:
    """What was measured on what: sizes, versions, the machine and its rate."""
    machine, settings = record["machine"], record["settings"]
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    rates = [
        point["summary"]["products"]["rate"]["median"] / 1e9
        for point in record["points"]
        if "products" in point["summary"]
    ]
    rate = f" Matrix products alone: {min(rates):.0f} to {max(rates):.0f} GFLOP/s." if rates else ""
    return (
        f"{machine['cpu']}, {machine['cpus']} CPUs, {settings['threads']} threads; {versions}. "
        f"Depth {settings['depth']}, expansion {settings['expansion']}, chunk {settings['chunk_size']}, momentum and "
        f"decay, batch {settings['batch']}, denormals flushed.{rate} {_fast_weights(record)} "
        f"The run took {record['seconds'] / 60:.0f} minutes."
    )


def show(record: dict[str, Any], console: Console) -> None:
    """All of it on a terminal. Wider than most: a line that is too long is better than a number cut short."""
    width = console.width
    console.width = max(width, 160)
    for table in tables(record):
        console.print(table.rich())
    console.width = width
    for text in (NOTE, circumstances(record), *(f"FAILED {line}" for line in failures(record))):
        console.print(f"{text}\n", markup=False, highlight=False)


def document(record: dict[str, Any]) -> str:
    """All of it in markdown."""
    parts = [f"`{record['command']}`", circumstances(record), NOTE]
    parts += [table.markdown() for table in tables(record)]
    parts += ["\n".join(f"- {line}" for line in failures(record))] if failures(record) else []
    return "\n\n".join(parts)


def write_document(record: dict[str, Any], path: Path) -> None:
    """Write the document; in a file that has a place for it, only there."""
    text = f"{_BEGIN}\n\n{document(record)}\n\n{_END}"
    if not path.exists():
        path.write_text(text + "\n", "utf-8")
        return
    check_place(path)
    before, rest = path.read_text("utf-8").split(_BEGIN, 1)
    path.write_text(before + text + rest.split(_END, 1)[1], "utf-8")


def check_place(path: Path) -> None:
    """Refuse a file that `write_document` could not write to: one that exists, without a place for the tables."""
    if not path.parent.is_dir():
        raise ValueError(f"no such folder: {path.parent}")
    if path.exists():
        _, begin, rest = path.read_text("utf-8").partition(_BEGIN)
        if not begin or _END not in rest:
            raise ValueError(f"{path} exists and has no place for the tables: two lines, {_BEGIN} and {_END}")


def _sequences(title: str, records: list[dict[str, Any]]) -> Table:
    header = ["dim", "heads", "tokens", "memory", "wall s", "CPU s", "peak MiB"]
    header += ["wall x exact", "CPU", "wall x anchored", "CPU", "share: op", "layer"]
    table = Table(title, header)
    for point, name, each in _rows(records):
        times = each["parts"]["layer"]
        ratios = [
            _ratio(times[base][clock], ranged=clock == "wall", own=name == base)
            for base in ("ours-exact", "ours-anchored")
            for clock in ("wall", "cpu")
        ]
        share = each.get("share", {})
        shares = [f"{share[part]['median']:.0%}" if share.get(part) else "-" for part in ("op", "layer")]
        peak = "-" if each["peak"] is None else f"{each['peak'] / 2**20:.0f}"
        seconds = [f"{times[clock]['median']:.3f}" for clock in ("wall", "cpu")]
        table.rows.append([*_where(point), f"{point['tokens']}", NAMES[name], *seconds, peak, *ratios, *shares])
    return table


def _tokens(records: list[dict[str, Any]]) -> Table:
    header = ["dim", "heads", "memory", "CPU ms a token, early", "late", "late / early", "CPU, x exact", "x anchored"]
    table = Table("One token at a time", header)
    for point, name, each in _rows(records):
        parts = list(each["parts"])
        late = each["parts"][parts[1]]
        table.title = f"One token at a time, after {parts[0]} tokens and after {parts[1]}"
        table.rows.append([
            *_where(point), NAMES[name],
            *(f"{1000 * each['parts'][part]['cpu']['median']:.2f}" for part in parts),
            _ratio(each["late over early"]["cpu"]),
            _ratio(late["ours-exact"]["cpu"], own=name == "ours-exact"),
            _ratio(late["ours-anchored"]["cpu"], own=name == "ours-anchored"),
        ])  # fmt: skip
    return table


def _streams(records: list[dict[str, Any]]) -> Table:
    header = ["dim", "heads", "tokens", "dtype", "finite", "tokens/s", "CPU, last / first", "wall, last / first"]
    header += ["resident MB early", "at the end", "rise", "numbers in the state"]
    table = Table("One long stream: its last 10,000 tokens over its first 10,000", header)
    for point, name, each in _rows(records):
        facts = point["results"][name]["facts"]
        tokens = facts["resident"][-1][0]
        early = next(size for read, size in facts["resident"] if read >= min(_SETTLED, tokens))
        held = [early, facts["resident"][-1][1], facts["growth"]]
        ratio = each["late over early"]
        table.rows.append([
            *_where(point), f"{tokens}", point["dtype"], "yes" if facts["finite"] else "NO",
            f"{tokens / facts['wall']:.0f}", _ratio(ratio["cpu"]), _ratio(ratio["wall"]),
            *("-" if size is None else f"{size / 1e6:.0f}" for size in held), f"{facts['state_numbers']}",
        ])  # fmt: skip
    return table


def _rows(records: list[dict[str, Any]]) -> Iterable[tuple[dict[str, Any], str, dict[str, Any]]]:
    for point in records:
        for name in NAMES:
            if name in point["summary"]:
                yield point, name, point["summary"][name]


def _of_kind(record: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [point for point in record["points"] if point["kind"] == kind]


def _where(point: dict[str, Any]) -> list[str]:
    return [f"{point['dim']}", f"{point['heads']}"]


def _ratio(spread: dict[str, float] | None, ranged: bool = True, own: bool = False) -> str:
    if own:
        return "1"
    if spread is None:
        return "-"
    text = f"{spread['median']:.2f}"
    return f"{text} ({spread['low']:.2f}-{spread['high']:.2f})" if ranged else text


def _fast_weights(record: dict[str, Any]) -> str:
    """Both sides' numbers, by size: they must be the same for the times to be comparable."""
    sizes: dict[tuple[int, int], dict[str, set[int]]] = {}
    for point in record["points"]:
        for name, result in point["results"].items():
            if name != "products" and result.get("facts"):
                side = sizes.setdefault((point["dim"], point["heads"]), {})
                side.setdefault(name.split("-")[0], set()).add(result["facts"]["fast_weights"])
    words = [
        f"{dim}/{heads}: " + " and ".join(f"{who} {'/'.join(map(str, sorted(n)))}" for who, n in sides.items())
        for (dim, heads), sides in sizes.items()
    ]
    return f"Fast weights by dim/heads: {'; '.join(words)}." if words else ""
