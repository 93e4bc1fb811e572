"""Versions on disk: whole or not at all, whoever is killed, whatever is damaged, however many read."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from small_catalogue import SONGS

from agent.errors import LibraryError
from agent.library.embedding import Vector
from agent.library.snapshot import Snapshot, SnapshotMeta, SnapshotStore
from agent.library.titles import Title


def vectors(count: int, seed: int = 0) -> Vector:
    made = np.random.default_rng(seed).standard_normal((count, 8)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def write(store: SnapshotStore, titles: list[Title], seed: int = 0) -> SnapshotMeta:
    return store.write(titles, vectors(len(titles), seed), model="m", dimension=8, source="test", revision=str(seed))


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    return SnapshotStore(tmp_path / "library", "music")


def opened(store: SnapshotStore) -> Snapshot:
    snapshot = store.open()
    assert snapshot is not None
    return snapshot


def test_nothing_is_there_before_the_first_load(store: SnapshotStore) -> None:
    assert store.current() is None
    assert store.open() is None
    assert store.meta() is None


def test_titles_and_vectors_belong_together_in_order_of_ids(store: SnapshotStore) -> None:
    meta = write(store, SONGS)
    snapshot = opened(store)
    assert snapshot.meta == meta == store.meta()
    assert snapshot.titles() == sorted(SONGS, key=lambda title: title.id)
    for title, vector in zip(SONGS, vectors(len(SONGS)), strict=True):
        assert snapshot.search(vector, 1)[0] == (title.id, pytest.approx(1.0))


def test_the_same_content_is_written_once(store: SnapshotStore) -> None:
    first = write(store, SONGS)
    before = (store.folder / first.version / "vectors.npy").stat().st_ino
    shuffled = list(zip(SONGS, vectors(len(SONGS)), strict=True))
    random.Random(1).shuffle(shuffled)
    again = store.write(
        [title for title, _ in shuffled], np.array([vector for _, vector in shuffled]), model="m", dimension=8,
        source="test", revision="other",
    )  # fmt: skip
    assert again.version == first.version
    assert (store.folder / first.version / "vectors.npy").stat().st_ino == before


def test_an_empty_catalogue_is_a_version_too(store: SnapshotStore) -> None:
    write(store, [])
    snapshot = opened(store)
    assert (snapshot.meta.count, snapshot.titles(), snapshot.search(vectors(1)[0], 5)) == (0, [], [])


def test_old_versions_go_and_readers_keep_theirs(store: SnapshotStore) -> None:
    write(store, SONGS[:1], 0)
    held = opened(store)
    for seed in range(1, 8):
        write(store, SONGS[: 1 + seed % 5], seed)
    assert len([path for path in store.folder.iterdir() if path.is_dir() and not path.is_symlink()]) == 3
    assert held.search(vectors(1, 0)[0], 1)[0][0] == SONGS[0].id


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


_DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped vectors": lambda folder: _flip(folder / "vectors.npy"),
    "flipped titles": lambda folder: _flip(folder / "titles.json"),
    "flipped index": lambda folder: _flip(folder / "index.bin"),
    "cut vectors": lambda folder: os.truncate(folder / "vectors.npy", 50),
    "no index": lambda folder: (folder / "index.bin").unlink(),
    "no meta": lambda folder: (folder / "meta.json").unlink(),
    "empty meta": lambda folder: (folder / "meta.json").write_text(""),
    "other format": lambda folder: (folder / "meta.json").write_text('{"format": 2}'),
    "wrong count": lambda folder: _change_meta(folder, count=1),
}


def _change_meta(folder: Path, **changes: object) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, **changes}))


@pytest.mark.parametrize("damage", _DAMAGES.values(), ids=_DAMAGES.keys())
def test_a_damaged_version_is_never_used(store: SnapshotStore, damage: Callable[[Path], object]) -> None:
    older = write(store, SONGS[:3], 1)
    newer = write(store, SONGS, 2)
    damage(store.folder / newer.version)
    assert opened(store).meta.version == older.version
    damage(store.folder / older.version)
    with pytest.raises(LibraryError, match="damaged"):
        store.open()
    assert write(store, SONGS, 2).version == newer.version
    assert opened(store).meta.version == newer.version


def test_a_link_to_nowhere_falls_back_to_what_is_intact(store: SnapshotStore) -> None:
    meta = write(store, SONGS)
    (store.folder / "current").unlink()
    (store.folder / "current").symlink_to("gone")
    assert opened(store).meta.version == meta.version


def test_sections_filter_and_unknown_ones_find_nothing(store: SnapshotStore) -> None:
    write(store, SONGS)
    snapshot = opened(store)
    hindi = {title.id for title in SONGS if title.section == "Hindi"}
    vector = vectors(1, 9)[0]
    assert {number for number, _ in snapshot.search(vector, 10, {"Hindi"})} == hindi
    assert snapshot.search(vector, 10, {"hindi", "Klingon"}) == []
    assert snapshot.search(vector, 0) == []


def other_process(command: str, root: Path) -> subprocess.Popen[str]:
    script = Path(__file__).with_name("other_process.py")
    return subprocess.Popen([sys.executable, str(script), command, str(root)], stdout=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@contextmanager
def writing(root: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that writes one version after the other; it has written three when the context begins."""
    writer = other_process("write", root)
    try:
        assert [said(writer) for _ in range(3)] == ["1", "2", "3"]
        yield writer
    finally:
        writer.kill()
        writer.communicate()


@pytest.mark.timeout(240)
def test_readers_in_several_processes_never_see_half_a_load(tmp_path: Path) -> None:
    root = tmp_path / "library"
    with writing(root) as writer:
        readers = [other_process("read", root) for _ in range(2)]
        threading.Thread(target=lambda: all(iter(lambda: said(writer), "")), daemon=True).start()  # empties its pipe
        assert [reader.communicate(timeout=200)[0].strip() for reader in readers] == ["whole", "whole"]


@pytest.mark.parametrize("after_lines", [0, 1, 2, 3])
def test_a_killed_writer_leaves_a_library_that_opens_and_can_be_written(tmp_path: Path, after_lines: int) -> None:
    root = tmp_path / "library"
    with writing(root) as writer:
        for _ in range(after_lines):
            said(writer)
        writer.send_signal(signal.SIGKILL)
    store = SnapshotStore(root, "music")
    assert len(opened(store).titles()) == 50
    assert opened(store).meta.version == store.current()
    written = write(store, SONGS, 77)
    assert opened(store).meta.version == written.version


def test_what_a_killed_writer_left_is_cleared_in_time(store: SnapshotStore) -> None:
    write(store, SONGS, 1)
    (store.folder / ".left").mkdir()
    (store.folder / ".left" / "vectors.npy").write_bytes(b"x")
    (store.folder / ".fresh").mkdir()
    os.utime(store.folder / ".left", (1, 1))
    write(store, SONGS, 2)
    assert not (store.folder / ".left").exists()
    assert (store.folder / ".fresh").exists()


def test_only_the_owner_may_read(store: SnapshotStore) -> None:
    write(store, SONGS)
    assert store.folder.stat().st_mode & 0o077 == 0
