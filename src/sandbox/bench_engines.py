"""`scripts/bench engines`: what the embedded home could search with, side by side.

Exact search over mapped files with numpy (what the embedded home does), qdrant-edge (the Qdrant engine in-process) and
qdrant-client's local mode, on the same vectors: opening, searching with and without a filter, several processes at
once, and a refresh while they read.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from agent.library.snapshot import SnapshotStore
from agent.library.titles import Title, stable_id
from sandbox.bench_report import summary, write_json

DIMENSION = 384
SECTIONS = [f"section {number}" for number in range(10)]
READERS = 4


class Engine(Protocol):
    """One way to keep and search vectors in a folder."""

    def load(self, titles: list[Title], vectors: Any) -> None:
        """Replace what is there."""

    def open(self) -> Callable[[Any, str | None], int]:
        """A function that searches for the nearest title's id, in one section or in all."""


class Mapped:
    """The embedded home's snapshot."""

    def __init__(self, folder: Path) -> None:
        self._store = SnapshotStore(folder, "music")

    def load(self, titles: list[Title], vectors: Any) -> None:
        self._store.write(titles, vectors, model="bench", dimension=DIMENSION, source="bench", revision="")

    def open(self) -> Callable[[Any, str | None], int]:
        snapshot = self._store.open()
        assert snapshot is not None
        return lambda vector, section: snapshot.search(vector, 5, [section] if section else None)[0][0]


class Edge:
    """qdrant-edge, without its write-ahead log, so that several processes may open one shard."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "shard"

    def load(self, titles: list[Title], vectors: Any) -> None:
        import qdrant_edge as edge

        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        parameters = edge.EdgeVectorParams(size=DIMENSION, distance=edge.Distance.Cosine)
        shard = edge.EdgeShard.create(str(self._folder), edge.EdgeConfig(vectors={"": parameters}, wal_enabled=False))
        for start in range(0, len(titles), 1000):
            points = [
                edge.Point(id=title.id, vector=vector.tolist(), payload={"section": title.section})
                for title, vector in zip(titles[start : start + 1000], vectors[start : start + 1000], strict=True)
            ]
            shard.update(edge.UpdateOperation.upsert_points(points))
        shard.update(edge.UpdateOperation.create_field_index("section", edge.PayloadSchemaType.Keyword))
        shard.flush()
        shard.close()

    def open(self) -> Callable[[Any, str | None], int]:
        import qdrant_edge as edge

        shard = edge.EdgeShard.load(str(self._folder))

        def search(vector: Any, section: str | None) -> int:
            only = None
            if section:
                match = edge.MatchValue(section)
                only = edge.Filter(must=[edge.FieldCondition(key="section", match=match)])
            request = edge.QueryRequest(limit=5, query=edge.Query.Nearest(vector.tolist()), filter=only)
            return int(shard.query(request)[0].id)

        return search


class Local:
    """qdrant-client's local mode on disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "local"

    def load(self, titles: list[Title], vectors: Any) -> None:
        from qdrant_client import QdrantClient, models

        shutil.rmtree(self._folder, ignore_errors=True)
        client = QdrantClient(path=str(self._folder))
        client.create_collection(
            "music", vectors_config=models.VectorParams(size=DIMENSION, distance=models.Distance.COSINE)
        )
        points = [
            models.PointStruct(id=title.id, vector=vector.tolist(), payload={"section": title.section})
            for title, vector in zip(titles, vectors, strict=True)
        ]
        client.upload_points("music", points)
        client.close()

    def open(self) -> Callable[[Any, str | None], int]:
        from qdrant_client import QdrantClient, models

        client = QdrantClient(path=str(self._folder))

        def search(vector: Any, section: str | None) -> int:
            only = None
            if section:
                condition = models.FieldCondition(key="section", match=models.MatchValue(value=section))
                only = models.Filter(must=[condition])
            found = client.query_points("music", query=vector.tolist(), query_filter=only, limit=5)
            return int(found.points[0].id)

        return search


ENGINES: dict[str, Callable[[Path], Engine]] = {
    "mapped files, numpy": Mapped,
    "qdrant-edge": Edge,
    "qdrant-client local": Local,
}


def catalogue(size: int, seed: int) -> tuple[list[Title], Any]:
    """Titles with random vectors of length 1."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(size, DIMENSION)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    names = [f"title {number}" for number in range(size)]
    titles = [
        Title(stable_id("music", SECTIONS[number % 10], name), "music", name, SECTIONS[number % 10], filename="x.mp3")
        for number, name in enumerate(names)
    ]
    return titles, vectors


def reader(name: str, folder: Path, size: int, pipe: Connection) -> None:
    """A process that opens, searches, waits for a refresh, and searches again."""
    titles, vectors = catalogue(size, 1)
    own = psutil.Process()
    before = own.memory_full_info().uss
    try:
        begun = time.perf_counter()
        search = ENGINES[name](folder).open()
        opened = (time.perf_counter() - begun) * 1000
        plain: list[float] = []
        filtered: list[float] = []
        for number in range(60):
            for samples, section in ((plain, None), (filtered, titles[number].section)):
                begun = time.perf_counter()
                found = search(vectors[number], section)
                samples.append((time.perf_counter() - begun) * 1000)
                if found != titles[number].id:
                    raise RuntimeError("found another title")
        memory = (own.memory_full_info().uss - before) / 2**20
        pipe.send({"open": opened, "plain": plain, "filtered": filtered, "memory": memory})
        pipe.recv()
        search(vectors[0], None)
        pipe.send("reads on")
    except EOFError:
        return  # nobody asks any more: another reader could not even open
    except Exception as error:  # noqa: BLE001 — an engine that cannot is a finding of this benchmark, and it is printed
        pipe.send(f"{type(error).__name__}: {str(error)[:90]}")


def measure(name: str, size: int) -> dict[str, Any]:
    """Load, read in several processes at once, load again while they read."""
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        titles, vectors = catalogue(size, 1)
        begun = time.perf_counter()
        ENGINES[name](folder).load(titles, vectors)
        loaded = time.perf_counter() - begun
        pipes = []
        for _ in range(READERS):
            mine, other = spawn.Pipe()
            process = spawn.Process(target=reader, args=(name, folder, size, other))
            process.start()
            pipes.append((mine, process))
        answers = [pipe.recv() if pipe.poll(120) else "silent" for pipe, _ in pipes]
        working = [answer for answer in answers if isinstance(answer, dict)]
        refreshed = "—"
        if len(working) == READERS:
            try:
                ENGINES[name](folder).load(*catalogue(size, 1))
                for pipe, _ in pipes:
                    pipe.send("look again")
                after = [pipe.recv() if pipe.poll(60) else "silent" for pipe, _ in pipes]
                refreshed = "yes" if all(answer == "reads on" for answer in after) else str(after[0])
            except Exception as error:  # noqa: BLE001 — as above
                refreshed = f"{type(error).__name__}: {str(error)[:60]}"
        for pipe, process in pipes:
            pipe.close()
            process.join(20)
            if process.is_alive():
                process.kill()
                process.join()
    refused = next((answer for answer in answers if not isinstance(answer, dict)), "")
    return {
        "load_s": round(loaded, 2),
        "readers": f"{len(working)} of {READERS}" + (f" ({refused})" if refused else ""),
        "open_ms": round(float(np.median([answer["open"] for answer in working])), 1) if working else None,
        "plain": summary([ms for answer in working for ms in answer["plain"]]) if working else None,
        "filtered": summary([ms for answer in working for ms in answer["filtered"]]) if working else None,
        "private_mb": round(float(np.median([answer["memory"] for answer in working])), 1) if working else None,
        "refresh_while_read": refreshed,
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="scripts/bench engines", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--out", type=Path, default=Path("out"))
    options = parser.parse_args()
    report: dict[str, Any] = {}
    for size in options.sizes:
        table = Table(title=f"{size:,} titles, {READERS} processes at once")
        for column in ("engine", "load s", "readers", "open ms", "search p50/p95 ms", "filtered p50/p95 ms",
                       "private MB", "refresh while read"):  # fmt: skip
            table.add_column(column)
        for name in ENGINES:
            found = report.setdefault(str(size), {})[name] = measure(name, size)
            cells = [name, found["load_s"], found["readers"], found["open_ms"]]
            for key in ("plain", "filtered"):
                numbers = found[key]
                cells.append(f"{numbers['p50']:.2f} / {numbers['p95']:.2f}" if numbers else "—")
            table.add_row(*map(str, [*cells, found["private_mb"], found["refresh_while_read"]]))
        Console(width=150).print(table)
    write_json(options.out / "bench-engines.json", report)


if __name__ == "__main__":
    main()
