"""The embedded home: the library on this machine's disk, no server, key or network.

The engine is the snapshot itself, searched exactly with numpy. `scripts/bench engines` compares it with what else there
is; at 10,000 titles, four processes at once:

    engine                 search   filtered   private memory   processes that can read
    mapped files, numpy    0.9 ms   0.3 ms     0 MB             any number, also while a load replaces them
    qdrant-edge 0.9        0.8 ms   0.2 ms     1.4 MB           any number, without its log; beta
    qdrant-client local    9.1 ms   108 ms     276 MB           one
"""

from __future__ import annotations

import fcntl
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from agent.errors import LibraryError
from agent.library.embedding import Vector
from agent.library.home import CollectionState, Entry, mismatch
from agent.library.snapshot import Snapshot, SnapshotStore, index_mark
from agent.library.titles import Kind, Title
from agent.state import private_dir


class EmbeddedHome:
    """A `Home` in a folder. Reading needs no lock; one load at a time, the next one waits."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def name(self) -> str:
        return f"embedded library in {self._root}"

    def state(self, kind: Kind) -> CollectionState:
        try:
            snapshot = self._read(kind)
        except LibraryError as error:
            return CollectionState(exists=False, damage=str(error))
        if snapshot is None:
            return CollectionState(exists=False)
        meta = snapshot.meta
        return CollectionState(True, meta.count, meta.dimension, meta.model, meta.version)

    def titles(self, kind: Kind) -> list[Title]:
        return self._open(kind).titles()

    def entries(self, kind: Kind) -> list[Entry]:
        snapshot = self._open(kind)
        return [Entry(title, vector) for title, vector in zip(snapshot.titles(), snapshot.vectors, strict=True)]

    def search(
        self, kind: Kind, vector: Vector, *, sections: Collection[str] | None = None, limit: int = 5
    ) -> list[tuple[int, float]]:
        snapshot = self._open(kind)
        if vector.shape != (snapshot.meta.dimension,):
            raise LibraryError(f"the {kind} collection holds vectors of {snapshot.meta.dimension} numbers")
        return snapshot.search(vector, limit, sections)

    def index_sections(self, kind: Kind) -> bool:
        """Sections are always indexed here."""
        return self._store(kind).current() is not None

    @contextmanager
    def loading(self, kind: Kind, model: str, dimension: int) -> Iterator[_Staged]:
        with self.locked(kind):
            try:
                snapshot = self._read(kind)
            except LibraryError:
                snapshot = None  # every version is damaged: the load replaces them
            staged = _Staged(snapshot, dimension)
            if snapshot is not None and snapshot.meta.count:
                state = CollectionState(True, snapshot.meta.count, snapshot.meta.dimension, snapshot.meta.model)
                if problem := mismatch(f"the {self.name} ({kind})", state, model, dimension):
                    raise LibraryError(problem)
            yield staged
            titles = [entry.title for entry in staged.entries.values()]
            vectors = np.array([entry.vector for entry in staged.entries.values()], np.float32)
            self._store(kind).write(
                titles, vectors.reshape(len(titles), dimension), model=model, dimension=dimension, source=self.name,
                revision="",
            )  # fmt: skip

    @contextmanager
    def locked(self, kind: Kind, *, wait: bool = True) -> Iterator[bool]:
        """Be the only writer of a kind, in any process; the value is False where another is and `wait` is not."""
        private_dir(self._root)
        with (self._root / f".{kind}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    def repack(self, kind: Kind) -> None:
        """Pack the title index again where another release packed it. A load under way is left alone: it packs it."""
        if self._outdated(kind) is None:
            return
        with self.locked(kind, wait=False) as mine:
            snapshot = self._outdated(kind) if mine else None
            if snapshot is not None:
                meta = snapshot.meta
                self._store(kind).write(
                    snapshot.titles(), snapshot.vectors, model=meta.model, dimension=meta.dimension, source=meta.source,
                    revision=meta.revision,
                )  # fmt: skip

    def close(self) -> None:
        """Nothing is open between calls."""

    def _outdated(self, kind: Kind) -> Snapshot | None:
        snapshot = self._read(kind)
        return None if snapshot is None or snapshot.meta.index_mark == index_mark() else snapshot

    def _store(self, kind: Kind) -> SnapshotStore:
        return SnapshotStore(self._root, kind)

    def _read(self, kind: Kind) -> Snapshot | None:
        try:
            return self._store(kind).open()
        except LibraryError as error:
            raise LibraryError(f"{error}: run 'python -m agent catalogue load DIR' to load it again") from error

    def _open(self, kind: Kind) -> Snapshot:
        snapshot = self._read(kind)
        if snapshot is None:
            raise LibraryError(f"no {kind} catalogue is loaded: run 'python -m agent catalogue load DIR'")
        return snapshot


class _Staged:
    """A load of the embedded home: kept in memory (1.5 kB a title) and written as one version at the end."""

    def __init__(self, snapshot: Snapshot | None, dimension: int) -> None:
        self._dimension = dimension
        self.entries: dict[int, Entry] = {}
        if snapshot is not None and snapshot.meta.dimension == dimension:
            for title, vector in zip(snapshot.titles(), snapshot.vectors, strict=True):
                self.entries[title.id] = Entry(title, vector)

    def put(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if entry.vector.shape != (self._dimension,):
                raise LibraryError(f"a vector of {self._dimension} numbers was expected")
            self.entries[entry.title.id] = entry

    def remove(self, ids: Collection[int]) -> None:
        for number in ids:
            self.entries.pop(number, None)
