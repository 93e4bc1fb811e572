"""Where a song or story is: an address below `MEDIA_BASE_URL`, or a file below `CATALOGUE_DIR`. Never anywhere else."""

from __future__ import annotations

import os
import stat
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import quote

from yarl import URL

from agent.errors import MediaError

_FOLDERS: Final = {"music": "music", "story": "stories"}
_LONGEST_NAME: Final = 1024


class Playable(Protocol):
    """What is needed to find a title: `agent.library.titles.Title` is one."""

    @property
    def kind(self) -> str: ...
    @property
    def section(self) -> str: ...
    @property
    def filename(self) -> str: ...


@dataclass(frozen=True, slots=True)
class HttpLocation:
    """A file on the media server; `url` is fully quoted."""

    url: URL


@dataclass(frozen=True, slots=True)
class FileLocation:
    """A file on disk, `parts` below `root`."""

    root: Path
    parts: tuple[str, ...]

    def open(self) -> int:
        """Open for reading and return the descriptor. Blocks: call it off the event loop.

        Raises MediaError when there is no such regular file, or a link leads out of the tree.
        """
        try:
            real = self._found()
            # Non-blocking, so that a named pipe cannot hang the reader; `real` has no links left to follow.
            descriptor = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:  # a name that is too long for the disk included
            raise MediaError(f"the file cannot be read: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise MediaError("not a regular file")
        return descriptor

    def _found(self) -> Path:
        root = self.root.resolve()
        for form in ("", "NFC", "NFD"):
            parts = [unicodedata.normalize(form, part) for part in self.parts] if form else self.parts  # type: ignore[arg-type]
            path = root.joinpath(*parts)
            if path.exists():
                break
        else:
            raise MediaError("no such file in the catalogue", "missing")
        real = path.resolve()
        if not real.is_relative_to(root):
            raise MediaError("the file is a link that leaves the catalogue", "name")
        return real


Location = HttpLocation | FileLocation


def locate(title: Playable, *, base_url: str | None, catalogue_dir: Path | None) -> Location:
    """Where `title` is. `base_url` wins over `catalogue_dir`. Touches neither disk nor net.

    Raises MediaError for a name that would leave its folder, and when neither place is known.
    """
    folder = _FOLDERS.get(title.kind)
    if folder is None:
        raise MediaError("neither a song nor a story")
    parts = (folder, _component(title.section), *_path(title.filename))
    if base_url is not None:
        base = base_url.rstrip("/")
        return HttpLocation(URL(base + "/" + "/".join(quote(part, safe="") for part in parts), encoded=True))
    if catalogue_dir is not None:
        return FileLocation(catalogue_dir, parts)
    raise MediaError("no place to play from: set MEDIA_BASE_URL or CATALOGUE_DIR")


def _path(filename: str) -> tuple[str, ...]:
    if not filename:
        raise MediaError("the title has no file", "missing")
    if len(filename.encode("utf-8", "surrogatepass")) > _LONGEST_NAME:
        raise MediaError("the file's name is too long", "name")
    return tuple(_component(part) for part in filename.split("/"))


def _component(name: str) -> str:
    """One folder or file name, or MediaError when it is anything more."""
    if name in {"", ".", ".."} or name != name.strip() or "/" in name or "\\" in name:
        raise MediaError("the file's name leaves its folder", "name")
    if any(unicodedata.category(char) in {"Cc", "Cs"} for char in name):
        raise MediaError("the file's name has control characters", "name")
    return name
