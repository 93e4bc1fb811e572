"""Sentence vectors on onnxruntime and tokenizers: one thread, no torch.

Load an `Embedder` in the forkserver: the processes forked from it share its 50 MB copy-on-write, each adds about 4 MB
of its own. Nothing here starts a thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from agent.errors import ModelFileError, first_line

Vector = npt.NDArray[np.float32]
Pooling = Literal["none", "mean", "cls"]

# Longer texts are cut before the tokenizer reads them: it would read all of a megabyte to keep 256 tokens.
_MAX_CHARACTERS: Final = 4000
_TOLERANCE: Final = 0.008
_INPUTS: Final = {"input_ids", "attention_mask", "token_type_ids"}


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """One embedding model, ready to load.

    `pooling` says what the graph leaves to do: "none" gives sentence vectors, "mean" and "cls" token vectors.
    `source` is where the files came from, for people.
    """

    name: str
    dimension: int
    max_tokens: int
    pooling: Pooling
    query_prefix: str
    document_prefix: str
    source: str
    graph: Path
    tokenizer: Path


class Embedder:
    """Turns a text into a vector of length 1. Safe to call from several threads; a call takes 2–5 ms of CPU.

    `name` and `dimension` identify the model: vectors of another one must not be compared with these.
    Raises ModelFileError where the files cannot be loaded.
    """

    def __init__(self, files: ModelFiles) -> None:
        from tokenizers import Tokenizer

        self.name = files.name
        self.dimension = files.dimension
        self._files = files
        self._session = open_graph(files.graph)
        self._inputs = {item.name for item in self._session.get_inputs()}
        if not {"input_ids", "attention_mask"} <= self._inputs or not self._inputs <= _INPUTS:
            raise ModelFileError(f"the model takes {', '.join(sorted(self._inputs))}: not a sentence model")
        self._output = _output(self._session).name
        try:
            self._tokenizer = Tokenizer.from_file(str(files.tokenizer))
        except Exception as error:  # tokenizers raises bare Exception for every unreadable file
            raise ModelFileError(f"{files.tokenizer} cannot be read: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(files.max_tokens)

    def embed(self, text: str) -> Vector:
        """Vector of what somebody asks for: float32, shape (dimension,), length 1."""
        return self._run(self._files.query_prefix + text)

    def embed_document(self, text: str) -> Vector:
        """Vector of what can be found; the same as `embed` unless the model tells the two apart."""
        return self._run(self._files.document_prefix + text)

    def _run(self, text: str) -> Vector:
        encoded = self._tokenizer.encode(
            text[:_MAX_CHARACTERS].encode("utf-8", "replace").decode()
        )  # no lone surrogates
        feeds = {
            "input_ids": np.array([encoded.ids], np.int64),
            "attention_mask": np.array([encoded.attention_mask], np.int64),
        }
        if "token_type_ids" in self._inputs:
            feeds["token_type_ids"] = np.zeros_like(feeds["input_ids"])
        result = self._session.run([self._output], feeds)[0][0]
        if self._files.pooling == "cls":
            result = result[0]
        elif self._files.pooling == "mean":
            result = result.mean(axis=0)  # nothing is padded: every token counts
        vector: Vector = np.asarray(result, np.float32)
        return vector / max(float(np.linalg.norm(vector)), 1e-12)


def open_graph(path: Path) -> Any:
    """An inference session on one thread of the caller. Raises ModelFileError where `path` is no usable graph."""
    import onnxruntime

    options = onnxruntime.SessionOptions()  # type: ignore[attr-defined]
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(  # type: ignore[attr-defined]
            str(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's errors share no base class
        raise ModelFileError(f"{path.name} is not a usable model: {first_line(error)}") from error


def graph_output(path: Path) -> tuple[int, bool]:
    """Dimension of the graph's vectors, and whether it gives one a sentence rather than one a token."""
    shape = _output(open_graph(path)).shape
    return int(shape[-1]), len(shape) == 2


def check_vectors(embedder: Embedder, known: Mapping[str, Sequence[float]]) -> None:
    """Raise ModelFileError unless the model embeds sensibly and as `known` (text to first components) says."""
    for text, expected in known.items():
        if np.abs(embedder.embed(text)[: len(expected)] - np.array(expected)).max() > _TOLERANCE:
            raise ModelFileError("the model computes other vectors than the published ones")
    near, other, far = (embedder.embed(text) for text in ("a song about a star", "a song about stars", "tax return"))
    if near.shape != (embedder.dimension,) or not np.isfinite([near, other, far]).all() or near @ other <= near @ far:
        raise ModelFileError("the model does not tell sentences apart: it is damaged or no sentence model")


def _output(session: Any) -> Any:
    """The graph's output with sentence vectors, else the one with token vectors."""
    outputs = [item for item in session.get_outputs() if isinstance(item.shape[-1], int)]
    for rank in (2, 3):
        for item in outputs:
            if len(item.shape) == rank:
                return item
    raise ModelFileError("the model gives no vectors")
