"""The evaluation catalogue as a searchable library in memory, exact and without a home: for fitting and comparing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from agent.library.embedding import Embedder, Vector
from agent.library.ranking import Answer, TitleIndex
from agent.library.titles import KINDS, Kind, Title, embedded_text
from sandbox.library_evaluation import catalogue, distractors


class Embeddings:
    """An embedder that remembers: fitting asks for the same texts again and again."""

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        self._known: dict[str, Vector] = {}

    def query(self, text: str) -> Vector:
        """Vector of a request."""
        found = self._known.get(text)
        if found is None:
            found = self._known[text] = self.embedder.embed(text)
        return found

    def document(self, title: Title) -> Vector:
        """Vector of a title."""
        text = embedded_text(title)
        found = self._known.get("\0" + text)
        if found is None:
            found = self._known["\0" + text] = self.embedder.embed_document(text)
        return found


class Trial:
    """One kind's titles with their index and vectors."""

    def __init__(self, titles: Sequence[Title], embeddings: Embeddings) -> None:
        self.titles = list(titles)
        self.index = TitleIndex.build(self.titles)
        self.embed = embeddings.query
        self._vectors: NDArray[np.float32] = np.array([embeddings.document(title) for title in self.titles])
        self._row_of_id = {title.id: row for row, title in enumerate(self.titles)}

    def dense(self, vector: Vector, limit: int, sections: frozenset[str] | None = None) -> list[tuple[int, float]]:
        """Nearest titles by cosine, best first."""
        scores = self._vectors @ vector
        best = np.argsort(-scores, kind="stable")
        found = [(self.titles[row].id, float(scores[row])) for row in best[: limit if sections is None else None]]
        return [hit for hit in found if sections is None or self._of(hit[0]).section in sections][:limit]

    def near(self, text: str, limit: int) -> list[tuple[Title, float]]:
        """The vector search alone."""
        return [(self._of(number), score) for number, score in self.dense(self.embed(text), limit)]

    def search(self, text: str) -> Answer:
        """The search as the service makes it."""
        return self.index.search(text, embed=self.embed, dense=self.dense)

    def _of(self, number: int) -> Title:
        return self.titles[self._row_of_id[number]]


def trials(embeddings: Embeddings, size: int = 0, every: int = 1) -> dict[Kind, Trial]:
    """Both kinds, each padded to `size` titles with generated ones; of the real ones every `every`-th."""
    out: dict[Kind, Trial] = {}
    for kind in KINDS:
        titles = [title for title in catalogue() if title.kind == kind][::every]
        if size > len(titles):
            sections = sorted({title.section for title in titles})
            titles += distractors(size - len(titles), kind, sections)
        out[kind] = Trial(titles, embeddings)
    return out
