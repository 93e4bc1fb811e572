"""Where a library lives: one interface for a Qdrant server and for this machine's disk.

Homes are synchronous and may wait for a network or a disk: call them off the event loop. Visits do not search homes:
the worker copies a home's content into a snapshot (`snapshot`) that every process maps, so a search costs no network,
goes on while the home is away, and never sees half a load.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from agent.library.embedding import Vector
from agent.library.titles import Kind, Title


@dataclass(frozen=True, slots=True)
class Entry:
    """A title with its vector: float32, length 1 (or 0 where there is none)."""

    title: Title
    vector: Vector


@dataclass(frozen=True, slots=True)
class CollectionState:
    """What can be told of a collection without reading it.

    `model` and `version` are None where another program filled it. `loading`: a load is at work on it right now.
    `readable_by_filter`: sections can be filtered by an index. `damage`: why what is there counts as not existing, and
    what to do; else empty.
    """

    exists: bool
    count: int = 0
    dimension: int = 0
    model: str | None = None
    version: str | None = None
    loading: bool = False
    readable_by_filter: bool = True
    damage: str = ""


class Loading(Protocol):
    """A load under way. What it wrote is published when its context ends without an error."""

    def put(self, entries: Sequence[Entry]) -> None:
        """Add the entries, or replace those with the same ids; fields of theirs that nobody here knows are kept."""
        ...

    def remove(self, ids: Collection[int]) -> None:
        """Remove titles; an id that is not there is no error."""
        ...


class Home(Protocol):
    """Keeps the titles of both kinds.

    Every method raises RemoteError (Unavailable, Unauthorised, Malformed, …) where the home is remote and does not
    answer as it should, and LibraryError where what it holds does not fit this library.
    """

    @property
    def name(self) -> str:
        """Where it is, for people; no secrets."""
        ...

    def state(self, kind: Kind) -> CollectionState: ...

    def titles(self, kind: Kind) -> list[Title]:
        """All titles, by rising id. Unusable entries (no title, a filename that leaves its folder) are left out."""
        ...

    def entries(self, kind: Kind) -> list[Entry]:
        """The titles of `titles` with their vectors; one that has none there has zeros, and is found by words only."""
        ...

    def search(
        self, kind: Kind, vector: Vector, *, sections: Collection[str] | None = None, limit: int = 5
    ) -> list[tuple[int, float]]:
        """Ids and cosine similarities of the nearest titles, best first; `sections` as spelt in the catalogue."""
        ...

    def index_sections(self, kind: Kind) -> bool:
        """Make the index that lets sections be filtered; False where that is not permitted (all else works)."""
        ...

    def loading(self, kind: Kind, model: str, dimension: int) -> AbstractContextManager[Loading]:
        """Begin a load with vectors of `model`; the collection is made where it is missing.

        Raises LibraryError where it already holds vectors of another model or size.
        """
        ...

    def close(self) -> None: ...


def mismatch(where: str, state: CollectionState, model: str, dimension: int) -> str | None:
    """A sentence that says why vectors of `model` cannot be compared with the collection's; None where they can."""
    if not state.exists or (state.count == 0 and state.model is None and state.dimension == dimension):
        return None
    if state.dimension != dimension:
        return (
            f"{where} holds vectors of {state.dimension} numbers, the embedding model {model} makes {dimension}: "
            "set EMBEDDING_MODEL to the model it was made with, or load the catalogue into another collection"
        )
    if state.model is not None and state.model != model:
        return (
            f"{where} was made with the embedding model {state.model}, this is {model}: "
            "set EMBEDDING_MODEL accordingly, or load the catalogue into another collection"
        )
    return None
