"""Stand-ins for OpenAI's transcriptions and speech, as the plugins use them."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
import wave
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from sandbox.faults import Behaviour, Cut, Stream
from sandbox.hearing import Hearing, Samples, loud, read_wav
from sandbox.openai_chat import bad_request, check_bearer, check_model, read_json
from sandbox.replies import tokens
from sandbox.voices import RATE, Voice, hum

CHUNK_SECONDS = 0.1


@dataclass(frozen=True)
class Heard:
    """One transcription: what was asked, what was answered, how many seconds of sound it was."""

    at: float
    text: str
    seconds: float
    language: str
    model: str
    prompt: str
    samples: Samples
    rate: int


class TranscriptionApi:
    """`POST /v1/audio/transcriptions`: json, verbose_json, text and streamed answers.

    With `answers` set, each request takes the next of them (the last one stays); else `hearing` decodes the sound.
    Silence is always answered with an empty text. `textless`: all else with a status of 200 and an error, as some
    servers do.
    """

    def __init__(
        self,
        *,
        hearing: Hearing | None = None,
        answers: list[str] | None = None,
        key: str | None = None,
        models: Collection[str] | None = None,
    ) -> None:
        self.models = models
        self.hearing = hearing
        self.answers = list(answers or [])
        self.behaviour = Behaviour()
        self.calls: list[Heard] = []
        self.key = key
        self.textless = False

    def routes(self) -> list[web.RouteDef]:
        """Routes below `/v1`."""
        return [web.post("/v1/audio/transcriptions", self._transcribe)]

    async def understand(self, samples: Samples, rate: int) -> str:
        """The words in mono samples; also for the realtime stand-in."""
        if not loud(samples):
            return ""
        if self.answers:
            return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return await self.hearing.recognise(samples, rate) if self.hearing else ""

    async def _transcribe(self, request: web.Request) -> web.StreamResponse:
        check_bearer(request, self.key)
        form = await request.post()
        upload = form.get("file")
        model = form.get("model")
        if not isinstance(upload, web.FileField) or not isinstance(model, str):
            raise bad_request("file and model are needed")
        check_model(model, self.models)
        try:
            samples, rate = read_wav(upload.file.read())
        except ValueError as error:
            raise bad_request(str(error)) from None
        fate = self.behaviour.take()
        began = time.monotonic()
        understanding = asyncio.ensure_future(self.understand(samples, rate))
        try:
            await fate.before_answer()
            text = await understanding
        finally:
            understanding.cancel()
        field = {name: value if isinstance(value := form.get(name), str) else "" for name in ("language", "prompt")}
        self.calls.append(
            Heard(began, text, samples.size / rate, field["language"], model, field["prompt"], samples, rate)
        )
        if fate.nonsense:
            return web.Response(text="<html><body>It works!</body></html>", content_type="text/html")
        if self.textless:
            return web.json_response({"error": "failed to process audio"})
        if form.get("stream") == "true":
            return await self._streamed(request, fate, text)
        await fate.before_body(request)
        match form.get("response_format"):
            case "text":
                return web.Response(text=text)
            case "verbose_json":
                return web.json_response(
                    {
                        "task": "transcribe",
                        "language": field["language"] or "en",
                        "duration": samples.size / rate,
                        "text": text,
                        "segments": [],
                    }
                )
        usage = {"type": "duration", "seconds": round(samples.size / rate)}
        return web.json_response({"text": text, "usage": usage})

    async def _streamed(self, request: web.Request, fate: Any, text: str) -> web.StreamResponse:
        out = Stream(request, fate, "text/event-stream")
        try:
            for token in tokens(text):
                await out.write(_event({"type": "transcript.text.delta", "delta": token}))
            await out.write(_event({"type": "transcript.text.done", "text": text}))
        except Cut:
            return out.response
        return await out.finish()


@dataclass
class Spoken:
    """One request for speech; `seconds_sent` is how much sound left, `finished` whether all of it did."""

    at: float
    text: str
    voice: str
    model: str
    format: str
    seconds_sent: float = 0.0
    finished: bool = False


class SpeechApi:
    """`POST /v1/audio/speech` in pcm (24 kHz) and wav, plain or as server-sent events."""

    def __init__(
        self, voice: Voice | None = None, *, key: str | None = None, models: Collection[str] | None = None
    ) -> None:
        self.voice = voice or hum()
        self.models = models
        self.behaviour = Behaviour()
        self.calls: list[Spoken] = []
        self.key = key

    def routes(self) -> list[web.RouteDef]:
        """Routes below `/v1`."""
        return [web.post("/v1/audio/speech", self._speak)]

    async def _speak(self, request: web.Request) -> web.StreamResponse:
        check_bearer(request, self.key)
        body = await read_json(request)
        text, kind = body.get("input"), body.get("response_format", "mp3")
        if not isinstance(text, str) or not text.strip():
            raise bad_request("input is empty")
        check_model(str(body.get("model", "")), self.models)
        if kind not in {"pcm", "wav"}:
            raise bad_request(f"this server speaks pcm and wav, not {kind}")
        call = Spoken(time.monotonic(), text, str(body.get("voice", "")), str(body.get("model", "")), kind)
        self.calls.append(call)
        fate = self.behaviour.take()
        making = asyncio.ensure_future(asyncio.to_thread(self.voice, text))
        try:
            await fate.before_answer()
            pcm = await making
        finally:
            making.cancel()
        if fate.nonsense:
            return web.Response(text="<html><body>It works!</body></html>", content_type="text/html")
        sse = body.get("stream_format") == "sse"
        out = Stream(request, fate, "text/event-stream" if sse else f"audio/{kind}")
        step = int(RATE * CHUNK_SECONDS) * 2
        try:
            if kind == "wav" and not sse:
                await out.write(_wav_header(len(pcm)))
            for start in range(0, len(pcm), step):
                piece = pcm[start : start + step]
                delta = {"type": "speech.audio.delta", "audio": base64.b64encode(piece).decode()} if sse else None
                await out.write(_event(delta) if delta else piece)
                call.seconds_sent += len(piece) / 2 / RATE
            if sse:
                usage = {"input_tokens": len(text) // 4 + 1, "output_tokens": int(len(pcm) / 2 / RATE * 20) + 1}
                await out.write(_event({"type": "speech.audio.done", "usage": usage}))
        except Cut:
            return out.response
        call.finished = True
        return await out.finish()


def _wav_header(length: int) -> bytes:
    head = io.BytesIO()
    with wave.open(head, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(bytes(length))
    return head.getvalue()[:44]


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"
