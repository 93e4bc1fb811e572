"""Whose memory a visit asks for and adds to: of the child as last known, then of the child as the Manager API says."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from briefing_support import ROOM, Clock, desk_for, settings_for

from agent.acquaintance import Acquaintance
from agent.device.identity import identify_room
from sandbox.manager_api import CHILD, DEMO_MAC, Device, ManagerApi

TTL = 300.0


async def users(api: ManagerApi, state_dir: Path, clock: Clock) -> list[str]:
    """Whose memory it is when nothing is known, after a look at what is kept, and once the Manager API has answered."""
    settings = settings_for(api, state_dir, resume_window=0)
    about = Acquaintance(cast(Any, None), identify_room(ROOM), cast(Any, SimpleNamespace(settings=settings, bank=None)))
    found = [about.memory_user]
    async with desk_for(api, state_dir, clock=clock, api_cache_ttl=TTL) as desk:
        await about.look_up(desk)
        found.append(about.memory_user)
        await about.fetch(desk)
        found.append(about.memory_user)
    return found


async def test_a_toy_that_is_passed_on_is_asked_for_its_new_childs_memory(tmp_path: Path) -> None:
    clock = Clock()
    async with ManagerApi(devices={DEMO_MAC: Device(child={**CHILD, "id": 17})}) as api:
        assert await users(api, tmp_path, clock) == [DEMO_MAC, DEMO_MAC, "child:17"]
        assert await users(api, tmp_path, clock) == [DEMO_MAC, "child:17", "child:17"]
        clock.now += TTL
        api.devices[DEMO_MAC].child = {**CHILD, "id": "18"}
        assert await users(api, tmp_path, clock) == [DEMO_MAC, "child:17", "child:18"]
        clock.now += TTL
        api.devices[DEMO_MAC].child = None
        assert await users(api, tmp_path, clock) == [DEMO_MAC, "child:18", DEMO_MAC]


async def test_a_child_whose_profile_has_no_id_shares_the_devices_memory(tmp_path: Path) -> None:
    async with ManagerApi() as api:
        assert await users(api, tmp_path, Clock()) == [DEMO_MAC] * 3
