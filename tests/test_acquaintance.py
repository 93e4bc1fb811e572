"""What is known of a child, when what should tell of it does not answer."""

from __future__ import annotations

import asyncio
import fcntl
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from agent.acquaintance import Acquaintance
from agent.briefing.desk import BriefingDesk
from agent.device.identity import RoomIdentity
from agent.settings import Settings
from agent.values import DeviceMac

MAC = DeviceMac("68:25:dd:ba:39:78")


async def test_a_disk_that_hangs_keeps_no_briefing_back(tmp_path: Path) -> None:
    settings = Settings(_env_file=None, state_dir=tmp_path)  # type: ignore[call-arg]
    # `fetch` asks neither the room nor what the process holds beside its settings.
    about = Acquaintance(cast(Any, None), RoomIdentity(MAC), cast(Any, SimpleNamespace(settings=settings)))
    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)  # no file of it can be opened
    try:
        async with BriefingDesk(settings, mac=MAC, room_name="room") as desk, asyncio.timeout(20):
            assert await about.fetch(desk) is about.briefing
        assert about.resumed is None
    finally:
        os.close(folder)
