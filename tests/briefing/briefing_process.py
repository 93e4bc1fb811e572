"""Processes for the cache's tests: `write FILE LANE COUNT` and `visit DIR URL SECRET BYTES`.

`write` says each number once it is kept; where another writer was faster for too long, which SQLite does not keep in
turn, it tries again. `visit` fetches a briefing where no file may grow beyond BYTES.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from pathlib import Path

from briefing_support import ROOM

from agent.briefing.cache import SqliteCache
from agent.briefing.desk import BriefingDesk
from agent.briefing.profile import Part
from agent.errors import Unavailable
from agent.settings import Settings
from agent.values import DeviceMac
from sandbox.manager_api import DEMO_MAC

ATTEMPTS = 10


def mac_of(lane: int, number: int) -> DeviceMac:
    return DeviceMac(f"{lane:02x}0000{number:06x}")


def body_of(lane: int, number: int) -> str:
    return json.dumps({"lane": lane, "number": number, "filler": "x" * 2000})


async def write(path: Path, lane: int, count: int) -> None:
    cache = SqliteCache(path, scope="kill", max_age=1e9)
    for number in range(count):
        for attempt in range(ATTEMPTS):
            try:
                await cache.put(mac_of(lane, number), Part.PROMPT, body_of(lane, number))
                break
            except Unavailable:
                if attempt == ATTEMPTS - 1:
                    raise
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()
    await cache.aclose()


async def visit(state_dir: Path, url: str, secret: str, limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    settings = Settings(manager_api_url=url, manager_api_secret=secret, state_dir=state_dir, api_cache_ttl=0)
    async with BriefingDesk(settings, mac=DEMO_MAC, room_name=ROOM) as desk:
        peeked = await desk.peek()
        briefing = await desk.fetch()
    answer = {
        "peeked": peeked is not None,
        "sources": sorted(set(briefing.sources.values())),
        "problems": {**briefing.problems},
    }
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["write", file, lane, count]:
            asyncio.run(write(Path(file), int(lane), int(count)))
        case ["visit", folder, url, secret, limit]:
            asyncio.run(visit(Path(folder), url, secret, int(limit)))
        case _:
            raise SystemExit(2)
