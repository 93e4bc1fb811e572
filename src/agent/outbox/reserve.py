"""Room on the disk that is kept free for the outbox: a file that is given up when nothing else fits any more."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from agent.state import private_dir

RESERVE_BYTES: Final = 8 * 2**20
"""Twice what the outbox's write-ahead log grows to: some hundred lines, until somebody makes room."""


class DiskReserve:
    """The file at `path`. `keep` is the worker's, `release` anybody's; both block for a moment."""

    def __init__(self, path: Path, *, size: int = RESERVE_BYTES) -> None:
        self._path = path
        self._size = size

    def keep(self) -> bool:
        """Make the file where it is missing and the disk has twice its size left; whether it is there.

        Never raises: a disk without a reserve works until it is full.
        """
        try:
            if self._path.exists():
                return True
            folder = private_dir(self._path.parent)
            free = os.statvfs(folder)
            if free.f_bavail * free.f_frsize < 2 * self._size:
                return False
            draft = self._path.with_suffix(f".{os.getpid()}")
            try:
                with draft.open("wb") as file:
                    # Blocks, not a length alone: a file with holes would keep nothing free.
                    os.posix_fallocate(file.fileno(), 0, self._size)
                draft.replace(self._path)
            finally:
                draft.unlink(missing_ok=True)
        except OSError:
            return False
        return True

    def release(self) -> bool:
        """Give the room away; False where there is none to give."""
        try:
            self._path.unlink()
        except OSError:
            return False
        return True
