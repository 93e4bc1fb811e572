"""The gather on real sockets: none, one and all calls failing, hanging and lying; every flag both ways."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from briefing_support import (
    ALL_LIVE,
    CALL_OF,
    OFF,
    ON,
    ROOM,
    TROUBLES,
    Clock,
    Trouble,
    bytes_in,
    desk_for,
    settings_for,
)
from structlog.testing import capture_logs

from agent.briefing.desk import BriefingDesk
from agent.briefing.profile import DEFAULT_CHAT_HISTORY, Briefing, Child, Models, Part, Source, Voice
from agent.errors import NotFound, Rejected
from sandbox.faults import Fault
from sandbox.manager_api import BRIEFING_CALLS, CHILD, DEMO_MAC, MODES, PROMPT, Call, ManagerApi, Override

ASHA = Child("Asha", 6, "Early Childhood", "female", ("dinosaurs", "painting"))
RIGHT = {
    Part.AGENT_ID: "agent-1",
    Part.PROMPT: PROMPT,
    Part.MODELS: (Voice("edge", "en-US-AnaNeural"), 1, "en"),
    Part.CHILD: ASHA,
}
NOTHING = {
    Part.AGENT_ID: None,
    Part.PROMPT: None,
    Part.MODELS: (None, DEFAULT_CHAT_HISTORY, None),
    Part.CHILD: None,
}


def parts(briefing: Briefing) -> dict[Part, object]:
    return {
        Part.AGENT_ID: briefing.agent_id,
        Part.PROMPT: briefing.prompt,
        Part.MODELS: (briefing.voice, briefing.chat_history, briefing.language),
        Part.CHILD: briefing.child,
    }


async def fill(api: ManagerApi, state_dir: Path, clock: Clock) -> None:
    async with desk_for(api, state_dir, clock=clock) as desk:
        assert (await desk.fetch()).sources == ALL_LIVE


@pytest.mark.parametrize("parallel", [ON, OFF], ids=["parallel", "serial"])
async def test_nothing_fails(tmp_path: Path, parallel: object) -> None:
    async with ManagerApi() as api, desk_for(api, tmp_path, enable_parallel_api=parallel) as desk:
        briefing = await desk.fetch()
        assert briefing.sources == ALL_LIVE
        assert parts(briefing) == RIGHT
        assert briefing.problems == {}
        assert briefing.bind_code is None
        assert briefing.timings_ms.keys() == {"agent_id", "prompt", "models", "child", "total"}
        assert [api.count(call) for call in BRIEFING_CALLS] == [1, 1, 1, 1]


@pytest.mark.parametrize("parallel", [ON, OFF], ids=["parallel", "serial"])
@pytest.mark.parametrize("part", list(Part))
@pytest.mark.parametrize("trouble", TROUBLES, ids=str)
async def test_one_call_fails_and_costs_the_others_nothing(
    tmp_path: Path, trouble: Trouble, part: Part, parallel: object
) -> None:
    clock = Clock()
    async with ManagerApi() as api:
        await fill(api, tmp_path, clock)
        clock.now += 1000
        trouble.strike(api, CALL_OF[part])
        flags = {"enable_parallel_api": parallel, "manager_api_deadline_ms": 700 if trouble.hangs else 5000}
        async with desk_for(api, tmp_path, clock=clock, **flags) as desk:
            briefing = await desk.fetch()
        assert briefing.sources == {**ALL_LIVE, part: Source.LAST_KNOWN}
        assert parts(briefing) == RIGHT
        assert briefing.problems == {part.value: trouble.problem}


@pytest.mark.parametrize("part", list(Part))
@pytest.mark.parametrize("trouble", [trouble for trouble in TROUBLES if not trouble.hangs], ids=str)
async def test_one_call_fails_and_nothing_is_known(tmp_path: Path, trouble: Trouble, part: Part) -> None:
    async with ManagerApi() as api:
        trouble.strike(api, CALL_OF[part])
        async with desk_for(api, tmp_path, enable_api_cache=OFF) as desk:
            briefing = await desk.fetch()
        assert briefing.sources == {**ALL_LIVE, part: Source.DEFAULT}
        assert parts(briefing) == {**RIGHT, part: NOTHING[part]}


@pytest.mark.parametrize("parallel", [ON, OFF], ids=["parallel", "serial"])
@pytest.mark.parametrize("trouble", TROUBLES, ids=str)
async def test_all_calls_fail(tmp_path: Path, trouble: Trouble, parallel: object) -> None:
    clock = Clock()
    flags = {"enable_parallel_api": parallel, "manager_api_deadline_ms": 100 if trouble.hangs else 5000}
    async with ManagerApi() as api:
        await fill(api, tmp_path, clock)
        clock.now += 1000
        trouble.strike(api)
        async with desk_for(api, tmp_path, clock=clock, **flags) as desk:
            known = await desk.fetch()
        async with desk_for(api, tmp_path, clock=clock, enable_api_cache=OFF, **flags) as desk:
            unknown = await desk.fetch()
    everything = {part.value: trouble.problem for part in Part}
    assert known.sources == dict.fromkeys(Part, Source.LAST_KNOWN)
    assert parts(known) == RIGHT
    assert known.problems == everything
    assert unknown.sources == dict.fromkeys(Part, Source.DEFAULT)
    assert parts(unknown) == NOTHING
    assert unknown.problems == everything


async def test_the_service_is_not_there(tmp_path: Path) -> None:
    async with ManagerApi() as api:
        pass
    async with desk_for(api, tmp_path) as desk:
        briefing = await desk.fetch()
    assert briefing.problems == {part.value: "Unavailable" for part in Part}
    assert parts(briefing) == NOTHING


async def test_slow_answers_within_the_deadline_are_waited_for(tmp_path: Path) -> None:
    async with ManagerApi() as api, desk_for(api, tmp_path) as desk:
        api.delay(0.1)
        assert (await desk.fetch()).sources == ALL_LIVE


class Meeting:
    """A directory whose answers come only when all four questions have been put."""

    def __init__(self) -> None:
        self.barrier = asyncio.Barrier(4)

    async def agent_id(self, mac: object) -> str:
        await self.barrier.wait()
        return "agent-1"

    async def agent_prompt(self, mac: object) -> str:
        await self.barrier.wait()
        return "prompt"

    async def agent_models(self, mac: object, client_id: str) -> Models:
        await self.barrier.wait()
        return Models()

    async def child_profile(self, mac: object) -> Child | None:
        await self.barrier.wait()
        raise RuntimeError("a bug")

    async def aclose(self) -> None:
        pass


async def test_the_calls_go_side_by_side_and_a_bug_in_one_costs_only_that_one(tmp_path: Path) -> None:
    settings = settings_for(None, tmp_path)
    with capture_logs() as logs:
        async with BriefingDesk(settings, mac=DEMO_MAC, room_name=ROOM, directory=Meeting()) as desk:  # type: ignore[arg-type]
            briefing = await asyncio.wait_for(desk.fetch(), 20)
    assert briefing.sources == {**ALL_LIVE, Part.CHILD: Source.DEFAULT}
    assert briefing.problems == {"child": "RuntimeError"}
    assert [log["event"] for log in logs if log["log_level"] == "error"] == ["briefing part broke"]


async def test_off_means_one_after_the_other(tmp_path: Path) -> None:
    async with ManagerApi() as api, desk_for(api, tmp_path, enable_parallel_api=OFF) as desk:
        api.delay(0.02)
        assert (await desk.fetch()).sources == ALL_LIVE
        assert api.most_in_flight == 1
        assert [call for call, _ in api.requests] == list(BRIEFING_CALLS)


async def test_parallel_calls_meet_at_the_server(tmp_path: Path) -> None:
    async with ManagerApi() as api, desk_for(api, tmp_path, manager_api_deadline_ms=30000) as desk:
        api.fail(Fault.HANG)
        fetching = asyncio.create_task(desk.fetch())
        for call in BRIEFING_CALLS:
            await asyncio.wait_for(api.until_called(call), 20)
        api.heal()  # cuts all four, and each is tried again
        assert (await fetching).sources == ALL_LIVE
        assert api.most_in_flight == 4


async def test_the_flag_of_a_percentage_is_decided_by_the_device(tmp_path: Path) -> None:
    async with ManagerApi() as api:
        for percent, kept in [("100%", True), ("0%", False)]:
            folder = tmp_path / percent
            async with desk_for(api, folder, enable_api_cache=percent) as desk:
                await desk.fetch()
            assert folder.exists() == kept


async def test_a_cached_answer_saves_the_call_until_it_is_too_old(tmp_path: Path) -> None:
    clock = Clock()
    async with ManagerApi() as api:
        await fill(api, tmp_path, clock)
        clock.now += 299
        async with desk_for(api, tmp_path, clock=clock, api_cache_ttl=300) as desk:
            briefing = await desk.fetch()
        assert briefing.sources == dict.fromkeys(Part, Source.CACHED)
        assert parts(briefing) == RIGHT
        assert api.count(Call.CHILD_PROFILE) == 1
        clock.now += 1
        async with desk_for(api, tmp_path, clock=clock, api_cache_ttl=300) as desk:
            assert (await desk.fetch()).sources == ALL_LIVE
        assert api.count(Call.CHILD_PROFILE) == 2


async def test_without_the_cache_nothing_is_written_and_nothing_read(tmp_path: Path) -> None:
    async with ManagerApi() as api:
        await fill(api, tmp_path / "filled", Clock())
        async with desk_for(api, tmp_path / "filled", enable_api_cache=OFF) as desk:
            assert await desk.peek() is None
            assert (await desk.fetch()).sources == ALL_LIVE
        async with desk_for(api, tmp_path / "empty", enable_api_cache=OFF) as desk:
            await desk.fetch()
        assert not (tmp_path / "empty").exists()


async def test_peek_needs_no_network(tmp_path: Path) -> None:
    clock = Clock()
    async with ManagerApi() as api:
        async with desk_for(api, tmp_path, clock=clock) as desk:
            assert await desk.peek() is None
        await fill(api, tmp_path, clock)
        requests = len(api.requests)
        clock.now += 10
        async with desk_for(api, tmp_path, clock=clock) as desk:
            peeked = await desk.peek()
        assert peeked is not None
        assert peeked.sources == dict.fromkeys(Part, Source.CACHED)
        assert parts(peeked) == RIGHT
        clock.now += 86400
        async with desk_for(api, tmp_path, clock=clock) as desk:
            peeked = await desk.peek()
        assert peeked is not None
        assert peeked.sources == dict.fromkeys(Part, Source.LAST_KNOWN)
        assert len(api.requests) == requests


async def test_a_deleted_child_profile_does_not_live_on(tmp_path: Path) -> None:
    clock = Clock()
    async with ManagerApi() as api:
        await fill(api, tmp_path, clock)
        api.device().child = None
        clock.now += 1000
        async with desk_for(api, tmp_path, clock=clock) as desk:
            briefing = await desk.fetch()
        assert briefing.child is None
        assert briefing.sources == ALL_LIVE
        assert briefing.problems == {}
        api.fail(Fault.ERROR)
        clock.now += 1000
        async with desk_for(api, tmp_path, clock=clock) as desk:
            later = await desk.fetch()
        assert later.child is None
        assert later.sources[Part.CHILD] is Source.LAST_KNOWN
    assert CHILD["name"].encode() not in bytes_in(tmp_path)


async def test_an_unbound_device_gets_its_code_and_loses_the_child_of_before(tmp_path: Path) -> None:
    clock = Clock()
    async with ManagerApi() as api:
        await fill(api, tmp_path, clock)
        clock.now += 1000
        api.device().bind_code = "482913"
        api.fail(Fault.ERROR, Call.CHILD_PROFILE)
        async with desk_for(api, tmp_path, clock=clock) as desk:
            briefing = await desk.fetch()
        assert briefing.bind_code == "482913"
        assert briefing.child is None
        assert briefing.agent_id is None
        assert briefing.sources[Part.CHILD] is Source.DEFAULT
        assert briefing.problems["agent_id"] == "MustBindFirst"
        async with desk_for(api, tmp_path, clock=clock) as desk:
            assert await desk.peek() is None


async def test_an_unknown_device_is_a_real_answer(tmp_path: Path) -> None:
    async with ManagerApi() as api:
        api.devices.clear()
        async with desk_for(api, tmp_path) as desk:
            briefing = await desk.fetch()
    assert parts(briefing) == NOTHING
    assert briefing.sources == ALL_LIVE
    assert briefing.problems == {part.value: "NotFound" for part in Part}
    assert briefing.bind_code is None


async def test_a_wrong_secret_is_loud_once_and_does_not_end_the_visit(tmp_path: Path) -> None:
    async with ManagerApi() as api:
        with capture_logs() as logs:
            async with desk_for(api, tmp_path, manager_api_secret="not-the-secret") as desk:
                briefing = await desk.fetch()
    assert briefing.problems == {part.value: "Unauthorised" for part in Part}
    assert len([log for log in logs if log["log_level"] == "error"]) == 1
    assert "not-the-secret" not in repr(logs) + repr(briefing)


async def test_logs_and_reprs_carry_nothing_personal(tmp_path: Path) -> None:
    clock = Clock()
    async with ManagerApi() as api:
        await fill(api, tmp_path, clock)
        clock.now += 1000
        api.answer(Override(code=500, msg=f"exception for {DEMO_MAC} and Asha"), Call.CHILD_PROFILE)
        with capture_logs() as logs:
            async with desk_for(api, tmp_path, clock=clock) as desk:
                briefing = await desk.fetch()
    assert briefing.child == ASHA
    assert logs
    for personal in (DEMO_MAC, DEMO_MAC.hex12, "Asha", "dinosaurs"):
        assert personal not in repr(logs) + repr(briefing)


async def test_a_visit_that_ends_during_the_fetch_leaves_nothing_running(tmp_path: Path) -> None:
    before = asyncio.all_tasks()
    async with ManagerApi() as api:
        api.fail(Fault.HANG, Call.AGENT_PROMPT)
        async with desk_for(api, tmp_path) as desk:
            fetching = asyncio.create_task(desk.fetch())
            await api.until_called(Call.AGENT_PROMPT)
            fetching.cancel()
            with pytest.raises(asyncio.CancelledError):
                await fetching
    assert asyncio.all_tasks() == before


async def test_a_change_of_mode_is_what_the_next_visit_finds(tmp_path: Path) -> None:
    clock = Clock()
    async with ManagerApi() as api:
        async with desk_for(api, tmp_path, clock=clock) as desk:
            await desk.fetch()
            assert await desk.update_mode("Story") == MODES["Story"]
            with pytest.raises(Rejected):
                await desk.update_mode("story")
        assert api.count(Call.AGENT_ID) == 1
        async with desk_for(api, tmp_path, clock=clock) as desk:
            briefing = await desk.fetch()
        assert briefing.prompt == MODES["Story"]
        assert briefing.sources[Part.PROMPT] is Source.CACHED


async def test_a_change_of_mode_before_the_briefing_asks_for_the_agent(tmp_path: Path) -> None:
    async with ManagerApi() as api, desk_for(api, tmp_path) as desk:
        assert await desk.update_mode("Story") == MODES["Story"]
        assert api.count(Call.AGENT_ID) == 1


@pytest.mark.parametrize(("pool", "connections"), [(ON, 1), (OFF, 4)], ids=["pool", "no-pool"])
async def test_the_pool_keeps_connections(tmp_path: Path, pool: object, connections: int) -> None:
    flags = {"enable_parallel_api": OFF, "enable_connection_pool": pool}
    async with ManagerApi() as api, desk_for(api, tmp_path, **flags) as desk:
        assert (await desk.fetch()).sources == ALL_LIVE
        assert api.connections == connections


async def test_answers_of_another_service_do_not_count(tmp_path: Path) -> None:
    async with ManagerApi() as one, ManagerApi() as other:
        await fill(one, tmp_path, Clock())
        async with desk_for(other, tmp_path) as desk:
            assert await desk.peek() is None


async def test_with_neither_service_nor_file_there_are_defaults(tmp_path: Path) -> None:
    async with desk_for(None, tmp_path) as desk:
        assert await desk.peek() is None
        briefing = await desk.fetch()
        assert parts(briefing) == NOTHING
        assert briefing.problems == {}
        with pytest.raises(NotFound):
            await desk.update_mode("Cheeko")
    assert bytes_in(tmp_path) == b""
