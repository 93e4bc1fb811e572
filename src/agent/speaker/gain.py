"""Loudness that changes without clicks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Gain = float | NDArray[np.float32]


class Ramp:
    """A level that moves to its target in a straight line, sample by sample."""

    def __init__(self, level: float = 1.0) -> None:
        self._level = self._target = level
        self._step = 0.0

    @property
    def level(self) -> float:
        """Where it is now."""
        return self._level

    @property
    def target(self) -> float:
        """Where it goes."""
        return self._target

    def to(self, target: float, samples: int) -> None:
        """Reach `target` after `samples`; at once for none."""
        self._target = target
        if samples <= 0:
            self._level = target
        self._step = (target - self._level) / max(samples, 1)

    def take(self, samples: int) -> Gain:
        """The level for each of the next `samples`; one number while it does not move."""
        if self._level == self._target:
            return self._level
        values: NDArray[np.float32] = self._level + self._step * np.arange(1, samples + 1, dtype=np.float32)
        low, high = sorted((self._level, self._target))
        np.clip(values, low, high, out=values)
        left = abs(self._target - self._level) - abs(self._step) * samples
        self._level = self._target if left <= abs(self._step) / 2 else float(values[-1])
        return values


def falling(samples: int) -> NDArray[np.float32]:
    """A fade from full to nothing."""
    return np.linspace(1.0, 0.0, samples, dtype=np.float32)
