"""The providers of one visit: who hears, thinks and speaks, who stands by, and warm sockets to all of them."""

from __future__ import annotations

import asyncio
import importlib
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
import httpx2 as httpx
import openai
import structlog
from livekit.agents import llm, stt, tts
from livekit.agents.metrics import AgentMetrics
from livekit.agents.utils.aio import cancel_and_wait
from livekit.agents.vad import VAD
from livekit.plugins import elevenlabs
from livekit.plugins import openai as openai_plugin
from pydantic import SecretStr

from agent.briefing.profile import Voice
from agent.conversation.language_model import SteadyLLM
from agent.conversation.realtime import RealtimeSockets, SteadyRealtime, reply_watching_session
from agent.conversation.recogniser_languages import hint
from agent.conversation.standby import Lineup
from agent.conversation.transcriber import Transcriber
from agent.conversation.voice import SteadyTTS
from agent.errors import AllProvidersFailed
from agent.settings import OPENAI_URL, Settings

NO_KEY: Final = "none"
"""Sent where a server of one's own needs no key: the clients insist on one."""
SOCKETS: Final = 3
"""How many connections a turn needs at once: a reply that is still written, and two phrases of it being spoken."""
WARM_DEADLINE: Final = 5.0
WARM_FOR: Final = 15.0
"""After so many seconds without use a socket may have been closed by the other side, and is tried again."""

_AUDIO_TYPES: Final = ("audio/", "text/event-stream", "application/octet-stream")

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Server:
    """An OpenAI-compatible server."""

    url: str
    key: str


def missing_providers(settings: Settings) -> tuple[str, ...]:
    """What the conversation lacks, one line each: the part, and the variables that would help."""
    if settings.conversation_mode == "realtime":
        there = _server(settings, settings.realtime_base_url, settings.realtime_api_key)
        return () if there else ("realtime: set OPENAI_API_KEY or REALTIME_BASE_URL",)
    spare = settings.fallback_openai_base_url
    lacks = []
    if not (spare or _server(settings, settings.stt_base_url, settings.stt_api_key)):
        lacks.append("speech-to-text: set OPENAI_API_KEY or STT_BASE_URL")
    if not (spare or _server(settings, settings.llm_base_url, settings.llm_api_key)):
        lacks.append("language model: set OPENAI_API_KEY or LLM_BASE_URL")
    spare = spare or settings.elevenlabs_base_url or _secret(settings.elevenlabs_api_key)
    if not (spare or _server(settings, settings.tts_base_url, settings.tts_api_key)):
        lacks.append("voice: set OPENAI_API_KEY, TTS_BASE_URL or ELEVENLABS_API_KEY")
    return tuple(lacks)


@dataclass(frozen=True)
class Pipeline:
    """What `AgentSession` takes."""

    stt: Transcriber
    llm: SteadyLLM
    tts: SteadyTTS


class ProviderPlan:
    """Who may be asked, from the settings alone: made once per process, before any event loop, and shared by forks.

    `problems` says what is missing, one line each, for the operator. Makes the TLS context and imports what the first
    client would import; opens nothing.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.llm = _server(settings, settings.llm_base_url, settings.llm_api_key)
        self.stt = _server(settings, settings.stt_base_url, settings.stt_api_key)
        self.tts = _server(settings, settings.tts_base_url, settings.tts_api_key)
        self.realtime = _server(settings, settings.realtime_base_url, settings.realtime_api_key)
        spare = settings.fallback_openai_base_url
        self.fallback = _server(settings, spare, settings.fallback_openai_api_key) if spare else None
        eleven_key = _secret(settings.elevenlabs_api_key)
        self.elevenlabs = (
            Server(settings.elevenlabs_base_url or elevenlabs.tts.API_BASE_URL_V1, eleven_key or NO_KEY)
            if eleven_key or settings.elevenlabs_base_url
            else None
        )
        self.tls = httpx.create_ssl_context()
        self._http()
        _import_network()

    def hearers(self) -> list[tuple[Server, str]]:
        """Who transcribes, by which model, best first."""
        model = self.settings.stt_model
        return _distinct((self.stt, model), (self.fallback, self.settings.fallback_stt_model or model))

    def thinkers(self) -> list[tuple[Server, str]]:
        """Who answers, by which model, best first."""
        model = self.settings.llm_model
        return _distinct((self.llm, model), (self.fallback, self.settings.fallback_llm_model or model))

    def speakers(self, *choices: tuple[str, str]) -> list[tuple[Server, str, str]]:
        """Who speaks, as which voice of which model, best first; `choices` are the first server's, best first."""
        voice, model = self.settings.fallback_tts_voice, self.settings.fallback_tts_model
        return _distinct(
            *((self.tts, *choice) for choice in choices),
            *((self.fallback, voice or choice[0], model or choice[1]) for choice in choices),
        )

    @property
    def problems(self) -> tuple[str, ...]:
        """What the conversation lacks, naming the variables that would help."""
        return missing_providers(self.settings)

    def open(
        self,
        *,
        on_failed: Callable[[AllProvidersFailed], None],
        on_metrics: Callable[[AgentMetrics], None] | None = None,
    ) -> Providers:
        """The clients of one visit, in its event loop. `on_failed` hears when nobody of a kind is left.

        `on_metrics` hears of each call that a provider has answered, used or not.
        """
        return Providers(self, self._http(), on_failed, on_metrics)

    def _http(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            verify=self.tls,
            http2=False,
            follow_redirects=True,
            timeout=httpx.Timeout(connect=3.0, read=10.0, write=5.0, pool=5.0),
            limits=httpx.Limits(max_connections=50, max_keepalive_connections=50, keepalive_expiry=120),
            event_hooks={"response": [_refuse_false_sound]},
        )


class Providers:
    """One visit's clients on one pool of connections: `warm` at once, `pipeline` or `realtime` once, then `aclose`."""

    def __init__(
        self,
        plan: ProviderPlan,
        http: httpx.AsyncClient,
        on_failed: Callable[[AllProvidersFailed], None],
        on_metrics: Callable[[AgentMetrics], None] | None = None,
    ) -> None:
        self._plan = plan
        self._settings = plan.settings
        self._http = http
        self._on_failed = on_failed
        self._on_metrics = on_metrics
        self._clients: dict[Server, openai.AsyncClient] = {}
        self._sockets: aiohttp.ClientSession | None = None
        self._realtime: RealtimeSockets | None = None
        self._voices: list[tts.TTS[Any]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._warmed_at = float("-inf")
        self._own: list[Any] = []
        self.warm_ms: dict[str, float] = {}

    def warm(self) -> None:
        """Open connections to whoever will be asked, in the background; again only when they may have gone cold.

        Costs one small request per connection, never raises, and nothing waits for it. In realtime mode it opens the
        conversation's socket, once.
        """
        now = time.monotonic()
        if now - self._warmed_at < WARM_FOR:
            return
        first = self._warmed_at == float("-inf")
        self._warmed_at = now
        if self._settings.conversation_mode == "realtime":
            if first and (server := self._plan.realtime) is not None:
                self._realtime_sockets().open_ahead(
                    base_url=server.url, model=self._settings.realtime_model, api_key=server.key
                )
        else:
            wanted: dict[Server, int] = {}
            for server in filter(None, (self._plan.stt, self._plan.llm, self._plan.tts)):
                wanted[server] = min(wanted.get(server, 0) + 1, SOCKETS)
            for server, count in wanted.items():
                for _ in range(count if first else 1):
                    self._spawn(self._touch(server))
        for voice in self._voices[:1]:
            voice.prewarm()

    def pipeline(self, detector: VAD, *, voice: Voice | None = None, language: str | None = None) -> Pipeline:
        """Hearing, thinking and speaking for this device; `language` is BCP 47, None is detected."""
        if self._own:
            raise RuntimeError("the visit has its pipeline already")
        self._voices = self._speakers(voice, language)
        for speaker in self._voices[:1]:
            if speaker.capabilities.streaming:
                speaker.prewarm()  # its socket carries the voice in its address, so it could not be opened earlier
        made = Pipeline(
            Transcriber(
                Lineup("speech-to-text", self._named(self._hearers(language))),
                detector,
                on_failed=self._on_failed,
                on_speech=self.warm,
            ),
            SteadyLLM(Lineup("language model", self._named(self._thinkers())), on_failed=self._on_failed),
            SteadyTTS(Lineup("voice", self._named(self._voices)), on_failed=self._on_failed),
        )
        self._own += [made.tts, made.llm, made.stt]
        if self._on_metrics is not None:
            lineups: tuple[Lineup[Any], ...] = (made.stt.lineup, made.llm.lineup, made.tts.lineup)
            for candidate in (candidate for lineup in lineups for candidate in lineup.candidates):
                candidate.client.on("metrics_collected", self._on_metrics)
        return made

    def realtime(
        self, *, voice: Voice | None = None, language: str | None = None, on_lost_reply: Callable[[], None]
    ) -> SteadyRealtime:
        """One model for all; see `SteadyRealtime`. Raises AllProvidersFailed where none is configured."""
        server = self._plan.realtime
        if server is None:
            raise AllProvidersFailed("realtime", self._plan.problems[0])
        model = SteadyRealtime(
            model=self._settings.realtime_model,
            base_url=server.url,
            api_key=server.key,
            sockets=self._realtime_sockets(),
            voice=voice.voice if voice and voice.type == "openai_tts" else None,
            language=language,
            transcription_model=self._settings.stt_model,
            on_failed=self._on_failed,
            on_lost_reply=on_lost_reply,
            on_metrics=self._on_metrics,
        )
        self._own.append(model)
        return model

    async def aclose(self) -> None:
        """Close every client and connection."""
        await cancel_and_wait(*self._tasks)
        for made in [*self._own, *self._voices]:
            await made.aclose()
        self._own.clear()
        self._voices = []
        await self._http.aclose()
        if self._realtime is not None:
            await self._realtime.aclose()
        if self._sockets is not None:
            await self._sockets.close()

    # Who is asked, best first

    def _hearers(self, language: str | None) -> list[stt.STT[Any]]:
        told = hint(language)
        return [
            openai_plugin.STT(
                model=model,
                client=self._client(server),
                language=told or "",
                detect_language=told is None,
                use_realtime=False,
            )
            for server, model in self._plan.hearers()
        ]

    def _thinkers(self) -> list[llm.LLM[Any]]:
        return [
            openai_plugin.LLM(
                model=model,
                client=self._client(server),
                # Other servers often refuse OpenAI's strict schemas.
                _strict_tool_schema=server.url.startswith(OPENAI_URL),
            )
            for server, model in self._plan.thinkers()
        ]

    def _speakers(self, voice: Voice | None, language: str | None) -> list[tts.TTS[Any]]:
        settings = self._settings
        own: list[tts.TTS[Any]] = []
        default = (settings.tts_voice, settings.tts_model)
        wanted = default
        if voice is not None:
            if voice.type == "elevenlabs" and self._plan.elevenlabs is not None:
                own.append(self._eleven(self._plan.elevenlabs, voice.voice, voice.model, language))
            elif voice.type == "openai_tts" and (self._plan.tts or self._plan.fallback):
                wanted = (voice.voice or settings.tts_voice, voice.model or settings.tts_model)
            else:
                known = voice.type in {"elevenlabs", "openai_tts"}
                reason = "no key or base URL" if known else "this kind of voice is not served"
                log.warning("device's voice is replaced by the default", voice_type=voice.type, reason=reason)
        own += [self._speaker(*choice) for choice in self._plan.speakers(wanted, default)]
        if self._plan.elevenlabs is not None and not (voice and voice.type == "elevenlabs"):
            own.append(self._eleven(self._plan.elevenlabs, None, None, language))
        return own

    def _speaker(self, server: Server, voice: str, model: str) -> tts.TTS[Any]:
        return openai_plugin.TTS(model=model, voice=voice, client=self._client(server), response_format="pcm")

    def _eleven(self, server: Server, voice: str | None, model: str | None, language: str | None) -> tts.TTS[Any]:
        options: dict[str, Any] = {"language": language} if language else {}
        return elevenlabs.TTS(
            voice_id=voice or elevenlabs.tts.DEFAULT_VOICE_ID,
            model=model or self._settings.elevenlabs_model,
            api_key=server.key,
            base_url=server.url,
            encoding="pcm_24000",
            http_session=self._websockets(),
            **options,
        )

    def _client(self, server: Server) -> openai.AsyncClient:
        if server not in self._clients:
            self._clients[server] = openai.AsyncClient(
                api_key=server.key, base_url=server.url, max_retries=0, http_client=self._http
            )
        return self._clients[server]

    def _websockets(self) -> aiohttp.ClientSession:
        if self._sockets is None:
            connector = aiohttp.TCPConnector(ssl=self._plan.tls, limit=0, keepalive_timeout=120)
            self._sockets = reply_watching_session(connector=connector)
        return self._sockets

    def _realtime_sockets(self) -> RealtimeSockets:
        if self._realtime is None:
            self._realtime = RealtimeSockets(self._websockets())
        return self._realtime

    @staticmethod
    def _named(clients: list[Any]) -> list[tuple[str, Any]]:
        return [(f"{client.provider}/{client.model}#{place}", client) for place, client in enumerate(clients)]

    # Warm sockets

    async def _touch(self, server: Server) -> None:
        started = time.perf_counter()
        try:
            async with asyncio.timeout(WARM_DEADLINE):
                # Any answer will do, also a refusal: what counts is the open connection.
                await self._http.head(f"{server.url}/models", headers={"Authorization": f"Bearer {server.key}"})
        except (httpx.HTTPError, TimeoutError) as error:
            log.warning("provider cannot be reached yet", server=httpx.URL(server.url).host, error=type(error).__name__)
            return
        self.warm_ms[server.url] = round((time.perf_counter() - started) * 1000, 1)

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work, name="warm")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _import_network() -> None:
    """Import now what the first request would: 50 ms that no visit pays."""
    with suppress(ImportError):  # elsewhere in another anyio: then the first request imports it
        importlib.import_module("anyio._backends._asyncio")


def _secret(value: SecretStr | None) -> str | None:
    return value.get_secret_value() if value is not None else None


def _server(settings: Settings, url: str | None, own_key: SecretStr | None) -> Server | None:
    key = settings.key_for(url, own_key)
    if url is None and key is None:
        return None
    return Server((url or OPENAI_URL).rstrip("/"), key or NO_KEY)


def _distinct(*choices: Any) -> list[Any]:
    return list(dict.fromkeys(choice for choice in choices if choice[0] is not None))


async def _refuse_false_sound(response: httpx.Response) -> None:
    """Keep a web page that a proxy sends in place of sound from being played as sound."""
    kind = response.headers.get("content-type", "")
    if (
        response.is_success
        and response.request.url.path.endswith("/audio/speech")
        and not kind.startswith(_AUDIO_TYPES)
    ):
        raise httpx.RemoteProtocolError(f"sound was expected, not {kind or 'a body without a type'}")
