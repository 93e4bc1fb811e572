"""Loads a catalogue folder into the library's home, and says how the two differ.

Vectors are kept in a small database, by model and text, as they are made: a load that was stopped, or killed, goes on
where it was when run again, and a second load embeds only what changed.
"""

from __future__ import annotations

import hashlib
import threading
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np

from agent.errors import LibraryError
from agent.library.catalogue_files import CatalogueFiles, audio_files
from agent.library.embedding import Embedder, Vector
from agent.library.home import Entry, Home, mismatch
from agent.library.titles import Kind, Title, embedded_text
from agent.library.watcher import made_by_another_model
from agent.state import open_database

_BATCH: Final = 64
_THREADS: Final = 2

Told = Callable[[int, int], None]
"""Told of progress: titles done, titles in all."""


@dataclass(slots=True)
class Loaded:
    """What a load of one kind did, in titles. `foreign`: in the home, not in the folder, and left there."""

    kind: Kind
    added: int = 0
    changed: int = 0
    unchanged: int = 0
    removed: int = 0
    foreign: list[Title] = field(default_factory=list)


@dataclass(slots=True)
class Differences:
    """What `verify` found of one kind. Titles are those of the folder, but for `only_in_home`."""

    kind: Kind
    complete: int = 0
    no_audio: list[Title] = field(default_factory=list)
    not_in_home: list[Title] = field(default_factory=list)
    in_neither: list[Title] = field(default_factory=list)
    outdated: list[Title] = field(default_factory=list)
    only_in_home: list[Title] = field(default_factory=list)
    not_found_by_vector: list[Title] = field(default_factory=list)

    @property
    def well(self) -> bool:
        return not (
            self.no_audio
            or self.not_in_home
            or self.in_neither
            or self.outdated
            or self.only_in_home
            or self.not_found_by_vector
        )


class VectorCache:
    """Vectors by model and text, in a database that outlives a kill. Usable from several threads."""

    def __init__(self, path: Path, embedder: Embedder) -> None:
        schema = "CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB NOT NULL)"
        self._database = open_database(path, schema)
        self._embedder = embedder
        self._lock = threading.Lock()

    def vectors(self, texts: Sequence[str], pool: ThreadPoolExecutor) -> list[Vector]:
        """The vectors of `texts`, made where they are not known yet, and kept at once."""
        keys = [self._key(text) for text in texts]
        with self._lock:
            known = {key: self._read(key) for key in keys}
        missing = {key: text for key, text in zip(keys, texts, strict=True) if known[key] is None}
        made = dict(zip(missing, pool.map(self._embedder.embed_document, missing.values()), strict=True))
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            self._database.executemany(
                "INSERT OR REPLACE INTO vectors VALUES (?, ?)", [(key, made[key].tobytes()) for key in made]
            )
            self._database.execute("COMMIT")
        result = []
        for key in keys:
            vector = made[key] if key in made else known[key]
            assert vector is not None
            result.append(vector)
        return result

    def keep_only(self, texts: Sequence[str]) -> None:
        """Forget every other vector."""
        with self._lock:
            self._database.execute("CREATE TEMP TABLE IF NOT EXISTS wanted (key BLOB PRIMARY KEY)")
            self._database.execute("DELETE FROM wanted")
            self._database.executemany("INSERT OR IGNORE INTO wanted VALUES (?)", [(self._key(t),) for t in texts])
            self._database.execute("DELETE FROM vectors WHERE key NOT IN (SELECT key FROM wanted)")

    def close(self) -> None:
        self._database.close()

    def _key(self, text: str) -> bytes:
        return hashlib.sha256(f"{self._embedder.name}\0{text}".encode()).digest()[:20]

    def _read(self, key: bytes) -> Vector | None:
        row = self._database.execute("SELECT vector FROM vectors WHERE key = ?", (key,)).fetchone()
        if row is None or len(row[0]) != 4 * self._embedder.dimension:
            return None
        return np.frombuffer(row[0], np.float32)


def load(
    files: CatalogueFiles, home: Home, cache: VectorCache, embedder: Embedder, *, prune: bool = False,
    told: Told = lambda *_: None,
) -> list[Loaded]:  # fmt: skip
    """Put the folder's titles into the home. `prune` removes what the home has and the folder has not.

    A title that the home already has, by kind, section and name, keeps the id it has there. Raises LibraryError where
    the home's vectors are of another model, RemoteError where the home fails; what was done until then stays done.
    """
    plans = [_plan(files, home, kind, embedder) for kind in files.kinds]
    total = sum(len(plan.put) for plan in plans)
    done = 0
    told(0, total)
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="embed") as pool:
        for plan in plans:
            if not plan.put and not (prune and plan.result.foreign) and plan.complete:
                continue
            with home.loading(plan.result.kind, embedder.name, embedder.dimension) as loading:
                if prune and plan.result.foreign:
                    loading.remove([title.id for title in plan.result.foreign])
                    plan.result.removed = len(plan.result.foreign)
                    plan.result.foreign = []
                for batch in _batches(plan.put):
                    vectors = cache.vectors([embedded_text(title) for title in batch], pool)
                    loading.put([Entry(title, vector) for title, vector in zip(batch, vectors, strict=True)])
                    done += len(batch)
                    told(done, total)
    return [plan.result for plan in plans]


@dataclass(slots=True)
class _Plan:
    put: list[Title]
    complete: bool
    result: Loaded


def _plan(files: CatalogueFiles, home: Home, kind: Kind, embedder: Embedder) -> _Plan:
    state = home.state(kind)
    if problem := mismatch(f"the {kind} collection of {home.name}", state, embedder.name, embedder.dimension):
        raise LibraryError(problem)
    if state.count and state.model is None and made_by_another_model(embedder, home.entries(kind)):
        raise LibraryError(
            f"the vectors in the {kind} collection of {home.name} are not those of {embedder.name}: load the catalogue "
            "into another collection (MUSIC_COLLECTION, STORY_COLLECTION)"
        )
    there = {_name(title): title for title in (home.titles(kind) if state.exists else [])}
    result = Loaded(kind)
    put: list[Title] = []
    mine = [title for title in files.titles if title.kind == kind]
    taken = {title.id for title in there.values()}
    for title in mine:
        old = there.pop(_name(title), None)
        new = replace(title, id=old.id) if old is not None else title
        if old is None and new.id in taken:
            raise LibraryError(f"the id of {title.section}/{title.title} is taken in {home.name} by another title")
        if new == old and state.model == embedder.name:
            result.unchanged += 1
            continue
        result.added += old is None
        result.changed += old is not None
        put.append(new)
    result.foreign = sorted(there.values(), key=lambda title: (title.section, title.title))
    return _Plan(put, state.exists and state.model is not None, result)


def verify(files: CatalogueFiles, home: Home, embedder: Embedder) -> tuple[list[Differences], list[Path]]:
    """Compare folder and home; also the sound files that no entry names, relative to the folder.

    A sample of the titles is searched for in the home by its own vector, to show that searching works there.
    """
    results = []
    for kind in files.kinds:
        state = home.state(kind)
        if problem := mismatch(f"the {kind} collection of {home.name}", state, embedder.name, embedder.dimension):
            raise LibraryError(problem)
        there = {_name(title): title for title in (home.titles(kind) if state.exists else [])}
        found = Differences(kind)
        both: list[Title] = []
        for title in files.titles:
            if title.kind != kind:
                continue
            audio = files.audio(title).is_file()
            old = there.pop(_name(title), None)
            if old is None:
                (found.not_in_home if audio else found.in_neither).append(title)
            elif not audio:
                found.no_audio.append(title)
            elif replace(title, id=old.id) != old:
                found.outdated.append(title)
            else:
                found.complete += 1
                both.append(old)
        found.only_in_home = sorted(there.values(), key=lambda title: (title.section, title.title))
        found.not_found_by_vector = _lost(home, kind, both, embedder)
        results.append(found)
    named = {files.audio(title).relative_to(files.root) for title in files.titles}
    return results, [path for path in audio_files(files) if path not in named]


def _lost(home: Home, kind: Kind, titles: Sequence[Title], embedder: Embedder) -> list[Title]:
    step = max(1, len(titles) // 20)
    lost = []
    for title in titles[::step]:
        vector = embedder.embed(embedded_text(title))
        sections = {title.section} if title.section else None
        if title.id not in {number for number, _ in home.search(kind, vector, sections=sections, limit=10)}:
            lost.append(title)
    return lost


def _name(title: Title) -> tuple[str, str]:
    return unicodedata.normalize("NFC", title.section), unicodedata.normalize("NFC", title.title)


def _batches(titles: Sequence[Title]) -> Iterator[Sequence[Title]]:
    for start in range(0, len(titles), _BATCH):
        yield titles[start : start + _BATCH]
