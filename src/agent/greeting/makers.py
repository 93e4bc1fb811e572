"""Voices that make recordings: espeak-ng without a key, edge-tts without a key but online, OpenAI, ElevenLabs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Protocol

import aiohttp
import numpy as np
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_random_exponential

from agent.errors import (
    Malformed,
    MediaError,
    RateLimited,
    Rejected,
    SettingsError,
    ToyError,
    Unauthorised,
    Unavailable,
)
from agent.greeting import audio, espeak
from agent.greeting.audio import SAMPLE_RATE, Pcm
from agent.settings import OPENAI_URL, Settings

MAKERS: Final = ("espeak-ng", "edge-tts", "openai", "elevenlabs")
_ESPEAK_PACE: Final = {"zh": 240}  # its words are single signs, each with a pause
_MAX_ANSWER_BYTES: Final = 4 * 1024 * 1024
_ATTEMPTS: Final = 3
_MAX_PATIENCE: Final = 30.0


class Maker(Protocol):
    """Speaks a text. Raises ToyError, `retryable` as usual."""

    async def speak(self, text: str, language: str, voice: str, /) -> Pcm:
        """24 kHz mono samples."""
        ...


class EspeakMaker:
    """espeak-ng: the voice is an espeak-ng voice with its variant, such as `en-us+f4`."""

    async def speak(self, text: str, language: str, voice: str) -> Pcm:
        pace = _ESPEAK_PACE.get(language.partition("-")[0], 165)
        pcm, rate = await asyncio.to_thread(
            espeak.synthesise, text, language, words_per_minute=pace, voice=voice or None
        )
        return await asyncio.to_thread(audio.resample, pcm, rate)


class EdgeMaker:
    """Microsoft Edge's read-aloud voices; needs the `greetings` extra and the Internet."""

    async def speak(self, text: str, _language: str, voice: str) -> Pcm:
        try:
            import edge_tts
        except ImportError:
            raise SettingsError("edge-tts is not installed: pip install '.[greetings]'") from None
        sound = bytearray()
        try:
            async for chunk in edge_tts.Communicate(text, voice).stream():
                if chunk["type"] == "audio":
                    sound += chunk["data"]
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Unavailable(f"edge-tts: cannot be reached ({type(error).__name__})") from error
        except (edge_tts.exceptions.EdgeTTSException, ValueError) as error:
            raise Rejected(f"edge-tts: {error}") from error
        return await asyncio.to_thread(audio.decode, bytes(sound))


class OpenAIMaker:
    """`POST /audio/speech` of OpenAI or a compatible server, raw 24 kHz samples."""

    def __init__(self, http: aiohttp.ClientSession, settings: Settings) -> None:
        if settings.openai_api_key is None and settings.tts_base_url is None:
            raise SettingsError("OPENAI_API_KEY: is needed for the maker openai. Example: OPENAI_API_KEY=sk-…")
        self._http = http
        self._url = (settings.tts_base_url or OPENAI_URL).rstrip("/") + "/audio/speech"
        self._key = settings.key_for(settings.tts_base_url, settings.tts_api_key)
        self._model = settings.tts_model

    async def speak(self, text: str, _language: str, voice: str) -> Pcm:
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        body = {"model": self._model, "voice": voice, "input": text, "response_format": "pcm"}
        return _samples("openai", await _post("openai", self._http, self._url, headers, body))


class ElevenLabsMaker:
    """`POST /text-to-speech/<voice>` of ElevenLabs, raw 24 kHz samples."""

    def __init__(self, http: aiohttp.ClientSession, settings: Settings) -> None:
        if settings.elevenlabs_api_key is None:
            raise SettingsError(
                "ELEVENLABS_API_KEY: is needed for the maker elevenlabs. Example: ELEVENLABS_API_KEY=a key"
            )
        self._http = http
        self._url = (settings.elevenlabs_base_url or "https://api.elevenlabs.io/v1").rstrip("/")
        self._key = settings.elevenlabs_api_key
        self._model = settings.elevenlabs_model

    async def speak(self, text: str, language: str, voice: str) -> Pcm:
        if not voice.isalnum():
            raise SettingsError("the ElevenLabs voice must be a voice id of letters and digits")
        url = f"{self._url}/text-to-speech/{voice}?output_format=pcm_24000"
        body = {"text": text, "model_id": self._model, "language_code": language.partition("-")[0]}
        headers = {"xi-api-key": self._key.get_secret_value()}
        return _samples("elevenlabs", await _post("elevenlabs", self._http, url, headers, body))


def make_maker(name: str, http: aiohttp.ClientSession, settings: Settings) -> Maker:
    """Raises SettingsError where the name is unknown or its key is missing."""
    factories: dict[str, Callable[[], Maker]] = {
        "espeak-ng": EspeakMaker,
        "edge-tts": EdgeMaker,
        "openai": lambda: OpenAIMaker(http, settings),
        "elevenlabs": lambda: ElevenLabsMaker(http, settings),
    }
    if name not in factories:
        raise SettingsError(f"there is no maker {name!r}; there are {', '.join(MAKERS)}")
    return factories[name]()


async def _post(
    who: str, http: aiohttp.ClientSession, url: str, headers: dict[str, str], body: dict[str, Any]
) -> bytes:
    async for attempt in AsyncRetrying(
        stop=stop_after_attempt(_ATTEMPTS),
        retry=retry_if_exception(lambda error: isinstance(error, ToyError) and error.retryable),
        wait=_patience,
        reraise=True,
    ):
        with attempt:
            return await _post_once(who, http, url, headers, body)
    raise AssertionError("unreachable")


_backoff = wait_random_exponential(multiplier=0.2, max=3)


def _patience(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, RateLimited) and error.retry_after is not None:
        return min(error.retry_after, _MAX_PATIENCE)
    return _backoff(state)


async def _post_once(
    who: str, http: aiohttp.ClientSession, url: str, headers: dict[str, str], body: dict[str, Any]
) -> bytes:
    try:
        async with http.post(url, headers=headers, json=body, allow_redirects=False) as answer:
            if answer.status == 200:
                data = await answer.content.read(_MAX_ANSWER_BYTES + 1)
                while len(data) <= _MAX_ANSWER_BYTES and (more := await answer.content.read(_MAX_ANSWER_BYTES)):
                    data += more
                if len(data) > _MAX_ANSWER_BYTES:
                    raise Malformed(f"{who}: the answer is larger than a greeting can be")
                return data
            if answer.status in {401, 403}:
                raise Unauthorised(f"{who}: the key was refused (status {answer.status})")
            if answer.status == 429:
                after = answer.headers.get("Retry-After", "")
                raise RateLimited(f"{who}: asks for patience (status 429)", float(after) if after.isdigit() else None)
            if answer.status >= 500:
                raise Unavailable(f"{who}: status {answer.status}")
            raise Rejected(f"{who}: refused the request (status {answer.status})")
    except (aiohttp.ClientError, TimeoutError) as error:
        raise Unavailable(f"{who}: cannot be reached ({type(error).__name__})") from error


def _samples(who: str, data: bytes) -> Pcm:
    if data[:4] in {b"RIFF", b"OggS", b"fLaC"} or data[:3] == b"ID3":
        return audio.decode(data)  # some compatible servers ignore the format asked for
    if len(data) < 2 or len(data) % 2:
        raise Malformed(f"{who}: the answer is not 16-bit samples")
    if len(data) // 2 > audio.MAX_SECONDS * SAMPLE_RATE:
        raise MediaError(f"is longer than {audio.MAX_SECONDS:.0f} s")
    return np.frombuffer(data, dtype="<i2").astype(np.int16, copy=False)
