"""A watcher for a while, and collections that another program fills."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from agent.library.home import Entry
from agent.library.payload import to_payload
from agent.library.titles import Kind
from agent.library.watcher import CatalogueWatcher
from agent.settings import Settings
from sandbox.qdrant_server import QdrantServer


@contextmanager
def watching(settings: Settings) -> Iterator[CatalogueWatcher]:
    watcher = CatalogueWatcher(settings)
    try:
        yield watcher
    finally:
        watcher.close_blocking()


def foreign_fill(server: QdrantServer, entries: dict[Kind, list[Entry]], size: int = 384) -> None:
    """Fill the collections as another program does: small ids, no metadata, fields of its own."""
    for kind, name in (("music", "xiaozhi_music"), ("story", "xiaozhi_stories")):
        server.create(name, size)
        for number, entry in enumerate(entries[kind]):
            payload = {**to_payload(entry.title), "uploaded_by": "somebody", "language_code": "xx"}
            server.put(name, number, entry.vector.tolist(), payload)
