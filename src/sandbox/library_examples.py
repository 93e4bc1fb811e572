"""What `sandbox.library_fit` learns from: requests of the development split, measured against catalogues.

The report split is never looked at.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

from agent.library.lexical import FUNCTION_WORDS, content_words, fold
from agent.library.matching import Rows
from agent.library.mishearing import Channel, make_channel
from agent.library.pronunciation import pronunciations
from agent.library.requests import Request, understand
from agent.library.titles import Kind
from sandbox.library_evaluation import Case, carried, catalogue, misspell, partial_name, seeded, split_of
from sandbox.library_trial import Trial
from sandbox.mishearing_fit import fit as fit_hearing
from sandbox.mishearing_fit import pairs

FOLDS = 5


@dataclass(frozen=True, slots=True)
class Example:
    """A request measured against a catalogue: `target` is the row that is meant, None if it is not there."""

    case: Case
    wanted: Request
    rows: Rows
    target: int | None
    exact: bool
    trial: Trial
    source: str


def measured(of: Iterable[Case], by_kind: dict[Kind, Trial], source: str, *, dense: bool = True) -> Iterator[Example]:
    """Measure requests for named titles; those for any title or section have nothing to learn from."""
    rows_of = {kind: {title.title: row for row, title in enumerate(trial.titles)} for kind, trial in by_kind.items()}
    for case in of:
        trial = by_kind[case.kind]
        trial.index.words.hearing = hearing_without(case)
        wanted = understand(case.text, trial.index.words.names_of_sections)
        if wanted.wish != "named":
            continue
        exact = trial.index.exact(wanted, wanted.section)
        target = rows_of[case.kind].get(case.title) if case.title else None
        if target is None and exact is not None:
            continue
        embed, near = (trial.embed, trial.dense) if dense else (None, None)
        rows = trial.index.measured(wanted, wanted.section, embed, near)
        if rows is not None:
            yield Example(case, wanted, rows, target, exact is not None, trial, source)


def near_misses() -> Iterator[Case]:
    """Names of development titles with one or two of their words replaced by others."""
    titles = [title for title in catalogue() if split_of(title.title) == "development"]
    others = sorted({word for title in titles for word in title.keywords if word.isascii() and word.isalpha()})
    for title in titles:
        for number in range(2):
            rng = seeded(f"near {number} {title.title}")
            names = [name for name in title.names[:2] if name.isascii() and len(content_words(fold(name))) > 1]
            words = rng.choice(names).split() if names else []
            places = [
                place
                for place, word in enumerate(words)
                if len(word) > 2 and fold(word) and fold(word)[0] not in FUNCTION_WORDS
            ]
            if len(places) < 2:
                continue
            for place in rng.sample(places, 2 if len(places) > 3 and rng.random() < 0.4 else 1):
                words[place] = rng.choice(others).title()
            yield Case("near", title.kind, carried(title, " ".join(words), rng), None, "development")


def by_rule() -> Iterator[Case]:
    """More exact, partial and misspelt requests for development titles, some with their language named."""
    titles = catalogue()
    for title in titles:
        if split_of(title.title) != "development":
            continue
        for number in range(2):
            rng = seeded(f"rule {number} {title.title}")
            name = rng.choice(title.names).lower()
            part = partial_name(title, titles, rng)
            latin = [name for name in title.names if name.isascii() and len(name) > 6][:2]
            wrong = misspell(rng.choice(latin).lower(), rng) if latin else None
            for group, text in (("exact", name), ("partial", part), ("misspelt", wrong)):
                if text:
                    said = carried(title, text, rng)
                    if title.kind == "music" and rng.random() < 0.15:
                        said = f"{said} in {title.section}"
                    yield Case(group, title.kind, said, title.title, "development")  # type: ignore[arg-type]


def fold_of(text: str) -> int:
    """The part, out of FOLDS, that a title or a request for none belongs to."""
    return hashlib.md5(text.encode()).digest()[0] % FOLDS


def fold_of_case(case: Case) -> int:
    """The part that a request belongs to."""
    return fold_of(case.title or case.text)


@cache
def _hearings() -> list[Channel]:
    known = pairs()
    phones = len(pronunciations().phones)
    return [
        make_channel(*fit_hearing([pair for title, pair in known if fold_of(title) != held], phones))
        for held in range(FOLDS)
    ]


def hearing_without(case: Case) -> Channel:
    """What is misheard, learnt without the title of `case`: its own mishearings must not look better known than those
    of titles that nobody has heard yet."""
    return _hearings()[fold_of_case(case)]
