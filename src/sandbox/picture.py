"""A visit as a picture: what the device heard, with the moments of its timeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sandbox.audio import Pcm

_WAVE, _INK, _GRID = "#3b6ea8", "#222222", "#dddddd"
_COLOURS = ("#c0392b", "#8e44ad", "#16803c", "#d35400", "#1f6f8b", "#7f6000", "#555555", "#ad1457", "#2e4a9e")


@dataclass(frozen=True)
class Moment:
    """A named moment, in milliseconds from when the device had joined; None: it was not reached."""

    name: str
    ms: float | None


@dataclass(frozen=True)
class Span:
    """Something that lasted, in milliseconds on the moments' scale. `row` 0 is the lowest."""

    name: str
    starts_ms: float
    ends_ms: float
    row: int = 0


def draw_visit(
    path: Path,
    samples: Pcm,
    rate: int,
    starts_ms: float,
    moments: Sequence[Moment],
    *,
    spans: Sequence[Span] = (),
    title: str = "A visit",
) -> None:
    """Write a PNG: the beginning with every moment named above the waveform, and below it the visit as a whole.

    `starts_ms` is the time of the first sample on the moments' scale; `spans` are bands under the whole visit.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    reached = sorted((moment for moment in moments if moment.ms is not None), key=lambda moment: moment.ms or 0.0)
    colours = {moment.name: _COLOURS[index % len(_COLOURS)] for index, moment in enumerate(reached)}
    ends_ms = max([starts_ms + samples.size / rate * 1000, *(moment.ms or 0.0 for moment in reached)])
    first_ms = min([0.0, *(moment.ms or 0.0 for moment in reached)])
    early = [moment for moment in reached if (moment.ms or 0.0) <= _beginning(reached)]
    zoom_ends = min(ends_ms, max([400.0, *(moment.ms or 0.0 for moment in early)]) * 1.25)

    figure, (top, bottom) = pyplot.subplots(
        2, 1, figsize=(12, 7.2), height_ratios=[1.7, 1], layout="constrained", dpi=130
    )
    try:
        figure.suptitle(title, fontsize=14, fontweight="bold", color=_INK)
        span = zoom_ends - first_ms
        _waveform(top, samples, rate, starts_ms, (first_ms - span * 0.03, zoom_ends))
        span = ends_ms - first_ms
        _waveform(bottom, samples, rate, starts_ms, (first_ms - span * 0.01, ends_ms + span * 0.01))
        top.set_title("The beginning", loc="left", fontsize=10, color=_INK)
        bottom.set_title("The whole visit", loc="left", fontsize=10, color=_INK)
        bottom.set_xlabel("milliseconds since the device had joined")
        _bands(bottom, spans)
        figure.canvas.draw()
        _mark(figure, top, early, colours, named=early)
        _mark(figure, bottom, reached, colours, named=[moment for moment in reached if moment not in early])
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        figure.savefig(part, format="png")
        part.replace(path)
    finally:
        pyplot.close(figure)


def _beginning(reached: Sequence[Moment]) -> float:
    """Until when moments belong to the beginning: the last one before a pause of more than a second."""
    last = 0.0
    for moment in reached:
        if moment.ms is not None and moment.ms - last > 1000:
            break
        last = moment.ms or 0.0
    return last


def _waveform(axes: Any, samples: Pcm, rate: int, starts_ms: float, shown: tuple[float, float]) -> None:
    first = max(0, int((shown[0] - starts_ms) * rate / 1000))
    last = max(first, min(samples.size, int((shown[1] - starts_ms) * rate / 1000) + 1))
    part = samples[first:last].astype(np.float64) / 32768
    # One column of lowest and highest a pixel: no peak is lost, and the file stays small.
    width = max(1, part.size // 2400)
    columns = part[: part.size // width * width].reshape(-1, width)
    if columns.size:
        times = starts_ms + (first + np.arange(len(columns)) * width) / rate * 1000
        axes.fill_between(times, columns.min(axis=1), columns.max(axis=1), color=_WAVE, linewidth=0.4, edgecolor=_WAVE)
    peak = float(np.abs(samples.astype(np.float64)).max(initial=0)) / 32768
    height = max(0.1, peak * 1.1)
    axes.set_xlim(*shown)
    axes.set_ylim(-height, height)
    axes.set_ylabel("amplitude")
    axes.set_axisbelow(True)
    axes.grid(axis="x", color=_GRID, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _bands(axes: Any, spans: Sequence[Span]) -> None:
    """Below the waveform, a row for each kind of thing."""
    if not spans:
        return
    low, high = axes.get_ylim()
    rows = max(span.row for span in spans) + 1
    height = (high - low) * 0.16
    for span in spans:
        colour = _COLOURS[span.row]
        bottom = low - height * (rows - span.row)
        axes.broken_barh(
            [(span.starts_ms, span.ends_ms - span.starts_ms)], (bottom, height * 0.85), color=colour, alpha=0.3
        )
        axes.text(
            span.starts_ms, bottom + height * 0.4, f" {span.name}", fontsize=8, color=colour, va="center", clip_on=True
        )
    axes.set_ylim(low - height * rows, high)
    axes.set_yticks([tick for tick in axes.get_yticks() if low <= tick <= high])


def _mark(
    figure: Any, axes: Any, moments: Sequence[Moment], colours: dict[str, str], *, named: Sequence[Moment]
) -> None:
    """A line at each moment, the names above the waveform: each on the lowest row where nothing is covered.

    A line ends at the row of its name, so that it crosses none above.
    """
    area = axes.get_window_extent()
    rows: list[list[tuple[float, float]]] = []
    lines: list[tuple[float, int]] = []
    texts = []
    for moment in reversed(named):
        at = float(axes.transData.transform((moment.ms, 0))[0])
        text = axes.annotate(
            f"{moment.name}  {moment.ms:.0f} ms",
            (moment.ms, 1),
            xycoords=("data", "axes fraction"),
            xytext=(5, 0),
            textcoords="offset points",
            fontsize=9,
            color=colours[moment.name],
            va="center",
            annotation_clip=False,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
        )
        box = text.get_window_extent(figure.canvas.get_renderer())
        start, end = at - 2, box.x1 + 8
        if end > area.x1 and box.width + 16 < at - area.x0:
            text.set_horizontalalignment("right")
            text.xyann = (-5, 0)
            start, end = at - box.width - 16, at + 2
        row = max((under + 1 for line, under in lines if start < line < end), default=0)
        while row < len(rows) and any(start < right and left < end for left, right in rows[row]):
            row += 1
        rows.extend([] for _ in range(row + 1 - len(rows)))
        rows[row].append((start, end))
        lines.append((at, row))
        texts.append((text, row, moment))
    # The rows take the upper part of the axes: the waveform is moved down to make room.
    low, high = axes.get_ylim()
    share = min(0.75, (len(rows) * 0.17 * figure.dpi + 8) / area.height) if rows else 0.0
    ticks = [tick for tick in axes.get_yticks() if low <= tick <= high]
    axes.set_ylim(low, low + (high - low) / (1 - share))
    axes.set_yticks(ticks)
    heights = {}
    for text, row, moment in texts:
        heights[moment.name] = 1 - share * (len(rows) - row - 0.5) / len(rows)
        text.xy = (text.xy[0], heights[moment.name])
    for moment in moments:
        top = heights.get(moment.name, 1 - share)
        axes.axvline(moment.ms, ymax=top, color=colours[moment.name], linewidth=1.3, zorder=3)
