"""Which rooms this machine's visits are in, as files that tell of a visit's death even when nothing else can.

A visit holds a lock on its file while it lives; the kernel lets go of it however the process ends. LiveKit shows a dead
agent for some twenty seconds: whoever finds a file without its lock knows at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path

import structlog

from agent.settings import Settings
from agent.state import private_dir

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Served:
    """A room's name and the identity of our agent in it."""

    room: str
    agent: str


class ServingMark:
    """The file of one visit. `set` and `clear` block for a moment: call them in a thread."""

    def __init__(self, settings: Settings) -> None:
        self._folder = _folder(settings)
        self._path: Path | None = None
        self._file = -1

    def set(self, served: Served) -> None:
        """This visit lives. Raises OSError, as of a full disk; nothing is left behind then."""
        private_dir(self._folder)
        draft = self._folder / f"{uuid.uuid4().hex}.draft"
        self._file = os.open(draft, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(self._file, json.dumps([served.room, served.agent]).encode())
            draft.rename(draft.with_suffix(".json"))  # found only once it is whole and locked
        except OSError:
            draft.unlink(missing_ok=True)
            self.clear()
            raise
        self._path = draft.with_suffix(".json")

    def clear(self) -> None:
        """It has ended in order. Safe to call twice, and without `set`."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path = None
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def take_dead(settings: Settings) -> list[Served]:
    """The visits of this machine that have died, each told once if its mark can be removed. Blocks, never raises."""
    found = []
    for path in _folder(settings).glob("*.json"):
        try:
            dead = _read_dead(path)
        except (FileNotFoundError, BlockingIOError):  # its visit has just ended, or lives
            continue
        except (ValueError, TypeError):
            log.warning("a visit's mark cannot be read", file=path.name)
        except OSError as error:  # somebody else's, for one: LiveKit will tell of that visit, only later
            log.debug("a visit's mark cannot be looked at", file=path.name, error=type(error).__name__)
            continue
        else:
            found.append(dead)
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
    return found


def _read_dead(path: Path) -> Served:
    file = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        room, agent = json.loads(os.read(file, 65_536))
    finally:
        os.close(file)
    return Served(str(room), str(agent))


def _folder(settings: Settings) -> Path:
    return settings.state_dir / "run" / "visits"
