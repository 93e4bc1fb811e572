"""`python -m agent report LOG…`: how long things took, per mark and variant, from the worker's JSON logs."""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TextIO

from rich.console import Console
from rich.table import Table

from agent.errors import ToyError
from agent.telemetry.hub import percentile

PERCENTILES: Final = (50, 90, 95, 99)
_EVENTS: Final = ("greeting finished", "visit ended")
_ALL: Final = "all"

Key = tuple[str, str]
"""Mark and variant."""


class NothingToReport(ToyError):
    """No log line tells of a visit."""


@dataclass
class Visit:
    """One visit's moments in milliseconds, and its flags."""

    marks: dict[str, float] = field(default_factory=dict)
    variants: dict[str, str] = field(default_factory=dict)
    turns: list[Mapping[str, float]] = field(default_factory=list)

    def times(self) -> Iterator[tuple[str, float]]:
        """Marks counted from the job, `greeting` from the job or a later device to the first frame, and turns."""
        begun = self.marks.get("job_received", 0.0)
        for name, at in self.marks.items():
            if name != "job_received":
                yield name, at - begun
        first = self.marks.get("first_frame")
        if first is not None:
            yield "greeting", first - max(begun, min(self.marks.get("device_came", begun), first))
        for turn in self.turns:
            for part, took in turn.items():
                if part.endswith("_ms"):
                    yield f"turn {part.removesuffix('_ms')}", took


def read_lines(lines: Iterable[str]) -> dict[str, Visit]:
    """Visits by id, from lines of JSON; what is no such line is passed over. The last line of a visit has its marks."""
    visits: dict[str, Visit] = {}
    for number, line in enumerate(lines):
        if '"marks"' not in line:
            continue
        start = line.find("{")  # container runtimes put a time or a name before it
        try:
            found = json.loads(line[start:])
        except (ValueError, RecursionError):
            continue
        if not isinstance(found, dict) or found.get("event") not in _EVENTS:
            continue
        visit = visits.setdefault(str(found.get("visit") or f"line {number}"), Visit())
        visit.marks.update(_numbers(found.get("marks")))
        flags = found.get("variants")
        if isinstance(flags, dict):
            visit.variants.update({str(flag): str(variant) for flag, variant in flags.items()})
        turns = found.get("turns")
        if isinstance(turns, list):
            visit.turns = [_numbers(turn) for turn in turns]
    return visits


def collect(visits: Iterable[Visit], flags: Sequence[str] = ()) -> dict[Key, list[float]]:
    """Sorted times by mark and variant; the variant is `flag=on` of each of `flags`, or `all` without any."""
    found: defaultdict[Key, list[float]] = defaultdict(list)
    for visit in visits:
        variant = ", ".join(f"{flag}={visit.variants.get(flag, 'unknown')}" for flag in flags) or _ALL
        for mark, took in visit.times():
            found[mark, variant].append(took)
    return {key: sorted(values) for key, values in found.items()}


def rolled_out_in_part(visits: Iterable[Visit]) -> list[str]:
    """Flags that are on for some of the visits and off for others."""
    seen: defaultdict[str, set[str]] = defaultdict(set)
    for visit in visits:
        for flag, variant in visit.variants.items():
            seen[flag].add(variant)
    return sorted(flag for flag, variants in seen.items() if len(variants) > 1)


def table_of(found: Mapping[Key, Sequence[float]]) -> Table:
    """A row for each mark and variant, marks in the order in which they come."""
    table = Table(title="Milliseconds from the job; turns from the end of the child's speech", title_justify="left")
    table.add_column("mark")
    table.add_column("variant")
    for heading in ("n", *(f"p{p}" for p in PERCENTILES)):
        table.add_column(heading, justify="right")
    for mark, variant in _ordered(found):
        values = list(found[mark, variant])
        cells = [f"{percentile(values, p):.0f}" for p in PERCENTILES]
        table.add_row(mark, variant, str(len(values)), *cells)
    return table


def plot(found: Mapping[Key, Sequence[float]], path: Path) -> None:
    """Distributions of greeting and turn, a line each variant, as PNG. Raises ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [mark for mark in ("greeting", "turn total", "session_ready") if any(mark == key[0] for key in found)]
    figure, row = pyplot.subplots(1, max(1, len(shown)), figsize=(6 * max(1, len(shown)), 4.5), squeeze=False)
    for axes, mark in zip(row[0], shown, strict=False):
        for key in _ordered(found):
            if key[0] == mark:
                values = found[key]
                shares = [(place + 1) / len(values) for place in range(len(values))]
                axes.step(values, shares, where="post", label=f"{key[1]} ({len(values)})")
        axes.set_title(mark)
        axes.set_xlabel("milliseconds")
        axes.set_ylabel("share of visits" if "turn" not in mark else "share of turns")
        axes.set_ylim(0, 1.02)
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right", fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def run(argv: Sequence[str], *, stdin: TextIO = sys.stdin) -> int:
    """The command. Raises NothingToReport and OSError's words as ToyError."""
    parser = argparse.ArgumentParser(prog="python -m agent report", description=__doc__)
    parser.add_argument("log", nargs="+", help="log files, .gz as well; - is the standard input")
    parser.add_argument("--by", metavar="FLAG", action="append", help="compare variants of this flag; may be repeated")
    parser.add_argument("--mark", action="append", help="only these marks; may be repeated")
    parser.add_argument("--plot", type=Path, default=Path("report.png"), help="where the picture goes (report.png)")
    parser.add_argument("--no-plot", action="store_true", help="draw none")
    parser.add_argument("--json", action="store_true", help="percentiles as JSON instead of a table")
    args = parser.parse_args(argv)
    visits = list(read_lines(_all_lines(args.log, stdin)).values())
    if not visits:
        raise NothingToReport("no line tells of a visit: are these JSON logs of a worker (LOG_FORMAT=json)?")
    flags = args.by if args.by is not None else rolled_out_in_part(visits)
    found = collect(visits, flags)
    if args.mark:
        found = {key: values for key, values in found.items() if key[0] in args.mark}
        if not found:
            raise NothingToReport(f"no visit has reached {' or '.join(args.mark)}")
    console = Console()
    if args.json:
        console.print_json(json.dumps(_as_json(found)))
    else:
        console.print(table_of(found))
    if not args.no_plot:
        try:
            plot(found, args.plot)
        except ImportError:
            Console(stderr=True).print("No picture: matplotlib is not installed (pip install matplotlib).")
        else:
            Console(stderr=True).print(f"Written: {args.plot}")
    return 0


def _all_lines(names: Sequence[str], stdin: TextIO) -> Iterator[str]:
    for name in names:
        if name == "-":
            yield from stdin
            continue
        opener: Any = gzip.open if name.endswith(".gz") else open
        try:
            with opener(name, "rt", encoding="utf-8", errors="replace") as lines:
                yield from lines
        except (OSError, EOFError) as error:
            raise NothingToReport(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _as_json(found: Mapping[Key, Sequence[float]]) -> list[dict[str, Any]]:
    return [
        {
            "mark": mark,
            "variant": variant,
            "n": len(found[mark, variant]),
            **{f"p{p}": round(percentile(list(found[mark, variant]), p), 1) for p in PERCENTILES},
        }
        for mark, variant in _ordered(found)
    ]


def _ordered(found: Mapping[Key, Sequence[float]]) -> list[Key]:
    middle: defaultdict[str, list[float]] = defaultdict(list)
    for (mark, _), values in found.items():
        middle[mark].append(percentile(list(values), 50))
    return sorted(found, key=lambda key: (key[0].startswith("turn"), min(middle[key[0]]), key))


def _numbers(found: Any) -> dict[str, float]:
    if not isinstance(found, dict):
        return {}
    return {str(k): float(v) for k, v in found.items() if isinstance(v, int | float) and not isinstance(v, bool)}
