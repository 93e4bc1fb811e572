"""Opens titles wherever they are kept: the one place that knows both the media server and the catalogue on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from aiohttp.abc import AbstractResolver

from agent.speaker.media_bytes import MediaLimits
from agent.speaker.media_http import MediaHttp
from agent.speaker.media_source import Mark, MediaSource
from agent.speaker.media_url import Playable, locate


class MediaStore:
    """Songs and stories of one visit. Construct it inside the room's event loop; `aclose` ends its connections."""

    def __init__(
        self,
        *,
        base_url: str | None = None,
        catalogue_dir: Path | None = None,
        private_network: bool = False,
        limits: MediaLimits | None = None,
        resolver: AbstractResolver | None = None,
    ) -> None:
        self._base_url = base_url
        self._catalogue_dir = catalogue_dir
        self._limits = limits
        self._http = MediaHttp(base_url, private_network=private_network, resolver=resolver) if base_url else None

    @property
    def known(self) -> bool:
        """Whether there is any place to play from."""
        return self._http is not None or self._catalogue_dir is not None

    async def warm(self) -> None:
        """Open a connection to the media server ahead of the first title. Never fails."""
        if self._http is not None:
            await self._http.warm()

    def open(
        self,
        title: Playable,
        start: int = 0,
        marks: tuple[Mark, ...] = (),
        on_data: Callable[[], None] | None = None,
    ) -> MediaSource:
        """Begin to load a title from sample `start`. Raises MediaError for a name that leads astray."""
        location = locate(title, base_url=self._base_url, catalogue_dir=self._catalogue_dir)
        return MediaSource.open(location, self._http, start=start, marks=marks, limits=self._limits, on_data=on_data)

    async def aclose(self) -> None:
        """Close every connection; sources are their owners' to close first."""
        if self._http is not None:
            await self._http.aclose()
