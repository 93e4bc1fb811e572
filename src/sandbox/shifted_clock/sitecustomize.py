"""With this folder on PYTHONPATH, Python's wall clock is off by the seconds that the file named by SHIFTED_CLOCK holds.

The file may change at any time. Monotonic clocks, `datetime.now` and native code keep the machine's time. (libfaketime,
which would shift those too, makes WebRTC's waiting threads spin.)
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final

LOOK_EVERY_S: Final = 0.05


def shift(path: str) -> None:
    """Replace `time.time` and `time.time_ns`; a file that cannot be read leaves the last shift in force."""
    real, real_ns, monotonic = time.time, time.time_ns, time.monotonic
    offset, looked_at = 0, float("-inf")

    def current() -> int:
        nonlocal offset, looked_at
        if (now := monotonic()) - looked_at > LOOK_EVERY_S:
            looked_at = now
            try:
                with open(path, encoding="ascii") as file:  # noqa: PTH123 — runs before anything else is imported
                    offset = int(file.read())
            except (OSError, ValueError):
                return offset
        return offset

    def shifted() -> float:
        return real() + current()

    def shifted_ns() -> int:
        return real_ns() + current() * 1_000_000_000

    replacements: dict[str, Callable[[], float]] = {"time": shifted, "time_ns": shifted_ns}
    for name, replacement in replacements.items():
        setattr(time, name, replacement)


if "SHIFTED_CLOCK" in os.environ:
    shift(os.environ["SHIFTED_CLOCK"])
