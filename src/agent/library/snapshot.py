"""The library as every process maps it: immutable versions on disk, one of them current.

    <root>/<kind>/<version>/titles.json            titles by rising id
                            ids.npy, sections.npy  of the same titles: int64 ids, int32 places in meta's `sections`
                            vectors.npy            float32, one row a title, length 1
                            index.bin              the packed title index
                            meta.json              model, dimension, sections, checksums
    <root>/<kind>/current                          symbolic link to a version, replaced in one rename

A version's name is the hash of its content, so the same content is written once. Readers follow the link once and keep
their maps: a version may be deleted under them. A damaged version is never used: the newest intact one is.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from agent.errors import LibraryError
from agent.library.embedding import Vector
from agent.library.ranking import TitleIndex
from agent.library.titles import Kind, Title
from agent.state import private_dir

_KEEP: Final = 3
_CURRENT: Final = "current"
_TITLES: Final = TypeAdapter(list[Title])


class SnapshotMeta(BaseModel):
    """What a version says of itself.

    `revision` is the home's word for the content it was copied from; `index_mark` is `index_mark()` of the code that
    packed the index.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal[1] = 1
    kind: Kind
    version: str
    model: str
    dimension: int
    count: int
    sections: tuple[str, ...]
    source: str
    revision: str
    made_at: float
    index_mark: str
    sha256: dict[str, str]


class Snapshot:
    """One version, mapped. Row i of `vectors` belongs to `ids[i]`. Safe in several threads."""

    def __init__(self, folder: Path, meta: SnapshotMeta) -> None:
        self.meta = meta
        self._folder = folder
        self.ids = _map_array(folder / "ids.npy", np.dtype(np.int64), (meta.count,))
        self.vectors: Vector = _map_array(folder / "vectors.npy", np.dtype(np.float32), (meta.count, meta.dimension))
        codes = _map_array(folder / "sections.npy", np.dtype(np.int32), (meta.count,))
        self._rows = {name: np.flatnonzero(codes == place) for place, name in enumerate(meta.sections)}

    def titles(self) -> list[Title]:
        """All titles, by rising id; read from disk at every call."""
        return _TITLES.validate_json((self._folder / "titles.json").read_bytes())

    def index_buffer(self) -> memoryview:
        """The packed title index, mapped."""
        with (self._folder / "index.bin").open("rb") as stream:
            return memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))

    def search(self, vector: Vector, limit: int, sections: Collection[str] | None = None) -> list[tuple[int, float]]:
        """Ids and cosine similarities of the nearest titles, best first; exact. About 1 ms at 10,000 titles."""
        rows = None
        if sections is not None:
            found = [self._rows[name] for name in sections if name in self._rows]
            if not found:
                return []
            rows = np.concatenate(found)
        scores = np.einsum("ij,j->i", self.vectors if rows is None else self.vectors[rows], vector)
        limit = min(limit, len(scores))
        if limit <= 0:
            return []
        best = np.argpartition(-scores, limit - 1)[:limit]
        best = best[np.lexsort((best, -scores[best]))]
        ids = self.ids[best if rows is None else rows[best]]
        return list(zip(ids.tolist(), scores[best].tolist(), strict=True))


class SnapshotStore:
    """The versions of one kind under a folder that all processes of a worker share. One writer at a time."""

    def __init__(self, root: Path, kind: Kind) -> None:
        self.kind = kind
        self.folder = root / kind

    def current(self) -> str | None:
        """Name of the current version, None where there is none. One system call."""
        try:
            return (self.folder / _CURRENT).readlink().name
        except OSError:
            return None

    def state(self) -> tuple[str, int, int] | None:
        """What tells the current version as it was made current from every other, an equal one written again included.

        None where there is none. Two system calls.
        """
        link = self.folder / _CURRENT
        try:
            found = link.lstat()
            return link.readlink().name, found.st_ino, found.st_mtime_ns
        except OSError:
            return None

    def write(
        self,
        titles: Sequence[Title],
        vectors: Vector,
        *,
        model: str,
        dimension: int,
        source: str,
        revision: str,
    ) -> SnapshotMeta:
        """Write a version and make it current; an equal one that is already there is only made current.

        `vectors` has one row a title, in any length; `titles` are put in order of their ids.
        """
        order = sorted(range(len(titles)), key=lambda row: titles[row].id)
        ordered = [titles[row] for row in order]
        matrix = np.ascontiguousarray(np.asarray(vectors, np.float32).reshape(len(titles), dimension)[order])
        matrix /= np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12)
        text = json.dumps([asdict(title) for title in ordered], ensure_ascii=False, separators=(",", ":")).encode()
        mark = index_mark()
        digest = hashlib.sha256(f"{model}\0{dimension}\0{mark}\0".encode() + text + b"\0")
        digest.update(matrix.data)
        version = digest.hexdigest()[:24]
        private_dir(self.folder)
        target = self.folder / version
        if not self._intact(target):
            sections = tuple(dict.fromkeys(title.section for title in ordered))
            places = {name: place for place, name in enumerate(sections)}
            staged = self.folder / f".{version}.{os.getpid()}.{time.monotonic_ns()}"
            staged.mkdir()
            try:
                (staged / "titles.json").write_bytes(text)
                np.save(staged / "ids.npy", np.array([title.id for title in ordered], np.int64))
                np.save(staged / "sections.npy", np.array([places[title.section] for title in ordered], np.int32))
                np.save(staged / "vectors.npy", matrix)
                (staged / "index.bin").write_bytes(TitleIndex.pack(ordered))
                sums = {path.name: _sha256(path) for path in staged.iterdir()}
                meta = SnapshotMeta(
                    kind=self.kind, version=version, model=model, dimension=dimension, count=len(titles),
                    sections=sections, source=source, revision=revision, made_at=time.time(), index_mark=mark,
                    sha256=sums,
                )  # fmt: skip
                (staged / "meta.json").write_text(meta.model_dump_json(indent=2) + "\n")
                for path in staged.iterdir():
                    _sync(path)
                if target.exists():
                    shutil.rmtree(target)  # damaged, or it would have been taken as it is
                staged.rename(target)
            finally:
                shutil.rmtree(staged, ignore_errors=True)
        link = self.folder / f".{_CURRENT}.{os.getpid()}.{time.monotonic_ns()}"
        link.symlink_to(version)
        link.replace(self.folder / _CURRENT)
        _sync(self.folder)
        os.utime(target)
        self._prune()
        return _read_meta(target)

    def open(self) -> Snapshot | None:
        """The current version, or the newest intact one where that is damaged; None where nothing was ever loaded.

        Raises LibraryError where every version is damaged.
        """
        while True:
            current = self.current()
            problem: LibraryError | None = None
            for version in self._newest_first():
                try:
                    return self.open_version(version)
                except LibraryError as error:
                    problem = problem or error
            if self.current() != current:
                continue  # versions went while they were looked at: there are newer ones
            if problem is not None:
                raise problem
            return None

    def open_version(self, version: str) -> Snapshot:
        """One version by name, checked against its checksums. Raises LibraryError where it is damaged or gone."""
        folder = self.folder / version
        try:
            meta = _read_meta(folder)
            for name, expected in meta.sha256.items():
                if _sha256(folder / name) != expected:
                    raise LibraryError(f"the library's {folder / name} is damaged")
            return Snapshot(folder, meta)
        except (OSError, ValueError, EOFError) as error:
            raise LibraryError(f"the library's {folder} is damaged: {type(error).__name__}") from error

    def meta(self) -> SnapshotMeta | None:
        """What the current version says of itself; None where there is none or it cannot be read."""
        version = self.current()
        try:
            return _read_meta(self.folder / version) if version else None
        except (OSError, ValidationError):
            return None

    def _newest_first(self) -> list[str]:
        current = self.current()
        found: list[tuple[bool, int, str]] = []
        try:
            with os.scandir(self.folder) as entries:
                for entry in entries:
                    if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
                        try:
                            found.append((entry.name == current, entry.stat().st_mtime_ns, entry.name))
                        except FileNotFoundError:
                            continue  # a writer has just pruned it
        except FileNotFoundError:
            return []
        return [name for _, _, name in sorted(found, reverse=True)]

    def _intact(self, folder: Path) -> bool:
        try:
            self.open_version(folder.name)
        except LibraryError:
            return False
        return True

    def _prune(self) -> None:
        for version in self._newest_first()[_KEEP:]:
            shutil.rmtree(self.folder / version, ignore_errors=True)
        for path in self.folder.glob(".*"):  # what a killed writer left
            if path.is_dir() and not path.is_symlink() and time.time() - path.stat().st_mtime > 3600:
                shutil.rmtree(path, ignore_errors=True)


@cache
def index_mark() -> str:
    """Identifies the code a title index is packed by: an index packed by other code is packed again."""
    folder = resources.files("agent.library")
    digest = hashlib.sha256()
    for name in (
        "title_index.py",
        "lexical.py",
        "phonetic.py",
        "pronunciation.py",
        "pronunciation.json",
        "requests.py",
        "languages.json",
    ):
        digest.update(folder.joinpath(name).read_bytes())
    return digest.hexdigest()[:16]


def _map_array(path: Path, kind: np.dtype[Any], shape: tuple[int, ...]) -> Any:
    array = np.load(path, mmap_mode="r", allow_pickle=False) if shape[0] else np.zeros(shape, kind)
    if array.shape != shape or array.dtype != kind:
        raise ValueError(f"{path.name} does not fit its titles")
    return array


def _read_meta(folder: Path) -> SnapshotMeta:
    return SnapshotMeta.model_validate_json((folder / "meta.json").read_bytes())


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
