"""Which title is likeliest, and whether it is likely enough to play: two small fitted rules over the features.

`rank` is linear and sorts all candidates. `accept` is a sum of small decision trees, monotone in every measure of
likeness, that judges the first few. Both come from ranking.json, which says how it was made.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Final

import numpy as np
from numpy.typing import NDArray

from agent.library.lexical import FUNCTION_WORDS
from agent.library.matching import FEATURES, REMAINDERS, Matrix, Rows, remainders
from agent.library.requests import Request
from agent.library.title_index import Words

_PRODUCTS: Final = (
    ("asked", "told"),
    ("chars", "sounds"),
    ("about", "dense"),
    ("asked", "inside"),
    ("worst", "missed"),
)
# How many of the first candidates the accepting rule looks at.
JUDGED: Final = 4

# What a description is made of and a name seldom is.
_DESCRIBING: Final = frozenset(
    ("about", "who", "that", "where", "when", "which", "whose", "with", "because", "why", "how")
)

INPUTS: Final = (*FEATURES, *REMAINDERS, "score_lead", "length", "describing", "function_words")
# Which way an input may move the chance: 1 up, -1 down, 0 either.
DIRECTIONS: Final = tuple(
    0
    if name in {"similar", "contrary", "length", "describing", "function_words"}
    else -1
    if name in {"unheard", "unsaid", "replaced"}
    else 1
    for name in INPUTS
)

# A node of a tree: (input, threshold, child where the input is at most that, child where it is more), or (value,).
Node = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A title's row and rank score, and its best pair of a name and a reading with their features."""

    row: int
    score: float
    form: int
    reading: int
    features: Matrix


@dataclass(frozen=True, slots=True)
class Model:
    """The fitted rules. A chance of at least `threshold` plays."""

    rank: NDArray[np.float32]
    trees: tuple[tuple[Node, ...], ...]
    bias: float
    threshold: float

    def chance(self, inputs: Sequence[float]) -> float:
        """The accepting rule: from INPUTS to a chance from 0 to 1."""
        total = self.bias
        for tree in self.trees:
            node = tree[0]
            while len(node) > 1:
                node = tree[int(node[2] if inputs[int(node[0])] <= node[1] else node[3])]
            total += node[0]
        return 1.0 / (1.0 + math.exp(-max(-30.0, min(30.0, total))))


@cache
def model() -> Model:
    """The rules that are in use."""
    stored = json.loads(resources.files("agent.library").joinpath("ranking.json").read_text("utf-8"))
    return Model(
        np.array([stored["rank"][name] for name in rank_inputs()], np.float32),
        tuple(tuple(tuple(node) for node in tree) for tree in stored["trees"]),
        stored["bias"],
        stored["threshold"],
    )


def rank_inputs() -> tuple[str, ...]:
    """Names of what `expand` makes, in order."""
    return (*FEATURES, *(f"{name}^2" for name in FEATURES), *(f"{first}*{second}" for first, second in _PRODUCTS))


def expand(features: Matrix) -> Matrix:
    """The ranking rule's inputs: the features, their squares, and the products that matter; a row each."""
    place = {name: number for number, name in enumerate(FEATURES)}
    products = [features[:, place[first]] * features[:, place[second]] for first, second in _PRODUCTS]
    return np.hstack([features, features**2, np.stack(products, axis=1)])


def ranked(rows: Rows, rank: NDArray[np.floating]) -> list[Candidate]:
    """Every title once, by its best row, best first."""
    scores = expand(rows.features) @ rank
    order = np.argsort(-scores, kind="stable")
    _, first = np.unique(rows.title[order], return_index=True)
    return [
        Candidate(
            int(rows.title[row]), float(scores[row]), int(rows.form[row]), int(rows.reading[row]), rows.features[row]
        )
        for row in order[np.sort(first)].tolist()
    ]


def accept_inputs(words: Words, wanted: Request, scored: Sequence[Candidate], place: int) -> list[float]:
    """The accepting rule's inputs for the candidate in `place` (see INPUTS)."""
    candidate = scored[place]
    reading, whole = wanted.readings[candidate.reading], wanted.readings[-1]
    rival = next((other.score for number, other in enumerate(scored[:2]) if number != place), candidate.score - 5.0)
    return [
        *candidate.features.tolist(),
        *remainders(words, reading, candidate.form, candidate.row),
        max(-5.0, min(5.0, candidate.score - rival)) / 5.0,
        min(1.0, len("".join(reading)) / 30.0),
        float(any(word in _DESCRIBING for word in whole)),
        sum(word in FUNCTION_WORDS for word in whole) / len(whole),
    ]


def decide(words: Words, wanted: Request, scored: Sequence[Candidate]) -> tuple[list[Candidate], float]:
    """The candidates, the likeliest of the first few now in front, and its chance from 0 to 1."""
    rules = model()
    chances = [rules.chance(accept_inputs(words, wanted, scored, place)) for place in range(min(JUDGED, len(scored)))]
    best = max(range(len(chances)), key=chances.__getitem__)
    return [scored[best], *scored[:best], *scored[best + 1 :]], chances[best]
