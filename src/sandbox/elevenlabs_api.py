"""A stand-in for ElevenLabs: the multi-context websocket and the streamed endpoint, in pcm_24000."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from dataclasses import dataclass, field
from typing import Any

from aiohttp import WSMsgType, web

from sandbox.faults import Behaviour, Cut, Fate, Fault, Stream
from sandbox.openai_chat import read_json
from sandbox.voices import RATE, Voice, hum

CHUNK_SECONDS = 0.1


@dataclass
class Context:
    """One utterance: the text that came for it, what was sent and how it ended."""

    id: str
    voice_id: str
    at: float
    text: str = ""
    seconds_sent: float = 0.0
    finished: bool = False
    _pending: str = ""
    _fate: Fate | None = None
    _queue: asyncio.Queue[str | None] = field(default_factory=asyncio.Queue, repr=False)
    _closing: bool = False


class ElevenLabsApi:
    """`/v1/text-to-speech/{voice}/multi-stream-input` and `…/stream`.

    Text is spoken when a message carries `flush`; `behaviour.first` passes before the first sound of each context.
    `connections` counts websockets, `contexts` keeps every utterance.
    """

    def __init__(self, voice: Voice | None = None, *, key: str | None = None) -> None:
        self.voice = voice or hum(330.0)
        self.behaviour = Behaviour()
        self.contexts: list[Context] = []
        self.connections = 0
        self.key = key
        self._open: set[web.WebSocketResponse] = set()

    def routes(self) -> list[web.RouteDef]:
        """Routes below `/v1`."""
        return [
            web.get("/v1/text-to-speech/{voice}/multi-stream-input", self._multi),
            web.post("/v1/text-to-speech/{voice}/stream", self._stream),
        ]

    async def drop_connections(self) -> None:
        """Close every open websocket, as a restart of the service does."""
        for ws in list(self._open):
            await ws.close(code=1012)

    def _check(self, request: web.Request) -> None:
        sent = request.headers.get("xi-api-key")
        if not sent or (self.key is not None and sent != self.key):
            raise web.HTTPUnauthorized(
                text='{"detail":{"status":"invalid_api_key","message":"Invalid API key"}}',
                content_type="application/json",
            )
        if request.query.get("output_format", "pcm_24000") != "pcm_24000":
            raise web.HTTPBadRequest(text='{"detail":"this server speaks pcm_24000 only"}')

    async def _multi(self, request: web.Request) -> web.StreamResponse:
        self._check(request)
        refused = self.behaviour.fault in {Fault.RATE_LIMIT, Fault.ERROR, Fault.UNAUTHORISED}
        if refused:
            await self.behaviour.take().before_answer()
        ws = web.WebSocketResponse(max_msg_size=1 << 20)
        await ws.prepare(request)
        self.connections += 1
        self._open.add(ws)
        contexts: dict[str, Context] = {}
        speaking: set[asyncio.Task[None]] = set()
        try:
            async for message in ws:
                if message.type is not WSMsgType.TEXT:
                    continue
                data = json.loads(message.data)
                if data.get("close_socket"):
                    break
                self._receive(request, ws, data, contexts, speaking)
        finally:
            self._open.discard(ws)
            for task in speaking:
                task.cancel()
            await asyncio.gather(*speaking, return_exceptions=True)
        await ws.close()
        return ws

    def _receive(
        self,
        request: web.Request,
        ws: web.WebSocketResponse,
        data: dict[str, Any],
        contexts: dict[str, Context],
        speaking: set[asyncio.Task[None]],
    ) -> None:
        context_id = str(data.get("context_id", "default"))
        context = contexts.get(context_id)
        if context is None:
            context = Context(context_id, request.match_info["voice"], time.monotonic())
            context._fate = self.behaviour.take()
            contexts[context_id] = context
            self.contexts.append(context)
            task = asyncio.ensure_future(self._speak(request, ws, context))
            speaking.add(task)
            task.add_done_callback(speaking.discard)
            task.add_done_callback(lambda _: contexts.pop(context_id, None) and None)
        text = data.get("text") or ""
        context.text += text
        context._pending += text
        if data.get("flush") or data.get("close_context"):
            if context._pending.strip():
                context._queue.put_nowait(context._pending)
            context._pending = ""
        if data.get("close_context") and not context._closing:
            context._closing = True
            context._queue.put_nowait(None)

    async def _speak(self, request: web.Request, ws: web.WebSocketResponse, context: Context) -> None:
        fate = context._fate
        assert fate is not None
        first = True
        try:
            while (text := await context._queue.get()) is not None:
                if first:
                    await fate.before_answer()
                    first = False
                if fate.nonsense:
                    await ws.send_str(
                        json.dumps({"contextId": context.id, "error": "model_overloaded", "message": "?"})
                    )
                    return
                await self._speak_text(request, ws, context, fate, text)
            await ws.send_json({"contextId": context.id, "isFinal": True})
            context.finished = True
        except (Cut, ConnectionError):
            return
        except web.HTTPException as refusal:
            # Past the handshake the service says it with an error message and a close code.
            await ws.send_json({"contextId": context.id, "error": refusal.reason, "code": 1008})
            await ws.close(code=1008)

    async def _speak_text(
        self, request: web.Request, ws: web.WebSocketResponse, context: Context, fate: Fate, text: str
    ) -> None:
        pcm = await asyncio.to_thread(self.voice, text.strip())
        step = int(RATE * CHUNK_SECONDS) * 2
        chunks = [pcm[i : i + step] for i in range(0, len(pcm), step)]
        at_ms = context.seconds_sent * 1000
        transport = request.transport
        for index, chunk in enumerate(chunks):
            await fate.before_chunk(lambda: transport.abort() if transport else None, lambda: ws.close(code=1011))
            part = text[index * len(text) // len(chunks) : (index + 1) * len(text) // len(chunks)]
            length_ms = len(chunk) / 2 / RATE * 1000
            each = length_ms / len(part) if part else 0.0
            alignment = {
                "chars": list(part),
                "charStartTimesMs": [round(at_ms + i * each) for i in range(len(part))],
                "charDurationsMs": [round(each)] * len(part),
            }
            await ws.send_json(
                {
                    "contextId": context.id,
                    "audio": base64.b64encode(chunk).decode(),
                    "alignment": alignment,
                    "normalizedAlignment": alignment,
                }
            )
            at_ms += length_ms
            context.seconds_sent += length_ms / 1000

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        self._check(request)
        body = await read_json(request)
        text = str(body.get("text", ""))
        context = Context("", request.match_info["voice"], time.monotonic(), text)
        self.contexts.append(context)
        fate = self.behaviour.take()
        await fate.before_answer()
        if fate.nonsense:
            return web.json_response({"detail": "?"})
        pcm = await asyncio.to_thread(self.voice, text)
        out = Stream(request, fate, "audio/pcm")
        step = int(RATE * CHUNK_SECONDS) * 2
        try:
            for start in range(0, len(pcm), step):
                await out.write(pcm[start : start + step])
                context.seconds_sent += len(pcm[start : start + step]) / 2 / RATE
        except Cut:
            return out.response
        context.finished = True
        return await out.finish()
