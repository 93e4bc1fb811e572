"""Measuring, from any process: a record goes to the worker at once and is there even if this process is killed next.

Records travel as lines of JSON through a Unix socket into the worker, which alone holds the metrics. A record that has
been written belongs to the kernel, so a kill loses nothing that was counted; there are no files, and nothing to merge.
It costs some ten microseconds and never blocks.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

SOCKET_VARIABLE: Final = "TOY_METRICS_SOCKET"
"""Environment variable by which the worker tells its processes where to send records."""
USAGE_ONLY_VARIABLE: Final = "TOY_METRICS_USAGE_ONLY"
"""Set where nothing but usage is to be told: budgets need it though nobody measures."""
_KEPT: Final = 10_000
_RETRY_S: Final = 1.0

Record = list[Any]
"""`["c", name, labels, amount]` counts, `["o", name, labels, value]` observes, `["v", job]` begins a visit and
`["e", job]` ends it, `["g", name, job, labels, value]` observes what is told apart by first and later rooms,
`["u", …]` is usage (see `cost`)."""
Sink = Callable[[Record], None]


class Meter:
    """Where code counts and observes. Safe from every thread, and across a fork.

    Where no worker named a socket (tests, commands) nothing is kept; where it does not answer, up to 10,000 records
    wait, and `lost` counts those beyond.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._sink: Sink | None = None
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._socket: socket.socket | None = None
        self._waiting: deque[bytes] = deque()
        self.lost = 0
        self._begun = 0
        self._next_try = 0.0

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add `amount` to a counter of `instruments`."""
        self.send(["c", name, labels, amount])

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add a value (in the unit of the name) to a histogram of `instruments`."""
        self.send(["o", name, labels, value])

    def send(self, record: Record) -> None:
        """Hand one record to the worker. Never blocks, never raises for a worker that is gone."""
        if record[0] != "u" and os.environ.get(USAGE_ONLY_VARIABLE):
            return
        sink = self._sink
        if sink is not None:
            sink(record)
            return
        if not os.environ.get(SOCKET_VARIABLE):
            return
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            if self._pid != os.getpid():
                self._reset()
            if len(self._waiting) >= _KEPT:
                self.lost += 1
                return
            self._waiting.append(line)
            self._flush()

    def use(self, sink: Sink | None) -> None:
        """Hand records to `sink` in this process; None returns to the socket."""
        self._sink = sink

    @property
    def unsent(self) -> int:
        """Records that have not reached the kernel."""
        return len(self._waiting)

    def drain(self, timeout: float = 1.0) -> bool:
        """Wait up to `timeout` seconds until everything is sent; blocks, so for a thread, and only if `unsent`."""
        ends = time.monotonic() + timeout
        while True:
            with self._lock:
                self._next_try = 0.0
                self._flush()
                if not self._waiting:
                    return True
            if time.monotonic() >= ends:
                return False
            time.sleep(0.01)

    def close(self) -> None:
        """Let go of the socket; a later record opens it again."""
        with self._lock:
            connection, self._socket = self._socket, None
            self._begun = 0
            if connection is not None:
                connection.close()

    def _flush(self) -> None:
        connection = self._socket or self._connect()
        if connection is None:
            return
        try:
            while self._waiting:
                line = self._waiting[0]
                self._begun += connection.send(line[self._begun :] if self._begun else line)
                if self._begun >= len(line):
                    self._begun = 0
                    self._waiting.popleft()
        except BlockingIOError:
            return
        except OSError:
            if self._begun:  # the worker has seen half of it and will drop that half
                self._waiting.popleft()
            self.close()
            self._next_try = time.monotonic() + _RETRY_S

    def _connect(self) -> socket.socket | None:
        path = os.environ.get(SOCKET_VARIABLE)
        if not path or time.monotonic() < self._next_try:
            return None
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.setblocking(False)
            connection.connect(path)
        except OSError:  # the worker is not there, or too busy to take us just now
            connection.close()
            self._next_try = time.monotonic() + _RETRY_S
            return None
        self._socket = connection
        return connection


meter: Final = Meter()
"""The one meter of a process."""
