"""Fit the two rules of `agent.library.decision` on the development split and write ranking.json.

The report split is never looked at. What is learnt from: the development requests; the same with their title taken out
of the catalogue, which must then be refused; generated near misses (a word of a name replaced), partial, misspelt and
exact requests for development titles; the development requests again without vectors, and in a small library that lacks
nearly all of them. Needs scikit-learn, which nothing else here does.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import agent.library
from agent.library import model_files
from agent.library.decision import (
    DIRECTIONS,
    INPUTS,
    JUDGED,
    Node,
    accept_inputs,
    expand,
    rank_inputs,
    ranked,
)
from agent.library.embedding import Embedder
from agent.library.matching import FEATURES
from agent.settings import load_settings
from sandbox.library_evaluation import cases
from sandbox.library_examples import FOLDS, Example, by_rule, fold_of_case, hearing_without, measured, near_misses
from sandbox.library_trial import Embeddings, trials

Floats = NDArray[np.float64]
TREES, LEAVES, RATE = 160, 6, 0.06
# How many candidates a title is set against.
RIVALS = 30
SIZES = (0, 2000)
# A small library, which lacks most of what it is asked for, has every how manieth title.
FEW = 40
# What one example counts. Development titles were spoken twice.
WEIGHTS = {
    "present": 1.0, "misheard": 0.5, "absent": 5.0, "removed": 0.1, "exact name": 0.3, "near": 1.0, "rule": 0.5,
    "no vectors": 0.2, "few": 0.15,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Judged:
    """One input of the accepting rule, whether that candidate was meant, and what the example counts."""

    inputs: list[float]
    right: bool
    weight: float


def fit_rank(examples: Sequence[Example], *, rounds: int = 3, penalty: float = 0.0002) -> Floats:
    """The ranking rule: softmax over the titles of a request, each by its best name, refined in rounds."""
    useful = [item for item in examples if item.target is not None and (item.rows.title == item.target).any()]
    rule = np.zeros(len(rank_inputs()))
    rule[: len(FEATURES)] = 2.0
    for _ in range(rounds):
        blocks: list[Floats] = []
        places: list[int] = []
        for item in useful:
            scored = ranked(item.rows, rule)
            place = next(number for number, other in enumerate(scored) if other.row == item.target)
            first = scored[:RIVALS] if place < RIVALS else [*scored[: RIVALS - 1], scored[place]]
            blocks.append(expand(np.array([other.features for other in first])).astype(np.float64))
            places.append(min(place, RIVALS - 1))
        rule = _descend(rule, blocks, places, np.array([WEIGHTS[item.source] for item in useful]), penalty)
    return rule


def _descend(
    rule: Floats, blocks: Sequence[Floats], places: Sequence[int], weights: Floats, penalty: float, steps: int = 300
) -> Floats:
    """Minimise the weighted cross-entropy of choosing row `places[i]` of `blocks[i]` (Adam)."""
    values = np.concatenate(blocks)
    sizes = np.array([len(block) for block in blocks])
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    wanted = np.zeros(len(values))
    wanted[starts + np.array(places)] = 1.0
    strength = np.repeat(weights / weights.sum(), sizes)
    mean, square = np.zeros_like(rule), np.zeros_like(rule)
    for step in range(1, steps + 1):
        score = values @ rule
        chance = np.exp(score - np.repeat(np.maximum.reduceat(score, starts), sizes))
        chance /= np.repeat(np.add.reduceat(chance, starts), sizes)
        slope = values.T @ (strength * (chance - wanted)) + penalty * rule
        mean, square = 0.9 * mean + 0.1 * slope, 0.99 * square + 0.01 * slope**2
        rule = rule - 0.05 * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.99**step)) + 1e-8)
    return rule


def judge(examples: Sequence[Example], rule: Floats) -> Iterator[Judged]:
    """The first candidates of every request, and the first one left when the title is taken out of the catalogue."""
    for item in examples:
        words = item.trial.index.words
        words.hearing = hearing_without(item.case)
        scored = ranked(item.rows, rule)
        spoken = item.source == "present" and item.case.group == "misheard"
        weight = WEIGHTS["exact name" if item.exact else "misheard" if spoken else item.source]
        for place in range(min(3, len(scored))):
            right = item.target is not None and scored[place].row == item.target
            if place == 0 or item.target is not None:
                share = weight if place == 0 or right else weight / 4
                yield Judged(accept_inputs(words, item.wanted, scored, place), right, share)
        if item.target is not None and item.source == "present":
            without = [other for other in scored if other.row != item.target]
            if without:
                yield Judged(accept_inputs(words, item.wanted, without, 0), False, WEIGHTS["removed"])


def fit_accept(items: Sequence[Judged]) -> Any:
    """The accepting rule: monotone boosted trees."""
    from sklearn.ensemble import HistGradientBoostingClassifier  # type: ignore[import-not-found]

    return HistGradientBoostingClassifier(
        max_iter=TREES,
        max_leaf_nodes=LEAVES,
        learning_rate=RATE,
        l2_regularization=1.0,
        min_samples_leaf=12,
        monotonic_cst=list(DIRECTIONS),
        early_stopping=False,
        random_state=1,
    ).fit(
        np.array([item.inputs for item in items]),
        np.array([item.right for item in items]),
        sample_weight=np.array([item.weight for item in items]),
    )


def trees_of(fitted: Any) -> list[list[Node]]:
    """The trees as `decision.Model` reads them."""
    out: list[list[Node]] = []
    for (predictor,) in fitted._predictors:
        out.append(
            [
                (round(float(node["value"]), 5),)
                if node["is_leaf"]
                else (
                    int(node["feature_idx"]),
                    round(float(node["num_threshold"]), 6),
                    int(node["left"]),
                    int(node["right"]),
                )
                for node in predictor.nodes
            ]
        )
    return out


def judged_out_of_fold(examples: Sequence[Example]) -> list[tuple[Example, bool, float]]:
    """Development requests, whether the candidate put first was meant, and its chance; the rules that say so were
    fitted without the request's title."""
    out: list[tuple[Example, bool, float]] = []
    for held in range(FOLDS):
        others = [item for item in examples if fold_of_case(item.case) != held]
        rule = fit_rank(others)
        accept = fit_accept(list(judge(others, rule)))
        for item in examples:
            if fold_of_case(item.case) != held or item.source not in {"present", "absent"}:
                continue
            scored = ranked(item.rows, rule)
            item.trial.index.words.hearing = hearing_without(item.case)
            inputs = [
                accept_inputs(item.trial.index.words, item.wanted, scored, n) for n in range(min(JUDGED, len(scored)))
            ]
            chances = accept.predict_proba(np.array(inputs))[:, 1]
            best = int(np.argmax(chances))
            out.append((item, scored[best].row == item.target, float(chances[best])))
    return out


def outcomes(judged: Sequence[tuple[Example, bool, float]], threshold: float) -> dict[str, tuple[float, float, float]]:
    """By group: shares refused, played right, and played wrong."""
    counts: dict[str, list[int]] = {}
    for item, right, chance in judged:
        plays = item.exact or chance >= threshold
        for group in (item.case.group, "all it has" if item.case.title else "all it lacks"):
            count = counts.setdefault(group, [0, 0, 0])
            count[0 if not plays else 1 if right or item.exact else 2] += 1
    return {
        group: (round(a / (a + b + c), 3), round(b / (a + b + c), 3), round(c / (a + b + c), 3))
        for group, (a, b, c) in counts.items()
    }


def write(out: Path, examples: Sequence[Example], threshold: float) -> None:
    """Fit both rules to `examples` and write them to `out`."""
    rule = fit_rank(examples)
    fitted = fit_accept(list(judge(examples, rule)))
    digest = hashlib.sha256()
    for name in ("library_catalogue.csv", "library_phrases.csv", "library_heard.json"):
        digest.update(Path(__file__).with_name(name).read_bytes())
    stored = {
        "made_by": "python -m sandbox.library_fit",
        "from": f"development split, {len(examples)} examples, data {digest.hexdigest()[:12]}",
        "threshold": threshold,
        "bias": round(float(fitted._baseline_prediction.ravel()[0]), 5),
        "rank": {name: round(float(value), 4) for name, value in zip(rank_inputs(), rule, strict=True)},
        "inputs": list(INPUTS),
    }
    head = json.dumps(stored, indent=1)[:-2]
    trees = ",\n".join("  " + json.dumps(tree, separators=(",", ":")) for tree in trees_of(fitted))
    out.write_text(f'{head},\n "trees": [\n{trees}\n ]\n}}\n', encoding="utf-8")


def main() -> None:
    """Fit, print what cross-validation on the development split says, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(agent.library.__file__).with_name("ranking.json"))
    parser.add_argument("--threshold", type=float, default=0.35, help="chance from which a title plays")
    parser.add_argument("--quick", action="store_true", help="without cross-validation")
    arguments = parser.parse_args()
    started = time.perf_counter()
    embeddings = Embeddings(Embedder(model_files.find(load_settings())))
    own = [case for case in cases() if case.split == "development"]
    examples: list[Example] = []
    for size in SIZES:
        by_kind = trials(embeddings, size)
        examples += measured([case for case in own if case.title], by_kind, "present")
        examples += measured([case for case in own if not case.title], by_kind, "absent")
        if size == SIZES[0]:
            examples += measured(near_misses(), by_kind, "near")
            examples += [item for item in measured(by_rule(), by_kind, "rule") if not item.exact]
            examples += measured(own, by_kind, "no vectors", dense=False)
            examples += measured(own, trials(embeddings, every=FEW), "few")
    print(f"{len(examples)} examples in {time.perf_counter() - started:.0f} s", flush=True)
    if not arguments.quick:
        judged = judged_out_of_fold(examples)
        for threshold in (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5):
            print(threshold, outcomes(judged, threshold), flush=True)
    write(arguments.out, examples, arguments.threshold)
    print(f"wrote {arguments.out} after {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
