"""The Mem0 stand-in against the service's REST contract and its own SDK."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from sandbox.faults import Fault
from sandbox.providers import ProviderServer


@pytest.fixture
async def server() -> AsyncIterator[ProviderServer]:
    async with ProviderServer(key="m0-key") as server:
        yield server


@pytest.fixture
async def http(server: ProviderServer) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(server.url, headers={"Authorization": "Token m0-key"}) as http:
        yield http


async def post(http: aiohttp.ClientSession, path: str, body: dict[str, Any]) -> tuple[int, Any]:
    async with http.post(path, json=body) as reply:
        text = await reply.text()
        return reply.status, json.loads(text) if reply.content_type == "application/json" else text


async def test_remembers_searches_and_lists_by_user(server: ProviderServer, http: aiohttp.ClientSession) -> None:
    messages = [{"role": "user", "content": "My dog is called Rex"}, {"role": "assistant", "content": "Nice!"}]
    status, _ = await post(http, "/v3/memories/add/", {"messages": messages, "user_id": "mia", "metadata": {"a": 1}})
    assert status == 200
    server.mem0.remember("tom", "Tom likes trains")
    body = {"query": "what is my dog called", "filters": {"user_id": "mia"}, "top_k": 5}
    _, found = await post(http, "/v3/memories/search/", body)
    assert [m["memory"] for m in found["results"]] == ["My dog is called Rex"]
    _, listed = await post(http, "/v3/memories/", {"filters": {"user_id": "tom"}})
    assert [m["memory"] for m in listed["results"]] == ["Tom likes trains"]


async def test_a_repeated_key_is_stored_once_and_counted(server: ProviderServer, http: aiohttp.ClientSession) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "user_id": "mia", "metadata": {"idempotency_key": "k1"}}
    await post(http, "/v3/memories/add/", body)
    await post(http, "/v3/memories/add/", body)
    assert server.mem0.deliveries() == {"k1": 2}
    assert len(server.mem0.memories) == 1


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v3/memories/search/", {"query": "x", "user_id": "mia"}),
        ("/v3/memories/search/", {"query": "x", "filters": {}}),
        ("/v3/memories/add/", {"messages": [], "user_id": "mia"}),
    ],
)
async def test_bad_requests_are_refused(http: aiohttp.ClientSession, path: str, body: dict[str, Any]) -> None:
    assert (await post(http, path, body))[0] == 400


async def test_a_wrong_key_is_refused(server: ProviderServer) -> None:
    async with aiohttp.ClientSession(server.url, headers={"Authorization": "Token other"}) as http:
        assert (await post(http, "/v3/memories/", {}))[0] == 401


@pytest.mark.parametrize(("fault", "status"), [(Fault.RATE_LIMIT, 429), (Fault.ERROR, 500), (Fault.UNAUTHORISED, 401)])
async def test_error_replies(server: ProviderServer, http: aiohttp.ClientSession, fault: Fault, status: int) -> None:
    server.mem0.add_behaviour.fail(fault, times=1)
    body = {"messages": [{"role": "user", "content": "hi"}], "user_id": "mia"}
    assert (await post(http, "/v3/memories/add/", body))[0] == status
    assert server.mem0.added == []
    assert (await post(http, "/v3/memories/add/", body))[0] == 200


@pytest.mark.parametrize("fault", [Fault.RESET, Fault.TRUNCATE])
async def test_an_answer_lost_after_storing_is_visible(
    server: ProviderServer, http: aiohttp.ClientSession, fault: Fault
) -> None:
    server.mem0.add_behaviour.fail(fault, times=1)
    body = {"messages": [{"role": "user", "content": "hi"}], "user_id": "mia", "metadata": {"idempotency_key": "k"}}
    with pytest.raises(aiohttp.ClientError):
        await post(http, "/v3/memories/add/", body)
    assert server.mem0.deliveries() == {"k": 1}


async def test_the_services_own_sdk_is_served(server: ProviderServer, tmp_path: Any) -> None:
    os.environ["MEM0_TELEMETRY"] = "False"
    os.environ["MEM0_DIR"] = str(tmp_path)
    import asyncio

    from mem0 import MemoryClient

    def talk() -> list[str]:
        client = MemoryClient(api_key="m0-key", host=server.url)
        client.add([{"role": "user", "content": "I like dragons"}], user_id="mia")
        return [m["memory"] for m in client.search("dragons", filters={"user_id": "mia"})["results"]]

    assert await asyncio.to_thread(talk) == ["I like dragons"]
    assert server.mem0.pings == 1
