"""From a spoken request to one title, or to none: candidates from five sides, one score, one rule for refusing."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from agent.library.decision import decide, model, ranked
from agent.library.lexical import grams, phone_grams, stem
from agent.library.matching import Rows, measure
from agent.library.pronunciation import pronunciations, said
from agent.library.requests import Request, Sections, choose, understand
from agent.library.title_index import Words, gram_weight, pack, unpack
from agent.library.titles import Title

Embed = Callable[[str], NDArray[np.float32]]
Dense = Callable[[NDArray[np.float32], int, frozenset[str] | None], list[tuple[int, float]]]

_FORMS_A_SIDE: Final = 12
_TITLES_A_SIDE: Final = 24
_MAX_FORMS: Final = 140
_DENSE: Final = 100
# How many forms are compared phone by phone, how many of them are looked at further, and how much is listened to.
_LISTENED: Final = 200
_HEARD: Final = 20
_MAX_PHONES: Final = 90
_READINGS: Final = 4
_NEAREST: Final = 5
_NO_SECTIONS: Final = Sections({})


@dataclass(frozen=True, slots=True)
class Answer:
    """What a search came to.

    "found": `title` is what was meant, with `confidence` from 0 to 1. "random": any would do and `title` is one.
    "not_found": `title` is None. `nearest` are the titles closest to the request, best first, without repeats.
    """

    kind: Literal["found", "not_found", "random"]
    title: Title | None
    confidence: float
    nearest: tuple[Title, ...]


class TitleIndex:
    """Searches one catalogue. Immutable, safe in several threads; built once, then mapped from its buffer."""

    def __init__(self, words: Words) -> None:
        self.words = words
        self._row_of: dict[int, int] | None = None

    @classmethod
    def build(cls, titles: Iterable[Title]) -> TitleIndex:
        """Index `titles`; some 0.3 ms each."""
        return cls.from_buffer(cls.pack(titles))

    @staticmethod
    def pack(titles: Iterable[Title]) -> bytes:
        """The index of `titles` as bytes for `from_buffer`: written once, shared by every process that maps it."""
        return pack(tuple(titles))

    @classmethod
    def from_buffer(cls, buffer: bytes | memoryview) -> TitleIndex:
        """Open a packed index without copying it. Raises LibraryError when it is damaged."""
        return cls(unpack(buffer))

    def __len__(self) -> int:
        return len(self.words)

    @property
    def sections(self) -> tuple[str, ...]:
        """The catalogue's sections as they are spelt there."""
        return self.words.sections

    def section(self, name: str) -> str | None:
        """The section meant by `name`: any case, language code or other language's word for it; None if none."""
        return self.words.names_of_sections.resolve(name)

    def title(self, title_id: int) -> Title | None:
        """The title with this id, None if the catalogue has none."""
        row = self._row(title_id)
        return None if row is None else self.words.title(row)

    def _row(self, title_id: int) -> int | None:
        if self._row_of is None:
            self._row_of = {number: row for row, number in enumerate(self.words.ids.tolist())}
        return self._row_of.get(title_id)

    def search(
        self,
        request: str,
        *,
        embed: Embed | None = None,
        dense: Dense | None = None,
        section: str | None = None,
        limit: int = _NEAREST,
        history: Sequence[int] = (),
        rng: random.Random | None = None,
    ) -> Answer:
        """Answer one request; blocking, some 10 ms, to be called in a thread.

        `embed` makes a vector of a text and `dense` finds the nearest titles by it: (vector, limit, sections or None)
        to (id, cosine), best first; without either, words and sounds alone decide. `section` is where to look, by any
        of its names. `history` is what the visit has heard, oldest first: ids for "another one" and for random choice.
        """
        sections = self.words.names_of_sections
        named = section.strip() if section else ""
        wanted = understand(request, sections)
        where = self.section(named) if named else None
        lacking = bool(named) and sections.lacks(named)
        if named and where is None and not lacking and wanted.wish != "named":
            wanted = understand(f"{request} {named}", sections)  # no section of ours: a word of a description, or none
        where = where or wanted.section
        missing = lacking or (wanted.section_missing and not named)
        exact = self.exact(wanted, where)
        if exact is not None:
            title = self.words.title(exact)
            return Answer("found", title, 1.0, (title,))
        if wanted.wish == "again":
            heard = (row for number in reversed(history) if (row := self._row(number)) is not None)
            again = next((row for row in heard if where is None or self._section_of(row) == where), None)
            if again is not None:
                title = self.words.title(again)
                return Answer("found", title, 1.0, (title,))
        if missing and where is None and wanted.wish != "named":
            # What is called like a language, in whatever script, may be a title's name: "Kanna".
            exact = self.exact(understand(request, _NO_SECTIONS), None)
            if exact is not None:
                title = self.words.title(exact)
                return Answer("found", title, 1.0, (title,))
        if wanted.wish != "named":
            return self._any(where, missing, history, rng or random.Random())
        return self._named(wanted, where, embed, dense, limit)

    def exact(self, wanted: Request, where: str | None) -> int | None:
        """The row of a title called exactly as the request says, in section `where` if it is there too."""
        for reading in wanted.names:
            forms = self.words.exact.get("".join(reading))
            rows = [
                int(self.words.form_row[form])
                for form in forms.tolist()
                if self.words.forms[form].replace(" ", "") == "".join(reading)
            ]
            if where is not None:
                inside = [row for row in rows if self._section_of(row) == where]
                rows = inside or rows
            if rows:
                return rows[0]
        return None

    def _section_of(self, row: int) -> str:
        return str(self.words.sections[self.words.section_of[row]])

    def _any(self, where: str | None, missing: bool, history: Sequence[int], rng: random.Random) -> Answer:
        ids = self.words.ids
        if where is not None:
            ids = ids[self.words.section_of == self.words.sections.index(where)]
        elif missing:
            return Answer("not_found", None, 0.0, ())
        chosen = choose(ids.tolist(), history, rng)
        title = None if chosen is None else self.title(chosen)
        return Answer("random", title, 1.0, (title,)) if title else Answer("not_found", None, 0.0, ())

    def _named(
        self, wanted: Request, where: str | None, embed: Embed | None, dense: Dense | None, limit: int
    ) -> Answer:
        rows = self.measured(wanted, where, embed, dense)
        if rows is None:
            return Answer("not_found", None, 0.0, ())
        time.sleep(0)
        scored, confidence = decide(self.words, wanted, ranked(rows, model().rank))
        nearest = tuple(self.words.title(item.row) for item in scored[: max(1, limit)])
        if confidence < model().threshold:
            described = self._about(wanted, where)
            if described and (len(described) == 1 or not wanted.particular):
                # The likeliest of those that are about just that; ranked are those worth a look only.
                row = next((item.row for item in scored if item.row in described), min(described))
                title = self.words.title(row)
                return Answer("found", title, confidence, tuple(dict.fromkeys((title, *nearest)))[: max(1, limit)])
            return Answer("not_found", None, confidence, nearest)
        return Answer("found", nearest[0], confidence, nearest)

    def _about(self, wanted: Request, where: str | None) -> set[int]:
        """Rows of the titles whose names and keywords have every word of the description."""
        words = self.words
        stems = {stem(word) for word in wanted.about}
        rows = [set(words.stems.get(key).tolist()) for key in stems]
        return {
            row
            for row in (set.intersection(*rows) if rows else ())
            if (where is None or words.sections[words.section_of[row]] == where)
            and stems <= {stem(tag) for tag in words.tags[row].split(" ")}
        }

    def measured(self, wanted: Request, where: str | None, embed: Embed | None, dense: Dense | None) -> Rows | None:
        """The features of every name worth a look, None if there is none."""
        words = self.words
        cosine: dict[int, float] = {}
        if embed is not None and dense is not None and wanted.text:
            vector = embed(wanted.text)
            for number, similarity in dense(vector, _DENSE, None):
                row = self._row(number)
                if row is not None:
                    cosine[row] = similarity
        heard = said(wanted.heard)[:_MAX_PHONES]
        evidence = self._evidence(self._forms_near(wanted.readings, list(cosine)[:_TITLES_A_SIDE]), heard)
        if not evidence:
            return None
        time.sleep(0)  # lets the event loop's thread have the interpreter between two stretches of work
        section = None if where is None else words.sections.index(where)
        return measure(words, wanted.readings[:_READINGS], evidence, cosine, section)

    def _forms_near(self, readings: Sequence[tuple[str, ...]], nearest: Sequence[int]) -> list[int]:
        words = self.words
        found: dict[int, None] = {}
        first = readings[0]
        rows = list(nearest)
        rows.extend(_top_titles(words, first))
        for reading in readings[:2]:
            for form in _top_forms(words.char_grams.get, words.char_norm, grams(reading), len(words.forms)):
                found[form] = None
        lows = np.searchsorted(words.form_row, rows, "left").tolist()
        highs = np.searchsorted(words.form_row, rows, "right").tolist()
        for low, high in zip(lows, highs, strict=True):
            for form in range(low, high):
                found.setdefault(form)
        return list(found)[:_MAX_FORMS]

    def _evidence(self, forms: Sequence[int], heard: str) -> dict[int, float]:
        """For `forms`, and those whose sounds are likeliest in `heard`: the log odds that they were said."""
        words = self.words
        grams_of = phone_grams(heard)
        listened = _top_forms(words.phone_grams.get, words.phone_norm, grams_of, len(words.forms), _LISTENED)
        both = list(dict.fromkeys((*forms, *listened)))
        if not both:
            return {}
        odds, _ = words.hearing.evidence([words.phones[form] for form in both], heard)
        kept = set(forms) | {both[place] for place in np.argsort(-odds, kind="stable")[:_HEARD].tolist()}
        return {form: value for form, value in zip(both, odds.tolist(), strict=True) if form in kept}


def warm_up() -> None:
    """Read now what the first search would read: fitted rules and pronunciations, some 15 ms."""
    model()
    pronunciations()
    understand("play", Sections({}))


def _top_titles(words: Words, reading: Sequence[str]) -> list[int]:
    """Rows whose names and keywords share the rarest words with the reading."""
    score: dict[int, float] = {}
    total = len(words)
    for key in dict.fromkeys(stem(word) for word in reading):
        found = words.stems.get(key)
        if len(found) > max(200, total // 20):
            continue
        weight = gram_weight(len(found), total)
        for row in found.tolist():
            score[row] = score.get(row, 0.0) + weight
    return sorted(score, key=lambda row: -score[row])[:_TITLES_A_SIDE]


def _top_forms(
    get: Callable[[str], NDArray[np.int32]],
    norm: NDArray[np.float32],
    keys: Sequence[str],
    total: int,
    spoken: int = 0,
) -> list[int]:
    """Forms that share most grams with the request: as a whole, as what it is a part of, as a part of it; or only the
    `spoken` first that are most wholly in it."""
    distinct = list(dict.fromkeys(keys))
    found = [get(key) for key in distinct]
    weights = [gram_weight(len(items), total) for items in found]
    own = sum(weights)
    hits = [(items, weight) for items, weight in zip(found, weights, strict=True) if len(items)]
    if not hits:
        return []
    common = np.bincount(
        np.concatenate([items for items, _ in hits]),
        np.repeat([weight for _, weight in hits], [len(items) for items, _ in hits]),
        total,
    )
    whole = common / (norm + (0.1 if spoken else 0.2) * own)
    sides = [whole] if spoken else [common / np.sqrt(own * np.maximum(norm, 1e-6)), common / (own + 0.2 * norm), whole]
    count = min(spoken or _FORMS_A_SIDE, total)
    chosen: dict[int, None] = {}
    for side in sides:
        for form in np.argpartition(-side, count - 1)[:count].tolist():
            if side[form] > 0.0:
                chosen[form] = None
    return list(chosen)
