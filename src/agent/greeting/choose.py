"""Which of several recordings suits a child."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final, Protocol, TypeVar

from agent.greeting.languages import lookup_order, normalise

Age = float | int | None

YOUNG_UNTIL: Final = 7
"""Children younger than this many years hear the child-friendly style."""


class Spoken(Protocol):
    """What a choice looks at."""

    @property
    def language(self) -> str: ...
    @property
    def style(self) -> str: ...


S = TypeVar("S", bound=Spoken)


def choose_style(age: Age, *, returning: bool = False) -> str:
    """`returning`, else `child_friendly` for ages 0 up to YOUNG_UNTIL, else `default` (an unknown age included)."""
    if returning:
        return "returning"
    known = isinstance(age, int | float) and not isinstance(age, bool) and math.isfinite(age)
    return "child_friendly" if known and age is not None and 0 < age < YOUNG_UNTIL else "default"


def pick(recordings: Iterable[S], languages: Sequence[str | None], styles: Sequence[str] = ("default",)) -> S | None:
    """The first recording that fits: languages in order of preference, in each the styles in order.

    A language fits by RFC 4647 lookup (`hi-IN` finds `hi`), and where only regional ones are recorded, by its
    primary subtag (`en` finds `en-gb`). None where no language fits. Entries that are no language are passed over.
    """
    candidates = [item for item in recordings if item.style in styles]
    for language in languages:
        tag = normalise(language)
        if tag is None:
            continue
        for style in styles:
            styled = [item for item in candidates if item.style == style]
            for shorter in lookup_order(tag):
                for item in styled:
                    if item.language == shorter:
                        return item
            primary = tag.partition("-")[0]
            for item in styled:
                if item.language.partition("-")[0] == primary:
                    return item
    return None
