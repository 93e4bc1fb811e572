"""What a program and all it started take: CPU, memory, files, threads, processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass

import psutil

_IDLE_CPU = 0.01


@dataclass(frozen=True)
class Footprint:
    """Sums over a process and its descendants. `private_mb` is what would be free without them (USS)."""

    private_mb: float
    fds: int
    threads: int
    processes: int

    def figures(self) -> dict[str, float]:
        """As JSON has it."""
        return asdict(self)


def _tree(pid: int) -> Iterator[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        yield root
        yield from root.children(recursive=True)


def footprint(pid: int) -> Footprint:
    """Of the process and its descendants, now; whoever ends meanwhile counts as gone."""
    private = fds = threads = processes = 0
    for process in _tree(pid):
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            memory, open_files, running = process.memory_full_info().uss, process.num_fds(), process.num_threads()
            private, fds, threads, processes = private + memory, fds + open_files, threads + running, processes + 1
    return Footprint(round(private / 2**20, 1), fds, threads, processes)


def cpu_seconds(pid: int) -> float:
    """CPU time of the process and its descendants so far, those that have ended and been waited for included."""
    total = 0.0
    for process in _tree(pid):
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def cpu_by_process(pid: int) -> dict[int, float]:
    """CPU time so far of each process of the tree by itself."""
    found = {}
    for process in _tree(pid):
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            times = process.cpu_times()
            found[process.pid] = times.user + times.system
    return found


def leaves(pid: int) -> list[psutil.Process]:
    """Processes of the tree that have no children: under the process executor, those of the jobs and the idle ones."""
    found = []
    for process in _tree(pid):
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if process.pid != pid and not process.children() and process.num_threads() > 1:
                found.append(process)
    return found


def busy_private_mb(pid: int, earlier: dict[int, float], seconds: float) -> list[float]:
    """Private memory of each job's process: those that lived `seconds` ago (`cpu_by_process`) and have worked since."""
    found = []
    for process in leaves(pid):
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            times = process.cpu_times()
            before = earlier.get(process.pid)
            if before is not None and times.user + times.system - before > _IDLE_CPU * seconds:
                found.append(round(process.memory_full_info().uss / 2**20, 1))
    return found
