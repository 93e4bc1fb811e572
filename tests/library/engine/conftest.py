"""Homes of every sort, a small catalogue with real vectors, and settings in a folder of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from qdrant_client import QdrantClient
from qdrant_client.http.exceptions import UnexpectedResponse
from small_catalogue import COLLECTIONS, SONGS, STORIES

from agent.library.embedding import Embedder
from agent.library.home import Entry, Home
from agent.library.home_embedded import EmbeddedHome
from agent.library.home_server import ServerHome
from agent.library.titles import Kind, embedded_text
from agent.settings import Settings
from sandbox.qdrant_server import QdrantServer


class LocalClient:
    """qdrant-client's local mode; a missing collection is told as by a server."""

    def __init__(self) -> None:
        self._client = QdrantClient(":memory:")

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*arguments: Any, **options: Any) -> Any:
            try:
                return method(*arguments, **options)
            except ValueError as error:
                if "not found" not in str(error):
                    raise
                raise UnexpectedResponse(404, "Not Found", str(error).encode(), httpx.Headers()) from error

        return call


@pytest.fixture
def server() -> Iterator[QdrantServer]:
    """A Qdrant server, as strict as it can be set."""
    stand_in = QdrantServer(strict=True)
    try:
        with stand_in.serving():
            yield stand_in
    finally:
        stand_in.close()


@pytest.fixture
def server_home(server: QdrantServer) -> Iterator[ServerHome]:
    home = ServerHome(server.url, COLLECTIONS, timeout=5.0)
    yield home
    home.close()


@pytest.fixture(params=["embedded", "server", "local"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Home]:
    """One home after the other: they must answer alike."""
    if request.param == "server":
        yield request.getfixturevalue("server_home")
        return
    made: Home = (
        EmbeddedHome(tmp_path / "home")
        if request.param == "embedded"
        else ServerHome("http://local", COLLECTIONS, client=LocalClient())
    )
    yield made
    made.close()


@pytest.fixture(scope="session")
def entries(embedder: Embedder) -> dict[Kind, list[Entry]]:
    """The small catalogue with its vectors."""
    return {
        "music": [Entry(title, embedder.embed_document(embedded_text(title))) for title in SONGS],
        "story": [Entry(title, embedder.embed_document(embedded_text(title))) for title in STORIES],
    }


@pytest.fixture
def fill(entries: dict[Kind, list[Entry]], embedder: Embedder) -> Callable[[Home], None]:
    """Load the small catalogue into a home."""

    def load(home: Home) -> None:
        for kind, items in entries.items():
            with home.loading(kind, embedder.name, embedder.dimension) as loading:
                loading.put(items)

    return load


@pytest.fixture
def make_settings(tmp_path: Path, model_dir: Path) -> Callable[..., Settings]:
    """Settings with the real model and a state folder of their own."""

    def make(**changes: Any) -> Settings:
        values: dict[str, Any] = {"state_dir": tmp_path / "state", "model_dir": model_dir, **changes}
        return Settings(_env_file=None, **values)

    return make
