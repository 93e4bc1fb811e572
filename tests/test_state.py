"""SQLite files that several threads and processes of a worker open at once."""

from __future__ import annotations

import os
import sqlite3
import stat
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.state import StateDatabase, open_database, private_dir
from damage_support import damage_table

SCHEMA = "CREATE TABLE IF NOT EXISTS items(seq INTEGER PRIMARY KEY, lane INTEGER);"
WRITERS = 6


@pytest.mark.parametrize("attempt", range(40))
def test_writers_that_begin_a_file_at_once_all_write(tmp_path: Path, attempt: int) -> None:
    path = tmp_path / "new.db"
    start = threading.Barrier(WRITERS)
    refused: list[sqlite3.Error] = []

    def write(lane: int) -> None:
        start.wait(20)
        try:
            connection = open_database(path, SCHEMA, timeout=20)
            connection.execute("INSERT INTO items(lane) VALUES(?)", (lane,))
            connection.close()
        except sqlite3.Error as error:
            refused.append(error)

    threads = [threading.Thread(target=write, args=(lane,)) for lane in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refused == []
    reader = open_database(path, SCHEMA)
    assert sorted(lane for (lane,) in reader.execute("SELECT lane FROM items")) == list(range(WRITERS))
    reader.close()
    assert [file.name for file in tmp_path.iterdir()] == ["new.db"]


def test_a_database_is_its_owners_alone(tmp_path: Path) -> None:
    connection = open_database(tmp_path / "state" / "new.db", SCHEMA)
    connection.execute("INSERT INTO items(lane) VALUES(1)")
    files = list((tmp_path / "state").iterdir())
    assert {file.name for file in files} == {"new.db", "new.db-wal", "new.db-shm"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    connection.close()


def test_a_file_that_is_not_a_database_is_moved_aside(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    path.write_bytes(b"not a database " * 100)
    connection = open_database(path, SCHEMA)
    assert connection.execute("SELECT COUNT(*) FROM items").fetchone() == (0,)
    connection.close()
    assert (tmp_path / "old.db.damaged").read_bytes().startswith(b"not a database")


def test_damage_that_two_have_met_costs_one_file(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    databases = [StateDatabase(path, SCHEMA) for _ in range(2)]
    databases[0].run(lambda db: db.execute("INSERT INTO items(lane) VALUES(1)"))
    databases[0].close()
    damage_table(path, "items")
    met = []
    for database in databases:
        with pytest.raises(sqlite3.DatabaseError) as raised:
            database.connection().execute("INSERT INTO items(lane) VALUES(2)")
        met.append(raised.value)
    assert databases[0].failed(met[0])
    databases[0].run(lambda db: db.execute("INSERT INTO items(lane) VALUES(3)"))
    assert databases[1].failed(met[1]), "it is to be opened anew"
    for database in databases:
        assert database.run(lambda db: db.execute("SELECT lane FROM items").fetchall()) == [(3,)]
        database.close()


def test_a_file_that_is_replaced_is_opened_anew(tmp_path: Path) -> None:
    database = StateDatabase(tmp_path / "new.db", SCHEMA)
    database.run(lambda db: db.execute("INSERT INTO items(lane) VALUES(1)"))
    for part in tmp_path.iterdir():
        part.unlink()
    assert database.run(lambda db: db.execute("SELECT lane FROM items").fetchall()) == []
    database.close()
    database.close()


def test_a_file_that_an_older_release_left_without_a_log_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    old = sqlite3.connect(path)
    old.execute("CREATE TABLE items(seq INTEGER PRIMARY KEY, lane INTEGER)")
    old.execute("INSERT INTO items(lane) VALUES(7)")
    old.commit()
    old.close()
    connection = open_database(path, SCHEMA)
    assert connection.execute("SELECT lane FROM items").fetchone() == (7,)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


@contextmanager
def _others_folder(mode: int) -> Iterator[Path]:
    """A folder that somebody else owns; inside we are not root."""
    if os.geteuid():
        yield Path(tempfile.gettempdir()) if mode & stat.S_IWOTH else Path("/")
        return
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(mode)
        os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            os.seteuid(0)


def test_a_volume_that_is_opened_to_us_and_not_ours_is_used_as_it_is() -> None:
    with _others_folder(0o777) as folder:
        before = folder.stat().st_mode
        assert private_dir(folder) == folder
        assert folder.stat().st_mode == before
        with tempfile.TemporaryDirectory(dir=folder) as ours:
            below = private_dir(Path(ours) / "toy")
            assert stat.S_IMODE(below.stat().st_mode) == 0o700
            open_database(below / "new.db", SCHEMA).close()


def test_a_folder_that_is_neither_ours_nor_open_to_us_is_refused() -> None:
    with _others_folder(0o755) as folder, pytest.raises(PermissionError):
        private_dir(folder)
