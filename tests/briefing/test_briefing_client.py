"""The Manager API client against the stand-in: the contract, retries, the pool, hostile answers."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Awaitable, Callable

import pytest
from briefing_support import ROOM, TROUBLES, Trouble
from pydantic import SecretStr

from agent.briefing.manager_api import MAX_ANSWER_BYTES, ManagerApiClient
from agent.briefing.profile import ChatType, Child, Models, Voice
from agent.errors import (
    Malformed,
    MustBindFirst,
    NotFound,
    RateLimited,
    Rejected,
    RemoteError,
    Unauthorised,
    Unavailable,
)
from agent.values import DeviceMac
from sandbox.faults import Fault
from sandbox.manager_api import CHILD, DEMO_MAC, DEMO_SECRET, MODELS, MODES, PROMPT, Call, Device, ManagerApi, Override


def client_for(api: ManagerApi, *, deadline: float = 5.0, pooled: bool = True) -> ManagerApiClient:
    secret = SecretStr(api.secret) if api.secret else None
    return ManagerApiClient(api.url, secret, deadline=deadline, pooled=pooled)


def report(client: ManagerApiClient, content: str = "Hello!") -> Awaitable[bool]:
    return client.report_chat(
        DEMO_MAC, session_id=ROOM, chat_type=ChatType.AGENT, content=content, report_time=1758701973
    )


EVERY_CALL: dict[Call, Callable[[ManagerApiClient], Awaitable[object]]] = {
    Call.AGENT_ID: lambda client: client.agent_id(DEMO_MAC),
    Call.AGENT_PROMPT: lambda client: client.agent_prompt(DEMO_MAC),
    Call.AGENT_MODELS: lambda client: client.agent_models(DEMO_MAC, ROOM),
    Call.CHILD_PROFILE: lambda client: client.child_profile(DEMO_MAC),
    Call.UPDATE_MODE: lambda client: client.update_mode("agent-1", "Cheeko"),
    Call.CHAT_REPORT: report,
}


async def test_the_contract() -> None:
    async with ManagerApi() as api:
        client = client_for(api)
        try:
            assert await client.agent_id(DEMO_MAC) == "agent-1"
            assert await client.agent_prompt(DEMO_MAC) == PROMPT
            assert await client.agent_models(DEMO_MAC, ROOM) == Models(Voice("edge", "en-US-AnaNeural"), 1, "en")
            child = Child("Asha", 6, "Early Childhood", "female", ("dinosaurs", "painting"))
            assert await client.child_profile(DEMO_MAC) == child
            assert await client.update_mode("agent-1", "Story") == MODES["Story"]
            assert await report(client) is True
            await client.health()
        finally:
            await client.aclose()
        bodies = dict(api.requests)
        assert bodies[Call.AGENT_MODELS] == {"macAddress": DEMO_MAC, "clientId": ROOM, "selectedModule": {}}
        assert bodies[Call.CHAT_REPORT] == {
            "macAddress": DEMO_MAC,
            "sessionId": ROOM,
            "chatType": 2,
            "content": "Hello!",
            "audioBase64": None,
            "reportTime": 1758701973,
        }
        assert [line["content"] for line in api.reports] == ["Hello!"]
        assert api.connections == 1


@pytest.mark.parametrize("call", list(EVERY_CALL))
async def test_every_error_of_the_contract(call: Call) -> None:
    async with ManagerApi() as api:
        client = client_for(api)
        try:
            for code, kind in [
                (401, Unauthorised),
                (500, Rejected),
                (10034, Rejected),
                (10041, NotFound),
                (10042, MustBindFirst),
                (7, Rejected),
            ]:
                api.answer(Override(code=code, msg="internal error 123456"), call)
                with pytest.raises(kind):
                    await EVERY_CALL[call](client)
        finally:
            await client.aclose()
        assert api.count(call) == 6  # none of them is worth a second try


@pytest.mark.parametrize("call", list(EVERY_CALL))
@pytest.mark.parametrize("trouble", TROUBLES, ids=str)
async def test_every_call_makes_typed_errors_of_every_trouble(trouble: Trouble, call: Call) -> None:
    async with ManagerApi() as api:
        trouble.strike(api, call)
        client = client_for(api, deadline=0.08 if trouble.hangs else 5.0)
        try:
            with pytest.raises(RemoteError) as caught:
                await EVERY_CALL[call](client)
        finally:
            await client.aclose()
    assert type(caught.value).__name__ == trouble.problem
    for secret in (DEMO_MAC, DEMO_SECRET, "Asha"):
        assert secret not in str(caught.value)


@pytest.mark.parametrize("call", [call for call in EVERY_CALL if call is not Call.CHAT_REPORT])
@pytest.mark.parametrize("fault", [Fault.ERROR, Fault.RESET, Fault.TRUNCATE])
async def test_a_read_gets_over_two_failures_but_not_three(call: Call, fault: Fault) -> None:
    async with ManagerApi() as api:
        client = client_for(api, deadline=20)
        try:
            api.fail(fault, call, times=2)
            await EVERY_CALL[call](client)
            assert api.count(call) == 3
            api.fail(fault, call, times=3)
            with pytest.raises(Unavailable):
                await EVERY_CALL[call](client)
        finally:
            await client.aclose()
        assert api.count(call) == 6


@pytest.mark.parametrize("fault", [Fault.ERROR, Fault.RESET, Fault.TRUNCATE, Fault.RATE_LIMIT])
async def test_a_chat_report_is_sent_once(fault: Fault) -> None:
    async with ManagerApi() as api:
        client = client_for(api)
        try:
            api.fail(fault, Call.CHAT_REPORT, times=1)
            with pytest.raises(Unavailable):
                await report(client)
            assert api.count(Call.CHAT_REPORT) == 1
            assert await report(client) is True
        finally:
            await client.aclose()


async def test_patience_that_was_asked_for_is_kept_or_the_call_given_up() -> None:
    async with ManagerApi() as api:
        client = client_for(api)
        try:
            api.behaviour[Call.AGENT_ID].fail(Fault.RATE_LIMIT, retry_after=600)
            with pytest.raises(RateLimited) as caught:
                await client.agent_id(DEMO_MAC)
            assert caught.value.retry_after == 600
            assert api.count(Call.AGENT_ID) == 1
        finally:
            await client.aclose()


async def test_a_hanging_attempt_takes_the_whole_deadline_and_is_cut_at_the_server() -> None:
    async with ManagerApi() as api:
        api.fail(Fault.HANG, Call.AGENT_ID)
        client = client_for(api, deadline=0.1)
        try:
            with pytest.raises(Unavailable, match="within 100 ms"):
                await client.agent_id(DEMO_MAC)
        finally:
            await client.aclose()
        assert api.count(Call.AGENT_ID) == 1


@pytest.mark.parametrize("pooled", [True, False])
async def test_a_service_that_restarts_between_calls_is_found_again(pooled: bool) -> None:
    async with ManagerApi() as api:
        client = client_for(api, pooled=pooled)
        assert await client.agent_id(DEMO_MAC) == "agent-1"
        port = int(api.url.split(":")[2].split("/")[0])
    with pytest.raises(Unavailable):
        await client.agent_id(DEMO_MAC)
    async with ManagerApi(port=port):
        try:
            assert await client.agent_id(DEMO_MAC) == "agent-1"
            assert await report(client) is True
        finally:
            await client.aclose()


async def test_one_session_or_one_per_call() -> None:
    async with ManagerApi() as api:
        for pooled, connections in [(True, 1), (False, 6)]:
            before = api.connections
            client = client_for(api, pooled=pooled)
            try:
                for _ in range(5):
                    await client.agent_id(DEMO_MAC)
                await client.health()
            finally:
                await client.aclose()
                await client.aclose()
            assert api.connections - before == connections


async def test_a_compressed_answer_is_bounded_after_it_is_unpacked() -> None:
    async with ManagerApi() as api:
        client = client_for(api)
        try:
            small = gzip.compress(b'{"code":0,"msg":"success","data":"agent-9"}')
            api.answer(Override(body=small, headers={"Content-Encoding": "gzip"}), Call.AGENT_ID)
            assert await client.agent_id(DEMO_MAC) == "agent-9"
            bomb = gzip.compress(b'{"code":0,"msg":"success","data":"agent-9"}' + b" " * (MAX_ANSWER_BYTES * 100))
            api.answer(Override(body=bomb, headers={"Content-Encoding": "gzip"}), Call.AGENT_ID)
            with pytest.raises(RemoteError):
                await client.agent_id(DEMO_MAC)
        finally:
            await client.aclose()


async def test_a_redirect_is_not_followed_and_the_secret_goes_nowhere_else() -> None:
    async with ManagerApi() as api, ManagerApi() as elsewhere:
        client = client_for(api)
        try:
            api.answer(Override(status=307, headers={"Location": elsewhere.url + "/health"}), Call.AGENT_ID)
            with pytest.raises(Malformed):
                await client.agent_id(DEMO_MAC)
        finally:
            await client.aclose()
        assert elsewhere.requests == []


async def test_an_error_status_with_an_envelope_is_read() -> None:
    async with ManagerApi() as api:
        client = client_for(api)
        try:
            api.answer(Override(code=10041, msg="Device not found", status=404), Call.AGENT_ID, Call.HEALTH)
            with pytest.raises(NotFound):
                await client.agent_id(DEMO_MAC)
            with pytest.raises(Rejected):
                await client.health()
        finally:
            await client.aclose()


async def test_something_that_is_not_http() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"SSH-2.0-OpenSSH_9.9\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        client = ManagerApiClient(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", None, deadline=5.0)
        try:
            with pytest.raises(Malformed):
                await client.agent_id(DEMO_MAC)
        finally:
            await client.aclose()


@pytest.mark.parametrize("url", ["http://" + "a" * 70 + ".example", "http://nowhere.invalid", "http://127.0.0.1:1"])
async def test_an_address_nobody_is_at(url: str) -> None:
    client = ManagerApiClient(url, SecretStr("two\nlines"), deadline=3.0)
    try:
        with pytest.raises(Unavailable):
            await client.agent_id(DEMO_MAC)
    finally:
        await client.aclose()


async def test_a_long_line_is_cut_at_a_thousand_characters() -> None:
    async with ManagerApi() as api:
        client = client_for(api)
        try:
            assert await report(client, "नमस्ते" * 500) is True
        finally:
            await client.aclose()
        assert dict(api.requests)[Call.CHAT_REPORT]["content"] == ("नमस्ते" * 500)[:1000]


async def test_a_device_without_an_agent() -> None:
    async with ManagerApi(devices={DEMO_MAC: Device(agent_id=None)}) as api:
        client = client_for(api)
        try:
            assert await report(client) is False
            with pytest.raises(NotFound):
                await client.agent_id(DEMO_MAC)
        finally:
            await client.aclose()


async def test_mac_addresses_with_and_without_colons_are_one_device() -> None:
    bare = DEMO_MAC.replace(":", "")
    async with ManagerApi(devices={bare: Device(agent_id="agent-7")}) as api:
        client = client_for(api)
        try:
            assert await client.agent_id(DEMO_MAC) == "agent-7"
            assert await client.agent_id(bare) == "agent-7"  # type: ignore[arg-type]
            with pytest.raises(NotFound):
                await client.agent_id(DeviceMac("00:00:00:00:00:01"))
        finally:
            await client.aclose()


@pytest.mark.parametrize(
    ("described", "voice"),
    [
        ({"type": "edge_tts", "voice": "hi-IN-SwaraNeural"}, Voice("edge", "hi-IN-SwaraNeural")),
        ({"type": "elevenlabs", "voice_id": "abc", "model": "m"}, Voice("elevenlabs", "abc", "m")),
        ({"type": "openai_tts", "voice": "nova", "model": ""}, Voice("openai_tts", "nova", None)),
        ({"type": "groq_tts"}, Voice("groq_tts")),
        ({"type": "a-new-one", "voice": "v", "speed": 1.5}, Voice("a-new-one", "v")),
    ],
)
async def test_voices(described: dict[str, object], voice: Voice) -> None:
    device = Device(models={**MODELS, "selected_module": {"TTS": "mine"}, "TTS": {"mine": described, "other": 3}})
    async with ManagerApi(devices={DEMO_MAC: device}) as api:
        client = client_for(api)
        try:
            assert (await client.agent_models(DEMO_MAC, ROOM)).voice == voice
        finally:
            await client.aclose()


@pytest.mark.parametrize("message", ["No child assigned to this device", "Child profile not found", "", "unknown"])
async def test_code_500_means_no_child_profile(message: str) -> None:
    async with ManagerApi() as api:
        client = client_for(api)
        try:
            api.answer(Override(code=500, msg=message), Call.CHILD_PROFILE)
            assert await client.child_profile(DEMO_MAC) is None
        finally:
            await client.aclose()


@pytest.mark.parametrize(
    "message", ["Server internal exception", "服务器内部异常", "query timeout", "Failed to load child profile"]
)
async def test_code_500_that_speaks_of_a_failure_is_one(message: str) -> None:
    async with ManagerApi() as api:
        client = client_for(api)
        try:
            api.answer(Override(code=500, msg=message), Call.CHILD_PROFILE)
            with pytest.raises(Rejected):
                await client.child_profile(DEMO_MAC)
        finally:
            await client.aclose()


async def test_the_child_as_other_services_send_it() -> None:
    async with ManagerApi() as api:
        client = client_for(api)
        try:
            for data, child in [
                (None, None),
                ({"name": "  Mia\n\x00Rose ", "age": "7", "interests": None}, Child("Mia Rose", 7)),
                ({"name": "मीरा", "age": None, "interests": "खेल, संगीत"}, Child("मीरा", interests=("खेल", "संगीत"))),
                (
                    {**CHILD, "interests": ["a", "", "b"], "gender": ""},
                    Child("Asha", 6, "Early Childhood", None, ("a", "b")),
                ),
                ({"name": "Mia", "id": 17}, Child("Mia", profile_id="17")),
                ({"name": "Mia", "id": " 4f0c-17 "}, Child("Mia", profile_id="4f0c-17")),
                ({"name": "Mia", "id": ""}, Child("Mia")),
                ({"name": "Mia", "id": True}, Child("Mia")),
                ({"name": "Mia", "id": {"$oid": 1}}, Child("Mia")),
                ({"name": "Mia", "id": "1" * 101}, Child("Mia")),
            ]:
                api.answer(Override(data=data), Call.CHILD_PROFILE)
                assert await client.child_profile(DEMO_MAC) == child
            for wrong in [
                {},
                {"name": ""},
                {"name": 7},
                {"name": "x", "age": -1},
                {"name": "x", "age": [1]},
                "Asha",
                0,
                [],
            ]:
                api.answer(Override(data=wrong), Call.CHILD_PROFILE)
                with pytest.raises(Malformed):
                    await client.child_profile(DEMO_MAC)
        finally:
            await client.aclose()
