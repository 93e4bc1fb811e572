"""The stand-in Manager API by itself: its own process, its control over HTTP, the contract's refusals."""

from __future__ import annotations

import json
import sys
from typing import Any

import aiohttp

from sandbox.manager_api import DEMO_MAC, DEMO_SECRET, Call, Device, ManagerApi
from sandbox.processes import ManagedProcess

HEADERS = {"Authorization": f"Bearer {DEMO_SECRET}"}
LINE = {
    "macAddress": DEMO_MAC,
    "sessionId": "room",
    "chatType": 1,
    "content": "hello",
    "audioBase64": None,
    "reportTime": 1758701973,
}


async def ask(session: aiohttp.ClientSession, method: str, url: str, body: Any = None, **options: Any) -> Any:
    async with session.request(method, url, json=body, **options) as answer:
        assert answer.status == 200
        return await answer.json()


async def test_it_runs_by_itself_and_is_driven_over_http() -> None:
    command = [sys.executable, "-m", "sandbox.manager_api", "--port", "0", "--any-device"]
    async with ManagedProcess("the stand-in", command) as process, aiohttp.ClientSession(headers=HEADERS) as session:
        ready = await process.wait_for_line(lambda line: line.event == "ready", timeout=30)
        url, control = ready.fields["url"], ready.fields["control"]
        agent = f"{url}/agent/device/000000000001/agent-id"
        assert (await ask(session, "GET", agent))["data"] == "agent-2"
        await ask(session, "POST", control + "/faults", {"agent-id": {"code": 10041, "msg": "gone", "times": 1}})
        assert (await ask(session, "GET", agent))["code"] == 10041
        assert (await ask(session, "GET", agent))["data"] == "agent-2"
        await ask(session, "POST", control + "/faults", {"agent-id": {"fault": "nonsense"}, "health": {"first": 0.01}})
        async with session.get(agent) as answer:
            assert b"Bad Gateway" in await answer.read()
        await ask(session, "POST", control + "/faults", {"*": {"lie": True}})
        await ask(session, "DELETE", control + "/faults")
        await ask(session, "PUT", control + "/devices/000000000001", {"bind_code": "482913"})
        bound = await ask(session, "GET", agent)
        assert (bound["code"], bound["msg"]) == (10042, "482913")
        await ask(session, "POST", url + "/agent/chat-history/report", LINE)
        state = await ask(session, "GET", control + "/state")
        assert state["calls"]["agent-id"]["requests"] == 5
        assert state["calls"]["agent-id"]["faulted"] == 1
        assert [line["content"] for line in state["reports"]] == ["hello"]
        for wrong in ({"nothing": {}}, {"health": {"fault": "nap"}}, {"health": {"first": -1}}, {"health": 3}):
            async with session.post(control + "/faults", data=json.dumps(wrong)) as answer:
                assert answer.status == 400
        assert await process.stop() == 0


async def test_it_refuses_as_the_contract_says() -> None:
    devices = {DEMO_MAC: Device(), "00:00:00:00:00:01": Device(agent_id=None), "00:00:00:00:00:02": Device(child=None)}
    async with ManagerApi(devices=devices) as api, aiohttp.ClientSession() as session:

        async def code(method: str, path: str, body: Any = None, headers: dict[str, str] = HEADERS) -> int:
            return int((await ask(session, method, api.url + path, body, headers=headers))["code"])

        mac = {"macAddress": DEMO_MAC}
        assert await code("POST", "/config/agent-prompt", mac, {}) == 401
        assert await code("POST", "/config/agent-prompt", mac, {"Authorization": "Bearer wrong"}) == 401
        assert await code("GET", "/health", None, {}) == 0
        assert await code("POST", "/config/agent-prompt", {"macAddress": DEMO_MAC.hex12}) == 0
        assert await code("POST", "/config/agent-prompt", {}) == 10034
        assert await code("POST", "/config/agent-prompt", {"macAddress": "00:00:00:00:00:09"}) == 10041
        assert await code("POST", "/config/agent-models", mac) == 10034
        assert await code("POST", "/config/child-profile-by-mac", {"macAddress": "000000000002"}) == 500
        assert await code("PUT", "/agent/update-mode", {"agentId": "agent-1", "modeName": "cheeko"}) == 500
        assert await code("PUT", "/agent/update-mode", {"agentId": "agent-1"}) == 10034
        report = "/agent/chat-history/report"
        for change in ({"chatType": 3}, {"content": None}, {"reportTime": "now"}, {"audioBase64": "AAAA"}):
            assert await code("POST", report, {**LINE, **change}) == 10034
        for content in ("a", "a", "b" * 1001):  # repeats are kept, length is not
            assert await code("POST", report, {**LINE, "content": content}) == 0
        without = await ask(session, "POST", api.url + report, {**LINE, "macAddress": "000000000001"}, headers=HEADERS)
        assert without["data"] is False
        assert [line["content"] for line in api.reports] == ["a", "a", "b" * 1000]
        assert api.count(Call.CHAT_REPORT) == 8
