"""Memory of the worker and of every process it has, read from the kernel and not from the processes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Final

import psutil

from agent.telemetry.hub import MetricsHub

_KEPT_S: Final = 10.0

Roles = Mapping[int, str]
"""Role of each known process by its id: `starting`, `warm` or `visit`."""


class ProcessGauges:
    """A source of `toy_processes` and `toy_process_memory_bytes`.

    `roles` tells what the pool's processes are. A process keeps its slot for life, and the lowest free slot is given
    next, so series do not grow with the number of visits. Memory is proportional: what processes share counts once.
    Reading takes milliseconds a process, so it happens in a thread and at most every ten seconds.
    """

    def __init__(self, roles: Callable[[], Roles], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._roles = roles
        self._clock = clock
        self._slots: dict[int, int] = {}
        self._read_at = float("-inf")

    async def __call__(self, hub: MetricsHub) -> None:
        """Show them."""
        if self._clock() - self._read_at < _KEPT_S:
            return
        self._read_at = self._clock()
        found = await asyncio.to_thread(read_memory, dict(self._roles()))
        self._slots = {pid: slot for pid, slot in self._slots.items() if pid in found}
        free = iter(sorted(set(range(len(found))) - set(self._slots.values())))
        for pid in found:
            if pid not in self._slots:
                self._slots[pid] = next(free)
        counts: dict[tuple[str, ...], float] = {(role,): 0 for role in ("worker", "starting", "warm", "visit", "other")}
        for role, _ in found.values():
            counts[(role,)] += 1
        hub.replace("toy_processes", counts)
        memory: dict[tuple[str, ...], float] = {
            (role, str(self._slots[pid])): size for pid, (role, size) in found.items()
        }
        hub.replace("toy_process_memory_bytes", memory)


def read_memory(roles: Roles) -> dict[int, tuple[str, int]]:
    """Role and proportional memory in bytes of this process and its descendants; blocks for some milliseconds."""
    own = psutil.Process()
    found: dict[int, tuple[str, int]] = {}
    for process in [own, *own.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            role = "worker" if process.pid == own.pid else roles.get(process.pid, "other")
            found[process.pid] = (role, process.memory_full_info().pss)
    return found
