"""OpenAI Realtime as one model for hearing, thinking and speaking, on a socket that is opened again when it is lost."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any, Final, cast

import aiohttp
import structlog
from livekit.agents import APIConnectOptions, APIError, llm
from livekit.agents.metrics import AgentMetrics
from livekit.agents.utils.aio import cancel_and_wait
from livekit.plugins.openai.realtime import RealtimeModel, RealtimeSession
from livekit.plugins.openai.realtime.realtime_model import process_base_url
from openai.types.realtime import AudioTranscription
from openai.types.realtime.realtime_audio_input_turn_detection import ServerVad

from agent.conversation.recogniser_languages import hint
from agent.errors import AllProvidersFailed
from agent.telemetry.meter import meter

THRESHOLD: Final = 0.5
PREFIX_MS: Final = 300
SILENCE_MS: Final = 200
REPLY_SILENCE: Final = 6.0
"""Seconds without an event, while a reply is due, after which the socket counts as lost."""
FAILURES_BEFORE_WORDS: Final = 2
FRESH_FOR: Final = 15.0
"""Seconds after which a socket that nobody listens to may have been given up by the other side."""
RECONNECT: Final = APIConnectOptions(max_retry=1_000_000, retry_interval=1.0, timeout=5.0)
VOICES: Final = frozenset({"alloy", "ash", "ballad", "coral", "echo", "sage", "shimmer", "verse", "marin", "cedar"})
DEFAULT_VOICE: Final = "marin"

log = structlog.get_logger(__name__)


class SteadyRealtime(RealtimeModel):
    """The Realtime model with server-side turn detection, for the whole visit.

    A lost socket is opened again with the conversation as it was, for as long as the visit lasts. `on_failed` hears of
    it when that fails repeatedly; `on_lost_reply` when it has worked again and a reply was due that will not come, so
    that somebody may ask for a new one. `sockets` may have opened the first one ahead.
    """

    def __init__(
        self,
        *,
        model: str,
        base_url: str,
        api_key: str,
        sockets: RealtimeSockets,
        voice: str | None = None,
        language: str | None = None,
        transcription_model: str = "gpt-4o-mini-transcribe",
        on_failed: Callable[[AllProvidersFailed], None],
        on_lost_reply: Callable[[], None] = lambda: None,
        on_metrics: Callable[[AgentMetrics], None] | None = None,
        connect: APIConnectOptions = RECONNECT,
    ) -> None:
        transcription = AudioTranscription(model=transcription_model)
        if told := hint(language):
            transcription.language = told
        super().__init__(
            model=model,
            base_url=base_url,
            api_key=api_key,
            http_session=cast("aiohttp.ClientSession", sockets),
            voice=voice if voice in VOICES else DEFAULT_VOICE,
            turn_detection=ServerVad(
                type="server_vad",
                threshold=THRESHOLD,
                prefix_padding_ms=PREFIX_MS,
                silence_duration_ms=SILENCE_MS,
                create_response=True,
                interrupt_response=True,
            ),
            input_audio_transcription=transcription,
            conn_options=connect,
        )
        self._on_failed = on_failed
        self._on_lost_reply = on_lost_reply
        self._on_metrics = on_metrics

    def session(self, *, turn_detection_disabled: bool = False) -> RealtimeSession:
        """One conversation, whose socket is watched."""
        session = super().session(turn_detection_disabled=turn_detection_disabled)
        watch = _Watch(f"{self.provider}/{self.model}", self._on_failed, self._on_lost_reply)
        session.on("error", watch.on_error)
        session.on("session_reconnected", watch.on_reconnected)
        session.on("openai_server_event_received", watch.on_event)
        session.on("openai_client_event_queued", watch.on_event)
        if self._on_metrics is not None:
            session.on("metrics_collected", self._on_metrics)
        return session


class _Watch:
    def __init__(
        self, name: str, on_failed: Callable[[AllProvidersFailed], None], on_lost_reply: Callable[[], None]
    ) -> None:
        self._name = name
        self._on_failed = on_failed
        self._on_lost_reply = on_lost_reply
        self._failures = 0
        self._due = _Due()

    def on_error(self, error: llm.RealtimeModelError) -> None:
        if type(error.error) is APIError:
            return  # the provider refused one event: the socket is well
        self._failures += 1
        kind = type(error.error).__name__
        meter.count("toy_provider_errors", kind="realtime", provider=self._name, error=kind)
        log.warning("realtime socket lost", failures=self._failures, error=kind)
        if self._failures == FAILURES_BEFORE_WORDS or not error.recoverable:
            self._on_failed(AllProvidersFailed("realtime", f"realtime: {kind}"))

    def on_reconnected(self, _: llm.RealtimeSessionReconnectedEvent) -> None:
        log.info("realtime socket opened again", reply_lost=self._due.reply)
        self._failures = 0
        if self._due.reply:
            self._due.reply = False
            self._on_lost_reply()

    def on_event(self, event: dict[str, Any]) -> None:
        self._due.see(event.get("type", ""))


class _Due:
    """Whether a reply is due: from the end of the child's speech, or our asking, to the end of the reply."""

    def __init__(self) -> None:
        self.reply = False

    def see(self, kind: str) -> None:
        if kind in {"input_audio_buffer.speech_stopped", "response.create", "response.created"}:
            self.reply = True
        elif kind in {"response.done", "response.cancel", "input_audio_buffer.speech_started", "error"}:
            self.reply = False


class _WatchingSocket(aiohttp.ClientWebSocketResponse):
    """A Realtime socket that counts as closed when it lies, or is silent while a reply is due.

    The plugin opens a closed socket again; on anything that is not JSON it would end the session instead.
    """

    reply_silence = REPLY_SILENCE

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._due = _Due()
        self._timer: asyncio.TimerHandle | None = None
        self._ending: asyncio.Task[bool] | None = None

    async def send_str(self, data: str, compress: int | None = None) -> None:
        """Send, and notice what is asked for."""
        if '"input_audio_buffer.append"' not in data[:80] and '"response.' in data:
            self._see(json.loads(data))
        await super().send_str(data, compress)

    async def receive(self, timeout: float | None = None) -> aiohttp.WSMessage:
        """The next message; CLOSED in place of rubbish."""
        message = await super().receive(timeout)
        if message.type is aiohttp.WSMsgType.TEXT:
            try:
                event = json.loads(message.data)
                self._see(event)
            except (ValueError, AttributeError):
                log.warning("realtime sent what is no event")
                await self.close()
                return aiohttp.WSMessage(aiohttp.WSMsgType.CLOSED, None, None)
        else:
            self._disarm()
        return message

    def _see(self, event: dict[str, Any]) -> None:
        self._due.see(event.get("type", ""))
        self._disarm()
        if self._due.reply:
            self._timer = asyncio.get_running_loop().call_later(self.reply_silence, self._give_up)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        log.warning("realtime is silent while a reply is due", seconds=self.reply_silence)
        self._ending = asyncio.ensure_future(self.close())

    async def close(self, *, code: int = aiohttp.WSCloseCode.OK, message: bytes = b"") -> bool:
        """Close, and watch no more."""
        self._disarm()
        return await super().close(code=code, message=message)


def reply_watching_session(*, reply_silence: float = REPLY_SILENCE, **options: Any) -> aiohttp.ClientSession:
    """An HTTP session whose Realtime sockets notice rubbish, and `reply_silence` seconds without a due reply.

    `options` are `aiohttp.ClientSession`'s.
    """
    socket = type("_Socket", (_WatchingSocket,), {"reply_silence": reply_silence})
    return aiohttp.ClientSession(ws_response_class=socket, **options)


class RealtimeSockets:
    """Opens Realtime sockets through `http`, which should be made with `reply_watching_session`.

    It is as much of an HTTP session as the plugin needs. `open_ahead` opens the first socket before there is a
    conversation to use it.
    """

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self._http = http
        self._ahead: aiohttp.ClientWebSocketResponse | None = None
        self._opening: asyncio.Task[None] | None = None
        self._url = ""
        self._opened_at = 0.0

    def open_ahead(self, *, base_url: str, model: str, api_key: str) -> None:
        """Begin to open a socket for the conversation to come; never raises, and nothing waits for it."""
        self._url = process_base_url(base_url, model)
        headers = {"User-Agent": "LiveKit Agents", "Authorization": f"Bearer {api_key}"}
        self._opening = asyncio.create_task(self._open(headers), name="realtime socket")

    async def _open(self, headers: dict[str, str]) -> None:
        try:
            async with asyncio.timeout(RECONNECT.timeout):
                self._ahead = await self._http.ws_connect(self._url, headers=headers)
        except (aiohttp.ClientError, TimeoutError) as error:
            log.warning("realtime cannot be reached yet", error=type(error).__name__)
        self._opened_at = time.monotonic()

    async def ws_connect(self, url: str, headers: dict[str, str]) -> aiohttp.ClientWebSocketResponse:
        """A socket: the one that was opened ahead where that leads there and is fresh, else a new one."""
        opening, self._opening = self._opening, None
        if opening is not None and url == self._url:
            await asyncio.wait({opening})
            ahead, self._ahead = self._ahead, None
            if ahead is not None:
                if not ahead.closed and time.monotonic() - self._opened_at < FRESH_FOR:
                    return ahead
                await ahead.close()
        return await self._http.ws_connect(url, headers=headers)

    async def aclose(self) -> None:
        """Close what nobody took."""
        if self._opening is not None:
            await cancel_and_wait(self._opening)
        if self._ahead is not None:
            await self._ahead.close()
