"""What a recogniser makes of what is said: how much a heard sentence speaks for a name having been said in it.

A noisy channel over phones: chances that a phone is heard as another, not at all, or that one is heard where none was.
They come from mishearing.json, which says how it was made.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Final

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from agent.library.pronunciation import FIRST_PHONE

Floats = NDArray[np.float32]

_FIRST: Final = ord(FIRST_PHONE)
_IMPOSSIBLE: Final = -1000.0


@dataclass(frozen=True, slots=True)
class Channel:
    """`as_heard[h, s]`: log of how much likelier phone h is heard where s is said than anywhere; its last column is
    for padding. `omitted[s]`: log chance that s is not heard. `added`: log chance that a phone is heard in addition."""

    as_heard: Floats
    omitted: Floats
    added: float

    def evidence(self, names: Sequence[str], heard: str) -> tuple[Floats, NDArray[np.int32]]:
        """For each name (its phones): the log odds that the whole of it was said somewhere in what was heard, against
        other speech; and where in `heard` the likeliest place for it ends."""
        said = _coded(names)
        odds = np.zeros(len(names), np.float32)
        ends = np.zeros(len(names), np.int32)
        if not said.size:
            return odds, ends
        # State j, name n: the best so far with the first j phones said, less what leaving them out would cost.
        state = np.zeros((len(said) + 1, len(names)), np.float32)
        step = np.zeros_like(state)
        gains: dict[int, Floats] = {}
        for place, phone in enumerate(heard.encode("ascii"), 1):
            phone -= _FIRST
            gain = gains.get(phone)
            if gain is None:
                gain = gains[phone] = np.take(self.as_heard[phone] - self.omitted, said)
            np.add(state[:-1], gain, out=step[1:])
            state[1:] += self.added
            np.maximum(step[1:], state[1:], out=step[1:])
            np.maximum.accumulate(step, axis=0, out=state)
            better = state[-1] > odds
            odds[better] = state[-1][better]
            ends[better] = place
        return odds + self.omitted[said].sum(axis=0), ends

    def most(self, names: Sequence[str]) -> Floats:
        """The evidence for each name where every phone of it is heard as it is said."""
        said = _coded(names)
        perfect = np.append(self.as_heard.diagonal(), np.float32(0.0))
        total: Floats = perfect[said].sum(axis=0, dtype=np.float32)
        return total

    def start(self, name: str, heard: str, end: int) -> int:
        """Where in `heard` the likeliest place for a name begins, that ends at `end`."""
        _, length = self.evidence([name[::-1]], heard[:end][::-1])
        return end - int(length[0])


def _coded(names: Sequence[str]) -> NDArray[np.intp]:
    """Phones as numbers, a column a name, padded at the end with the number after the last phone."""
    if not names:
        return np.zeros((0, 0), np.intp)
    packed = np.array([name.encode("ascii") for name in names])
    signs = packed.view(np.uint8).reshape(len(names), -1).T.astype(np.intp)
    return np.where(signs == 0, len(channel().omitted) - 1, signs - _FIRST)


@cache
def channel() -> Channel:
    """What is in use."""
    stored = json.loads(resources.files("agent.library").joinpath("mishearing.json").read_text("utf-8"))
    return make_channel(stored["heard"], stored["omitted"], stored["added"])


def make_channel(heard: npt.ArrayLike, omitted: npt.ArrayLike, added: float) -> Channel:
    """From `heard[said][heard]`, `omitted[said]` (log odds, log chances) and `added`."""
    table = np.array(heard, np.float32).T
    padding = np.full((len(table), 1), _IMPOSSIBLE, np.float32)
    return Channel(np.hstack([table, padding]), np.append(np.array(omitted, np.float32), np.float32(0.0)), added)
