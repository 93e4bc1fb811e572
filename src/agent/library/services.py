"""The service cache of a process: the music and the story service, ready before any room.

`prepare` runs in the forkserver (its children share what it loads) or in prewarm. It reads this machine's disk only:
the worker's watcher keeps the copy of the library there and says in a small file how its home is. A service looks at
the copy's link before each search (one system call) and maps a newer version as soon as there is one, so a re-loaded
catalogue, or one that becomes available late, needs no restart. Nothing here belongs to an event loop, and no thread
is started before the first search.
"""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

import structlog

from agent.errors import LibraryError, ModelFileError, Unavailable
from agent.library import model_files
from agent.library.embedding import Embedder
from agent.library.home import CollectionState, mismatch
from agent.library.homes import snapshot_root
from agent.library.ranking import Answer, TitleIndex, warm_up
from agent.library.snapshot import Snapshot, SnapshotStore, index_mark
from agent.library.status import read_status
from agent.library.titles import Kind, Title
from agent.settings import Settings

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")

_LOAD: Final = "nothing is loaded: run 'python -m agent catalogue load DIR'"
_COPY: Final = "the library has not been copied from Qdrant yet"


class _Run(Protocol):
    def __call__(self, work: Callable[[], _T]) -> asyncio.Future[_T]: ...


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """How a service is. `reason` is a sentence: why it is not ready, or what is amiss although it is; else empty."""

    ready: bool
    reason: str
    titles: int = 0
    version: str | None = None


@dataclass(frozen=True, slots=True)
class _Loaded:
    snapshot: Snapshot
    index: TitleIndex


class LibraryService:
    """Finds songs, or stories. Safe in several threads and event loops."""

    def __init__(
        self,
        store: SnapshotStore,
        model: str,
        embedder: Embedder | None,
        run: _Run,
        home_reason: Callable[[Kind], str],
    ) -> None:
        self.kind = store.kind
        self._store = store
        self._model = model
        self._embedder = embedder
        self._run = run
        self._home_reason = home_reason
        self._lock = threading.Lock()
        self._loaded: _Loaded | None = None
        self._seen: tuple[str, int, int] | None = None
        self._problem = ""

    @property
    def version_there(self) -> str | None:
        """The version that a search would use, None where nothing was ever loaded. One system call."""
        return self._store.current()

    @property
    def ready(self) -> bool:
        """Whether a search would find titles to search, as far as can be told without reading them."""
        loaded = self._loaded
        if loaded is not None:
            return loaded.snapshot.meta.count > 0
        current = self._store.state()
        return current is not None and current != self._seen

    @property
    def status(self) -> ServiceStatus:
        """How the service is now: a link and a small file are read, never the titles."""
        loaded = self._loaded
        home = self._home_reason(self.kind)
        if loaded is None:
            return ServiceStatus(self.ready, self._problem or home or f"there is no {self.kind} catalogue here yet")
        meta = loaded.snapshot.meta
        if meta.count == 0:
            return ServiceStatus(False, home or f"the {self.kind} catalogue is empty", 0, meta.version)
        return ServiceStatus(True, self._problem or home, meta.count, meta.version)

    def refresh(self) -> bool:
        """Take over the current version where it is another one than before; True if so. Two system calls if not.

        A version that cannot be used leaves the one before it in use, until it, or another, is written again.
        """
        if self._store.state() == self._seen and self._seen is not None:
            return False
        with self._lock:
            current = self._store.state()
            if current == self._seen:
                return False
            try:
                snapshot = self._store.open()
                self._loaded = None if snapshot is None else self._use(snapshot)
                self._problem = ""
            except LibraryError as error:
                self._problem = str(error)
                _log.warning("library_version_refused", kind=self.kind, reason=str(error))
            self._seen = current
            return True

    def _use(self, snapshot: Snapshot) -> _Loaded:
        meta = snapshot.meta
        dimension = self._embedder.dimension if self._embedder else meta.dimension
        state = CollectionState(True, meta.count, meta.dimension, meta.model)
        if problem := mismatch(f"the {self.kind} collection", state, self._model, dimension):
            raise LibraryError(problem)
        if meta.index_mark == index_mark():
            index = TitleIndex.from_buffer(snapshot.index_buffer())
        else:  # packed by another release; the worker's watcher packs it again for everybody
            index = TitleIndex.build(snapshot.titles())
        return _Loaded(snapshot, index)

    async def search(
        self, request: str, section: str | None = None, *, history: Sequence[int] = (), limit: int = 5
    ) -> Answer:
        """What the child means by `request`; `section` is a language or category by any of its names.

        `history` are ids of what the visit has heard, oldest first. Raises Unavailable or LibraryError with the
        reason where there is nothing to search.
        """
        return await self._run(functools.partial(self.search_blocking, request, section, history=history, limit=limit))

    async def random(self, section: str | None = None, *, history: Sequence[int] = ()) -> Answer:
        """Any title of the whole set, or of `section`; none of `history` until all were heard. Raises as `search`."""
        return await self.search("", section, history=history)

    def search_blocking(
        self, request: str, section: str | None = None, *, history: Sequence[int] = (), limit: int = 5
    ) -> Answer:
        """As `search`, for callers that have no event loop: some 10 ms of CPU."""
        loaded = self._index()
        embedder = self._embedder
        return loaded.index.search(
            request,
            embed=embedder.embed if embedder else None,
            dense=loaded.snapshot.search if embedder else None,
            section=section,
            limit=limit,
            history=history,
        )

    async def titles(self, ids: Sequence[int]) -> list[Title | None]:
        """The titles with these ids, None for each that the catalogue does not have. Raises as `search`."""
        return await self._run(functools.partial(self._titles_blocking, tuple(ids)))

    def _titles_blocking(self, ids: Sequence[int]) -> list[Title | None]:
        index = self._index().index
        return [index.title(number) for number in ids]

    def _index(self) -> _Loaded:
        self.refresh()
        loaded = self._loaded
        if loaded is None or loaded.snapshot.meta.count == 0:
            reason = self.status.reason
            raise LibraryError(reason) if self._problem else Unavailable(reason)
        return loaded


class ServiceCache:
    """The two services of a process."""

    def __init__(self, settings: Settings, embedder: Embedder | None, embedder_problem: str) -> None:
        self._settings = settings
        self._root = snapshot_root(settings)
        self.embedder_problem = embedder_problem
        model = model_files.model_name(settings)
        self._services = {
            kind: LibraryService(SnapshotStore(self._root, kind), model, embedder, self._run, self._home_reason)
            for kind in ("music", "story")
        }
        self._executor: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    @property
    def music(self) -> LibraryService:
        """The music service."""
        return self._services["music"]

    @property
    def stories(self) -> LibraryService:
        """The story service."""
        return self._services["story"]

    @property
    def status(self) -> dict[str, ServiceStatus]:
        """How each service is, by its kind."""
        return {kind: service.status for kind, service in self._services.items()}

    def refresh(self) -> None:
        """Take over newer versions now rather than at the next search. Blocking, milliseconds."""
        for service in self._services.values():
            service.refresh()

    def close(self) -> None:
        """End the search thread, if there is one; a search under way ends by itself."""
        with self._lock:
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=False)

    def _home_reason(self, kind: Kind) -> str:
        found = read_status(self._root).get(kind)
        if found is not None and found.reason:
            return found.reason
        if self._services[kind].version_there is None:
            return _LOAD if self._settings.qdrant_url is None else _COPY
        if self.embedder_problem:
            return f"searching by words alone: {self.embedder_problem}"
        return ""

    def _run(self, work: Callable[[], _T]) -> asyncio.Future[_T]:
        with self._lock:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(1, thread_name_prefix="library")
            return asyncio.get_running_loop().run_in_executor(self._executor, work)


def prepare(settings: Settings) -> ServiceCache:
    """Load what both services need, from disk alone: 70 ms of CPU, once, shared with processes forked afterwards.

    Never raises for a library that is absent, damaged or does not fit: the services say so in their `status`.
    """
    started = time.perf_counter()
    embedder: Embedder | None = None
    problem = ""
    try:
        embedder = Embedder(model_files.find(settings))
        embedder.embed("warm up")  # the first run allocates; after a fork that would be private memory
    except ModelFileError as error:
        problem = str(error)
    cache = ServiceCache(settings, embedder, problem)
    warm_up()
    cache.refresh()
    _log.debug("library_prepared", milliseconds=round((time.perf_counter() - started) * 1000, 1))
    return cache
