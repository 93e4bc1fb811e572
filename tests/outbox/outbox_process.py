"""Processes for the kill tests: `write FILE LANE FIRST LAST` and `deliver FILE URL`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import aiohttp
from outbox_support import HttpDeliverer, line

from agent.outbox.courier import CourierTiming, OutboxCourier
from agent.outbox.sqlite import SqliteOutbox
from agent.outbox.writer import OutboxWriter


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


async def write(path: Path, lane: str, first: int, last: int) -> None:
    writer = OutboxWriter(SqliteOutbox(path, lock_timeout_s=10))
    for number in range(first, last + 1):
        writer.put(line(lane, number))
        await writer.flush(30)
        say(str(number))
    await writer.aclose()


async def deliver(path: Path, url: str) -> None:
    async with aiohttp.ClientSession() as session:
        timing = CourierTiming(poll_s=0.05, lease_s=1.0, first_delay_s=0.02, longest_delay_s=0.2)
        courier = OutboxCourier(SqliteOutbox(path, durable=False), {"chat": HttpDeliverer(session, url)}, timing=timing)
        say("ready")
        await courier.run()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["write", file, lane, first, last]:
            asyncio.run(write(Path(file), lane, int(first), int(last)))
        case ["deliver", file, url]:
            asyncio.run(deliver(Path(file), url))
        case _:
            raise SystemExit(2)
