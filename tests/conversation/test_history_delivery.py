"""From a child's words to the receivers' disks, with receivers that fail in every way in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import tenacity
from aiohttp import web
from pydantic import SecretStr

from agent.briefing.memory import Mem0Client
from agent.briefing.profile import ChatType
from agent.conversation.history import ChatHistory, memory_deliverer
from agent.outbox.courier import CourierTiming, OutboxCourier
from agent.outbox.sqlite import SqliteOutbox
from agent.outbox.writer import OutboxWriter
from agent.values import DeviceMac
from sandbox.faults import Fault, swallow_cut
from sandbox.mem0_api import Mem0Api

MACS = [DeviceMac("68:25:dd:ba:39:78"), DeviceMac("68:25:dd:ba:39:79")]
QUICK = CourierTiming(poll_s=0.02, first_delay_s=0.01, longest_delay_s=0.05)


@pytest.fixture
async def mem0() -> AsyncIterator[tuple[Mem0Api, str]]:
    api = Mem0Api(key_field="outbox_key")
    app = web.Application(middlewares=[swallow_cut])
    app.add_routes(api.routes())
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield api, f"http://127.0.0.1:{runner.addresses[0][1]}"
    api.add_behaviour.heal()
    await runner.cleanup()


@pytest.mark.parametrize(
    "fault", [Fault.HANG, Fault.ERROR, Fault.RATE_LIMIT, Fault.RESET, Fault.NONSENSE, Fault.UNAUTHORISED]
)
async def test_every_memory_arrives_once_by_key_and_in_order_after_a_fault(
    tmp_path: Path, mem0: tuple[Mem0Api, str], fault: Fault
) -> None:
    api, url = mem0
    path = tmp_path / "outbox.db"
    api.add_behaviour.fail(fault, times=5, retry_after=0.01)
    writer = OutboxWriter(SqliteOutbox(path))
    memory = Mem0Client(url, SecretStr("m0"), add_timeout_s=0.1)
    courier = OutboxCourier(SqliteOutbox(path), {"memory": memory_deliverer(memory)}, timing=QUICK)
    courier.start()
    histories = [ChatHistory(writer, mac, f"room_{mac.hex12}", turns_per_memory=1) for mac in MACS]
    for number in range(4):
        for mac, history in zip(MACS, histories, strict=True):
            history.decide(chat_history=0, memory_user=str(mac))
            history.say(ChatType.USER, f"u{number}")
    await asyncio.gather(*(history.aclose() for history in histories))

    @tenacity.retry(wait=tenacity.wait_fixed(0.05), stop=tenacity.stop_after_delay(30), reraise=True)
    async def delivered() -> None:
        assert (await courier.stats())["memory"].delivered == 8

    await delivered()
    state = (await courier.stats())["memory"]
    await courier.aclose()
    await memory.aclose()
    await writer.aclose()
    assert (state.depth, state.dead, state.dropped) == (0, 0, 0)
    assert state.retried >= 5
    assert len(api.deliveries()) == 8
    for mac in MACS:
        assert [found.memory for found in api.memories if found.user_id == mac] == ["u0", "u1", "u2", "u3"]
