"""The gather: who is this child and how shall we talk. Four questions, each with its own deadline and fallback."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

import structlog
from pydantic import TypeAdapter, ValidationError

from agent.briefing.cache import AnswerCache, Entry, open_cache
from agent.briefing.device_file import load_device_file
from agent.briefing.manager_api import ManagerApiClient
from agent.briefing.profile import Briefing, Child, Directory, Models, Part, Source
from agent.errors import MustBindFirst, NotFound, RemoteError, SettingsError, Unauthorised, Unavailable
from agent.settings import Settings
from agent.values import DeviceMac

_log = structlog.get_logger(__name__)

_CODECS: Final[Mapping[Part, TypeAdapter[Any]]] = {
    Part.AGENT_ID: TypeAdapter(str),
    Part.PROMPT: TypeAdapter(str),
    Part.MODELS: TypeAdapter(Models),
    Part.CHILD: TypeAdapter(Child | None),
}


@dataclass(frozen=True, slots=True)
class _Answer:
    """`error` is why it is not live, or the refusal that is the live answer."""

    value: Any = field(default=None, repr=False)
    source: Source = Source.DEFAULT
    error: Exception | None = None
    elapsed_ms: float | None = None


class BriefingDesk:
    """One visit's desk: `async with` it in the room's event loop.

    `room_name` is sent to the Manager API as the client's id. `clock` measures timings (seconds), `wall_clock` ages of
    cached answers (Unix seconds). `directory` and `cache` replace those the settings name; the desk closes them.

    With `ENABLE_API_CACHE` off nothing is read from or written to the disk: a call that fails leaves a default.
    The device file is never cached, so its edits count from the next visit on.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        mac: DeviceMac,
        room_name: str,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        directory: Directory | None = None,
        cache: AnswerCache | None = None,
    ) -> None:
        self._settings = settings
        self._mac = mac
        self._room_name = room_name
        self._clock = clock
        self._parallel = settings.enable_parallel_api.on_for(mac, "enable_parallel_api")
        self._problems: dict[str, str] = {}
        self._pending: set[asyncio.Task[None]] = set()
        self._agent_id: str | None = None
        self._directory = directory
        if directory is None and settings.manager_api_url is not None:
            self._directory = ManagerApiClient(
                settings.manager_api_url,
                settings.manager_api_secret,
                deadline=settings.manager_api_deadline_ms / 1000,
                pooled=settings.enable_connection_pool.on_for(mac, "enable_connection_pool"),
            )
        self._file = settings.device_file if self._directory is None else None
        self._cache: AnswerCache | None = None
        if self._directory is not None and settings.enable_api_cache.on_for(mac, "enable_api_cache"):
            self._cache = cache or open_cache(settings, clock=wall_clock)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def peek(self) -> Briefing | None:
        """What is known already: the cache, whatever its age, or the device file. About a millisecond.

        With REDIS_URL the cache in Redis is asked too where this machine's has nothing, for at most 150 ms.

        None when nothing is known. Never raises, except CancelledError.
        """
        directory = await self._open_directory()
        if self._cache is None:
            return await self._gather(directory, {}) if self._file is not None and directory is not None else None
        known = await self._known()
        answers = {part: self._from_cache(part, known) or _Answer() for part in Part}
        return (
            self._briefing(answers) if any(answer.source is not Source.DEFAULT for answer in answers.values()) else None
        )

    async def fetch(self) -> Briefing:
        """Ask everything, side by side (`ENABLE_PARALLEL_API` off: one after the other).

        Each part is, in this order, the fresh cached answer, the live one, the last known one, the default. "No such
        device", "must be bound first" and "no child profile" are live answers: they replace what was known before.
        Side by side it takes no longer than one call's deadline, `MANAGER_API_DEADLINE_MS`.
        Never raises, except CancelledError.
        """
        directory = await self._open_directory()
        if directory is None:
            return Briefing(problems=dict(self._problems))
        return await self._gather(directory, await self._known())

    async def update_mode(self, mode_name: str) -> str:
        """Change the device's character by its exact name and return the new prompt, a template.

        Raises the RemoteError of the Manager API; NotFound where there is neither a Manager API nor a device file.
        """
        directory = await self._open_directory()
        if directory is None:
            raise NotFound("update-mode: there is neither a Manager API nor a device file")
        agent_id = self._agent_id or await directory.agent_id(self._mac)
        prompt = await directory.update_mode(agent_id, mode_name)
        self._keep(Part.PROMPT, prompt)
        return prompt

    async def aclose(self) -> None:
        """Finish what is being kept, drop what is too old, close. Safe to call twice."""
        try:
            if self._pending:
                await asyncio.gather(*self._pending)
            if self._cache is not None and "cache" not in self._problems:
                await self._guarded(self._cache.purge())
        finally:
            cache, self._cache = self._cache, None
            directory, self._directory = self._directory, None
            try:
                if cache is not None:
                    await cache.aclose()
            finally:
                if directory is not None:
                    await directory.aclose()

    async def _open_directory(self) -> Directory | None:
        if self._directory is None and self._file is not None and "device_file" not in self._problems:
            try:
                loading = asyncio.to_thread(load_device_file, self._file)
                self._directory = await asyncio.wait_for(loading, self._settings.manager_api_deadline_ms / 1000)
            except (SettingsError, TimeoutError) as error:
                self._problems["device_file"] = type(error).__name__
                _log.error(
                    "device file cannot be used: every device gets the defaults", problem=str(error) or "timeout"
                )
        return self._directory

    async def _gather(self, directory: Directory, known: Mapping[Part, Entry]) -> Briefing:
        started = self._clock()
        asks: dict[Part, Callable[[], Awaitable[Any]]] = {
            Part.AGENT_ID: lambda: directory.agent_id(self._mac),
            Part.PROMPT: lambda: directory.agent_prompt(self._mac),
            Part.MODELS: lambda: directory.agent_models(self._mac, self._room_name),
            Part.CHILD: lambda: directory.child_profile(self._mac),
        }
        answers: dict[Part, _Answer] = {}
        if self._parallel:
            together = (self._answer(part, ask, known) for part, ask in asks.items())
            answers = dict(zip(asks, await asyncio.gather(*together), strict=True))
        else:
            for part, ask in asks.items():
                answers[part] = await self._answer(part, ask, known)
        child = answers[Part.CHILD]
        if child.source is not Source.LIVE and any(_turned_away(answer.error) for answer in answers.values()):
            # The device may have changed hands: the child of before is nobody's business any more.
            answers[Part.CHILD] = _Answer(error=child.error, elapsed_ms=child.elapsed_ms)
            self._forget(Part.CHILD)
        briefing = self._briefing(answers, total_ms=(self._clock() - started) * 1000)
        self._agent_id = briefing.agent_id
        self._report(briefing, answers)
        return briefing

    async def _answer(self, part: Part, ask: Callable[[], Awaitable[Any]], known: Mapping[Part, Entry]) -> _Answer:
        kept = self._from_cache(part, known)
        if kept is not None and kept.source is Source.CACHED:
            return kept
        started = self._clock()
        failure: Exception
        try:
            value = await ask()
        except (NotFound, MustBindFirst) as error:
            self._forget(part)
            return _Answer(None, Source.LIVE, error, self._since(started))
        except RemoteError as error:
            failure = error
        except Exception as error:  # noqa: BLE001 — a bug in one part must not cost the child the other three
            _log.exception("briefing part broke", part=part.value)
            failure = error
        else:
            self._keep(part, value)
            return _Answer(value, Source.LIVE, None, self._since(started))
        if kept is not None:
            return _Answer(kept.value, Source.LAST_KNOWN, failure, self._since(started))
        return _Answer(None, Source.DEFAULT, failure, self._since(started))

    def _since(self, started: float) -> float:
        return (self._clock() - started) * 1000

    def _briefing(self, answers: Mapping[Part, _Answer], *, total_ms: float | None = None) -> Briefing:
        models: Models = answers[Part.MODELS].value or Models()
        codes = [answer.error.bind_code for answer in answers.values() if isinstance(answer.error, MustBindFirst)]
        timings = {part.value: answer.elapsed_ms for part, answer in answers.items() if answer.elapsed_ms is not None}
        if total_ms is not None:
            timings["total"] = total_ms
        problems = {part.value: type(answer.error).__name__ for part, answer in answers.items() if answer.error}
        return Briefing(
            agent_id=answers[Part.AGENT_ID].value,
            prompt=answers[Part.PROMPT].value,
            voice=models.voice,
            chat_history=models.chat_history,
            language=models.language,
            child=answers[Part.CHILD].value,
            bind_code=max(codes, key=len) if codes else None,
            sources={part: answer.source for part, answer in answers.items()},
            timings_ms=timings,
            problems={**self._problems, **problems},
        )

    def _report(self, briefing: Briefing, answers: Mapping[Part, _Answer]) -> None:
        if any(isinstance(answer.error, Unauthorised) for answer in answers.values()):
            _log.error("the Manager API refuses MANAGER_API_SECRET: devices talk with old or default briefings")
        if briefing.problems:
            sources = {part.value: source.value for part, source in briefing.sources.items()}
            _log.warning("briefing is degraded", problems=dict(briefing.problems), sources=sources)

    # The cache: never in the way of a visit.

    async def _known(self) -> Mapping[Part, Entry]:
        if self._cache is None:
            return {}
        try:
            return await self._cache.read(self._mac)
        except Unavailable as error:
            self._cache_failed(error)
            return {}

    def _from_cache(self, part: Part, known: Mapping[Part, Entry]) -> _Answer | None:
        entry = known.get(part)
        if entry is None:
            return None
        try:
            value = _CODECS[part].validate_json(entry.body)
        except ValidationError:  # kept by an older or a newer version of this service: as good as not kept
            return None
        return _Answer(value, Source.CACHED if entry.fresh(self._settings.api_cache_ttl) else Source.LAST_KNOWN)

    def _keep(self, part: Part, value: Any) -> None:
        if self._cache is not None:
            self._later(self._cache.put(self._mac, part, _CODECS[part].dump_json(value).decode()))

    def _forget(self, part: Part) -> None:
        if self._cache is not None:
            self._later(self._cache.forget(self._mac, part))

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._guarded(work))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    async def _guarded(self, work: Coroutine[Any, Any, Any]) -> None:
        try:
            await work
        except Unavailable as error:
            self._cache_failed(error)

    def _cache_failed(self, error: Unavailable) -> None:
        if "cache" not in self._problems:
            self._problems["cache"] = type(error).__name__
            _log.warning("briefing cache cannot be used: this visit goes on without", problem=str(error))


def _turned_away(error: Exception | None) -> bool:
    return isinstance(error, NotFound | MustBindFirst)
