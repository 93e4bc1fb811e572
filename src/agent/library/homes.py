"""Which home the settings name, and where this worker keeps its copy of it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from agent.library.home import Home
from agent.library.home_embedded import EmbeddedHome
from agent.library.titles import Kind
from agent.settings import Settings


def collections(settings: Settings) -> dict[Kind, str]:
    """Name of the collection of each kind."""
    return {"music": settings.music_collection, "story": settings.story_collection}


def snapshot_root(settings: Settings) -> Path:
    """Folder of the snapshots that visits search: the embedded home itself, or the copies of a server's collections.

    Another server, or another collection, has another folder: a copy is never taken for what it is not.
    """
    root = settings.state_dir / "catalogue"
    if settings.qdrant_url is None:
        return root / "embedded"
    named = "\0".join((settings.qdrant_url.rstrip("/"), settings.music_collection, settings.story_collection))
    return root / f"server-{hashlib.sha256(named.encode()).hexdigest()[:12]}"


def open_home(settings: Settings) -> Home:
    """The home the settings name. For a server this imports qdrant-client: 2 s of CPU, off the event loop please."""
    if settings.qdrant_url is None:
        return EmbeddedHome(snapshot_root(settings))
    from agent.library.home_server import ServerHome

    key = settings.qdrant_api_key.get_secret_value() if settings.qdrant_api_key else None
    return ServerHome(
        settings.qdrant_url, collections(settings), api_key=key, timeout=settings.qdrant_timeout_ms / 1000
    )
