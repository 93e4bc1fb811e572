"""A load that is stopped or killed goes on where it was."""

from __future__ import annotations

import fcntl
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from small_tree import Listed, Run, write_tree

from agent.library.catalogue_files import read_catalogue
from agent.library.embedding import Embedder, ModelFiles, Vector
from agent.library.homes import open_home, snapshot_root
from agent.library.ingest import VectorCache, load
from agent.settings import Settings
from sandbox.processes import plain_environment


class Counting(Embedder):
    """Counts what it embeds."""

    def __init__(self, files: ModelFiles) -> None:
        super().__init__(files)
        self.made = 0
        self._counting = threading.Lock()

    def embed_document(self, text: str) -> Vector:
        with self._counting:
            self.made += 1
        return super().embed_document(text)


class Stopped(Exception):
    """Somebody pressed Ctrl-C."""


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A folder of 200 songs and one story."""
    songs = {f"Song number {number}": {"filename": f"{number}.mp3"} for number in range(200)}
    write_tree(tmp_path / "many", {"music/English": songs, "stories/Bedtime": {"The Hare": {"filename": "hare.mp3"}}})
    return tmp_path / "many"


def test_a_stopped_load_shows_nothing_and_goes_on_where_it_was(
    settings: Settings, built_model: ModelFiles, many: Path
) -> None:
    files, embedder = read_catalogue(many), Counting(built_model)
    path = settings.state_dir / "vectors.db"

    def stop(done: int, total: int) -> None:
        assert total == 201
        if done >= 100:
            raise Stopped

    with closing(open_home(settings)) as home:
        with closing(VectorCache(path, embedder)) as cache, pytest.raises(Stopped):
            load(files, home, cache, embedder, told=stop)
        assert not home.state("music").exists
        kept, embedder.made = embedder.made, 0
        assert 100 <= kept < 200
        with closing(VectorCache(path, embedder)) as cache:
            load(files, home, cache, embedder)
        assert embedder.made == 201 - kept
        assert home.state("music").count == 200


def test_a_killed_load_leaves_what_is_whole_and_goes_on_where_it_was(
    settings: Settings, run: Run, listed: Listed, many: Path
) -> None:
    root = snapshot_root(settings)
    root.mkdir(parents=True)
    with (root / ".story.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # it waits for this, with the songs loaded and the stories not
        environment = {"STATE_DIR": str(settings.state_dir), "MODEL_DIR": str(settings.model_dir)}
        loading = subprocess.Popen(
            [sys.executable, "-m", "agent", "catalogue", "load", str(many)],
            stdout=subprocess.DEVNULL, cwd=many, env=plain_environment(environment),
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 60
            while not (root / "music" / "current").exists():
                assert loading.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
        finally:
            loading.kill()
            loading.wait()
    assert {title["kind"] for title in listed()} == {"music"}
    before = rows(settings)
    assert len(before) == 200
    code, told = run("load", many)
    assert code == 0
    assert "music: 0 added, 0 changed, 200 unchanged" in told
    assert "stories: 1 added" in told
    after = rows(settings)
    assert len(after) == 201
    assert before.items() <= after.items(), "no vector was made twice"


def rows(settings: Settings) -> dict[bytes, int]:
    """Where each vector is kept: a vector that is made again gets another place."""
    with closing(sqlite3.connect(settings.state_dir / "catalogue" / "vectors.db")) as database:
        return dict(database.execute("SELECT key, rowid FROM vectors"))
