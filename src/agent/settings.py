"""Frozen settings, read once from the environment and `.env` (the environment wins)."""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from dotenv import dotenv_values
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from agent.errors import SettingsError
from agent.prices import LIST_PRICES, Price, parse_prices
from agent.values import rollout_bucket

OPENAI_URL: Final = "https://api.openai.com/v1"
_ALIKE: Final = 0.85
"""How much a name must be like a setting's to be taken for it misspelt (difflib's ratio)."""


class Rollout:
    """A flag that is on for none, all, or a percentage of devices: `true`, `false`, `25%`."""

    __slots__ = ("percent",)

    def __init__(self, percent: int) -> None:
        self.percent = percent

    def on_for(self, mac: str, flag: str) -> bool:
        """Whether the device has the flag: decided by its hash, so stable across processes and restarts."""
        return rollout_bucket(mac, flag) < self.percent

    def __repr__(self) -> str:
        return {0: "false", 100: "true"}.get(self.percent, f"{self.percent}%")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rollout) and other.percent == self.percent

    def __hash__(self) -> int:
        return hash(self.percent)


def _parse_rollout(value: Any) -> Rollout:
    if isinstance(value, Rollout):
        return value
    text = str(value).strip().lower()
    if text in {"true", "1", "yes", "on"}:
        return Rollout(100)
    if text in {"false", "0", "no", "off", ""}:
        return Rollout(0)
    match = re.fullmatch(r"(\d{1,3})\s*%", text)
    if match and int(match[1]) <= 100:
        return Rollout(int(match[1]))
    raise ValueError("must be true, false or a percentage such as 25%")


def _parse_words(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return tuple(value)


def _blank_is_none(value: Any) -> Any:
    return None if isinstance(value, str) and not value.strip() else value


def _possible_path(value: Path) -> Path:
    if "\0" in str(value):
        raise ValueError("must not hold a NUL character")
    return value


def _reachable(value: str) -> str:
    """An address that a client can use: a host, a valid port, and no credentials, which would end up in errors."""
    try:
        parts = urlsplit(value)
        usable = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("must have a host, and a port from 1 to 65535 if any")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not carry a user name or password")
    return value


def _known_zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("is no time zone of the IANA database") from None
    return value


LANGUAGE_PATTERN: Final = r"^[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*$"
"""A BCP 47 tag, near enough."""

Flag = Annotated[Rollout, BeforeValidator(_parse_rollout)]
Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_parse_words)]
HttpUrl = Annotated[
    Annotated[str, Field(pattern=r"^https?://\S+$"), AfterValidator(_reachable)] | None, BeforeValidator(_blank_is_none)
]
RedisUrl = Annotated[Annotated[str, Field(pattern=r"^rediss?://\S+$")] | None, BeforeValidator(_blank_is_none)]
Secret = Annotated[SecretStr | None, BeforeValidator(_blank_is_none)]
Prices = Annotated[dict[str, Price], NoDecode, BeforeValidator(parse_prices)]
AnyPath = Annotated[Path, AfterValidator(_possible_path)]
OptionalPath = Annotated[AnyPath | None, BeforeValidator(_blank_is_none)]


class Settings(BaseSettings):
    """Everything that can be set. Names are the environment's, in lower case."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="ignore",
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        use_attribute_docstrings=True,
        arbitrary_types_allowed=True,
        validate_default=True,
    )

    # LiveKit
    livekit_url: str = Field(
        default="ws://127.0.0.1:7880", pattern=r"^(wss?|https?)://\S+$", examples=["wss://toy.livekit.cloud"]
    )
    """Address of the LiveKit server."""
    livekit_api_key: str = Field(default="", examples=["APIabcdef"])
    """API key of the LiveKit project."""
    livekit_api_secret: SecretStr = Field(default=SecretStr(""), examples=["a long random text"])
    """API secret of the LiveKit project."""
    single_peer_connection: Literal["auto", "true", "false"] = Field(default="auto", examples=["auto"])
    """One WebRTC connection for both directions; `auto` asks the server once whether it can."""
    agent_name: str = Field(default="", max_length=200, examples=["toy"])
    """Empty: the worker takes every room. Else LiveKit's explicit dispatch by this name."""

    # The Manager API and what stands in for it
    manager_api_url: HttpUrl = Field(default=None, examples=["http://manager:8002/toy"])
    """The service that knows devices, children and prompts. Empty: `DEVICE_FILE` answers instead."""
    manager_api_secret: Secret = Field(default=None, examples=["a long random text"])
    """Bearer secret of the Manager API."""
    manager_api_deadline_ms: int = Field(default=2500, ge=50, le=30000, examples=["2500"])
    """How long one briefing call may take, retries included, in milliseconds."""
    device_file: OptionalPath = Field(default=None, examples=["devices.toml"])
    """TOML file with devices, used where no Manager API is set."""
    enable_parallel_api: Flag = Field(default=Rollout(100), examples=["true"])
    """Fetch agent id, prompt and child side by side; off: one after the other."""
    enable_api_cache: Flag = Field(default=Rollout(100), examples=["true"])
    """Keep the Manager API's answers: fresh for `API_CACHE_TTL`, then the last known. Off: a failed call has none."""
    api_cache_ttl: float = Field(default=300.0, ge=0, le=86400 * 30, examples=["300"])
    """For how many seconds a cached answer counts as fresh."""
    api_cache_max_age: float = Field(default=30 * 86400.0, ge=60, examples=["2592000"])
    """After how many seconds a cached answer is deleted; until then it is the last known good one."""
    enable_connection_pool: Flag = Field(default=Rollout(100), examples=["true"])
    """One HTTP session per visit; off: a new one per call."""

    # Greeting
    enable_presynth_greeting: Flag = Field(default=Rollout(100), examples=["true"])
    """Greet with a recorded sentence at once; off: the model greets."""
    greeting_language: str = Field(default="en", pattern=LANGUAGE_PATTERN, examples=["en"])
    """Language of the greeting where nothing else names one (BCP 47)."""
    greetings_dir: AnyPath = Field(default=Path("greetings"), examples=["greetings"])
    """Folder of recorded greetings with their manifest.json."""

    # Worker and processes
    num_idle_processes: int = Field(default=3, ge=0, le=64, examples=["3"])
    """Warm processes kept ready for the next rooms."""
    max_idle_processes: int = Field(default=8, ge=0, le=256, examples=["8"])
    """As many are kept warm as rooms have lately come at once, up to this many."""
    job_executor: Literal["process", "thread"] = Field(default="process", examples=["process"])
    """One process per room, or threads of one process."""
    job_memory_limit_mb: float = Field(default=1000.0, ge=0, le=1e6, examples=["1000"])
    """A room's process that needs more memory (proportional, in MB) is ended; 0: no limit."""
    job_memory_warn_mb: float = Field(default=300.0, ge=0, le=1e6, examples=["300"])
    """And from here on the log tells of it; 0: never."""
    job_stuck_timeout: float = Field(default=20.0, ge=5, le=600, examples=["20"])
    """A room's process whose event loop does not answer for so many seconds is ended."""
    max_rooms: int = Field(default=0, ge=0, le=10000, examples=["25"])
    """Rooms at once; 0: derived from cores and memory."""
    joins_per_minute: float = Field(default=600.0, gt=0, le=100000, examples=["600"])
    """Rooms a minute this worker takes; half of them may come at once, the rest is left to other workers."""
    device_joins_per_minute: float = Field(default=20.0, gt=0, le=6000, examples=["20"])
    """Visits a minute one device may begin: one that reconnects in a loop must not eat the pool."""
    rescue_rooms: bool = Field(default=True, examples=["true"])
    """Look for rooms that hold a device and no agent, and give them one."""
    device_grace: float = Field(default=20.0, ge=0, le=3600, examples=["20"])
    """How long a visit waits for a device that dropped, in seconds."""
    device_wait: float = Field(default=120.0, ge=1, le=86400, examples=["120"])
    """How long an agent that came first waits for its device, in seconds."""
    drain_timeout: float = Field(default=1800.0, ge=0, le=86400, examples=["1800"])
    """How long SIGTERM waits for visits to end, in seconds."""
    state_dir: AnyPath = Field(default=Path(".state"), examples=["/var/lib/toy-agent"])
    """What is kept on disk: device cache, outbox, catalogue, model files."""
    http_host: str = Field(default="127.0.0.1", examples=["0.0.0.0"])
    """Address of the health and metrics server."""
    http_port: int = Field(default=8081, ge=0, le=65535, examples=["8081"])
    """Port of the health and metrics server; 0 picks a free one."""

    # Library
    qdrant_url: HttpUrl = Field(default=None, examples=["https://qdrant:6333"])
    """Qdrant server with the music and story collections. Empty: the embedded library."""
    qdrant_api_key: Secret = Field(default=None, examples=["a key"])
    """API key of the Qdrant server."""
    qdrant_timeout_ms: int = Field(default=1500, ge=10, le=60000, examples=["1500"])
    """How long one Qdrant call may take, in milliseconds."""
    music_collection: str = Field(default="xiaozhi_music", min_length=1, examples=["xiaozhi_music"])
    """Collection of songs."""
    story_collection: str = Field(default="xiaozhi_stories", min_length=1, examples=["xiaozhi_stories"])
    """Collection of stories."""
    catalogue_dir: OptionalPath = Field(default=None, examples=["/srv/catalogue"])
    """Catalogue tree (`music/…`, `stories/…`) on local disk; also where media plays from without `MEDIA_BASE_URL`."""
    catalogue_refresh: float = Field(default=30.0, ge=1, le=86400, examples=["30"])
    """Within how many seconds a re-loaded catalogue is seen by running processes."""
    embedding_model: str = Field(default="all-MiniLM-L6-v2", min_length=1, examples=["all-MiniLM-L6-v2"])
    """Sentence embedding model: the built-in name, a model hub's id, or a folder."""
    model_dir: OptionalPath = Field(default=None, examples=["/opt/models"])
    """Where model files are; default `STATE_DIR/models`."""
    media_base_url: HttpUrl = Field(default=None, examples=["https://media.example.org"])
    """Where songs and stories stream from. Empty: `CATALOGUE_DIR`."""
    media_private_network: bool = Field(default=False, examples=["false"])
    """The media server's name, though it has dots in it, leads into a private network."""

    # Conversation
    conversation_mode: Literal["pipeline", "realtime"] = Field(default="pipeline", examples=["pipeline"])
    """Speech-to-text, model and voice one after the other, or OpenAI Realtime."""
    openai_api_key: Secret = Field(default=None, examples=["sk-…"])
    """OpenAI's key; it is sent to OpenAI alone, and other servers have keys of their own."""
    llm_base_url: HttpUrl = Field(default=None, examples=["http://ollama:11434/v1"])
    """OpenAI-compatible server of the language model."""
    llm_api_key: Secret = Field(default=None, examples=["a key"])
    """Key of that server; empty: none, or `OPENAI_API_KEY` where it is OpenAI's."""
    llm_model: str = Field(default="gpt-4.1-mini", min_length=1, examples=["gpt-4.1-mini"])
    """Language model."""
    stt_base_url: HttpUrl = Field(default=None, examples=["http://whisper:8000/v1"])
    """OpenAI-compatible server of speech-to-text."""
    stt_api_key: Secret = Field(default=None, examples=["a key"])
    """Key of that server; empty: none, or `OPENAI_API_KEY` where it is OpenAI's."""
    stt_model: str = Field(default="gpt-4o-mini-transcribe", min_length=1, examples=["gpt-4o-mini-transcribe"])
    """Speech-to-text model; in realtime mode the one that writes down what the child says."""
    tts_base_url: HttpUrl = Field(default=None, examples=["http://kokoro:8880/v1"])
    """OpenAI-compatible server of the voice."""
    tts_api_key: Secret = Field(default=None, examples=["a key"])
    """Key of that server; empty: none, or `OPENAI_API_KEY` where it is OpenAI's."""
    tts_model: str = Field(default="gpt-4o-mini-tts", min_length=1, examples=["gpt-4o-mini-tts"])
    """Voice model where the device names none."""
    tts_voice: str = Field(default="nova", min_length=1, examples=["nova"])
    """Voice where the device names none; the realtime mode has a voice of its own."""
    elevenlabs_api_key: Secret = Field(default=None, examples=["a key"])
    """Key for ElevenLabs voices."""
    elevenlabs_base_url: HttpUrl = Field(default=None, examples=["https://api.elevenlabs.io/v1"])
    """Address of ElevenLabs' API."""
    elevenlabs_model: str = Field(default="eleven_flash_v2_5", min_length=1, examples=["eleven_flash_v2_5"])
    """ElevenLabs model where the device names none."""
    realtime_base_url: HttpUrl = Field(default=None, examples=["https://api.openai.com/v1"])
    """Address of the Realtime API."""
    realtime_api_key: Secret = Field(default=None, examples=["a key"])
    """Key of that server; empty: none, or `OPENAI_API_KEY` where it is OpenAI's."""
    realtime_model: str = Field(default="gpt-realtime", min_length=1, examples=["gpt-realtime"])
    """Model of the realtime mode."""
    fallback_openai_base_url: HttpUrl = Field(default=None, examples=["http://standby:8000/v1"])
    """A second OpenAI-compatible server that takes over when a provider fails; not in realtime mode."""
    fallback_openai_api_key: Secret = Field(default=None, examples=["a key"])
    """Key of the second server; empty: none, or `OPENAI_API_KEY` where it is OpenAI's."""
    fallback_stt_model: str = Field(default="", examples=["Systran/faster-whisper-small"])
    """What the second server calls its speech-to-text model; empty: `STT_MODEL`."""
    fallback_llm_model: str = Field(default="", examples=["llama3.2"])
    """What it calls its language model; empty: `LLM_MODEL`."""
    fallback_tts_model: str = Field(default="", examples=["kokoro"])
    """What it calls its voice model; empty: the first server's, by the device or `TTS_MODEL`."""
    fallback_tts_voice: str = Field(default="", examples=["af_heart"])
    """What it calls its voice; empty: the first server's, by the device or `TTS_VOICE`."""
    prompt_token_budget: int = Field(default=1500, ge=100, le=100000, examples=["1500"])
    """A warning names prompts longer than this many tokens (estimated)."""
    aec_warmup: float = Field(default=0.0, ge=0, le=10, examples=["3"])
    """Seconds for which interruptions are off while the device's echo canceller learns; 0: the device cancels echo."""
    noise_cancellation: bool = Field(default=False, examples=["false"])
    """LiveKit Cloud noise cancellation; needs its package."""
    vad_engine: Literal["native", "onnxruntime"] = Field(default="native", examples=["native"])
    """What Silero's voice activity detector runs on; `onnxruntime` takes four times the CPU."""
    background_audio: bool = Field(default=False, examples=["false"])
    """A soft background during the talk, and notes while the toy thinks; both softer under speech."""
    time_zone: Annotated[str, AfterValidator(_known_zone)] = Field(default="UTC", examples=["Asia/Kolkata"])
    """Time zone in which the child is told the time, where its device names none (`time_zone` of its attributes)."""
    resume_window: float = Field(default=300.0, ge=0, le=86400, examples=["300"])
    """A device that returns within this many seconds finds its conversation."""
    mcp_servers: Words = Field(default=(), examples=["http://mcp:9000/mcp"])
    """Addresses of MCP servers whose tools join, separated by commas."""

    # Memory
    mem0_enabled: Flag = Field(default=Rollout(0), examples=["true"])
    """Remember children with Mem0."""
    mem0_api_key: Secret = Field(default=None, examples=["m0-…"])
    """Key of the hosted Mem0; empty: self-hosted on Qdrant and the language model."""
    mem0_host: str = Field(default="https://api.mem0.ai", pattern=r"^https?://\S+$", examples=["https://api.mem0.ai"])
    """Address of the hosted Mem0."""
    mem0_deadline_ms: int = Field(default=600, ge=10, le=30000, examples=["600"])
    """How long the briefing waits for memories, in milliseconds; later ones join the talk when they come."""
    redis_url: RedisUrl = Field(default=None, examples=["redis://redis:6379/0"])
    """Redis for workers on several machines: devices, conversations and the outbox are known on all of them, and a dead
    machine's visits are taken over. Empty: this machine's files."""

    # Outbox
    outbox_max_age: float = Field(default=7 * 86400.0, ge=60, examples=["604800"])
    """After how many seconds an undelivered item is dropped and counted."""
    outbox_max_items: int = Field(default=100_000, ge=10, examples=["100000"])
    """How many undelivered items are kept; the oldest beyond are dropped and counted."""

    # Telemetry
    metrics: bool = Field(default=True, examples=["true"])
    """Count and time what visits do, for `/metrics` and `/stats`. Costs are kept all the same, for budgets."""
    otel_exporter_otlp_endpoint: HttpUrl = Field(default=None, examples=["http://collector:4318"])
    """OpenTelemetry collector (OTLP over HTTP) that gets a trace of each visit. Empty: none."""
    prices: Prices = Field(
        default_factory=lambda: dict(LIST_PRICES),
        examples=['{"gpt-4.1-mini":{"input":0.4,"cached_input":0.1,"output":1.6}}'],
    )
    """Prices by model, as JSON: a million tokens or characters, a minute of sound (`minute`). Empty: list prices."""
    budget_per_visit: float = Field(default=0.0, ge=0, examples=["0.50"])
    """A visit that has cost so much ends with a goodbye; 0: no limit."""
    budget_per_day: float = Field(default=0.0, ge=0, examples=["2.00"])
    """The same for all visits of one device on one day (UTC), on all machines that share a Redis; 0: no limit."""

    # Logs
    log_format: Literal["json", "console"] = Field(default="json", examples=["json"])
    """One JSON object a line, or text for people."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(default="INFO", examples=["INFO"])
    """Lowest level logged."""
    log_personal_data: bool = Field(default=False, examples=["false"])
    """Let names, words and MAC addresses into the log."""
    device_salt: SecretStr = Field(default=SecretStr("toy"), examples=["a long random text"])
    """Key of the hash that stands for a device in logs and metrics."""

    def key_for(self, base_url: str | None, own: SecretStr | None) -> str | None:
        """The key for an OpenAI-compatible server: its own, else OPENAI_API_KEY where the server is OpenAI's.

        `base_url` None is OpenAI's address.
        """
        key = own
        if key is None and f".{urlsplit(base_url or OPENAI_URL).hostname}".endswith(".openai.com"):
            key = self.openai_api_key
        return key.get_secret_value() if key is not None else None

    @property
    def models_path(self) -> Path:
        """Folder of the model files."""
        return self.model_dir or self.state_dir / "models"


def load_settings(env_file: str | Path | None = ".env") -> Settings:
    """Read the settings once. Raises SettingsError: one line a wrong variable, with its problem and an example."""
    try:
        return Settings(_env_file=env_file)  # type: ignore[call-arg]
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(item) for item in error.errors(include_input=False))) from None
    except UnicodeDecodeError:  # it quotes the file, which holds secrets
        raise SettingsError(f"{env_file}: is not UTF-8 text") from None
    except OSError as error:
        raise SettingsError(f"{env_file}: cannot be read: {error.strerror}") from None


def misspelt(env_file: str | Path = ".env") -> list[str]:
    """A line for each name in the file that is no setting but much like one; other programs' names are let be."""
    try:
        given = dotenv_values(env_file)
    except (OSError, UnicodeDecodeError):
        return []
    known = [name.upper() for name in Settings.model_fields]
    lines = []
    for name in given:
        if name.upper() not in known and (like := get_close_matches(name.upper(), known, 1, _ALIKE)):
            lines.append(f"{name} in {env_file} is no setting and has no effect: did you mean {like[0]}?")
    return lines


def _explain(item: Any) -> str:
    name = str(item["loc"][0])
    field = Settings.model_fields.get(name.lower())
    example = field.examples[0] if field and field.examples else ""
    problem = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "string_pattern_mismatch":
        problem = "does not have the expected form"
    return f"{name.upper()}: {problem}. Example: {name.upper()}={example}"
