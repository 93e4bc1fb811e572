"""The catalogue on disk: `music/<Language>/metadata.json`, `stories/<Category>/metadata.json`, or the audio's own tags.

Files are written by people: whatever is wrong with one entry is told with its file and key, and the rest is read.
"""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from agent.errors import LibraryError
from agent.library.payload import many_texts, one_text
from agent.library.titles import KINDS, Kind, Title, confined, stable_id

FOLDERS: Final[dict[Kind, str]] = {"music": "music", "story": "stories"}
"""Top folder of each kind, on disk and in media addresses."""

AUDIO: Final = frozenset({".mp3", ".m4a", ".ogg", ".oga", ".opus", ".flac", ".wav", ".aac"})

_METADATA: Final = "metadata.json"
_MAX_METADATA_BYTES: Final = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Problem:
    """One entry that cannot be used: the file (relative to the catalogue), its key there, and why."""

    file: str
    key: str
    reason: str

    def __str__(self) -> str:
        return printable(f"{self.file}: {self.key}: {self.reason}" if self.key else f"{self.file}: {self.reason}")


@dataclass(slots=True)
class CatalogueFiles:
    """What a catalogue folder holds: `kinds` are those with a folder, titles are in the order read."""

    root: Path
    kinds: tuple[Kind, ...]
    titles: list[Title] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def audio(self, title: Title) -> Path:
        """Where a title's sound is, or should be."""
        return self.root / FOLDERS[title.kind] / title.section / title.filename


def read_catalogue(root: Path) -> CatalogueFiles:
    """Read a catalogue folder. Raises LibraryError where it is none."""
    kinds = tuple(kind for kind in KINDS if (root / FOLDERS[kind]).is_dir())
    if not kinds:
        raise LibraryError(f"{root} is no catalogue: neither {root / 'music'} nor {root / 'stories'} is a folder")
    found = CatalogueFiles(root, kinds)
    seen: dict[int, Title] = {}
    for kind in kinds:
        for folder in sorted((root / FOLDERS[kind]).iterdir()):
            place = folder.relative_to(root).as_posix()
            try:
                for title in _read_section(found, kind, folder):
                    if title.id in seen:
                        found.problems.append(Problem(f"{place}/{_METADATA}", title.title, "is there twice"))
                        continue
                    seen[title.id] = title
                    found.titles.append(title)
            except OSError as error:  # no right to look into it, or a link to what cannot be
                found.problems.append(Problem(place, "", f"cannot be read: {error.strerror}"))
    return found


def _read_section(found: CatalogueFiles, kind: Kind, folder: Path) -> Iterator[Title]:
    if not folder.is_dir():
        return
    if not confined(folder.name) or not folder.resolve().is_relative_to(found.root.resolve()):
        place = folder.relative_to(found.root).as_posix()
        found.problems.append(Problem(place, "", "a folder's name or link leads out of the catalogue"))
        return
    metadata = folder / _METADATA
    if metadata.is_file():
        yield from _read_metadata(found, kind, folder, metadata)
    else:
        yield from _read_tags(found, kind, folder)


def _read_metadata(found: CatalogueFiles, kind: Kind, folder: Path, metadata: Path) -> Iterator[Title]:
    file = metadata.relative_to(found.root).as_posix()
    try:
        if metadata.stat().st_size > _MAX_METADATA_BYTES:
            raise ValueError("it is too large")
        content = json.loads(metadata.read_text(encoding="utf-8-sig"), object_pairs_hook=_Pairs)
    except (OSError, ValueError, RecursionError) as error:
        found.problems.append(Problem(file, "", f"cannot be read: {error}"))
        return
    if not isinstance(content, _Pairs):
        found.problems.append(Problem(file, "", "an object of titles is expected"))
        return
    for key, value in content:
        try:
            yield _title(kind, folder.name, key, value)
        except LibraryError as error:
            found.problems.append(Problem(file, _shown(key), str(error)))


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with its repeated keys."""


def _title(kind: Kind, section: str, key: str, value: Any) -> Title:
    if not isinstance(value, _Pairs):
        raise LibraryError("an object with a filename is expected")
    fields = dict(value)
    name = one_text(unicodedata.normalize("NFC", key))
    if not name:
        raise LibraryError("the title is empty")
    filename = fields.get("filename")
    if not isinstance(filename, str) or not filename.strip():
        raise LibraryError("the filename is missing")
    if not confined(filename.strip()):
        raise LibraryError("the filename leaves its folder")
    for plural in ("alternatives", "keywords"):
        if not isinstance(fields.get(plural, []), list | str | None):
            raise LibraryError(f"{plural}: a list of texts is expected")
    if not isinstance(fields.get("romanized", ""), str | None):
        raise LibraryError("romanized: a text is expected")
    return Title(
        id=stable_id(kind, section, name),
        kind=kind,
        title=name,
        section=section,
        romanized=one_text(fields.get("romanized")),
        alternatives=many_texts(fields.get("alternatives")),
        keywords=many_texts(fields.get("keywords")),
        filename=filename.strip(),
    )


def _read_tags(found: CatalogueFiles, kind: Kind, folder: Path) -> Iterator[Title]:
    for path in _audio_under(folder):
        file = path.relative_to(found.root).as_posix()
        if not path.resolve().is_relative_to(found.root.resolve()):
            found.problems.append(Problem(file, "", "the link leads out of the catalogue"))
            continue
        filename = path.relative_to(folder).as_posix()
        try:
            tags = _tags(path)
            name = one_text(unicodedata.normalize("NFC", tags.get("title") or path.stem.replace("_", " ")))
            if not name or not confined(filename):
                raise LibraryError("its name cannot be used")
        except LibraryError as error:
            found.problems.append(Problem(file, "", str(error)))
            continue
        yield Title(
            id=stable_id(kind, folder.name, name),
            kind=kind,
            title=name,
            section=folder.name,
            romanized=one_text(tags.get("titlesort")) if tags.get("titlesort") != tags.get("title") else "",
            keywords=many_texts([tags.get("genre"), tags.get("artist"), tags.get("album")]),
            filename=filename,
        )


def _tags(path: Path) -> dict[str, str]:
    """First value of each easy tag. Raises LibraryError for a file that is no sound file."""
    import mutagen

    try:
        sound = mutagen.File(path, easy=True)
    except (mutagen.MutagenError, OSError, ValueError) as error:
        raise LibraryError(f"its tags cannot be read: {error}") from error
    if sound is None:
        raise LibraryError("it is not a sound file")
    found: dict[str, str] = {}
    for name, values in (sound.tags or {}).items():
        first = values[0] if isinstance(values, list) and values else values
        if isinstance(first, str):
            found[str(name).lower()] = first
    return found


def _audio_under(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            if Path(name).suffix.lower() in AUDIO and not name.startswith("."):
                yield Path(place) / name


def printable(text: str) -> str:
    """`text` with its control signs, and the bytes of file names that are no text, written as escapes."""
    return "".join(
        sign.encode("unicode_escape").decode() if unicodedata.category(sign) in {"Cc", "Cs"} else sign for sign in text
    )


def audio_files(found: CatalogueFiles) -> Iterator[Path]:
    """Every sound file of the catalogue, relative to its root."""
    for kind in found.kinds:
        for path in _audio_under(found.root / FOLDERS[kind]):
            yield path.relative_to(found.root)


def _shown(key: str) -> str:
    return one_text(key)[:80] or repr(key[:40])
