"""A real OTLP collector's port gets a trace of each visit, without a word of the child; without one nothing changes."""

from __future__ import annotations

import asyncio
import gzip
from types import TracebackType
from typing import Any, Self

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from telemetry_support import SENTENCES, talk, talking_world

from sandbox.manager_api import Device as Known
from sandbox.manager_api import ManagerApi
from sandbox.processes import free_port
from world_support import StartWorld

pytestmark = pytest.mark.timeout(120)


class Collector:
    """Takes OTLP over HTTP and keeps every span, by name, and the bytes."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.services: set[str] = set()
        self.raw = b""
        self.came = asyncio.Event()
        self.url = ""

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/v1/traces", self._take)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        body = await request.read()
        if body[:2] == b"\x1f\x8b":
            body = gzip.decompress(body)
        self.raw += body
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.services |= {a.value.string_value for a in resource.resource.attributes if a.key == "service.name"}
            for scope in resource.scope_spans:
                self.spans += scope.spans
        self.came.set()
        return web.Response(body=b"", content_type="application/x-protobuf")

    async def until(self, name: str) -> Any:
        """The first span of this name."""
        async with asyncio.timeout(40):
            while True:
                self.came.clear()
                found = next((span for span in self.spans if span.name == name), None)
                if found is not None:
                    return found
                await self.came.wait()


def check_moments(marks: dict[str, float], turns: list[dict[str, float]]) -> None:
    """Every moment of a visit with one turn is there, and they are in order."""
    way = ["job_received", "job_accepted", "process_given", "connected", "published", "subscribed", "first_frame"]
    end = ["greeting_end", "leaving", "end"]
    for order in ([*way, *end], ["process_given", "briefing_prompt", "briefing_ready", "session_ready", *end[1:]]):
        assert [marks[name] for name in order] == sorted(marks[name] for name in order)
    assert {f"briefing_{part}" for part in ("agent_id", "prompt", "models", "child")} <= set(marks)
    (turn,) = [turn for turn in turns if "speech_end_at" in turn]
    assert marks["first_speech"] < marks["first_word"], "what was heard may have been a noise"
    assert marks["first_speech"] < turn["speech_end_at"] < turn["transcript_at"] <= turn["end_of_turn_at"]
    assert turn["speech_end_at"] < turn["first_token_at"] < turn["first_audio_at"] < marks["end"]
    assert turn["first_audio_at"] - turn["speech_end_at"] == pytest.approx(turn["total_ms"], abs=20)


@pytest.mark.world
async def test_a_visit_is_a_trace_without_a_word_of_the_child() -> None:
    manager = ManagerApi()
    async with (
        Collector() as collector,
        talking_world(
            reply="Zebras gallop quietly.", manager=manager, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url + "/"
        ) as world,
    ):
        device = world.device()
        child = {"name": "Xanthippe", "age": 7, "ageGroup": "x", "gender": "f", "interests": ["velociraptors"]}
        manager.devices[device.mac] = Known(child=child)  # type: ignore[index]
        await device.join()
        await talk(device)
        await device.leave()
        visit = await collector.until("visit")
        attributes = {a.key: a.value for a in visit.attributes}
        assert attributes["visit"].string_value == device.visit
        assert attributes["enable_parallel_api"].string_value == "on"
        children = {span.name: span for span in collector.spans if span.parent_span_id == visit.span_id}
        assert set(children) >= {"dispatch", "connect", "publish", "greeting", "briefing", "session", "turn"}
        assert {event.name for event in children["turn"].events} == {"transcript", "end_of_turn", "first_token"}
        greeted = await world.worker.wait_for_line(lambda line: line.event == "greeting finished", timeout=20)
        assert set(greeted.fields["sources"]) == {"agent_id", "prompt", "models", "child"}
        ended = await world.worker.wait_for_line(lambda line: line.event == "visit ended", timeout=20)
        check_moments(ended.fields["marks"], ended.fields["turns"])
        for span in children.values():
            assert visit.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
            assert span.end_time_unix_nano <= visit.end_time_unix_nano
        assert "first_frame" in {event.name for event in visit.events}
        assert collector.services == {"toy-voice-agent"}
        names = {span.name for span in collector.spans}
        assert {"agent_turn", "user_turn"} <= names
        digits = device.mac.replace(":", "")
        for word in (*SENTENCES, "Xanthippe", "velociraptors", "Zebras", device.mac, digits, "sk-a-secret-of-the-test"):
            assert word.lower().encode() not in collector.raw.lower(), word


async def test_a_collector_that_is_away_costs_a_visit_nothing(start_world: StartWorld) -> None:
    world = await start_world(env={"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}"})
    async with world.device() as device:
        await device.wait_for_sound(timeout=20)
        await device.wait_for_state("listening", timeout=20)
    await world.worker.wait_for_line(lambda line: line.event == "visit ended", timeout=30)
    async with world.device() as device:
        await device.wait_for_sound(timeout=20)
