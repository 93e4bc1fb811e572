"""A device in a process of its own, which can vanish as one does whose battery dies: without a goodbye."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import Sequence

from sandbox.device import Device
from sandbox.livekit_server import LiveKitServer
from sandbox.processes import Line, ManagedProcess, plain_environment


class VanishingDevice(ManagedProcess):
    """A `Device` whose marks and messages arrive as JSON lines: `{"mark": …}`, `{"type": …, "topic": …}` and,
    every quarter of a second, how many seconds it has heard since a title began: `{"heard_s": …}`.

    Ended by `drop()`, or by `stop()` with a goodbye.
    """

    def __init__(self, server: LiveKitServer, *, mac: str, room: str) -> None:
        command = [sys.executable, "-m", "sandbox.vanishing", str(server.port), mac, room]
        super().__init__(f"the device {mac}", command, env=plain_environment())

    async def wait_for_mark(self, mark: str, *, timeout: float = 15.0) -> Line:
        """The line that tells of a mark of the device. Raises ProcessFailed."""
        return await self.wait_for_line(lambda line: line.fields.get("mark") == mark, timeout=timeout, what=mark)

    async def drop(self) -> None:
        """Vanish: no leave message, no more packets."""
        self.send_signal(signal.SIGKILL)
        await self.wait(timeout=5)


async def run(port: int, mac: str, room: str) -> None:
    """Join and report until SIGTERM, then leave."""
    server = LiveKitServer()
    server.port = port
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    told: set[str] = set()
    count = 0
    begun: int | None = None
    heard_s = 0.0

    def report() -> bool:
        nonlocal count, begun, heard_s
        for mark in device.marks.keys() - told:
            told.add(mark)
            print(json.dumps({"mark": mark}), flush=True)
        for message in device.messages[count:]:
            count += 1
            print(json.dumps({"type": message.type, "topic": message.topic, "json": message.json}), flush=True)
            if message.type == "music_playback_started":
                begun, heard_s = device.heard.length, 0.0
        if begun is not None and (now := (device.heard.length - begun) / device.rate) >= heard_s + 0.25:
            heard_s = now
            print(json.dumps({"heard_s": round(now, 2)}), flush=True)
        return "left" in told

    async with Device(server, mac=mac, room=room) as device:
        reporting = asyncio.create_task(device.wait_until(report, timeout=3600, what="the end"))
        stopping = asyncio.create_task(ended.wait())
        await asyncio.wait([reporting, stopping], return_when=asyncio.FIRST_COMPLETED)
        reporting.cancel()
        stopping.cancel()
        await asyncio.wait([reporting, stopping])


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m sandbox.vanishing PORT MAC ROOM`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("mac")
    parser.add_argument("room")
    given = parser.parse_args(arguments)
    asyncio.run(run(given.port, given.mac, given.room))


if __name__ == "__main__":
    main()
