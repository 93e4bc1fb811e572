"""What tests of whole visits share."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import psutil

from sandbox.audio import align, blocks, read_wav
from sandbox.device import Device
from sandbox.processes import REPO, Line
from sandbox.providers import ProviderServer
from sandbox.world import World

GREETINGS = REPO / "greetings"
SAME = 0.7
"""Correlation from which it is this recording: another one stays below 0.6, and one that is whole comes down to 0.8 by
a busy machine's jitter buffer."""


async def visit_ended(world: World, count: int = 1, *, timeout: float = 30) -> list[Line]:
    """Wait until `count` visits have ended; their lines, in order."""
    await world.worker.wait_until(
        lambda: len(world.worker.events("visit ended")) >= count,
        timeout=timeout,
        what=f"{count} ended visits",
    )
    return world.worker.events("visit ended")


def heard_greeting(device: Device, name: str = "en_default") -> tuple[float, float]:
    """Correlation of what the device heard with a recorded greeting: of the whole, and of its first 100 ms."""
    reference, rate = read_wav(GREETINGS / f"{name}.wav")
    assert rate == device.rate
    heard = device.heard.samples
    offset, whole = align(heard, reference, rate)
    start = heard[max(0, offset - rate // 50) : offset + rate // 10 + rate // 50]
    _, beginning = align(start, reference[: rate // 10], rate)
    return whole, beginning


def open_files(worker_pid: int) -> int:
    """Open file descriptors of the worker's main process."""
    return len(list(Path(f"/proc/{worker_pid}/fd").iterdir()))


def private_mb(pid: int) -> float:
    """Private memory of one process, in MiB."""
    return float(psutil.Process(pid).memory_full_info().uss) / 2**20


def leftover_files(folder: Path) -> set[str]:
    """Files below a folder, by their relative names; without those that SQLite keeps beside a database in use."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {name for name in found if name.removesuffix("-wal").removesuffix("-shm") not in found - {name}}


def own_errors(world: World) -> list[str]:
    """What this project did not expect: errors with a traceback. (WebRTC calls its connections' ends errors too, and a
    worker without providers says so as one.)"""
    return [
        line.text
        for line in world.worker.lines
        if "exception" in line.fields and str(line.fields.get("logger", "")).startswith(("agent", "asyncio"))
    ]


def longest_gap_ms(device: Device, name: str = "en_default") -> float:
    """By how many milliseconds two neighbouring tenths of a second of a recorded greeting were moved apart on the way.

    A jitter buffer stretches sound a little at the start (some 20 ms a tenth); what is more is a gap.
    """
    reference, rate = read_wav(GREETINGS / f"{name}.wav")
    offsets = [offset for offset, correlation, _ in blocks(device.heard.samples, reference, rate) if correlation > 0.5]
    return max(abs(b - a) for a, b in pairwise(offsets)) * 1000 / rate


def provider_settings(providers: ProviderServer) -> dict[str, str]:
    """Settings of a worker that hears, thinks and speaks with these stand-ins."""
    return {"STT_BASE_URL": providers.v1, "LLM_BASE_URL": providers.v1, "TTS_BASE_URL": providers.v1}


def memory_settings(providers: ProviderServer) -> dict[str, str]:
    """And remembers with them."""
    return {"MEM0_ENABLED": "true", "MEM0_HOST": providers.url, "MEM0_API_KEY": "sandbox"}
