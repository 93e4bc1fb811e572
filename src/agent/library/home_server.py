"""The server home: music and stories in a Qdrant server's collections, which others may have filled.

Importing this module costs nothing; constructing a `ServerHome` imports qdrant-client (2 s of CPU, 100 MB), so only the
worker and the command line do so. Calls are synchronous, each bounded in time as a whole and in the size of its answer.

Ids of points may be numbers or UUIDs. What this library adds to a collection is kept in the collection's own metadata
(Qdrant 1.16 and later; older servers ignore it and lose nothing else): the embedding model, a version that changes with
every load, and the time of the last sign of life of a load under way.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import numpy as np
import structlog

from agent.errors import (
    LibraryError,
    Malformed,
    NotFound,
    RateLimited,
    Rejected,
    RemoteError,
    Unauthorised,
    Unavailable,
)
from agent.library.embedding import Vector
from agent.library.home import CollectionState, Entry, mismatch
from agent.library.payload import SECTION_FIELDS, from_payload, to_payload
from agent.library.titles import KINDS, Kind, Title

_log = structlog.get_logger(__name__)

_T = TypeVar("_T")

_PAGE: Final = 256
_BATCH: Final = 128
_MAX_TITLES: Final = 200_000
_MAX_ANSWER_BYTES: Final = 64 * 2**20
_ALIVE_SECONDS: Final = 10.0
_STALE_SECONDS: Final = 120.0

_MODEL, _VERSION, _LOADING = "embedding_model", "catalogue_version", "catalogue_loading_at"


class ServerHome:
    """A `Home` on a Qdrant server. One thread at a time.

    `collections` names the collection of each kind; `timeout` is how long one call may take, in seconds. `client` is a
    QdrantClient to use instead of one made for `url`.
    """

    def __init__(
        self,
        url: str,
        collections: Mapping[Kind, str],
        *,
        api_key: str | None = None,
        timeout: float = 1.5,
        client: Any = None,
    ) -> None:
        self._url = url
        self._collections = collections
        self._client = client if client is not None else _connect(url, api_key, timeout)
        self._uuids: dict[Kind, dict[int, str]] = {kind: {} for kind in KINDS}
        self._told: dict[Kind, int] = {}

    @property
    def name(self) -> str:
        return f"Qdrant at {urlsplit(self._url).hostname}"

    def state(self, kind: Kind) -> CollectionState:
        collection = self._collections[kind]
        try:
            info = self._call(self._client.get_collection, collection)
        except NotFound:
            return CollectionState(exists=False)
        vectors = info.config.params.vectors
        if vectors is None or isinstance(vectors, dict):
            raise LibraryError(f"collection {collection} has named vectors: one unnamed vector a title is expected")
        if vectors.distance.value not in {"Cosine", "Dot"}:
            raise LibraryError(f"collection {collection} measures {vectors.distance.value}: Cosine is expected")
        metadata = info.config.metadata or {}
        field = SECTION_FIELDS[kind]
        return CollectionState(
            exists=True,
            count=info.points_count or 0,
            dimension=vectors.size,
            model=_text(metadata.get(_MODEL)),
            version=_text(metadata.get(_VERSION)),
            loading=_recent(metadata.get(_LOADING)),
            readable_by_filter=field in info.payload_schema,
        )

    def index_sections(self, kind: Kind) -> bool:
        """Make the payload index that filters need; False where the key may not (reading works without it)."""
        from qdrant_client.models import PayloadSchemaType

        field = SECTION_FIELDS[kind]
        try:
            self._call(
                self._client.create_payload_index,
                self._collections[kind],
                field,
                field_schema=PayloadSchemaType.KEYWORD,
                wait=True,
            )
        except (Unauthorised, Rejected) as error:
            _log.info("qdrant_payload_index_not_made", collection=self._collections[kind], field=field, why=str(error))
            return False
        return True

    def titles(self, kind: Kind) -> list[Title]:
        titles = [title for _, title in self._usable(kind, vectors=False)]
        return sorted(titles, key=lambda title: title.id)

    def entries(self, kind: Kind) -> list[Entry]:
        state = self.state(kind)
        found = []
        without = 0
        for point, title in self._usable(kind, vectors=True):
            vector = np.asarray(point.vector if isinstance(point.vector, list) else [], np.float32)
            norm = float(np.linalg.norm(vector))
            if vector.shape != (state.dimension,) or not np.isfinite(norm) or norm == 0:
                vector, norm = np.zeros(state.dimension, np.float32), 1.0
                without += 1
            found.append(Entry(title, vector / np.float32(norm)))
        if without:
            _log.warning("qdrant_points_without_vector", collection=self._collections[kind], points=without)
        return sorted(found, key=lambda entry: entry.title.id)

    def search(
        self, kind: Kind, vector: Vector, *, sections: Collection[str] | None = None, limit: int = 5
    ) -> list[tuple[int, float]]:
        from qdrant_client import models

        if sections is not None and not sections:
            return []
        wanted = None
        if sections is not None:
            condition = models.FieldCondition(key=SECTION_FIELDS[kind], match=models.MatchAny(any=sorted(sections)))
            wanted = models.Filter(must=[condition])
        answer = self._call(
            self._client.query_points,
            self._collections[kind],
            query=vector.tolist(),
            query_filter=wanted,
            limit=limit,
            with_payload=False,
        )
        found = [(_number(point.id), float(point.score)) for point in answer.points]
        return sorted(found, key=lambda pair: (-pair[1], pair[0]))

    @contextmanager
    def loading(self, kind: Kind, model: str, dimension: int) -> Iterator[_Upload]:
        from qdrant_client import models

        collection = self._collections[kind]
        state = self.state(kind)
        if problem := mismatch(f"collection {collection}", state, model, dimension):
            raise LibraryError(problem)
        if not state.exists:
            size = models.VectorParams(size=dimension, distance=models.Distance.COSINE)
            self._call(self._client.create_collection, collection, vectors_config=size)
        upload = _Upload(self, kind)
        upload.sign_of_life()
        self.index_sections(kind)
        try:
            yield upload
        except BaseException:  # whatever ended the load, readers need not wait for it; what was put is valid by itself
            try:
                self.mark(kind, {_LOADING: None, _VERSION: uuid.uuid4().hex})
            except RemoteError:
                _log.warning("qdrant_load_mark_left", collection=collection, seconds=_STALE_SECONDS)
            raise
        self.mark(kind, {_LOADING: None, _VERSION: uuid.uuid4().hex, _MODEL: model})

    def close(self) -> None:
        self._client.close()

    def mark(self, kind: Kind, metadata: dict[str, Any]) -> None:
        """Merge `metadata` into the collection's; None removes a key."""
        self._call(self._client.update_collection, self._collections[kind], metadata=metadata)

    def upsert(self, kind: Kind, entries: Sequence[Entry]) -> None:
        """Put entries into the collection; payload fields of theirs that are not ours stay, as do UUIDs once read."""
        from qdrant_client import models

        collection = self._collections[kind]
        for start in range(0, len(entries), _BATCH):
            batch = entries[start : start + _BATCH]
            ids = [self._point_id(kind, entry.title.id) for entry in batch]
            known = self._call(self._client.retrieve, collection, ids, with_payload=True)
            kept = {_number(point.id): point.payload or {} for point in known}
            points = [
                models.PointStruct(
                    id=number,
                    vector=entry.vector.tolist(),
                    payload={**kept.get(entry.title.id, {}), **to_payload(entry.title)},
                )
                for number, entry in zip(ids, batch, strict=True)
            ]
            self._call(self._client.upsert, collection, points, wait=True)

    def delete(self, kind: Kind, ids: Collection[int]) -> None:
        """Remove titles."""
        chosen = [self._point_id(kind, number) for number in sorted(ids)]
        for start in range(0, len(chosen), 1000):
            part: Any = chosen[start : start + 1000]
            self._call(self._client.delete, self._collections[kind], part, wait=True)

    def _scroll(self, kind: Kind, *, vectors: bool) -> Iterator[Any]:
        offset: Any = None
        seen: set[Any] = set()
        while True:
            page, following = self._call(
                self._client.scroll,
                self._collections[kind],
                limit=_PAGE,
                offset=offset,
                with_payload=True,
                with_vectors=vectors,
            )
            for point in page:
                if point.id not in seen:
                    seen.add(point.id)
                    yield point
            if following is None:
                return
            if following == offset or not page or len(seen) > _MAX_TITLES:
                raise Malformed(f"{self.name} does not come to the end of {self._collections[kind]}")
            offset = following

    def _usable(self, kind: Kind, *, vectors: bool) -> Iterator[tuple[Any, Title]]:
        """Points and their titles. Points that are none are told once, and again when there are others."""
        refused: list[str] = []
        for point in self._scroll(kind, vectors=vectors):
            number = _number(point.id)
            if not isinstance(point.id, int):
                self._uuids[kind][number] = str(point.id)
            try:
                title = from_payload(kind, number, point.payload or {})
            except LibraryError as error:
                refused.append(f"{point.id}: {error}")
                continue
            yield point, title
        content = hash(tuple(refused))
        if refused and content != self._told.get(kind):
            collection = self._collections[kind]
            _log.warning("qdrant_points_unusable", collection=collection, points=len(refused), examples=refused[:3])
        self._told[kind] = content

    def _point_id(self, kind: Kind, number: int) -> int | str:
        return self._uuids[kind].get(number, number)

    def _call(self, request: Callable[..., _T], *arguments: Any, **options: Any) -> _T:
        """Run one request; its errors become this project's."""
        from httpx import HTTPError
        from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
        from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

        try:
            return request(*arguments, **options)
        except ResourceExhaustedResponse as error:
            raise RateLimited(f"{self.name} asks for patience", float(error.retry_after_s)) from error
        except UnexpectedResponse as error:
            raise self._refusal(error.status_code or 0, error.content) from error
        except ResponseHandlingException as error:
            if isinstance(error.source, HTTPError | OSError):
                raise Unavailable(f"{self.name} does not answer: {type(error.source).__name__}") from error
            raise Malformed(f"{self.name} answers something that is not Qdrant's") from error
        except RemoteError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise Malformed(f"{self.name} answers something that is not Qdrant's: {type(error).__name__}") from error

    def _refusal(self, status: int, content: bytes) -> RemoteError:
        said = content[:200].decode(errors="replace")
        if status in {401, 403}:
            return Unauthorised(
                f"{self.name} refuses QDRANT_API_KEY for this call (HTTP {status}): a key that may do it is needed"
            )
        if status == 404:
            return NotFound(f"{self.name} has no such collection (HTTP 404)")
        if status == 429 or status >= 500:
            return Unavailable(f"{self.name} answers HTTP {status}")
        if 400 <= status < 500:
            return Rejected(f"{self.name} refuses the call (HTTP {status}): {said}")
        return Malformed(f"{self.name} answers HTTP {status}")


class _Upload:
    """A load of a server's collection: points are put at once, readers wait while it gives signs of life."""

    def __init__(self, home: ServerHome, kind: Kind) -> None:
        self._home = home
        self._kind = kind
        self._alive = 0.0

    def put(self, entries: Sequence[Entry]) -> None:
        self.sign_of_life()
        self._home.upsert(self._kind, entries)

    def remove(self, ids: Collection[int]) -> None:
        self.sign_of_life()
        self._home.delete(self._kind, ids)

    def sign_of_life(self) -> None:
        if time.monotonic() - self._alive >= _ALIVE_SECONDS or not self._alive:
            self._home.mark(self._kind, {_LOADING: time.time()})
            self._alive = time.monotonic()


def _connect(url: str, api_key: str | None, timeout: float) -> Any:
    from qdrant_client import QdrantClient

    from agent.library.http_bounds import BoundedTransport

    transport = BoundedTransport(timeout, _MAX_ANSWER_BYTES)
    return QdrantClient(url=url, api_key=api_key, check_compatibility=False, transport=transport)


def _number(point_id: Any) -> int:
    """A point's id as a title's: a number as it is, a UUID by its hash, the same every time."""
    if isinstance(point_id, int):
        return point_id
    return int.from_bytes(hashlib.sha256(str(point_id).lower().encode()).digest()[:8]) >> 1


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _recent(value: Any) -> bool:
    return isinstance(value, int | float) and abs(time.time() - value) < _STALE_SECONDS
