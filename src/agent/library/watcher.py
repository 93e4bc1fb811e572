"""The worker's watcher: asks the library's home once for all processes, and copies what changed.

With a server: every third of CATALOGUE_REFRESH seconds it looks at the collections; where the content is another, it
reads all of it and makes it the current snapshot. A collection that this project loads says when a load is under way
and which version it holds. One that others fill does not: it is copied only after two looks in a row found the same
content, so that nobody sees half of their load, and while it is empty what it held before is kept. Where the server is
away, slow, empty or answers nonsense, visits go on with the last good copy, the reason is written down for everybody,
and the next look comes sooner at first, then later.

With the embedded library there is nothing to ask; a title index that another release packed is packed again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
import structlog

from agent.errors import LibraryError, ModelFileError, RemoteError, ToyError
from agent.library import model_files
from agent.library.embedding import Embedder
from agent.library.home import CollectionState, Entry, Home, mismatch
from agent.library.home_embedded import EmbeddedHome
from agent.library.homes import collections, open_home, snapshot_root
from agent.library.snapshot import SnapshotStore, index_mark
from agent.library.status import HomeStatus, write_status
from agent.library.titles import KINDS, Kind, Title
from agent.settings import Settings

_log = structlog.get_logger(__name__)

_LONGEST_PAUSE: Final = 60.0
_FULL_LOOK_EVERY: Final = 20
_SAMPLE: Final = 24
_LEAST_LIKENESS: Final = 0.1


@dataclass(slots=True)
class _Known:
    """What the last looks at a collection found."""

    copied: str | None = None
    seen: str | None = None
    version: str | None = None
    count: int = -1
    looks: int = 0
    reason: str | None = None


class CatalogueWatcher:
    """Keeps this machine's copy of the library true. One in a worker.

    `home` makes the home (a seam for tests). Run `run` as a task; `aclose` ends it and waits for the look under way.
    """

    def __init__(self, settings: Settings, home: Callable[[Settings], Home] = open_home) -> None:
        self._settings = settings
        self._make_home = home
        self._home: Home | None = None
        self._root = snapshot_root(settings)
        self._stores = {kind: SnapshotStore(self._root, kind) for kind in KINDS}
        self._known = {kind: _Known() for kind in KINDS}
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="catalogue")
        self._stopping = asyncio.Event()
        self._failures = 0

    async def run(self) -> None:
        """Look until `aclose`. Never raises for what a home may do."""
        while not self._stopping.is_set():
            well = await self.check()
            self._failures = 0 if well else self._failures + 1
            try:
                await asyncio.wait_for(self._stopping.wait(), self._pause())
            except TimeoutError:
                continue

    async def check(self) -> bool:
        """One look at both collections; whether all is well. Takes as long as the home does."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, self.check_blocking)

    async def aclose(self) -> None:
        """End `run` and close the home."""
        self._stopping.set()
        await asyncio.get_running_loop().run_in_executor(self._executor, self._close)
        self._executor.shutdown(wait=False)

    def close_blocking(self) -> None:
        """As `aclose`, where `run` was never started."""
        self._close()
        self._executor.shutdown()

    def check_blocking(self) -> bool:
        """As `check`, in the caller's thread."""
        found: dict[Kind, HomeStatus] = {}
        for kind in KINDS:
            try:
                reason = self._look(self._open(), kind)
                found[kind] = HomeStatus(reason=reason)
            except ToyError as error:
                found[kind] = HomeStatus(
                    reason=str(error), retryable=isinstance(error, RemoteError) and error.retryable
                )
            except Exception as error:  # noqa: BLE001 — a home's client may raise anything; visits go on with the copy
                _log.exception("catalogue_look_failed", kind=kind)
                found[kind] = HomeStatus(reason=f"the library's home cannot be read: {type(error).__name__}")
            self._tell(kind, found[kind].reason)
        try:
            write_status(self._root, found)
        except OSError as error:
            _log.error("catalogue_status_not_written", error=str(error))
        return not any(status.reason for status in found.values())

    def _open(self) -> Home:
        if self._home is None:
            self._home = self._make_home(self._settings)
        return self._home

    def _close(self) -> None:
        home, self._home = self._home, None
        if home is not None:
            home.close()

    def _pause(self) -> float:
        """Seconds until the next look: a third of the refresh time, after failures from 1 s doubling to a minute."""
        usual = self._settings.catalogue_refresh / 3
        if self._failures == 0:
            return usual
        longest = max(usual, min(_LONGEST_PAUSE, self._settings.catalogue_refresh * 2))
        return float(min(longest, 2.0 ** (self._failures - 1)) * random.uniform(0.8, 1.2))

    def _tell(self, kind: Kind, reason: str) -> None:
        known = self._known[kind]
        if reason != known.reason:
            if reason:
                _log.warning("library_home_unwell", kind=kind, reason=reason)
            elif known.reason is not None:
                _log.info("library_home_well", kind=kind)
            known.reason = reason

    def _look(self, home: Home, kind: Kind) -> str:
        """Copy the collection where it changed. Returns what is amiss, or nothing; raises ToyError."""
        if isinstance(home, EmbeddedHome):
            home.repack(kind)
            return ""
        name = collections(self._settings)[kind]
        state = home.state(kind)
        if not state.exists:
            return f"collection {name} does not exist in {home.name}: run 'python -m agent catalogue load DIR'"
        dimension = self._dimension(state)
        if problem := mismatch(f"collection {name}", state, model_files.model_name(self._settings), dimension):
            raise LibraryError(problem)
        known = self._known[kind]
        if self._stores[kind].current() is None:
            known = self._known[kind] = _Known(reason=known.reason)
        self._remember_copy(kind, known)
        if state.loading:
            return ""
        known.looks += 1
        whole = known.looks % _FULL_LOOK_EVERY == 0
        empty = f"collection {name} in {home.name} is empty: run 'python -m agent catalogue load DIR'"
        if state.version and not whole and (state.version, state.count) == (known.version, known.count):
            return "" if state.count else empty
        if known.looks == 1 and not state.readable_by_filter:
            home.index_sections(kind)
        titles = home.titles(kind)
        if not titles and state.count:
            return (
                f"none of the {state.count} points of collection {name} in {home.name} is a title: a payload with a "
                "title, and a filename within its folder, is expected"
            )
        digest = content_digest(titles, state)
        if not titles and state.version is None and self._has_titles(kind):
            known.seen = digest
            return empty  # by another program that makes the collection anew, for all that can be told
        settled = known.seen == digest or known.copied is None or state.version is not None
        known.seen = digest
        if digest != known.copied:
            if not settled or not self._copy(home, kind, state, digest):
                return ""
            known.copied = digest
        known.version, known.count = state.version, state.count
        return "" if state.count else empty

    def _has_titles(self, kind: Kind) -> bool:
        meta = self._stores[kind].meta()
        return meta is not None and meta.count > 0

    def _remember_copy(self, kind: Kind, known: _Known) -> None:
        """After a restart: what the copy on disk was made from, if it is intact and of this release."""
        if known.looks or known.copied is not None:
            return
        try:
            snapshot = self._stores[kind].open()
        except LibraryError as error:
            _log.warning("library_copy_damaged", kind=kind, reason=str(error))
            return
        if snapshot is not None and snapshot.meta.index_mark == index_mark():
            known.copied = snapshot.meta.revision

    def _copy(self, home: Home, kind: Kind, state: CollectionState, digest: str) -> bool:
        entries = home.entries(kind)
        if content_digest([entry.title for entry in entries], state) != digest:
            return False  # it changed while it was read: the next look will tell
        model = model_files.model_name(self._settings)
        if state.model is None:
            self._refuse_strangers(kind, entries)
        vectors = np.array([entry.vector for entry in entries], np.float32).reshape(len(entries), state.dimension)
        meta = self._stores[kind].write(
            [entry.title for entry in entries], vectors, model=model, dimension=state.dimension, source=home.name,
            revision=digest,
        )  # fmt: skip
        _log.info("library_copied", kind=kind, titles=meta.count, version=meta.version)
        return True

    def _dimension(self, state: CollectionState) -> int:
        try:
            return model_files.find(self._settings).dimension
        except ModelFileError:
            return state.dimension  # without its files the model's name alone can be compared

    def _refuse_strangers(self, kind: Kind, entries: Sequence[Entry]) -> None:
        try:
            embedder = Embedder(model_files.find(self._settings))
        except ModelFileError:
            return
        if made_by_another_model(embedder, entries):
            name = collections(self._settings)[kind]
            raise LibraryError(
                f"the vectors of collection {name} are not those of the embedding model {embedder.name}: "
                "set EMBEDDING_MODEL to the model it was made with, or load the catalogue into another collection"
            )


def content_digest(titles: Sequence[Title], state: CollectionState) -> str:
    """Stands for the content of a collection; its vectors are stood for by the model's name and the version."""
    text = json.dumps([asdict(title) for title in titles], ensure_ascii=False, separators=(",", ":"))
    mark = f"{state.dimension}\0{state.model}\0{state.version}\0"
    return hashlib.sha256(mark.encode() + text.encode()).hexdigest()


def made_by_another_model(embedder: Embedder, entries: Sequence[Entry]) -> bool:
    """Whether vectors whose model nobody wrote down are evidently not the embedder's.

    Whatever text of a title was embedded, its vector is nearer to the title's name than other titles' vectors are: by
    0.4 or so on average, and by nothing with vectors of another model. Too few titles in Latin script tell nothing.
    """
    named = [(entry.title.romanized or entry.title.title, entry.vector) for entry in entries]
    named = [(name, vector) for name, vector in named if name.isascii() and vector.any()]
    if len(named) < 4:
        return False
    chosen = random.Random(0).sample(named, min(_SAMPLE, len(named)))
    stored = np.array([vector for _, vector in chosen])
    if stored.shape[1] != embedder.dimension:
        return True
    likeness = np.array([embedder.embed_document(name) for name, _ in chosen]) @ stored.T
    own = np.diag(likeness)
    others = (likeness.sum(axis=1) - own) / (len(chosen) - 1)
    return float((own - others).mean()) < _LEAST_LIKENESS
