"""What the tests run in processes of their own: `write ROOT` for ever, `read ROOT` until 15 versions were seen."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from small_catalogue import song

from agent.library.snapshot import SnapshotStore


def tell(what: object) -> None:
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


def write(store: SnapshotStore) -> None:
    seed = 0
    while True:
        seed += 1
        titles = [song(f"Song {number} of {seed}") for number in range(50)]
        vectors = np.random.default_rng(seed).standard_normal((50, 8)).astype(np.float32)
        store.write(titles, vectors, model="m", dimension=8, source="test", revision=str(seed))
        tell(seed)


def read(store: SnapshotStore) -> None:
    seen: set[str] = set()
    while len(seen) < 15:
        snapshot = store.open()
        assert snapshot is not None
        loads = {title.title.rpartition(" ")[2] for title in snapshot.titles()}
        if len(loads) != 1 or len(snapshot.search(np.ones(8, np.float32), 50)) != 50:
            tell(f"half a load: {loads}")
            return
        seen.add(snapshot.meta.version)
    tell("whole")


if __name__ == "__main__":
    {"write": write, "read": read}[sys.argv[1]](SnapshotStore(Path(sys.argv[2]), "music"))
