"""Make the recordings the script asks for, skipping what is up to date."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from agent.errors import MediaError, SettingsError, ToyError, Unauthorised
from agent.greeting import audio
from agent.greeting.makers import MAKERS, Maker
from agent.greeting.manifest import MANIFEST_NAME, Entry, manifest_bytes, read_manifest
from agent.greeting.script import Line, Script, fingerprint

DEFAULT_MAKER: Final = "espeak-ng"
_TRAIL_SECONDS: Final = 0.12
_AT_ONCE: Final = 4

MakerSource = Callable[[str], Maker]


@dataclass(frozen=True, slots=True)
class Job:
    """One recording to be made, by whom, in which voice."""

    line: Line
    maker: str
    voice: str
    hash: str


@dataclass(slots=True)
class Outcome:
    """What a run did: names of files, and why the failed ones failed."""

    made: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


class Generator:
    """Makes recordings into a folder. The manifest is rewritten after each: a kill loses at most those under way."""

    def __init__(self, folder: Path, script: Script, makers: MakerSource) -> None:
        self._folder = folder
        self._script = script
        self._makers = makers
        self._open: dict[str, Maker] = {}
        self._entries = self._read()

    def plan(
        self,
        *,
        maker: str | None = None,
        voice: str | None = None,
        only: Collection[str] = (),
        force: bool = False,
    ) -> tuple[list[Job], list[str]]:
        """What is to be made, and the files that are up to date.

        `maker` None: the one that made it before, else DEFAULT_MAKER. `only`: patterns of ids (`en_*`).
        Recordings whose maker is none of MAKERS are somebody's own: only `force` replaces them.
        Raises SettingsError for a pattern that fits nothing, an unknown maker, or a missing key.
        """
        lines = self._script.lines
        for pattern in only:
            if not any(fnmatchcase(line.id, pattern) for line in lines):
                raise SettingsError(f"the script has no recording {pattern!r}")
        jobs: list[Job] = []
        kept: list[str] = []
        for line in lines:
            if only and not any(fnmatchcase(line.id, pattern) for pattern in only):
                continue
            job = self._job(line, maker, voice)
            (jobs.append(job) if force or not self._up_to_date(job) else kept.append(line.file))
        for job in jobs:
            self._maker(job.maker)
        return jobs, kept

    async def make(self, jobs: list[Job], on_done: Callable[[Job, str | None], None] | None = None) -> Outcome:
        """Make them, a few at once; `on_done` hears of each with its error or None.

        A failed one keeps its old file and does not stop the others; a refused key stops all.
        """
        outcome = Outcome()
        gate = asyncio.Semaphore(_AT_ONCE)
        refused: list[str] = []

        async def one(job: Job) -> None:
            async with gate:
                why = refused[0] if refused else await self._make(job)
                if why is None:
                    outcome.made.append(job.line.file)
                else:
                    outcome.failed[job.line.file] = why
                    if isinstance(why, _Refused):
                        refused.append(why)
                if on_done is not None:
                    on_done(job, why)

        async with asyncio.TaskGroup() as group:
            for job in jobs:
                group.create_task(one(job))
        return outcome

    async def _make(self, job: Job) -> str | None:
        try:
            pcm = await self._maker(job.maker).speak(job.line.text, job.line.language, job.voice)
            data = await asyncio.to_thread(_finish, pcm)
        except Unauthorised as error:
            return _Refused(error)
        except ToyError as error:
            return str(error)
        entry = Entry(
            file=job.line.file,
            language=job.line.language,
            text=job.line.text,
            style=job.line.style,
            purpose=job.line.purpose,
            maker=job.maker,
            voice=job.voice,
            hash=job.hash,
        )
        try:
            # One step without an await, so that two recordings never write the manifest over each other.
            audio.write_atomically(self._folder / entry.file, data)
            self._entries[entry.file] = entry
            audio.write_atomically(self._folder / MANIFEST_NAME, manifest_bytes(self._in_order()))
        except OSError as error:
            return f"cannot be written ({error.strerror})"
        return None

    def _read(self) -> dict[str, Entry]:
        self._folder.mkdir(parents=True, exist_ok=True)
        if not (self._folder / MANIFEST_NAME).exists():
            return {}
        try:
            entries, bad = read_manifest(self._folder)
        except MediaError as error:
            raise SettingsError(f"{self._folder / MANIFEST_NAME}: {error}; mend it or remove it") from error
        if bad:
            name, reason = bad[0]
            raise SettingsError(f"{self._folder / MANIFEST_NAME}: {name}: {reason}; mend it or remove the entry")
        return {entry.file: entry for entry in entries}

    def _job(self, line: Line, maker: str | None, voice: str | None) -> Job:
        before = self._entries.get(line.file)
        name = maker or (before.maker if before and before.maker in MAKERS else DEFAULT_MAKER)
        spoken = voice or self._script.voice(name, line.language)
        if spoken is None and name != "espeak-ng":
            raise SettingsError(f"the script names no voice of {name} for {line.language}; name one with --voice")
        return Job(line, name, spoken or "", fingerprint(line, name, spoken or ""))

    def _up_to_date(self, job: Job) -> bool:
        before = self._entries.get(job.line.file)
        if before is None or not (self._folder / job.line.file).is_file():
            return False
        if before.maker not in MAKERS:
            return True  # somebody's own voice: only `force` replaces it
        described = (before.language, before.style, before.purpose)
        return before.hash == job.hash and described == (job.line.language, job.line.style, job.line.purpose)

    def _maker(self, name: str) -> Maker:
        if name not in self._open:
            self._open[name] = self._makers(name)
        return self._open[name]

    def _in_order(self) -> list[Entry]:
        order: Mapping[str, int] = {line.file: number for number, line in enumerate(self._script.lines)}
        return sorted(self._entries.values(), key=lambda entry: (order.get(entry.file, len(order)), entry.file))


class _Refused(str):
    """An error that every further request would meet as well."""

    __slots__ = ()

    def __new__(cls, error: Exception) -> _Refused:
        return super().__new__(cls, str(error))


def _finish(pcm: audio.Pcm) -> bytes:
    """Even, trimmed at both ends, short enough: the file's bytes, which load without any change."""
    pcm = audio.prepare(pcm)
    loud = abs(pcm.astype("int32")) >= 200
    last = len(pcm) - int(loud[::-1].argmax())
    pcm = audio.prepare(pcm[: last + int(_TRAIL_SECONDS * audio.SAMPLE_RATE)])
    if len(pcm) > audio.MAX_SECONDS * audio.SAMPLE_RATE:
        raise MediaError(f"is longer than {audio.MAX_SECONDS:.0f} s")
    return audio.to_wave(pcm)
