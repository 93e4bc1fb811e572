"""A stand-in for OpenAI's Realtime websocket: turn detection, transcripts, spoken replies, function calls."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
from typing import Any

import numpy as np
from aiohttp import WSMsgType, web

from sandbox.faults import Behaviour, Cut, Fate, Fault
from sandbox.hearing import Samples
from sandbox.openai_audio import TranscriptionApi
from sandbox.openai_chat import check_bearer
from sandbox.replies import ChatRequest, Rules, Script, ToolCall, parts_of, tokens
from sandbox.voices import RATE, Voice, hum

WINDOW = RATE // 50
LOUD_RMS = 400.0
ONSET_WINDOWS = 3
CHUNK_SECONDS = 0.1


class RealtimeApi:
    """`GET /v1/realtime`.

    `script` decides the replies, `hearing` (its `understand`) what was said. `behaviour.first` passes before the first
    sound of a reply. `connections` counts sockets ever opened, `sessions` keeps them with all they were told.
    """

    def __init__(
        self,
        hearing: TranscriptionApi,
        script: Script | None = None,
        voice: Voice | None = None,
        *,
        key: str | None = None,
    ) -> None:
        self.hearing = hearing
        self.script: Script = script or Rules()
        self.voice = voice or hum(262.0)
        self.behaviour = Behaviour()
        self.sessions: list[RealtimeConnection] = []
        self.key = key

    @property
    def connections(self) -> int:
        """How many sockets have been opened so far."""
        return len(self.sessions)

    def routes(self) -> list[web.RouteDef]:
        """Routes below `/v1`."""
        return [web.get("/v1/realtime", self._serve)]

    async def drop_connections(self) -> None:
        """Close every open socket, as a restart of the service does."""
        for session in self.sessions:
            await session.drop()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        check_bearer(request, self.key)
        if self.behaviour.fault in {Fault.RATE_LIMIT, Fault.ERROR, Fault.UNAUTHORISED}:
            await self.behaviour.take().before_answer()
        ws = web.WebSocketResponse(max_msg_size=16 << 20)
        await ws.prepare(request)
        connection = RealtimeConnection(self, request, ws)
        self.sessions.append(connection)
        await connection.run()
        return ws


class RealtimeConnection:
    """One socket: `config` is the session, `items` the conversation, `events` every client event but sound."""

    def __init__(self, api: RealtimeApi, request: web.Request, ws: web.WebSocketResponse) -> None:
        self._api = api
        self._request = request
        self._ws = ws
        self._ids = itertools.count(1)
        self.config: dict[str, Any] = {"type": "realtime", "model": request.query.get("model", "")}
        self.items: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.requests: list[ChatRequest] = []
        self.truncated: list[dict[str, Any]] = []
        self._response: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._ears = _Ears()

    async def run(self) -> None:
        """Serve until the socket closes."""
        try:
            if self._api.behaviour.fault is not Fault.HANG:
                await self._send(
                    "session.created", session={**self.config, "id": "sess_1", "object": "realtime.session"}
                )
            async for message in self._ws:
                if message.type is WSMsgType.TEXT:
                    await self._receive(json.loads(message.data))
        except ConnectionError:
            return
        finally:
            tasks = [*self._tasks, *([self._response] if self._response else [])]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def drop(self) -> None:
        """Close the socket without a word."""
        if not self._ws.closed:
            await self._ws.close(code=1012)

    async def say_rubbish(self) -> None:
        """Send what is no event."""
        await self._ws.send_str("<html><body>It works!</body></html>")

    async def _send(self, kind: str, **fields: Any) -> None:
        await self._ws.send_str(json.dumps({"type": kind, "event_id": f"event_{next(self._ids)}", **fields}))

    async def _receive(self, event: dict[str, Any]) -> None:
        kind = event.get("type", "")
        if kind == "input_audio_buffer.append":
            await self._hear(np.frombuffer(base64.b64decode(event["audio"]), dtype=np.int16))
            return
        self.events.append(event)
        match kind:
            case "session.update":
                _merge(self.config, event["session"])
                await self._send("session.updated", session=self.config)
            case "conversation.item.create":
                await self._add(event["item"], event.get("previous_item_id"))
            case "conversation.item.delete":
                self.items = [i for i in self.items if i["id"] != event["item_id"]]
                await self._send("conversation.item.deleted", item_id=event["item_id"])
            case "conversation.item.truncate":
                self.truncated.append(event)
                fields = {k: event[k] for k in ("item_id", "content_index", "audio_end_ms")}
                await self._send("conversation.item.truncated", **fields)
            case "input_audio_buffer.clear":
                self._ears.clear()
                await self._send("input_audio_buffer.cleared")
            case "input_audio_buffer.commit":
                await self._commit(f"item_{next(self._ids)}", self._ears.take())
            case "response.create":
                await self._respond(event.get("response") or {})
            case "response.cancel":
                await self._cancel("client_cancelled")
            case _:
                error = {
                    "type": "invalid_request_error",
                    "message": f"unknown event {kind}",
                    "event_id": event.get("event_id"),
                }
                await self._send("error", error=error)

    async def _hear(self, samples: Samples) -> None:
        detection = ((self.config.get("audio") or {}).get("input") or {}).get("turn_detection")
        silence = (detection or {}).get("silence_duration_ms") or 500
        prefix = (detection or {}).get("prefix_padding_ms") or 300
        for change in self._ears.push(samples, silence_ms=silence, prefix_ms=prefix):
            if detection is None:
                continue
            if change == "started":
                self._ears.item = f"item_{next(self._ids)}"
                await self._send(
                    "input_audio_buffer.speech_started", item_id=self._ears.item, audio_start_ms=self._ears.clock_ms
                )
                if detection.get("interrupt_response") is not False:
                    await self._cancel("turn_detected")
            else:
                item = self._ears.item
                await self._send("input_audio_buffer.speech_stopped", item_id=item, audio_end_ms=self._ears.clock_ms)
                await self._commit(item, self._ears.take())
                if detection.get("create_response") is not False:
                    await self._respond({})

    async def _commit(self, item_id: str, samples: Samples) -> None:
        previous = self.items[-1]["id"] if self.items else None
        await self._send("input_audio_buffer.committed", item_id=item_id, previous_item_id=previous)
        item: dict[str, Any] = {"id": item_id, "type": "message", "role": "user", "status": "completed"}
        item["content"] = [{"type": "input_audio", "transcript": None}]
        item["_heard"] = asyncio.ensure_future(self._api.hearing.understand(samples, RATE))
        await self._add(item, previous)
        self._spawn(self._transcribe(item))

    async def _transcribe(self, item: dict[str, Any]) -> None:
        text = await item["_heard"]
        item["content"][0]["transcript"] = text
        fields = {"item_id": item["id"], "content_index": 0, "transcript": text}
        fields["usage"] = {"type": "duration", "seconds": 1}
        await self._send("conversation.item.input_audio_transcription.completed", **fields)

    async def _add(self, item: dict[str, Any], previous: str | None) -> None:
        item.setdefault("id", f"item_{next(self._ids)}")
        if item["type"] in {"function_call", "message", "function_call_output"}:
            item.setdefault("status", "completed")
        place = next((i + 1 for i, other in enumerate(self.items) if other["id"] == previous), len(self.items))
        if previous == "root":
            place = 0
        self.items.insert(place, item)
        before = self.items[place - 1]["id"] if place else None
        await self._send("conversation.item.added", previous_item_id=before, item=_public(item))
        await self._send("conversation.item.done", previous_item_id=before, item=_public(item))

    async def _respond(self, params: dict[str, Any]) -> None:
        if self._response is not None and not self._response.done():
            error = {"type": "invalid_request_error", "code": "conversation_already_has_active_response"}
            await self._send("error", error={**error, "message": "Conversation already has an active response"})
            return
        self._response = asyncio.ensure_future(self._speak(params))

    async def _cancel(self, reason: str) -> None:
        task = self._response
        if task is None or task.done():
            return
        task.cancel(reason)
        await asyncio.gather(task, return_exceptions=True)

    async def _speak(self, params: dict[str, Any]) -> None:
        fate = self._api.behaviour.take()
        response: dict[str, Any] = {
            "id": f"resp_{next(self._ids)}",
            "object": "realtime.response",
            "status": "in_progress",
            "output": [],
        }
        response["metadata"] = params.get("metadata")
        try:
            if fate.fault is Fault.HANG:
                await fate.before_answer()
            await self._send("response.created", response=response)
            if fate.nonsense:
                await self._ws.send_str(
                    json.dumps({"type": "response.output_audio.delta", "delta": "?", "item_id": "?"})
                )
            chat = await self._told(params)
            self.requests.append(chat)
            await fate.before_answer()
            for part in parts_of(self._api.script(chat)):
                await self._call(response, part) if isinstance(part, ToolCall) else await self._say(
                    response, part, fate
                )
            await self._done(response, "completed")
        except asyncio.CancelledError as cancelled:
            if not self._ws.closed and cancelled.args:
                await self._done(response, "cancelled", {"type": "cancelled", "reason": cancelled.args[0]})
            raise
        except Cut:
            if not self._ws.closed:
                await self._done(response, "incomplete", {"type": "incomplete", "reason": "content_filter"})
        except ConnectionError:
            return

    async def _told(self, params: dict[str, Any]) -> ChatRequest:
        messages: list[dict[str, Any]] = []
        if system := params.get("instructions") or self.config.get("instructions"):
            messages.append({"role": "system", "content": system})
        for item in list(self.items):
            if item["type"] == "message":
                heard = await item["_heard"] if "_heard" in item else ""
                texts = [part.get("text") or part.get("transcript") or "" for part in item["content"]]
                messages.append({"role": item["role"], "content": heard or " ".join(texts)})
            elif item["type"] == "function_call":
                call = {"id": item["call_id"], "type": "function"}
                function = {"name": item["name"], "arguments": item["arguments"]}
                messages.append({"role": "assistant", "content": None, "tool_calls": [{**call, "function": function}]})
            elif item["type"] == "function_call_output":
                messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": item["output"]})
        tools = params.get("tools") or self.config.get("tools") or []
        return ChatRequest(tuple(messages), tuple(t.get("name", "") for t in tools), self.config["model"], params)

    async def _begin(self, response: dict[str, Any], item: dict[str, Any]) -> dict[str, Any]:
        ids = {"response_id": response["id"], "output_index": len(response["output"])}
        response["output"].append(item)
        await self._send("response.output_item.added", **ids, item=_public(item))
        await self._add(item, self.items[-1]["id"] if self.items else None)
        return ids

    async def _say(self, response: dict[str, Any], text: str, fate: Fate) -> None:
        item = {"id": f"item_{next(self._ids)}", "type": "message", "role": "assistant", "status": "in_progress"}
        ids = await self._begin(response, {**item, "content": []})
        place = {**ids, "item_id": item["id"], "content_index": 0}
        await self._send("response.content_part.added", **place, part={"type": "audio", "transcript": ""})
        pcm = await asyncio.to_thread(self._api.voice, text)
        step = int(RATE * CHUNK_SECONDS) * 2
        words = tokens(text)
        chunks = [pcm[i : i + step] for i in range(0, len(pcm), step)]
        transport = self._request.transport
        for index, chunk in enumerate(chunks):
            await fate.before_chunk(lambda: transport.abort() if transport else None, self.drop)
            said = words[index * len(words) // len(chunks) : (index + 1) * len(words) // len(chunks)]
            if said:
                await self._send("response.output_audio_transcript.delta", **place, delta="".join(said))
            await self._send("response.output_audio.delta", **place, delta=base64.b64encode(chunk).decode())
        await self._send("response.output_audio.done", **place)
        await self._send("response.output_audio_transcript.done", **place, transcript=text)
        part = {"type": "output_audio", "transcript": text}
        await self._send("response.content_part.done", **place, part={"type": "audio", "transcript": text})
        finished = response["output"][-1]
        finished.update(status="completed", content=[part])
        await self._send("response.output_item.done", **ids, item=_public(finished))

    async def _call(self, response: dict[str, Any], call: ToolCall) -> None:
        number = next(self._ids)
        item = {"id": f"item_{number}", "type": "function_call", "name": call.name, "call_id": f"call_{number}"}
        ids = await self._begin(response, {**item, "arguments": "", "status": "in_progress"})
        arguments = json.dumps(call.arguments, ensure_ascii=False)
        place = {**ids, "item_id": item["id"], "call_id": item["call_id"]}
        await self._send("response.function_call_arguments.delta", **place, delta=arguments)
        await self._send("response.function_call_arguments.done", **place, name=call.name, arguments=arguments)
        finished = response["output"][-1]
        finished.update(status="completed", arguments=arguments)
        await self._send("response.output_item.done", **ids, item=_public(finished))

    async def _done(self, response: dict[str, Any], status: str, details: dict[str, Any] | None = None) -> None:
        output = [_public(item) for item in response["output"]]
        usage = {"total_tokens": 30, "input_tokens": 20, "output_tokens": 10}
        done = {**response, "status": status, "status_details": details, "output": output, "usage": usage}
        await self._send("response.done", response=done)

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Ears:
    """Turn detection by loudness, in windows of 20 ms."""

    def __init__(self) -> None:
        self.item = ""
        self.clock_ms = 0
        self.clear()

    def clear(self) -> None:
        self._rest: Samples = np.zeros(0, dtype=np.int16)
        self._windows: list[Samples] = []
        self._speaking = False
        self._run = 0

    def push(self, samples: Samples, *, silence_ms: int, prefix_ms: int) -> list[str]:
        """Take sound in; returns "started" and "stopped" in order."""
        changes = []
        self._rest = np.concatenate([self._rest, samples])
        while self._rest.size >= WINDOW:
            window, self._rest = self._rest[:WINDOW], self._rest[WINDOW:]
            self.clock_ms += 20
            self._windows.append(window)
            is_loud = float(np.sqrt(np.mean(window.astype(np.float64) ** 2))) > LOUD_RMS
            self._run = self._run + 1 if is_loud is not self._speaking else 0
            if not self._speaking:
                if self._run >= ONSET_WINDOWS:
                    self._speaking, self._run = True, 0
                    changes.append("started")
                elif len(self._windows) > prefix_ms // 20 + ONSET_WINDOWS:
                    self._windows.pop(0)
            elif self._run * 20 >= silence_ms:
                self._speaking, self._run = False, 0
                changes.append("stopped")
        return changes

    def take(self) -> Samples:
        """The sound of the turn, which is forgotten."""
        sound = np.concatenate(self._windows) if self._windows else np.zeros(0, dtype=np.int16)
        self._windows = []
        return sound


def _public(item: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in item.items() if not key.startswith("_")}


def _merge(into: dict[str, Any], new: dict[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value
