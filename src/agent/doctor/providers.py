"""One cheap real call to each provider: a word heard, a token thought, a sound spoken."""

from __future__ import annotations

import io
import wave
from collections.abc import Awaitable, Callable
from typing import Final

import aiohttp
import numpy as np
import openai
from livekit.plugins import elevenlabs

from agent.conversation.providers import ProviderPlan, Server
from agent.doctor.checks import Check, Finding, failed, ok, skipped
from agent.greeting.bank import GreetingBank
from agent.settings import Settings

_TIMEOUT_S: Final = 12.0
_RATE: Final = 24_000

Call = Callable[[openai.AsyncClient], Awaitable[str]]


def provider_checks(settings: Settings) -> list[Check]:
    """One for each kind that the conversation mode uses, and for the server that stands by."""
    plan = ProviderPlan(settings)
    advice = "see that the provider's address and key are right and that the account has credit"
    lacking = {problem.split(":")[0]: problem.partition(": ")[2] for problem in plan.problems}

    def openai_check(name: str, server: Server | None, call: Call) -> Check:
        async def look() -> Finding:
            if server is None:
                if name in lacking:
                    return failed("not configured: the child will not be answered", lacking[name])
                return skipped("not configured")
            return await ask(server, call)

        return Check(name, look, advice)

    if settings.conversation_mode == "realtime":
        return [
            Check("realtime", lambda: check_realtime(settings, plan.realtime), advice),
        ]
    own = (settings.stt_model, settings.llm_model, settings.tts_model, settings.tts_voice)
    spare = (
        settings.fallback_stt_model,
        settings.fallback_llm_model,
        settings.fallback_tts_model,
        settings.fallback_tts_voice,
    )

    def all_three(standby: str, servers: tuple[Server | None, ...], names: tuple[str, ...]) -> list[Check]:
        hearing, thinking, speaking, voice = names
        return [
            openai_check(f"{standby}speech-to-text", servers[0], lambda client: hear(client, settings, hearing)),
            openai_check(f"{standby}language model", servers[1], lambda client: think(client, thinking)),
            openai_check(f"{standby}voice", servers[2], lambda client: speak(client, speaking, voice)),
        ]

    names = tuple(theirs or ours for theirs, ours in zip(spare, own, strict=True))
    return [
        *all_three("", (plan.stt, plan.llm, plan.tts), own),
        *(all_three("standby ", (plan.fallback,) * 3, names) if plan.fallback is not None else ()),
        Check("ElevenLabs", lambda: check_elevenlabs(settings, plan.elevenlabs), advice),
    ]


async def ask(server: Server, call: Call) -> Finding:
    """One call, its errors in words."""
    async with openai.AsyncClient(api_key=server.key, base_url=server.url, max_retries=0, timeout=_TIMEOUT_S) as client:
        try:
            return ok(await call(client))
        except openai.AuthenticationError:
            return failed(f"{server.url} refuses the key", "set OPENAI_API_KEY, or the server's own …_API_KEY")
        except openai.RateLimitError:
            return failed(f"{server.url} refuses more calls", "see the account's limits and credit")
        except openai.NotFoundError:
            return failed(f"{server.url} knows no such model or path", "see the model's name and the base URL")
        except openai.APIStatusError as error:
            return failed(f"{server.url} says HTTP {error.status_code}", "see the provider's status page or log")
        except openai.APIConnectionError as error:
            why = type(error.__cause__ or error).__name__
            return failed(f"{server.url} cannot be reached: {why}", "see that the address is right and the server runs")


async def hear(client: openai.AsyncClient, settings: Settings, model: str) -> str:
    """Have a recorded greeting's first seconds, or a hum, transcribed."""
    bank = GreetingBank.load(settings.greetings_dir)
    spoken = next((recording.pcm for recording in bank.recordings if recording.purpose == "greeting"), None)
    if spoken is None:
        spoken = (np.sin(np.arange(_RATE) / 20) * 8000).astype(np.int16)
    sound = io.BytesIO()
    with wave.open(sound, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(_RATE)
        out.writeframes(spoken[: 2 * _RATE].tobytes())
    await client.audio.transcriptions.create(model=model, file=("doctor.wav", sound.getvalue()))
    return f"{model} transcribes"


async def think(client: openai.AsyncClient, model: str) -> str:
    """One word of a reply."""
    stream = await client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "Say: ok"}], stream=True
    )
    async with stream:
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                return f"{model} answers"
    raise openai.APIConnectionError(message="the model answered nothing", request=stream.response.request)


async def speak(client: openai.AsyncClient, model: str, voice: str) -> str:
    """The first bytes of one word."""
    async with client.audio.speech.with_streaming_response.create(
        model=model, voice=voice, input="ok", response_format="pcm"
    ) as answer:
        async for chunk in answer.iter_bytes(1024):
            if chunk:
                return f"{model} speaks as {voice}"
    raise openai.APIConnectionError(message="the voice said nothing", request=answer.http_request)


async def check_elevenlabs(settings: Settings, server: Server | None) -> Finding:
    """The first bytes of one word."""
    if server is None:
        return skipped("not configured", "ELEVENLABS_API_KEY lets devices have its voices")
    url = f"{server.url.rstrip('/')}/text-to-speech/{elevenlabs.tts.DEFAULT_VOICE_ID}/stream"
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S)) as http,
        http.post(
            url,
            params={"output_format": "pcm_24000", "model_id": settings.elevenlabs_model},
            json={"text": "ok", "model_id": settings.elevenlabs_model},
            headers={"xi-api-key": server.key},
        ) as answer,
    ):
        if answer.status in (401, 403):
            return failed("ElevenLabs refuses the key", "set ELEVENLABS_API_KEY rightly")
        if answer.status != 200:
            return failed(f"ElevenLabs says HTTP {answer.status}", "see ELEVENLABS_MODEL and the account's credit")
        if not await answer.content.readany():
            return failed("ElevenLabs said nothing", "see its status page")
    return ok(f"{settings.elevenlabs_model} speaks")


async def check_realtime(settings: Settings, server: Server | None) -> Finding:
    """Open the socket; a session is made and nothing is asked of it."""
    if server is None:
        return failed("not configured: the child will not be answered", "set OPENAI_API_KEY or REALTIME_BASE_URL")
    url = f"{server.url.rstrip('/').replace('http', 'ws', 1)}/realtime"
    headers = {"Authorization": f"Bearer {server.key}"}
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S)) as http,
            http.ws_connect(url, params={"model": settings.realtime_model}, headers=headers) as socket,
        ):
            first = await socket.receive_json(timeout=_TIMEOUT_S)
    except aiohttp.WSServerHandshakeError as error:
        if error.status in (401, 403):
            return failed(f"{server.url} refuses the key", "set OPENAI_API_KEY, or REALTIME_API_KEY, rightly")
        return failed(f"{server.url} says HTTP {error.status}", "see REALTIME_MODEL and REALTIME_BASE_URL")
    except (aiohttp.ClientError, TypeError) as error:
        return failed(f"{server.url} cannot be reached: {type(error).__name__}", "see that REALTIME_BASE_URL is right")
    if first.get("type") != "session.created":
        return failed(f"{server.url} opened no session", "see REALTIME_MODEL")
    return ok(f"{settings.realtime_model} opens a session")
