from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from livekit.agents import llm
from livekit.agents.vad import VAD
from provider_speech import frames, spoken
from structlog.testing import capture_logs

from agent.briefing.profile import Voice
from agent.conversation.providers import NO_KEY, Pipeline, ProviderPlan, Providers
from agent.conversation.turn_taking import load_vad
from agent.errors import AllProvidersFailed
from agent.settings import Settings
from sandbox.faults import Fault
from sandbox.providers import ProviderServer
from sandbox.voices import hum

MakeSettings = Callable[..., Settings]


@pytest.fixture(scope="module")
def detector() -> VAD:
    return load_vad()


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[tuple[Providers, list[AllProvidersFailed]]]:
    failures: list[AllProvidersFailed] = []
    providers = ProviderPlan(settings).open(on_failed=failures.append)
    try:
        yield providers, failures
    finally:
        await providers.aclose()


async def say(pipeline: Pipeline, text: str = "Hello my friend") -> float:
    seconds = 0.0
    async with pipeline.tts.stream() as stream:
        stream.push_text(text)
        stream.end_input()
        async for audio in stream:
            seconds += audio.frame.duration
    return seconds


async def ask(pipeline: Pipeline) -> str:
    context = llm.ChatContext.empty()
    context.add_message(role="user", content="hi")
    async with pipeline.llm.chat(chat_ctx=context) as stream:
        return "".join([chunk.delta.content or "" async for chunk in stream if chunk.delta])


async def test_works_without_any_key_on_servers_of_ones_own(
    main: ProviderServer, make_settings: MakeSettings, detector: VAD
) -> None:
    async with opened(make_settings()) as (providers, failures):
        pipeline = providers.pipeline(detector)
        assert await ask(pipeline)
        assert await say(pipeline) > 0.5
    assert failures == []
    assert main.chat.calls
    assert main.speech.calls[0].format == "pcm"


OPENAI = "https://api.openai.com/v1"
KINDS = ["llm", "stt", "tts", "realtime"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("url", "own", "sent"),
    [
        (None, None, "sk-openai"),
        (OPENAI, None, "sk-openai"),
        ("https://eu.api.openai.com/v1", None, "sk-openai"),
        (OPENAI, "sk-own", "sk-own"),
        ("http://ollama:11434/v1", None, NO_KEY),
        ("https://api.openai.com.example.org/v1", None, NO_KEY),
        ("https://notopenai.com/v1", None, NO_KEY),
        ("http://ollama:11434/v1", "own", "own"),
    ],
)
def test_openais_key_goes_to_openai_alone_and_other_servers_have_their_own(
    make_settings: MakeSettings, kind: str, url: str | None, own: str | None, sent: str
) -> None:
    plan = ProviderPlan(
        make_settings(**{"openai_api_key": "sk-openai", f"{kind}_base_url": url, f"{kind}_api_key": own})
    )
    assert getattr(plan, kind).key == sent


@pytest.mark.parametrize(
    ("url", "own", "sent"),
    [(OPENAI, None, "sk-openai"), ("http://standby/v1", None, NO_KEY), ("http://standby/v1", "own", "own")],
)
def test_nor_does_it_go_to_the_standby(
    make_settings: MakeSettings, url: str | None, own: str | None, sent: str
) -> None:
    changes = {"openai_api_key": "sk-openai", "fallback_openai_base_url": url, "fallback_openai_api_key": own}
    plan = ProviderPlan(make_settings(**changes))
    assert plan.fallback is not None
    assert plan.fallback.key == sent


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({}, ()),
        ({"llm_base_url": None, "fallback_openai_base_url": None}, ("language model",)),
        ({"stt_base_url": None, "fallback_openai_base_url": None}, ("speech-to-text",)),
        ({"tts_base_url": None, "fallback_openai_base_url": None}, ("voice",)),
        ({"tts_base_url": None, "fallback_openai_base_url": None, "elevenlabs_api_key": "k"}, ()),
        ({"conversation_mode": "realtime", "realtime_base_url": None}, ("realtime",)),
    ],
)
def test_what_is_missing_is_named_for_the_operator(
    make_settings: MakeSettings, changes: dict[str, Any], missing: tuple[str, ...]
) -> None:
    problems = ProviderPlan(make_settings(**changes)).problems
    assert tuple(problem.split(":")[0] for problem in problems) == missing


@pytest.mark.parametrize(
    ("voice", "spoken_by", "name"),
    [
        (None, "openai", "nova"),
        (Voice("openai_tts", "shimmer", "tts-1"), "openai", "shimmer"),
        (Voice("openai_tts"), "openai", "nova"),
        (Voice("elevenlabs", "v123"), "elevenlabs", "v123"),
        (Voice("edge", "en-US-AnaNeural"), "openai", "nova"),
        (Voice("groq_tts", "x"), "openai", "nova"),
        (Voice("something_new", "x"), "openai", "nova"),
    ],
)
async def test_the_devices_voice_speaks_or_the_default_one(
    main: ProviderServer, make_settings: MakeSettings, detector: VAD, voice: Voice | None, spoken_by: str, name: str
) -> None:
    with capture_logs() as logs:
        async with opened(make_settings(elevenlabs_base_url=main.v1)) as (providers, _):
            await say(providers.pipeline(detector, voice=voice))
    heard = main.speech.calls[0].voice if spoken_by == "openai" else main.elevenlabs.contexts[0].voice_id
    assert heard == name
    warned = any(entry["event"].startswith("device's voice is replaced") for entry in logs)
    assert warned == (voice is not None and voice.type not in {"openai_tts", "elevenlabs"})


async def test_a_voice_without_its_key_falls_back_and_says_so(
    main: ProviderServer, make_settings: MakeSettings, detector: VAD
) -> None:
    with capture_logs() as logs:
        async with opened(make_settings()) as (providers, _):
            await say(providers.pipeline(detector, voice=Voice("elevenlabs", "v123")))
    assert main.speech.calls[0].voice == "nova"
    [warning] = [entry for entry in logs if "replaced" in entry["event"]]
    assert (warning["voice_type"], warning["reason"]) == ("elevenlabs", "no key or base URL")


async def test_the_second_server_takes_over_all_three(
    main: ProviderServer, standby: ProviderServer, make_settings: MakeSettings, detector: VAD
) -> None:
    async with opened(make_settings()) as (providers, failures):
        pipeline = providers.pipeline(detector)
        await main.stop()
        assert await ask(pipeline)
        assert await say(pipeline) > 0.5
    assert failures == []
    assert standby.chat.calls
    assert standby.speech.calls


async def test_the_second_server_is_asked_by_its_own_names(
    main: ProviderServer, make_settings: MakeSettings, detector: VAD
) -> None:
    models = ["whisper-small", "llama3.2", "kokoro"]
    async with ProviderServer(answers=["hello there"], voice=hum(880), models=models) as standby:
        settings = make_settings(
            fallback_openai_base_url=standby.v1,
            fallback_stt_model="whisper-small",
            fallback_llm_model="llama3.2",
            fallback_tts_model="kokoro",
            fallback_tts_voice="af_heart",
        )
        async with opened(settings) as (providers, failures):
            pipeline = providers.pipeline(detector, voice=Voice("openai_tts", "shimmer", "tts-1"))
            await main.stop()
            heard = await pipeline.stt.hear(list(frames(spoken("hello who are you"))))
            assert heard is not None
            assert await ask(pipeline)
            assert await say(pipeline) > 0.5
        assert failures == []
        assert {call.model for call in standby.transcription.calls} == {"whisper-small"}
        assert {call.request.model for call in standby.chat.calls} == {"llama3.2"}
        assert {(call.model, call.voice) for call in standby.speech.calls} == {("kokoro", "af_heart")}


async def test_without_names_of_its_own_the_second_server_is_asked_as_the_first(
    make_settings: MakeSettings, standby: ProviderServer
) -> None:
    plan = ProviderPlan(make_settings())
    assert [model for _, model in plan.hearers()] == ["gpt-4o-mini-transcribe"] * 2
    assert [model for _, model in plan.thinkers()] == ["gpt-4.1-mini"] * 2
    assert [choice[1:] for choice in plan.speakers(("shimmer", "tts-1"), ("nova", "gpt-4o-mini-tts"))] == [
        ("shimmer", "tts-1"),
        ("nova", "gpt-4o-mini-tts"),
    ] * 2


async def test_a_page_in_place_of_sound_is_not_played(
    main: ProviderServer, standby: ProviderServer, make_settings: MakeSettings, detector: VAD
) -> None:
    main.speech.behaviour.fail(Fault.NONSENSE)
    async with opened(make_settings()) as (providers, _):
        assert await say(providers.pipeline(detector)) == pytest.approx(15 * 0.06, abs=0.05)
    assert standby.speech.calls[0].finished


async def test_the_other_vendor_stands_by_where_its_key_is_there(
    main: ProviderServer, make_settings: MakeSettings, detector: VAD
) -> None:
    settings = make_settings(fallback_openai_base_url=None, elevenlabs_base_url=main.v1)
    main.speech.behaviour.fail(Fault.ERROR)
    async with opened(settings) as (providers, failures):
        assert await say(providers.pipeline(detector)) > 0.5
    assert failures == []
    assert main.elevenlabs.contexts[0].finished


async def test_warming_opens_the_sockets_that_the_first_turn_uses(
    main: ProviderServer, make_settings: MakeSettings, detector: VAD
) -> None:
    async with opened(make_settings()) as (providers, _):
        providers.warm()
        await asyncio.wait_for(warmed(providers, main.v1), 5)
        before = main.connections
        pipeline = providers.pipeline(detector)
        await ask(pipeline)
        await say(pipeline)
        assert before == 3
        assert main.connections == before


async def warmed(providers: Providers, url: str) -> None:
    while providers._tasks or url not in providers.warm_ms:
        await asyncio.to_thread(lambda: None)


async def test_warming_again_soon_does_nothing(main: ProviderServer, make_settings: MakeSettings) -> None:
    async with opened(make_settings()) as (providers, _):
        providers.warm()
        await asyncio.wait_for(warmed(providers, main.v1), 5)
        providers.warm()
        assert not providers._tasks


async def test_warming_a_dead_server_is_no_failure(main: ProviderServer, make_settings: MakeSettings) -> None:
    await main.stop()
    with capture_logs() as logs:
        async with opened(make_settings()) as (providers, failures):
            providers.warm()
            while providers._tasks:
                await asyncio.to_thread(lambda: None)
    assert failures == []
    assert any(entry["event"] == "provider cannot be reached yet" for entry in logs)


async def test_elevenlabs_socket_is_opened_with_the_pipeline(
    main: ProviderServer, make_settings: MakeSettings, detector: VAD
) -> None:
    async with opened(make_settings(elevenlabs_base_url=main.v1)) as (providers, _):
        pipeline = providers.pipeline(detector, voice=Voice("elevenlabs", "v"))
        await asyncio.wait_for(open_sockets(main), 5)
        await say(pipeline)
    assert main.elevenlabs.connections == 1


async def open_sockets(server: ProviderServer) -> None:
    while server.elevenlabs.connections == 0:
        await asyncio.to_thread(lambda: None)


async def test_the_language_is_passed_on_when_known(
    main: ProviderServer, make_settings: MakeSettings, detector: VAD
) -> None:
    for language, expected in (("hi-IN", "hi"), (None, "")):
        async with opened(make_settings()) as (providers, _):
            pipeline = providers.pipeline(detector, language=language)
            await pipeline.stt.hear(list(frames(spoken("hello who are you"))))
        assert main.transcription.calls[-1].language == expected
