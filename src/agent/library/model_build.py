"""Turns the published weights of all-MiniLM-L6-v2 into the ONNX graph that serves: no torch, a few seconds, once.

The graph takes `input_ids` and `attention_mask` (int64, batch x sequence) and gives `sentence_embedding` (float32,
batch x 384): mean over the tokens, length 1. Matrix weights are int8 in blocks of 32 with one scale each
(`MatMulNBits`), the word table int8 with one scale a row; everything else stays float32. Against float32 that is a
quarter of the memory and twice the speed, every row is computed by itself (a text's vector does not depend on its
batch), and on short requests the nearest title is the same: `scripts/bench engines` measures it.

Needs the packages `onnx` and `safetensors` (the `models` extra); serving does not.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from agent.errors import ModelFileError

Precision = Literal["int8", "float32"]

_BLOCK: Final = 32
_CONTRIB: Final = "com.microsoft"


class _Graph:
    """Nodes and constants of the graph under construction; every method returns the name of its output."""

    def __init__(self, weights: dict[str, npt.NDArray[np.float32]], precision: Precision) -> None:
        from onnx import helper

        self._helper = helper
        self.weights = weights
        self.precision = precision
        self.nodes: list[Any] = []
        self.constants: dict[str, npt.NDArray[Any]] = {}

    def constant(self, name: str, value: npt.NDArray[Any] | np.generic) -> str:
        self.constants[name] = np.ascontiguousarray(value).reshape(np.shape(value))
        return name

    def shape(self, name: str, *values: int) -> str:
        return self.constant(name, np.array(values, np.int64))

    def node(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(self._helper.make_node(operator, inputs, [output], **attributes))
        return output

    def split(self, source: str, outputs: list[str]) -> None:
        self.nodes.append(self._helper.make_node("Split", [source], outputs, axis=-1, num_outputs=len(outputs)))

    def layer_norm(self, source: str, prefix: str, output: str, epsilon: float) -> str:
        scale = self.constant(f"{prefix}.weight", self.weights[f"{prefix}.weight"])
        bias = self.constant(f"{prefix}.bias", self.weights[f"{prefix}.bias"])
        return self.node("LayerNormalization", [source, scale, bias], output, axis=-1, epsilon=epsilon)

    def linear(self, source: str, prefixes: list[str], output: str) -> str:
        """x @ W.T + b, the layers of `prefixes` side by side."""
        weight = np.concatenate([self.weights[f"{prefix}.weight"] for prefix in prefixes])  # out x in
        bias = np.concatenate([self.weights[f"{prefix}.bias"] for prefix in prefixes])
        product = self._product(source, weight, output)
        return self.node("Add", [product, self.constant(f"{output}.bias", bias)], output)

    def _product(self, source: str, weight: npt.NDArray[np.float32], output: str) -> str:
        if self.precision == "float32":
            return self.node("MatMul", [source, self.constant(f"{output}.weight", weight.T)], f"{output}.product")
        rows, columns = weight.shape
        blocks = weight.reshape(rows, columns // _BLOCK, _BLOCK)
        scales = np.abs(blocks).max(axis=2) / 127
        scales[scales == 0] = 1
        quantised = (np.rint(blocks / scales[..., None]) + 128).clip(1, 255).astype(np.uint8)
        return self.node(
            "MatMulNBits",
            [
                source,
                self.constant(f"{output}.weight", quantised),
                self.constant(f"{output}.scales", scales.astype(np.float32)),
            ],
            f"{output}.product",
            domain=_CONTRIB,
            K=columns,
            N=rows,
            bits=8,
            block_size=_BLOCK,
            accuracy_level=4,
        )

    def word_rows(self, identifiers: str) -> str:
        table = self.weights["embeddings.word_embeddings.weight"]
        if self.precision == "float32":
            return self.node("Gather", [self.constant("words", table), identifiers], "word_rows")
        scales = np.abs(table).max(axis=1, keepdims=True) / 127
        scales[scales == 0] = 1
        rows = self.node(
            "Gather", [self.constant("words", np.rint(table / scales).astype(np.int8)), identifiers], "rows8"
        )
        factors = self.node(
            "Gather", [self.constant("word_scales", scales.astype(np.float32)), identifiers], "row_scales"
        )
        return self.node("Mul", [self.node("Cast", [rows], "rows32", to=1), factors], "word_rows")


def build_minilm(weights_dir: Path, output: Path, precision: Precision = "int8") -> None:
    """Write the graph for the BERT weights in `weights_dir` (`config.json`, `model.safetensors`) to `output`.

    Raises ModelFileError where the `models` extra is missing or the files are not such a model.
    """
    try:
        import onnx
        from onnx import TensorProto, helper, numpy_helper
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError as error:
        raise ModelFileError(
            f"building the embedding model needs the package {error.name}: install the 'models' extra "
            "(pip install '.[models]'), or give a folder that has model.onnx and tokenizer.json"
        ) from None
    try:
        config = json.loads((weights_dir / "config.json").read_text())
        weights = {
            name: value.astype(np.float32)
            for name, value in load_file(weights_dir / "model.safetensors").items()
            if value.dtype.kind == "f"
        }
        graph = _Graph(weights, precision)
        _encoder(graph, config)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelFileError(f"not the weights of a BERT sentence model: {type(error).__name__}: {error}") from error
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
        for name in ("input_ids", "attention_mask")
    ]
    result = helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["batch", config["hidden_size"]])
    tensors = [numpy_helper.from_array(value, name) for name, value in graph.constants.items()]
    model = helper.make_model(
        helper.make_graph(graph.nodes, "sentence-embedding", inputs, [result], tensors),
        opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid(_CONTRIB, 1)],
        ir_version=9,
    )
    onnx.save(model, output)


def _encoder(g: _Graph, config: dict[str, Any]) -> None:
    hidden, layers, heads = config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"]
    epsilon = config["layer_norm_eps"]
    # Token type is always 0, so its one row is folded into the positions.
    positions = (
        g.weights["embeddings.position_embeddings.weight"] + g.weights["embeddings.token_type_embeddings.weight"][0]
    )
    axis1, axis2 = g.shape("axis1", 1), g.shape("axis2", 2)
    length = g.node("Shape", ["input_ids"], "length", start=1, end=2)
    used = g.node(
        "Slice", [g.constant("positions", positions), g.shape("zero", 0), length, g.shape("axis0", 0)], "used"
    )
    embedded = g.node("Add", [g.word_rows("input_ids"), used], "embedded")
    x = g.layer_norm(embedded, "embeddings.LayerNorm", "x0", epsilon)

    mask = g.node("Cast", ["attention_mask"], "mask", to=1)
    mask4 = g.node("Unsqueeze", [mask, g.shape("axes12", 1, 2)], "mask4")
    hole = g.node("Sub", [g.constant("one", np.float32(1)), mask4], "hole")
    bias = g.node("Mul", [hole, g.constant("far", np.float32(-1e4))], "attention_bias")
    g.shape("heads", 0, 0, heads, hidden // heads)
    g.shape("merged", 0, 0, hidden)
    g.constant("scale", np.float32((hidden // heads) ** -0.5))

    for layer in range(layers):
        prefix, name = f"encoder.layer.{layer}", f"l{layer}"
        parts = [f"{name}.{part}" for part in ("query", "key", "value")]
        qkv = g.linear(x, [f"{prefix}.attention.self.{part}" for part in ("query", "key", "value")], f"{name}.qkv")
        g.split(qkv, parts)
        query, key, value = (
            g.node("Transpose", [g.node("Reshape", [part, "heads"], f"{part}.heads")], f"{part}.t", perm=order)
            for part, order in zip(parts, ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]), strict=True)
        )
        scores = g.node("MatMul", [g.node("Mul", [query, "scale"], f"{name}.scaled"), key], f"{name}.scores")
        shares = g.node("Softmax", [g.node("Add", [scores, bias], f"{name}.masked")], f"{name}.shares", axis=-1)
        context = g.node("MatMul", [shares, value], f"{name}.context")
        context = g.node("Transpose", [context], f"{name}.context.t", perm=[0, 2, 1, 3])
        context = g.node("Reshape", [context, "merged"], f"{name}.merged")
        attended = g.linear(context, [f"{prefix}.attention.output.dense"], f"{name}.attended")
        summed = g.node("Add", [attended, x], f"{name}.sum1")
        y = g.layer_norm(summed, f"{prefix}.attention.output.LayerNorm", f"{name}.y", epsilon)
        wide = g.node("Gelu", [g.linear(y, [f"{prefix}.intermediate.dense"], f"{name}.wide")], f"{name}.gelu")
        narrow = g.linear(wide, [f"{prefix}.output.dense"], f"{name}.narrow")
        summed = g.node("Add", [narrow, y], f"{name}.sum2")
        x = g.layer_norm(summed, f"{prefix}.output.LayerNorm", f"{name}.x", epsilon)

    mask3 = g.node("Unsqueeze", [mask, axis2], "mask3")
    total = g.node("ReduceSum", [g.node("Mul", [x, mask3], "kept"), axis1], "total", keepdims=0)
    count = g.node("ReduceSum", [mask3, axis1], "count", keepdims=0)
    count = g.node("Max", [count, g.constant("some", np.float32(1e-9))], "count1")
    mean = g.node("Div", [total, count], "mean")
    norm = g.node("ReduceL2", [mean, axis1], "norm", keepdims=1)
    norm = g.node("Max", [norm, g.constant("tiny", np.float32(1e-12))], "norm1")
    g.node("Div", [mean, norm], "sentence_embedding")
