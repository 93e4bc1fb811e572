"""What benchmarks print and keep: medians, 95th percentiles, ratios, JSON and a plot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table


def summary(values: Sequence[float]) -> dict[str, float]:
    """Count, median and 95th percentile."""
    return {
        "n": len(values),
        "p50": round(float(np.percentile(values, 50)), 1),
        "p95": round(float(np.percentile(values, 95)), 1),
    }


def ratios(values: Sequence[float], base: Sequence[float]) -> dict[str, float]:
    """Median and 95th percentile as multiples of the base's."""
    mine, other = summary(values), summary(base)
    return {key: round(mine[key] / other[key], 3) for key in ("p50", "p95")}


def print_table(title: str, rows: Mapping[str, Sequence[float]], base: str | None, unit: str = "ms") -> None:
    """A row a variant, with ratios to `base` where one is named."""
    table = Table(title=title)
    columns = ["variant", "n", f"p50 {unit}", f"p95 {unit}"]
    if base is not None:
        columns += ["p50 ratio", "p95 ratio"]
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for name, values in rows.items():
        if not values:
            continue
        numbers = summary(values)
        cells = [name, str(int(numbers["n"])), f"{numbers['p50']:.1f}", f"{numbers['p95']:.1f}"]
        if base is not None:
            relative = ratios(values, rows[base])
            cells += [f"{relative['p50']:.3f}", f"{relative['p95']:.3f}"]
        table.add_row(*cells)
    Console(width=110).print(table)


def write_json(path: Path, report: Mapping[str, Any]) -> None:
    """Keep the whole report, samples included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    Console().print(f"wrote {path}")


def plot_distributions(path: Path, title: str, rows: Mapping[str, Sequence[float]], label: str) -> None:
    """Cumulative distributions, one line a variant, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5))
    for name, values in rows.items():
        if values:
            ordered = np.sort(values)
            axes.step(ordered, np.arange(1, len(ordered) + 1) / len(ordered), where="post", label=name)
    axes.set_title(title)
    axes.set_xlabel(label)
    axes.set_ylabel("share of joins")
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    Console().print(f"wrote {path}")
