"""Fit `agent.library.mishearing` on what was said and what was heard in the development split: write mishearing.json.

Expectation maximisation by best alignments: start from "mostly heard as said", align every sentence said with what was
heard, count, smooth, and begin again. The report split is never looked at.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import agent.library
from agent.library.lexical import fold
from agent.library.pronunciation import FIRST_PHONE, pronunciations, said
from sandbox.library_evaluation import split_of

ROUNDS = 5
# How many imagined observations of each phone follow the average behaviour of all phones.
SMOOTHING = 30.0

Floats = NDArray[np.float64]
Pair = tuple[list[int], list[int]]


def pairs() -> list[tuple[str, Pair]]:
    """Titles of the development split, with a sentence for each as phones: said, heard."""
    heard = json.loads(resources.files("sandbox").joinpath("library_heard.json").read_text("utf-8"))["utterances"]
    return [
        (item["title"], (_numbers(item["said"]), _numbers(item["heard"])))
        for item in heard
        if item["heard"] and split_of(item["title"]) == "development"
    ]


def _numbers(text: str) -> list[int]:
    return [ord(sign) - ord(FIRST_PHONE) for sign in said(fold(text))]


def aligned(
    spoken: Sequence[int],
    heard: Sequence[int],
    table: Sequence[Sequence[float]],
    omitted: Sequence[float],
    added: float,
) -> Iterator[tuple[int | None, int | None]]:
    """The likeliest pairs of a phone said and one heard; None where there is no counterpart."""
    scores: list[list[float]] = []
    moves: list[list[int]] = []
    for i in range(len(spoken) + 1):
        score: list[float] = []
        move: list[int] = []
        for j in range(len(heard) + 1):
            options = [
                scores[i - 1][j - 1] + table[spoken[i - 1]][heard[j - 1]] if i and j else -math.inf,
                scores[i - 1][j] + omitted[spoken[i - 1]] if i else -math.inf,
                score[j - 1] + added if j else -math.inf,
            ]
            best = max(range(3), key=options.__getitem__)
            score.append(options[best] if i or j else 0.0)
            move.append(best)
        scores.append(score)
        moves.append(move)
    i, j = len(spoken), len(heard)
    while i or j:
        best = moves[i][j]
        i, j = i - (best != 2), j - (best != 1)
        yield (None if best == 2 else spoken[i]), (None if best == 1 else heard[j])


def fit(of: Sequence[Pair], phones: int) -> tuple[Floats, Floats, float]:
    """Log odds of hearing (said, heard), log chances of omission, log chance of addition."""
    everything = np.bincount([phone for _, heard in of for phone in heard], minlength=phones) + 1.0
    usual = everything / everything.sum()
    chances = np.full((phones, phones), 0.15 / phones)
    np.fill_diagonal(chances, 0.75)
    omitted, added = np.full(phones, 0.1), 0.08
    own = np.eye(phones, dtype=bool)
    for _ in range(ROUNDS):
        table, left = (np.log(chances) - np.log(usual)).tolist(), np.log(omitted).tolist()
        counts, gone, come = np.zeros((phones, phones)), np.zeros(phones), 0
        for spoken, heard in of:
            for here, there in aligned(spoken, heard, table, left, math.log(added)):
                if here is None:
                    come += 1
                elif there is None:
                    gone[here] += 1
                else:
                    counts[here, there] += 1
        total = counts.sum() + gone.sum()
        average = np.where(own, 0.5, usual[None, :] * counts[~own].sum() / total)
        chances = counts + SMOOTHING * average
        omitted = gone + SMOOTHING * gone.sum() / total
        scale = chances.sum(axis=1) + omitted
        chances, omitted, added = chances / scale[:, None], omitted / scale, come / total
    return np.log(chances) - np.log(usual), np.log(omitted), math.log(added)


def main() -> None:
    """Write the file; some 20 s on one core."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(agent.library.__file__).with_name("mishearing.json"))
    out = parser.parse_args().out
    phones = pronunciations().phones
    of = [pair for _, pair in pairs()]
    table, omitted, added = fit(of, len(phones))
    stored = {
        "made_by": "python -m sandbox.mishearing_fit",
        "from": f"{len(of)} sentences of the development split: espeak-ng heard by pocketsphinx's general model",
        "phones": phones,
        "added": round(added, 3),
        "omitted": [round(value, 2) for value in omitted.tolist()],
    }
    rows = ",\n".join(json.dumps([round(value, 2) for value in row]) for row in table.tolist())
    out.write_text(f'{json.dumps(stored)[:-1]},\n"heard": [\n{rows}\n]}}\n', "utf-8")
    print(f"wrote {out} from {len(of)} sentences")


if __name__ == "__main__":
    main()
