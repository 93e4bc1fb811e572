"""A stand-in for hosted Mem0's REST: ping, search, add, list. Keeps everything, so that deliveries can be counted."""

from __future__ import annotations

import itertools
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from sandbox.faults import Behaviour
from sandbox.openai_chat import read_json


@dataclass
class Memory:
    """One remembered sentence."""

    id: str
    memory: str
    user_id: str
    metadata: dict[str, Any]
    created_at: float

    def as_json(self) -> dict[str, Any]:
        """As the service sends it."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.created_at))
        return {
            "id": self.id,
            "memory": self.memory,
            "user_id": self.user_id,
            "metadata": self.metadata,
            "categories": [],
            "created_at": stamp,
            "updated_at": stamp,
        }


@dataclass(frozen=True)
class Added:
    """One delivery as it arrived."""

    at: float
    user_id: str
    messages: tuple[dict[str, Any], ...]
    metadata: dict[str, Any]


@dataclass
class Mem0Api:
    """Memories by `user_id`, with a behaviour for searching and one for adding; `added` keeps every delivery in order.

    A delivery whose `metadata[key_field]` has been seen is stored once and stays visible in `added`: `deliveries()`
    counts by key. Each user message becomes a memory.
    """

    key: str | None = None
    key_field: str = "idempotency_key"
    search_behaviour: Behaviour = field(default_factory=Behaviour)
    add_behaviour: Behaviour = field(default_factory=Behaviour)
    memories: list[Memory] = field(default_factory=list)
    added: list[Added] = field(default_factory=list)
    searches: list[dict[str, Any]] = field(default_factory=list)
    pings: int = 0
    _ids: itertools.count[int] = field(default_factory=lambda: itertools.count(1), repr=False)

    def routes(self) -> list[web.RouteDef]:
        """Routes at the host's root."""
        return [
            web.get("/v1/ping/", self._ping),
            web.post("/v3/memories/search/", self._search),
            web.post("/v3/memories/add/", self._add),
            web.post("/v3/memories/", self._list),
        ]

    def remember(self, user_id: str, *texts: str) -> None:
        """Put memories in place before a test."""
        for text in texts:
            self.memories.append(Memory(f"mem-{next(self._ids)}", text, user_id, {}, time.time()))

    def deliveries(self) -> Counter[str]:
        """How often each key was delivered; deliveries without one count under the empty key."""
        return Counter(str(a.metadata.get(self.key_field, "")) for a in self.added)

    def _check(self, request: web.Request) -> None:
        sent = request.headers.get("Authorization", "")
        if not sent.startswith("Token ") or (self.key is not None and sent != f"Token {self.key}"):
            raise web.HTTPUnauthorized(
                text='{"detail":"Authentication credentials were not provided."}', content_type="application/json"
            )

    async def _ping(self, request: web.Request) -> web.Response:
        self._check(request)
        self.pings += 1
        return web.json_response(
            {"status": "ok", "org_id": "org", "project_id": "project", "user_email": "a@example.org"}
        )

    async def _search(self, request: web.Request) -> web.Response:
        self._check(request)
        body = await read_json(request)
        fate = self.search_behaviour.take()
        self.searches.append(body)
        await fate.before_answer()
        if fate.nonsense:
            return web.Response(text="<html>It works!</html>", content_type="text/html")
        if "user_id" in body:
            raise web.HTTPBadRequest(text='{"error":"user_id belongs into filters"}', content_type="application/json")
        user = (body.get("filters") or {}).get("user_id")
        if not user or not str(body.get("query", "")).strip():
            raise web.HTTPBadRequest(text='{"error":"query and filters are needed"}', content_type="application/json")
        wanted = _words(str(body["query"]))
        found = [(len(wanted & _words(m.memory)), m) for m in self.memories if m.user_id == user]
        found.sort(key=lambda pair: -pair[0])
        results = [
            {**m.as_json(), "score": round(0.3 + 0.7 * n / max(1, len(wanted)), 3)}
            for n, m in found[: int(body.get("top_k", 10))]
        ]
        await fate.before_body(request)
        return web.json_response({"results": results})

    async def _add(self, request: web.Request) -> web.Response:
        self._check(request)
        body = await read_json(request)
        fate = self.add_behaviour.take()
        await fate.before_answer()
        messages, user = body.get("messages"), body.get("user_id")
        if not isinstance(messages, list) or not messages or not user:
            raise web.HTTPBadRequest(
                text='{"error":"messages and user_id are needed"}', content_type="application/json"
            )
        metadata = dict(body.get("metadata") or {})
        key = metadata.get(self.key_field)
        seen = key is not None and any(a.metadata.get(self.key_field) == key for a in self.added)
        self.added.append(Added(time.time(), str(user), tuple(messages), metadata))
        if not seen:
            for message in messages:
                if message.get("role") == "user" and message.get("content"):
                    self.memories.append(
                        Memory(f"mem-{next(self._ids)}", message["content"], str(user), metadata, time.time())
                    )
        if fate.nonsense:
            return web.Response(text="<html>It works!</html>", content_type="text/html")
        await fate.before_body(request)
        return web.json_response({"message": "queued", "status": "PENDING", "event_id": f"event-{next(self._ids)}"})

    async def _list(self, request: web.Request) -> web.Response:
        self._check(request)
        body = await read_json(request)
        user = (body.get("filters") or {}).get("user_id")
        found = [m.as_json() for m in self.memories if user is None or m.user_id == user]
        return web.json_response({"count": len(found), "next": None, "previous": None, "results": found})


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))
