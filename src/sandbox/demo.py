"""`scripts/demo`: a whole visit on this machine, without a key, as a table, a sound and a picture."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from livekit import rtc
from rich.console import Console
from rich.table import Table

from agent.errors import ToyError
from sandbox.audio import Pcm, write_wav
from sandbox.device import Device, DeviceTimeout
from sandbox.livekit_server import ServerMissing, find_or_install_livekit_server
from sandbox.manager_api import DEMO_MAC
from sandbox.picture import Moment, draw_visit
from sandbox.processes import REPO, ProcessFailed, WorkerProcess
from sandbox.world import World

_LISTEN_S = 20.0
_SILENCE_S = 1.0
_INTERRUPTED = 130

_console = Console(stderr=False, highlight=False)


@dataclass(frozen=True)
class Visit:
    """What one visit left: its moments, and what the device heard (mono int16 at `rate`, the first at `starts_ms`)."""

    moments: list[Moment]
    samples: Pcm
    rate: int
    starts_ms: float


async def greeting(world: World) -> Visit:
    """The device joins, listens until the agent has been silent for a second, and leaves.

    Raises DeviceTimeout when no greeting is heard.
    """
    device = world.device(mac=DEMO_MAC, rate=48_000)
    await device.join()
    await device.wait_for_sound()
    await device.wait_for_silence(_SILENCE_S, timeout=_LISTEN_S)
    worker = await _marks_of_worker(world.worker, device)
    await device.leave()
    heard = device.heard
    begins = (heard.arrivals[0] - heard.chunks[0].size / heard.sample_rate - device.marks["joined"]) * 1000
    return Visit(_moments(device, worker), heard.samples, heard.sample_rate, begins)


async def _marks_of_worker(worker: WorkerProcess, device: Device) -> dict[str, float]:
    """The worker's own marks of this visit, in milliseconds from the device's join (one machine, one wall clock)."""
    line = await worker.wait_for_line(
        lambda line: line.event == "greeting finished", timeout=15, what="the end of the greeting in the worker's log"
    )
    offset = (float(line.fields["t0_wall"]) - device.t0_wall) * 1000
    return {name: offset + float(ms) for name, ms in line.fields["marks"].items()}


def _moments(device: Device, worker: dict[str, float]) -> list[Moment]:
    own = {name: device.since_joined_ms(name) for name in ("joined", "agent_there", "track_subscribed", "first_sound")}
    return [
        Moment("joined", own["joined"]),
        Moment("agent there", own["agent_there"]),
        Moment("track subscribed", own["track_subscribed"]),
        Moment("first sound", own["first_sound"]),
        Moment("briefing ready", worker.get("briefing_ready")),
        Moment("session ready", worker.get("session_ready")),
        Moment("left", device.since_joined_ms("left")),
    ]


def timeline_table(moments: Sequence[Moment]) -> Table:
    """The visit's moments in the order in which they came, those not reached last."""
    table = Table(title="The visit, in milliseconds from the device's join", title_justify="left")
    table.add_column("moment")
    table.add_column("ms", justify="right")
    table.add_column("since the last", justify="right")
    last: float | None = None
    for moment in sorted(moments, key=lambda moment: (moment.ms is None, moment.ms or 0.0)):
        if moment.ms is None:
            table.add_row(moment.name, "not reached", "")
            continue
        table.add_row(moment.name, f"{moment.ms:.0f}", "" if last is None else f"+{moment.ms - last:.0f}")
        last = moment.ms
    return table


def save(visit: Visit, out: Path) -> list[Path]:
    """Write what the device heard and its picture; returns their paths."""
    sound, picture = out / "demo.wav", out / "demo.png"
    write_wav(sound, visit.samples, visit.rate)
    first = next((moment.ms for moment in visit.moments if moment.name == "first sound"), None)
    title = "A toy joins a room" + (f": first sound after {first:.0f} ms" if first is not None else "")
    draw_visit(picture, visit.samples, visit.rate, visit.starts_ms, visit.moments, title=title)
    return [sound, picture]


async def run(out: Path, binary: Path) -> None:
    """Start the world, play the visit in it, show and save what came of it."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with World(binary=binary, say=_step) as world:
        begun = time.monotonic()
        visit = await greeting(world)
        _step(f"a device joined, listened and left ({time.monotonic() - begun:.1f} s)")
    _console.print(timeline_table(visit.moments))
    for path in await asyncio.to_thread(save, visit, out):
        _console.print(f"Written: {path}", soft_wrap=True)


def _step(text: str) -> None:
    _console.print(f"[green]✓[/] {text}", soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 done, 1 a step failed (a sentence says which), 130 interrupted. Leaves no process behind."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=REPO / "out", help="folder of demo.wav and demo.png (out)")
    given = parser.parse_args(arguments)
    # The client library warns of every server older than itself; here the version is chosen on purpose.
    logging.getLogger("livekit").setLevel(logging.ERROR)
    try:
        asyncio.run(run(given.out, find_or_install_livekit_server()))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("Interrupted; everything that was started has been stopped.", file=sys.stderr)
        return _INTERRUPTED
    except (ServerMissing, ProcessFailed, DeviceTimeout, rtc.ConnectError, ToyError, OSError) as error:
        print(f"The demo failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
