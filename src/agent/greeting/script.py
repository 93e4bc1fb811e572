"""What the recordings shall say: `script.toml` beside them."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from agent.errors import SettingsError
from agent.greeting.languages import normalise
from agent.greeting.manifest import Name

SCRIPT_NAME: Final = "script.toml"


class Line(BaseModel):
    """One recording to be made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Name
    language: str
    text: Annotated[str, Field(min_length=1, max_length=500)]
    style: Name = "default"
    purpose: Name = "greeting"

    @property
    def file(self) -> str:
        """Name of the sound file."""
        return f"{self.id}.wav"

    @field_validator("language")
    @classmethod
    def _tag(cls, value: str) -> str:
        if (tag := normalise(value)) is None:
            raise ValueError("is not a language")
        return tag


class Script(BaseModel):
    """The whole script: lines, the ten digits of each language, and each maker's voices by language (`*`: any)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recording: Annotated[list[Line], Field(min_length=1)]
    digits: dict[str, Annotated[list[str], Field(min_length=10, max_length=10)]] = {}
    voices: dict[str, dict[str, str]] = {}

    @property
    def lines(self) -> list[Line]:
        """Every recording to be made, the digits included."""
        spoken = [
            Line(id=f"{language}_digit_{digit}", language=language, text=word, purpose=f"digit_{digit}")
            for language, words in self.digits.items()
            for digit, word in enumerate(words)
        ]
        return [*self.recording, *spoken]

    def voice(self, maker: str, language: str) -> str | None:
        """The voice the script gives this maker for a language; None where it names none."""
        voices = self.voices.get(maker, {})
        return voices.get(language) or voices.get(language.partition("-")[0]) or voices.get("*")


def read_script(path: Path) -> Script:
    """Raises SettingsError that says what is wrong where."""
    try:
        script = Script.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        ids = [line.id for line in script.lines]
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: is not TOML: {error}") from error
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SettingsError(f"{path}: {where}: {str(first['msg']).removeprefix('Value error, ')}") from error
    if twice := sorted({name for name in ids if ids.count(name) > 1}):
        raise SettingsError(f"{path}: named twice: {', '.join(twice)}")
    return script


def fingerprint(line: Line, maker: str, voice: str) -> str:
    """Changes when the recording must be made again."""
    joined = "\0".join((line.text, line.language, maker, voice))
    return hashlib.blake2b(joined.encode(), digest_size=8).hexdigest()
