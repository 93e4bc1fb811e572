"""The self-hosted Mem0 as a small server on a Unix socket, speaking the hosted one's contract.

It runs in one process of its own: `import mem0` takes two seconds and 114 MB, which every room would pay otherwise,
its embedded Qdrant can be opened by one process only, and its language model calls block threads.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol

import structlog
from aiohttp import web
from pydantic import BaseModel, Field, SecretStr, ValidationError

from agent.briefing.mem0_process import mem0_socket
from agent.settings import OPENAI_URL, Settings
from agent.state import StateDatabase, check_own, private_dir

_log = structlog.get_logger(__name__)

COLLECTION: Final = "toy_memories"
LLM_TIMEOUT_S: Final = 40.0
_LOCK_POLL_S: Final = 1.0
_KEYS_KEPT_S: Final = 14 * 86400.0
_KEYS_AT_HAND: Final = 10_000
_KEYS_SCHEMA: Final = "CREATE TABLE IF NOT EXISTS keys(key TEXT PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID"
_EXTRACTION: Final = (
    "The user is a child talking to a toy. Keep what a friend would remember: name, family, pets, likes, fears, "
    "wishes, plans, events, promises. Do not keep addresses, telephone numbers, schools or passwords."
)


class TextEmbedder(Protocol):
    """Turns text into vectors of length 1; `dimension` is theirs."""

    dimension: int

    def embed(self, text: str) -> Any:
        """Vector of what somebody asks for."""
        ...

    def embed_document(self, text: str) -> Any:
        """Vector of what is kept."""
        ...


class _Embedding:
    """What Mem0 expects of an embedding model, on our own."""

    def __init__(self, embedder: TextEmbedder) -> None:
        self._embedder = embedder

    def embed(self, text: str, memory_action: str | None = None) -> list[float]:
        vector = self._embedder.embed(text) if memory_action == "search" else self._embedder.embed_document(text)
        return [float(value) for value in vector]

    def embed_batch(self, texts: Sequence[str], memory_action: str | None = "add") -> list[list[float]]:
        return [self.embed(text, memory_action) for text in texts]


class _CheckedModel:
    """The language model, whose nonsense is an error: Mem0 itself would take it for "nothing worth remembering"."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.config = model.config

    def generate_response(self, *arguments: Any, **keywords: Any) -> str:
        answer = str(self._model.generate_response(*arguments, **keywords))
        text = answer.strip().removeprefix("```json").removeprefix("```").removesuffix("```")
        if not isinstance(json.loads(text), dict):
            raise ValueError("the language model answered with something else than a JSON object")
        return text


def build_memory(settings: Settings, embedder: TextEmbedder) -> Any:
    """Mem0's `AsyncMemory` on the project's Qdrant, language model and embedding model. Blocks for seconds.

    Sets `MEM0_TELEMETRY` and `MEM0_DIR` in this process's environment, so call it before anything imports mem0.
    """
    folder = private_dir(settings.state_dir / "mem0")
    for earlier in folder.glob("history.db*"):  # of earlier releases, what a crash has left beside it included
        earlier.unlink(missing_ok=True)
    os.environ["MEM0_TELEMETRY"] = "False"
    os.environ["MEM0_DIR"] = str(folder)
    # Mem0 would prefer another provider where it finds its key.
    os.environ.pop("OPENROUTER_API_KEY", None)
    import openai
    from mem0.memory.main import AsyncMemory
    from qdrant_client import QdrantClient

    key = settings.key_for(settings.llm_base_url, settings.llm_api_key) or "none"
    base_url = settings.llm_base_url or OPENAI_URL
    # A dimension in the name: vectors of another model can never be compared with these.
    store: dict[str, Any] = {
        "collection_name": f"{COLLECTION}_{embedder.dimension}",
        "embedding_model_dims": embedder.dimension,
    }
    if settings.qdrant_url:
        store["client"] = QdrantClient(
            url=settings.qdrant_url,
            api_key=_secret(settings.qdrant_api_key),
            timeout=max(1, round(settings.qdrant_timeout_ms / 1000)),
            check_compatibility=False,
        )
        store["path"] = "unused"
    else:
        store |= {"path": str(folder / "qdrant"), "on_disk": True}
    memory = AsyncMemory.from_config(
        {
            "vector_store": {"provider": "qdrant", "config": store},
            "llm": {
                "provider": "openai",
                "config": {"model": settings.llm_model, "api_key": key, "openai_base_url": base_url},
            },
            # Replaced below; its constructor opens nothing.
            "embedder": {"provider": "openai", "config": {"api_key": key, "openai_base_url": base_url}},
            # Mem0 keeps what was said for ever there: nothing reads it but the extraction of the same visit.
            "history_db_path": ":memory:",
            "custom_instructions": _EXTRACTION,
        }
    )
    memory.embedding_model = _Embedding(embedder)
    memory.llm.client = openai.OpenAI(api_key=key, base_url=base_url, timeout=LLM_TIMEOUT_S, max_retries=0)
    memory.llm = _CheckedModel(memory.llm)
    return memory


class _Search(BaseModel):
    query: str = Field(min_length=1, max_length=4000)
    filters: dict[str, str]
    top_k: int = Field(default=12, ge=1, le=100)


class _Line(BaseModel):
    role: str = Field(pattern="^(user|assistant)$")
    content: str = Field(max_length=8000)


class _Add(BaseModel):
    messages: list[_Line] = Field(min_length=1, max_length=200)
    user_id: str = Field(min_length=1, max_length=200)
    metadata: dict[str, str] = {}


class AddedKeys:
    """The keys of what was added: on disk for two weeks, the latest in memory as well, for a disk that refuses.

    Blocks; one thread at a time. Never raises: an add that was not noted is better than none.
    """

    def __init__(self, path: Path) -> None:
        self._database = StateDatabase(path, _KEYS_SCHEMA)
        self._latest: dict[str, None] = {}

    def known(self, key: str) -> bool:
        """Whether it was kept."""
        if key in self._latest:
            return True
        try:
            return self._database.run(lambda db: _has(db, key))
        except (sqlite3.Error, OSError) as error:
            _log.warning("mem0_keys_unusable", error=str(error))
            return False

    def keep(self, key: str) -> None:
        """It is known from now on."""
        self._latest[key] = None
        while len(self._latest) > _KEYS_AT_HAND:
            del self._latest[next(iter(self._latest))]
        try:
            self._database.run(lambda db: _note(db, key, time.time()))
        except (sqlite3.Error, OSError) as error:
            _log.warning("mem0_keys_unusable", error=str(error))

    def close(self) -> None:
        """Close the file; idempotent."""
        self._database.close()


def _has(db: sqlite3.Connection, key: str) -> bool:
    return db.execute("SELECT 1 FROM keys WHERE key = ?", (key,)).fetchone() is not None


def _note(db: sqlite3.Connection, key: str, now: float) -> None:
    db.execute("INSERT OR IGNORE INTO keys VALUES(?, ?)", (key, now))
    db.execute("DELETE FROM keys WHERE at < ?", (now - _KEYS_KEPT_S,))


class Mem0Server:
    """Answers search and add of the contract from one `AsyncMemory`; 503 until it is built.

    Keys of `Idempotency-Key` are kept, so that a repeat adds nothing. One `add` at a time.
    """

    def __init__(self, settings: Settings, embedder: TextEmbedder) -> None:
        self._settings = settings
        self._embedder = embedder
        self._memory: Any = None
        self._adding = asyncio.Lock()
        self._keys = AddedKeys(settings.state_dir / "mem0" / "keys.db")

    async def build(self) -> None:
        """Make the memory, off the loop; until then every call gets 503."""
        self._memory = await asyncio.to_thread(build_memory, self._settings, self._embedder)
        _log.info("mem0_ready", qdrant="server" if self._settings.qdrant_url else "embedded")

    def app(self) -> web.Application:
        """The routes, `/health` included."""
        app = web.Application(client_max_size=512 * 1024)
        app.router.add_get("/health", self._health)
        app.router.add_post("/v3/memories/search/", self._search)
        app.router.add_post("/v3/memories/add/", self._add)
        return app

    async def aclose(self) -> None:
        """Close the key file and Mem0's own files."""
        await asyncio.to_thread(self._keys.close)
        if self._memory is not None:
            await asyncio.to_thread(self._memory.db.close)
            await asyncio.to_thread(self._memory.vector_store.client.close)

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response({"ready": self._memory is not None}, status=200 if self._memory is not None else 503)

    async def _search(self, request: web.Request) -> web.Response:
        if self._memory is None:
            return _unavailable("starting")
        try:
            ask = _Search.model_validate_json(await request.read())
        except ValidationError as error:
            return _refused(error)
        try:
            # No threshold: for a question as general as the first one, the nearest of few are the right ones.
            found = await self._memory.search(ask.query, filters=ask.filters, top_k=ask.top_k, threshold=0.0)
        except Exception as error:  # noqa: BLE001 — Mem0 raises whatever its parts raise; the caller may try again
            return _unavailable(type(error).__name__)
        return web.json_response({"results": [{"memory": item["memory"]} for item in found["results"]]})

    async def _add(self, request: web.Request) -> web.Response:
        if self._memory is None:
            return _unavailable("starting")
        try:
            ask = _Add.model_validate_json(await request.read())
        except ValidationError as error:
            return _refused(error)
        key = request.headers.get("Idempotency-Key", "")
        async with self._adding:
            if key != "" and await asyncio.to_thread(self._keys.known, key):
                return web.json_response({"results": [], "repeated": True})
            try:
                added = await self._memory.add(
                    [line.model_dump() for line in ask.messages], user_id=ask.user_id, metadata=ask.metadata
                )
            except Exception as error:  # noqa: BLE001 — as above; the outbox tries again
                return _unavailable(type(error).__name__)
            if key:
                await asyncio.to_thread(self._keys.keep, key)
        return web.json_response({"results": [{"event": item["event"]} for item in added["results"]]})


async def serve(settings: Settings, embedder: TextEmbedder, stop: asyncio.Event) -> None:
    """Serve on `mem0_socket(settings)` until `stop` is set. Raises what building the memory raises.

    Where another server of the same STATE_DIR lives, wait until it has gone: both workers use that one.
    """
    socket = mem0_socket(settings)
    lock = await asyncio.to_thread(_open_lock, private_dir(settings.state_dir / "mem0") / "lock")
    try:
        while not _locked(lock):
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), _LOCK_POLL_S)
            if stop.is_set():
                return
        socket.parent.mkdir(mode=0o700, exist_ok=True)
        check_own(socket.parent)
        await _serve_on(socket, settings, embedder, stop)
    finally:
        os.close(lock)


async def _serve_on(socket: Path, settings: Settings, embedder: TextEmbedder, stop: asyncio.Event) -> None:
    server = Mem0Server(settings, embedder)
    runner = web.AppRunner(server.app(), access_log=None, shutdown_timeout=5.0)
    await runner.setup()
    try:
        await web.UnixSite(runner, str(socket)).start()
        await server.build()
        await stop.wait()
    finally:
        await runner.cleanup()
        await server.aclose()


def run(settings: Settings, load_embedder: Callable[[], TextEmbedder]) -> None:
    """The process's whole life: serve until SIGTERM, SIGINT, or the worker that holds our standard input has gone."""

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        threading.Thread(target=_await_orphanage, args=(loop, stop), daemon=True).start()
        await serve(settings, await asyncio.to_thread(load_embedder), stop)

    asyncio.run(main())


def _await_orphanage(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    while os.read(0, 1024):
        pass
    with suppress(RuntimeError):  # the loop has ended first
        loop.call_soon_threadsafe(stop.set)


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _secret(value: SecretStr | None) -> str | None:
    return value.get_secret_value() if value is not None else None


def _unavailable(why: str) -> web.Response:
    _log.warning("mem0_unavailable", why=why)
    return web.json_response({"error": why}, status=503)


def _refused(error: ValidationError) -> web.Response:
    return web.json_response({"error": f"{error.error_count()} fields are wrong"}, status=422)
