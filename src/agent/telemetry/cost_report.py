"""`python -m agent cost`: what devices have cost, by day, service and model."""

from __future__ import annotations

import argparse
import json
import sqlite3
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from agent.errors import ToyError
from agent.settings import Settings
from agent.telemetry.cost import cost_path, read_costs


class CostsUnreadable(ToyError):
    """The books cannot be read; the message says why."""


def run(argv: Sequence[str], settings: Settings) -> int:
    """The command. Raises CostsUnreadable."""
    parser = argparse.ArgumentParser(prog="python -m agent cost", description=__doc__)
    parser.add_argument("--days", type=int, default=30, help="how many days back, today included (30)")
    parser.add_argument("--by", choices=("day", "device", "model"), default="day", help="what is summed up (day)")
    parser.add_argument("--json", action="store_true", help="every row of the books as JSON")
    args = parser.parse_args(argv)
    try:
        rows = read_costs(cost_path(settings), max(1, args.days))
    except sqlite3.Error as error:
        raise CostsUnreadable(f"{cost_path(settings)} cannot be read: {error}") from None
    if args.json:
        Console().print_json(json.dumps(rows))
        return 0
    Console().print(_table(rows, args.by))
    return 0


def _table(rows: Sequence[dict[str, Any]], by: str) -> Table:
    sums: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    for row in rows:
        for name, value in row.items():
            if isinstance(value, int | float):
                sums[row[by]][name] += value
    table = Table(title=f"Costs by {by}, in the currency of PRICES", title_justify="left")
    table.add_column(by)
    for heading in ("calls", "tokens in", "of them cached", "tokens out", "speech min", "characters", "cost"):
        table.add_column(heading, justify="right")
    for key, found in sorted(sums.items(), reverse=True):
        table.add_row(
            key,
            *(f"{found[name]:.0f}" for name in ("uses", "input_tokens", "cached_tokens", "output_tokens")),
            f"{found['speech_s'] / 60:.1f}",
            f"{found['characters']:.0f}",
            f"{found['cost']:.4f}",
        )
    return table
