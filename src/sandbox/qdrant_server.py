"""A stand-in for a Qdrant server: the part of its REST that qdrant-client uses for collections, points and queries.

The engine behind it is Qdrant's own, in-process (qdrant-edge), so distances, filters, ids and orders are the real ones;
collections live in a temporary folder. It runs on a thread of its own, because its users are synchronous.

    with QdrantServer(api_key="k").serving() as server:
        QdrantClient(url=server.url, api_key="k")
"""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import qdrant_edge as edge
from aiohttp import web

from sandbox.faults import Behaviour, Fault, swallow_cut

_DISTANCES = {"Cosine": edge.Distance.Cosine, "Dot": edge.Distance.Dot, "Euclid": edge.Distance.Euclid}


@dataclass
class _Collection:
    shard: edge.EdgeShard
    folder: Path
    size: int
    distance: str
    indexes: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)


class _Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class QdrantServer:
    """Collections behind `url`. `behaviour` sets delays and faults while it runs (through `fail` and `heal`).

    `api_key` may do everything, `read_only_key` may read; with neither set no key is asked for. `strict`: a filter on a
    field without a payload index is refused, as by Qdrant's strict mode. `old`: collections' metadata is ignored, as
    by servers before 1.16. `calls` counts requests by method and path without the collection's name.
    """

    api_key: str | None = None
    read_only_key: str | None = None
    strict: bool = False
    old: bool = False
    behaviour: Behaviour = field(default_factory=Behaviour)
    calls: dict[str, int] = field(default_factory=dict)
    port: int = 0
    before_answer: Callable[[str], None] | None = None
    """Called with method and path before each request is carried out: a test's moment to act in the middle."""
    _collections: dict[str, _Collection] = field(default_factory=dict)
    _loop: asyncio.AbstractEventLoop | None = None

    @property
    def url(self) -> str:
        """Address of the server while it serves."""
        return f"http://127.0.0.1:{self.port}"

    @contextmanager
    def serving(self) -> Iterator[QdrantServer]:
        """Serve on a thread until the context ends; what it holds stays for the next time."""
        ready = threading.Event()
        problem: list[BaseException] = []
        stop: list[asyncio.Event] = []

        async def main() -> None:
            application = web.Application(middlewares=[swallow_cut], client_max_size=64 * 2**20)
            application.router.add_route("*", "/{path:.*}", self._answer)
            runner = web.AppRunner(application, shutdown_timeout=0.1)
            stop.append(asyncio.Event())
            try:
                await runner.setup()
                site = web.TCPSite(runner, "127.0.0.1", self.port, reuse_address=True)
                await site.start()
                self.port = int(runner.addresses[0][1])
                self._loop = asyncio.get_running_loop()
            except BaseException as error:  # whatever it was, the one who waits for `ready` must hear of it
                problem.append(error)
                raise
            finally:
                ready.set()
            await stop[0].wait()
            self.behaviour.heal()
            await runner.cleanup()

        thread = threading.Thread(target=lambda: asyncio.run(main()), name="qdrant-stand-in")
        thread.start()
        ready.wait()
        if problem:
            thread.join()
            raise problem[0]
        loop = self._loop
        assert loop is not None
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(stop[0].set)
            thread.join()
            self._loop = None

    def fail(self, fault: Fault | str, **how: Any) -> None:
        """As `Behaviour.fail`, from any thread."""
        self._on_loop(lambda: self.behaviour.fail(fault, **how))

    def heal(self) -> None:
        """As `Behaviour.heal`, from any thread."""
        self._on_loop(self.behaviour.heal)

    def close(self) -> None:
        """Give up all collections."""
        for name in list(self._collections):
            self.drop(name)

    def create(self, name: str, size: int, distance: str = "Cosine", metadata: dict[str, Any] | None = None) -> None:
        """Make a collection, as another program would."""
        folder = Path(tempfile.mkdtemp(prefix="qdrant-stand-in-"))
        parameters = edge.EdgeVectorParams(size=size, distance=_DISTANCES[distance])
        shard = edge.EdgeShard.create(str(folder), edge.EdgeConfig(vectors=parameters, wal_enabled=False))
        self._collections[name] = _Collection(shard, folder, size, distance, metadata=dict(metadata or {}))

    def put(self, name: str, number: int | str, vector: list[float], payload: dict[str, Any]) -> None:
        """Put one point into a collection, as another program would."""
        point = edge.Point(_id(number), vector, payload)
        self._collections[name].shard.update(edge.UpdateOperation.upsert_points([point]))

    def drop(self, name: str) -> None:
        """Delete a collection."""
        collection = self._collections.pop(name)
        collection.shard.close()
        shutil.rmtree(collection.folder, ignore_errors=True)

    def payloads(self, name: str) -> dict[Any, dict[str, Any]]:
        """All payloads of a collection by id."""
        found, _ = self._collections[name].shard.scroll(edge.ScrollRequest(limit=1_000_000, with_payload=True))
        return {point.id: dict(point.payload or {}) for point in found}

    def metadata(self, name: str) -> dict[str, Any]:
        """The metadata of a collection."""
        return self._collections[name].metadata

    def _on_loop(self, action: Callable[[], None]) -> None:
        if self._loop is None:
            action()
            return
        done = threading.Event()
        self._loop.call_soon_threadsafe(action)
        self._loop.call_soon_threadsafe(done.set)
        done.wait()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        started = time.perf_counter()
        parts = [part for part in request.path.split("/") if part]
        route = "/".join(
            ["*" if place == 1 and parts[0] == "collections" else part for place, part in enumerate(parts)]
        )
        call = f"{request.method} {route}"
        self.calls[call] = self.calls.get(call, 0) + 1
        body = await request.read()
        fate = self.behaviour.take()
        await fate.before_answer()
        if fate.nonsense:
            return web.Response(text="<html>It works!</html>", content_type="text/html")
        if self.before_answer is not None:
            self.before_answer(call)
        try:
            self._check_key(request, call)
            result = self._carry_out(call, parts, json.loads(body) if body else {})
        except _Refused as error:
            status: Any = {"error": str(error)}
            return web.json_response({"status": status, "time": 0.0}, status=error.status)
        except (ValueError, KeyError, TypeError) as error:
            status = {"error": f"Format error in JSON body: {error}"}
            return web.json_response({"status": status, "time": 0.0}, status=400)
        await fate.before_body(request)
        return web.json_response({"result": result, "status": "ok", "time": time.perf_counter() - started})

    def _check_key(self, request: web.Request, call: str) -> None:
        if self.api_key is None and self.read_only_key is None:
            return
        sent = request.headers.get("api-key") or request.headers.get("Authorization", "").removeprefix("Bearer ")
        if sent and sent == self.api_key:
            return
        if not sent or sent != self.read_only_key:
            raise _Refused(401, "Invalid API key or JWT")
        if call not in _READS:
            raise _Refused(403, "Forbidden: Global manage access is required")

    def _carry_out(self, call: str, parts: list[str], body: dict[str, Any]) -> Any:
        if call == "GET collections":
            return {"collections": [{"name": name} for name in self._collections]}
        name = parts[1] if len(parts) > 1 else ""
        if call == "PUT collections/*":
            return self._create(name, body)
        collection = self._collections.get(name)
        action = _ACTIONS.get(call)
        if action is None:
            raise _Refused(404, f"{call} is not part of this stand-in")
        if collection is None:
            raise _Refused(404, f"Not found: Collection `{name}` doesn't exist!")
        return action(self, collection, body)

    def _create(self, name: str, body: dict[str, Any]) -> bool:
        if name in self._collections:
            raise _Refused(409, f"Wrong input: Collection `{name}` already exists!")
        vectors = body["vectors"]
        self.create(name, vectors["size"], vectors["distance"], None if self.old else body.get("metadata"))
        return True

    def _info(self, collection: _Collection, _body: dict[str, Any]) -> dict[str, Any]:
        count = collection.shard.count(edge.CountRequest(exact=True))
        schema = {name: {"data_type": kind, "points": count} for name, kind in collection.indexes.items()}
        config: dict[str, Any] = {
            "params": {"vectors": {"size": collection.size, "distance": collection.distance}, "shard_number": 1},
            "hnsw_config": {"m": 16, "ef_construct": 100, "full_scan_threshold": 10000},
            "optimizer_config": {
                "deleted_threshold": 0.2,
                "vacuum_min_vector_number": 1000,
                "default_segment_number": 0,
                "flush_interval_sec": 5,
            },
        }
        if collection.metadata and not self.old:
            config["metadata"] = collection.metadata
        return {
            "status": "green",
            "optimizer_status": "ok",
            "points_count": count,
            "segments_count": 1,
            "config": config,
            "payload_schema": schema,
        }

    def _update(self, collection: _Collection, body: dict[str, Any]) -> bool:
        if not self.old:
            for key, value in (body.get("metadata") or {}).items():
                if value is None:
                    collection.metadata.pop(key, None)
                else:
                    collection.metadata[key] = value
        return True

    def _index(self, collection: _Collection, body: dict[str, Any]) -> dict[str, Any]:
        if body.get("field_schema") != "keyword":
            raise _Refused(400, "this stand-in makes keyword indexes only")
        operation = edge.UpdateOperation.create_field_index(body["field_name"], edge.PayloadSchemaType.Keyword)
        collection.shard.update(operation)
        collection.indexes[body["field_name"]] = "keyword"
        return {"operation_id": 0, "status": "completed"}

    def _upsert(self, collection: _Collection, body: dict[str, Any]) -> dict[str, Any]:
        for point in body["points"]:
            if len(point["vector"]) != collection.size:
                message = f"Vector dimension error: expected dim: {collection.size}, got {len(point['vector'])}"
                raise _Refused(400, f"Wrong input: {message}")
        points = [edge.Point(_id(p["id"]), p["vector"], p.get("payload") or {}) for p in body["points"]]
        collection.shard.update(edge.UpdateOperation.upsert_points(points))
        return {"operation_id": 0, "status": "completed"}

    def _delete(self, collection: _Collection, body: dict[str, Any]) -> dict[str, Any]:
        ids = [_id(number) for number in body["points"]]
        collection.shard.update(edge.UpdateOperation.delete_points(ids))
        return {"operation_id": 0, "status": "completed"}

    def _retrieve(self, collection: _Collection, body: dict[str, Any]) -> list[dict[str, Any]]:
        ids = [_id(number) for number in body["ids"]]
        vectors = bool(body.get("with_vector"))
        return [_record(p, vectors) for p in collection.shard.retrieve(ids, with_payload=True, with_vector=vectors)]

    def _scroll(self, collection: _Collection, body: dict[str, Any]) -> dict[str, Any]:
        vectors = bool(body.get("with_vector"))
        offset = body.get("offset")
        found, following = collection.shard.scroll(
            edge.ScrollRequest(
                offset=None if offset is None else _id(offset),
                limit=body.get("limit", 10),
                filter=self._filter(collection, body.get("filter")),
                with_payload=bool(body.get("with_payload", True)),
                with_vector=vectors,
            )
        )
        after = following if isinstance(following, int | None) else str(following)
        return {"points": [_record(point, vectors) for point in found], "next_page_offset": after}

    def _query(self, collection: _Collection, body: dict[str, Any]) -> dict[str, Any]:
        vector = body["query"]
        if isinstance(vector, dict):
            vector = vector["nearest"]
        if len(vector) != collection.size:
            message = f"Vector dimension error: expected dim: {collection.size}, got {len(vector)}"
            raise _Refused(400, f"Wrong input: {message}")
        found = collection.shard.query(
            edge.QueryRequest(
                limit=body.get("limit", 10),
                query=edge.Query.Nearest(vector),
                filter=self._filter(collection, body.get("filter")),
                with_payload=bool(body.get("with_payload", False)),
                with_vector=False,
                params=edge.SearchParams(exact=True),
            )
        )
        points = [
            {
                "id": _plain(p.id),
                "version": p.version,
                "score": p.score,
                **({"payload": p.payload} if p.payload else {}),
            }
            for p in found
        ]
        return {"points": points}

    def _count(self, collection: _Collection, body: dict[str, Any]) -> dict[str, int]:
        wanted = self._filter(collection, body.get("filter"))
        return {"count": collection.shard.count(edge.CountRequest(filter=wanted, exact=True))}

    def _filter(self, collection: _Collection, body: dict[str, Any] | None) -> edge.Filter | None:
        if not body:
            return None
        if unknown := {key for key, value in body.items() if value} - {"must", "should", "must_not"}:
            raise _Refused(400, f"filter clauses {sorted(unknown)} are not part of this stand-in")
        clauses: dict[str, Any] = {
            name: [self._condition(collection, condition) for condition in body[name]]
            for name in ("must", "should", "must_not")
            if body.get(name)
        }
        return edge.Filter(**clauses)

    def _condition(self, collection: _Collection, body: dict[str, Any]) -> edge.FieldCondition:
        name, match = body["key"], body["match"]
        if self.strict and name not in collection.indexes:
            raise _Refused(
                400,
                f'Bad request: Index required but not found for "{name}" of one of the following types: [keyword]. '
                "Help: Create an index for this key or use a different filter.",
            )
        wanted = edge.MatchAny(match["any"]) if "any" in match else edge.MatchValue(match["value"])
        return edge.FieldCondition(name, match=wanted)


_ACTIONS: dict[str, Callable[[QdrantServer, _Collection, dict[str, Any]], Any]] = {
    "GET collections/*": QdrantServer._info,
    "PATCH collections/*": QdrantServer._update,
    "PUT collections/*/index": QdrantServer._index,
    "PUT collections/*/points": QdrantServer._upsert,
    "POST collections/*/points": QdrantServer._retrieve,
    "POST collections/*/points/delete": QdrantServer._delete,
    "POST collections/*/points/scroll": QdrantServer._scroll,
    "POST collections/*/points/query": QdrantServer._query,
    "POST collections/*/points/count": QdrantServer._count,
}
_READS = {"GET collections", *(call for call in _ACTIONS if call.startswith(("GET", "POST")) and "delete" not in call)}


def _id(value: Any) -> edge.PointId:
    return value if isinstance(value, int) else UUID(str(value))


def _plain(number: Any) -> int | str:
    return number if isinstance(number, int) else str(number)


def _record(point: Any, vectors: bool) -> dict[str, Any]:
    record: dict[str, Any] = {"id": _plain(point.id), "payload": point.payload}
    if vectors:
        record["vector"] = point.vector
    return record
