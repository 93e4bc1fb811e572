"""The manifest of a folder of recordings: what each says, in which language and style, and who made it."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from agent.errors import MediaError
from agent.greeting.languages import normalise

MANIFEST_NAME: Final = "manifest.json"
_MAX_BYTES: Final = 1024 * 1024
_MAX_ENTRIES: Final = 2000

Name = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,40}$")]


class Entry(BaseModel):
    """One recording. Everything but file, language and text may be left out."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    file: Annotated[str, Field(min_length=1, max_length=200)]
    """Name relative to the manifest's folder; it may not leave it."""
    language: str
    """BCP 47."""
    text: Annotated[str, Field(max_length=2000)]
    """What it says: enters the conversation as the agent's words."""
    style: Name = "default"
    """`default`, `child_friendly`, `returning`, or `fallback` for the one that serves every language."""
    purpose: Name = "greeting"
    """`greeting`, a sentence such as `provider_down`, or `digit_0` to `digit_9`."""
    maker: str = "unknown"
    """What made it: `espeak-ng`, `openai`, `elevenlabs`, `edge-tts`, or a person."""
    voice: str = ""
    """The maker's voice."""
    hash: str = ""
    """Of text, language, voice and maker; an unchanged one is not made again."""

    @field_validator("file")
    @classmethod
    def _inside(cls, value: str) -> str:
        path = PurePosixPath(value)
        if "\0" in value or "\\" in value or path.is_absolute() or ".." in path.parts or path.name.startswith("."):
            raise ValueError("leaves the folder")
        return value

    @field_validator("language")
    @classmethod
    def _tag(cls, value: str) -> str:
        if (tag := normalise(value)) is None:
            raise ValueError("is not a language")
        return tag


def read_manifest(folder: Path) -> tuple[list[Entry], list[tuple[str, str]]]:
    """The good entries, and (name, reason) of each bad one. Raises MediaError where the whole manifest is unusable."""
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise MediaError("is missing")
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise MediaError("is larger than 1 MB")
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise MediaError(f"cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise MediaError("is not JSON") from error
    items = document.get("recordings") if isinstance(document, dict) else None
    if not isinstance(items, list):
        raise MediaError("has no list `recordings`")
    if len(items) > _MAX_ENTRIES:
        raise MediaError(f"names more than {_MAX_ENTRIES} recordings")
    entries: list[Entry] = []
    problems: list[tuple[str, str]] = []
    for number, item in enumerate(items, start=1):
        try:
            entries.append(Entry.model_validate(item))
        except ValidationError as error:
            problems.append((_entry_name(item, number), _reasons(error)))
    return entries, problems


def manifest_bytes(entries: list[Entry]) -> bytes:
    """The manifest's text, one field a line, so that a change reads well."""
    document = {"version": 1, "recordings": [entry.model_dump() for entry in entries]}
    return (json.dumps(document, ensure_ascii=False, indent=1) + "\n").encode()


def _entry_name(item: Any, number: int) -> str:
    name = item.get("file") if isinstance(item, dict) else None
    if isinstance(name, str) and name and name.isprintable():
        return name[:80]
    return f"{MANIFEST_NAME} entry {number}"


def _reasons(error: ValidationError) -> str:
    parts = []
    for item in error.errors(include_input=False, include_url=False)[:3]:
        field = ".".join(str(part) for part in item["loc"]) or "entry"
        parts.append(f"{field}: {str(item['msg']).removeprefix('Value error, ')}")
    return "; ".join(parts)
