"""The bank of recorded greetings and sentences: loaded once, shared by all processes, always ready to sound."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from agent.errors import MediaError
from agent.greeting import audio
from agent.greeting.audio import SAMPLE_RATE, Pcm
from agent.greeting.choose import Age, choose_style, pick
from agent.greeting.manifest import MANIFEST_NAME, Entry, read_manifest

MAX_CODE_LENGTH: Final = 12
_DIGIT_GAP: Final = np.zeros(int(0.25 * SAMPLE_RATE), dtype=np.int16)
_KNOWN_NAME: Final = re.compile(r"([a-z]{2,3})_([a-z0-9_]{1,40})|(fallback)")


@dataclass(frozen=True, eq=False, slots=True)
class Greeting:
    """A recording that can sound without any service: 24 kHz mono samples, read-only."""

    id: str
    """Its file's name without the ending."""
    text: str
    """What it says; empty where no manifest tells."""
    language: str
    """BCP 47, lower case."""
    style: str
    pcm: Pcm = field(repr=False)
    sample_rate: int = SAMPLE_RATE
    purpose: str = "greeting"
    maker: str = "unknown"

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return len(self.pcm) / self.sample_rate


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a file is not in the bank."""

    file: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"


@dataclass(frozen=True)
class GreetingBank:
    """Every recording that could be loaded, and why the others could not."""

    recordings: tuple[Greeting, ...] = ()
    problems: tuple[Problem, ...] = ()

    @classmethod
    def load(cls, folder: Path | str) -> GreetingBank:
        """Load what `folder/manifest.json` names. Never raises: what is wrong is in `problems`, the rest is there.

        Without a usable manifest, files named `<language>_<style>` and `fallback` are loaded, their text unknown.
        Starts no thread and no event loop, so it may run before a fork.
        """
        folder = Path(folder)
        problems: list[Problem] = []
        try:
            entries, bad = read_manifest(folder)
            problems.extend(Problem(name, reason) for name, reason in bad)
        except MediaError as error:
            problems.append(Problem(MANIFEST_NAME, str(error)))
            entries = _by_name(folder)
        recordings: dict[str, Greeting] = {}
        for entry in entries:
            try:
                if entry.file in recordings:
                    raise MediaError("is named twice")
                recordings[entry.file] = _load_entry(folder, entry)
            except MediaError as error:
                problems.append(Problem(entry.file, str(error)))
        if not any(item.purpose == "greeting" for item in recordings.values()):
            problems.append(Problem(str(folder), "holds no greeting that can be played"))
        return cls(tuple(recordings.values()), tuple(problems))

    @property
    def greetings(self) -> tuple[Greeting, ...]:
        """The recordings a visit may begin with."""
        return tuple(item for item in self.recordings if item.purpose == "greeting")

    def choose(
        self,
        languages: Sequence[str | None] = (),
        *,
        age: Age = None,
        style: str | None = None,
        returning: bool = False,
    ) -> Greeting | None:
        """The greeting for a child.

        `languages`: what is known, best first (`None` for a source that does not know); tags, names and codes count.
        `style` where given rules; else `returning`, else `age` in years decides. In each language: that style, then
        the default; after the last language the fallback, then any. None only where the bank is empty. Never raises.
        """
        wanted = style or choose_style(age, returning=returning)
        greetings = self.greetings
        found = pick(greetings, languages, (wanted, "default"))
        if found is None:
            found = next((item for item in greetings if item.style == "fallback"), None)
        return found or next(iter(greetings), None)

    def sentence(self, purpose: str, languages: Sequence[str | None] = ()) -> Greeting | None:
        """A recorded sentence (`provider_down`, `bind_first`, `goodbye`, `im_back`, `not_found`), English where no
        language fits; None where none is recorded. Never raises."""
        spoken = [item for item in self.recordings if item.purpose == purpose]
        return pick(spoken, [*languages, "en"], ("default",)) or next(iter(spoken), None)

    def bind_code(self, code: str, languages: Sequence[str | None] = ()) -> Greeting | None:
        """The `bind_first` sentence with the code's digits read out after it, twice, in one language.

        None where the code is not 1 to MAX_CODE_LENGTH digits, or the sentence or a digit is not recorded.
        """
        sentence = self.sentence("bind_first", languages)
        digits = code.strip() if isinstance(code, str) else ""
        if sentence is None or not re.fullmatch(rf"[0-9]{{1,{MAX_CODE_LENGTH}}}", digits):
            return None
        parts = [sentence.pcm]
        for digit in digits * 2:
            spoken = pick([item for item in self.recordings if item.purpose == f"digit_{digit}"], [sentence.language])
            if spoken is None:
                return None
            parts += [_DIGIT_GAP, spoken.pcm]
        parts.insert(1 + 2 * len(digits), np.concatenate([_DIGIT_GAP, _DIGIT_GAP]))
        pcm = np.concatenate(parts)
        pcm.flags.writeable = False
        return Greeting(
            id=f"{sentence.id}_code",
            text=f"{sentence.text} {' '.join(digits)}",
            language=sentence.language,
            style=sentence.style,
            pcm=pcm,
            purpose=sentence.purpose,
            maker=sentence.maker,
        )


def _load_entry(folder: Path, entry: Entry) -> Greeting:
    path = folder / entry.file
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of symbolic links
        raise MediaError("cannot be resolved") from error
    if not inside:
        raise MediaError("leaves the folder")
    return Greeting(
        id=Path(entry.file).stem,
        text=entry.text,
        language=entry.language,
        style=entry.style,
        pcm=audio.load(path),
        purpose=entry.purpose,
        maker=entry.maker,
    )


def _by_name(folder: Path) -> list[Entry]:
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError:
        return []  # the missing manifest is already a problem with its name
    entries = []
    for name in names:
        match = _KNOWN_NAME.fullmatch(Path(name).stem)
        if match is None or Path(name).suffix not in {".wav", ".mp3", ".ogg", ".opus", ".flac", ".m4a"}:
            continue
        language, style = ("en", "fallback") if match[3] else (match[1], match[2])
        if style in {"default", "child_friendly", "returning", "fallback"}:
            entries.append(Entry(file=name, language=language, text="", style=style))
    return entries
