"""What every process holds before its first room.

`shared()` loads the heavy, immutable things once per operating-system process: in the forkserver, whose children
get them copy-on-write, or, under the thread executor, in the worker itself. `prewarm` adds the little that must be
made after the fork. A part that fails leaves its process degraded, never dead.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.util import Finalize
from typing import Any, TypeVar

import structlog
from livekit import rtc
from livekit.agents import JobProcess
from livekit.agents.ipc.log_queue import LogQueueHandler
from livekit.agents.vad import VAD

from agent.briefing.device_file import load_device_file
from agent.briefing.prompt import PromptWriter
from agent.conversation.providers import ProviderPlan, missing_providers
from agent.conversation.turn_taking import load_vad
from agent.errors import ModelFileError
from agent.greeting.bank import GreetingBank
from agent.library import model_files, services
from agent.library.services import ServiceCache
from agent.settings import Settings, load_settings
from agent.state import private_dir
from agent.telemetry.logs import configure_structlog
from agent.telemetry.tracing import open_tracing

T = TypeVar("T")
_lock = threading.Lock()
_shared: Shared | None = None


@dataclass(frozen=True)
class Shared:
    """Loaded once, read by all. A part that could not be loaded is None, or empty, and named in `problems`."""

    settings: Settings
    bank: GreetingBank
    vad: VAD | None
    library: ServiceCache | None
    plan: ProviderPlan | None
    writer: PromptWriter | None
    parts_ms: dict[str, float] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)


@dataclass
class Kit:
    """One process's own: what it shares, and its warm media engine."""

    shared: Shared
    engine: Any
    rooms: int = 0

    @property
    def warm(self) -> dict[str, bool]:
        """Whether each service is ready in this process now; songs and stories where they have a place to be played
        from.
        """
        library = self.shared.library
        ready = {
            "greetings": bool(self.shared.bank.recordings),
            "vad": self.shared.vad is not None,
            "engine": self.engine is not None,
            "providers": self.shared.plan is not None,
            "prompt": self.shared.writer is not None,
        }
        if _plays(self.shared.settings):
            ready["music"] = library is not None and library.music.ready
            ready["stories"] = library is not None and library.stories.ready
        return ready

    @classmethod
    def of(cls, proc: JobProcess) -> Kit:
        """The kit that `prewarm` left in the process."""
        kit = proc.userdata["kit"]
        assert isinstance(kit, Kit)
        return kit


def shared() -> Shared:
    """Load once per operating-system process; later calls, and forked children, get the same object.

    Starts no thread, no event loop and nothing of WebRTC, so that it may run before a fork.
    """
    global _shared
    with _lock:
        if _shared is None:
            _shared = _load()
        return _shared


def _load() -> Shared:
    settings = load_settings()
    configure_structlog()
    parts_ms: dict[str, float] = {}
    problems: dict[str, str] = {}

    def part(name: str, load: Callable[[], T], otherwise: T) -> T:
        started = time.perf_counter()
        try:
            return load()
        except Exception as error:  # noqa: BLE001 — whatever a part raises, the others serve; it is reported below
            problems[name] = f"{type(error).__name__}: {error}"
            return otherwise
        finally:
            parts_ms[name] = round((time.perf_counter() - started) * 1000, 1)

    bank = part("greetings", lambda: GreetingBank.load(settings.greetings_dir), GreetingBank())
    for problem in bank.problems:
        problems[f"greetings/{problem.file}"] = problem.reason
    vad = part("vad", lambda: load_vad(settings.vad_engine), None)
    library = part("library", lambda: services.prepare(settings), None)
    plan = part("providers", lambda: ProviderPlan(settings), None)
    writer = part("prompt", lambda: PromptWriter(token_budget=settings.prompt_token_budget), None)
    if (path := settings.device_file) is not None:
        part("device file", lambda: load_device_file(path), None)
    if settings.mcp_servers:
        part("mcp", lambda: importlib.import_module("agent.conversation.mcp_tools"), None)
    return Shared(settings, bank, vad, library, plan, writer, parts_ms, problems)


def lacks(settings: Settings) -> dict[str, str]:
    """What rooms are served without, by its name, and what would help: providers, the embedding model. Reads files."""
    found = {part: help_ for part, _, help_ in (line.partition(": ") for line in missing_providers(settings))}
    if _plays(settings):
        try:
            model_files.find(settings)
        except ModelFileError as error:
            found["embedding model"] = f"songs and stories are searched by words alone: {error}"
    return found


def _plays(settings: Settings) -> bool:
    return settings.media_base_url is not None or settings.catalogue_dir is not None


def prewarm(proc: JobProcess) -> None:
    """Make the process ready for its room: synchronous, before any event loop, CPU near zero.

    Logs one line with each part's time, those of `shared()` included, and the problems of this process.
    """
    cpu, wall = time.process_time(), time.perf_counter()
    common = shared()
    problems = dict(common.problems)
    parts = {"shared": round((time.perf_counter() - wall) * 1000, 1)}
    wall = time.perf_counter()
    engine = None
    try:
        engine = _start_engine()
    except Exception as error:  # noqa: BLE001 — the room starts the engine itself then, only later
        problems["engine"] = f"{type(error).__name__}: {error}"
    parts["engine"] = round((time.perf_counter() - wall) * 1000, 1)
    end_with_errors()
    open_tracing(common.settings)
    proc.userdata["kit"] = Kit(common, engine)
    log = structlog.get_logger(__name__)
    (log.error if problems else log.info)(
        "process degraded" if problems else "process prewarmed",
        parts_ms=parts,
        shared_ms=common.parts_ms,
        cpu_ms=round((time.process_time() - cpu) * 1000, 1),
        problems=problems,
    )
    try:
        report_problems(common.settings, problems)
    except OSError as error:
        log.error("readiness cannot be reported", error=str(error))


def _start_engine() -> object:
    """Start WebRTC's threads and its peer-connection factory now; they live as long as a track does.

    Nothing of it belongs to an event loop: the source's loop is only used by methods that nobody calls.
    """
    loop = asyncio.new_event_loop()
    try:
        source = rtc.AudioSource(24_000, 1, queue_size_ms=100, loop=loop)
        return source, rtc.LocalAudioTrack.create_audio_track("warm", source)
    finally:
        loop.close()


def end_with_errors() -> None:
    """Let this process end whatever its main function raises: the framework's log thread, no daemon, would keep one
    whose worker was killed while it was started.
    """
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LogQueueHandler):
            Finalize(handler, handler.close, exitpriority=0)


def report_problems(settings: Settings, problems: dict[str, str]) -> None:
    """Leave what is wrong with the newest process where the worker's readiness finds it; nothing when all is well."""
    path = settings.state_dir / "run" / "degraded.json"
    if not problems:
        path.unlink(missing_ok=True)
        return
    private_dir(path.parent)
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(problems))
    draft.replace(path)


def read_problems(settings: Settings) -> dict[str, str]:
    """What `report_problems` left; empty when processes are whole."""
    try:
        found = json.loads((settings.state_dir / "run" / "degraded.json").read_text())
    except FileNotFoundError:
        return {}
    except ValueError:
        return {"degraded.json": "unreadable"}
    return dict(found)
