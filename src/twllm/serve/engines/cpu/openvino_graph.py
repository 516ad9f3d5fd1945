"""A Llama-shaped checkpoint as an OpenVINO graph, built from safetensors in a tenth of a second: nothing is exported, nothing cached.

OpenVINO's exporter pins an older transformers, and a converted copy is 2 GB on the disk that can go stale. The weights here are the
mapped file itself. Key/value states are written the way OpenVINO's own pass expects them; it turns them into paged attention, so that
tokens of many sequences go through in one flat row. Matrix products are typed bf16 around fp32 norms and rotations: with fp32
products and the precision hint alone, compiling unpacks all weights to fp32 (1.1 B parameters: 9.7 s and 6.0 GB against 0.7 s).
B sequences, T tokens of each, D model width, H heads, K key/value heads, E width of a head, V vocabulary.
Not covered: what llama_shape.py refuses.
"""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import openvino as ov
import openvino.opset15 as ops
from numpy.typing import NDArray
from openvino._offline_transformations import paged_attention_transformation

from twllm.model.llama_shape import LlamaShape
from twllm.model.weights import Weights, to_bf16

Precision = Literal["fp32", "bf16", "int8"]
KINDS = {"BF16": ov.Type.bf16, "F16": ov.Type.f16, "F32": ov.Type.f32}
END = 1 << 62


def build(shape: LlamaShape, weights: Weights, precision: Precision, context: int) -> ov.Model:
    """Inputs: ids and positions of all tokens in a row, the block tables of paged attention, `rows` whose logits are wanted.

    The weights' memory is used, not copied, where kinds agree: keep `weights` as long as the model.
    int8: weights rounded per output row, symmetric, products in bf16.
    """
    model = _Llama(shape, weights, precision, context).model()
    paged_attention_transformation(model)
    rows = _input("rows", [-1], ov.Type.i64)
    head = next(node for node in model.get_ops() if node.get_friendly_name() == "lm_head")
    wanted = ops.gather(head.input_value(0), rows, _int(0))
    head.input(0).replace_source_output(wanted.output(0))
    model.add_parameters([rows])
    model.validate_nodes_and_infer_types()
    return model


class _Llama:
    """One graph in the making."""

    def __init__(self, shape: LlamaShape, weights: Weights, precision: Precision, context: int) -> None:
        self.shape, self.weights = shape, weights
        self.kind, self.quantised = (ov.Type.f32, False) if precision == "fp32" else (ov.Type.bf16, precision == "int8")
        self.states: list[Any] = []
        self.ids = _input("input_ids", [-1, -1], ov.Type.i64)
        self.mask = _input("attention_mask", [-1, -1], ov.Type.i64)
        self.positions = _input("position_ids", [-1, -1], ov.Type.i64)
        self.order = _input("beam_idx", [-1], ov.Type.i32)
        self.cos, self.sin = (self._table(function, context) for function in (np.cos, np.sin))
        self.batch = ops.gather(ops.shape_of(self.ids), _ints(0), _int(0))
        self.visible = ops.unsqueeze(ops.convert(self.mask, "f32"), _ints(1, 2))  # the pass replaces it by block tables

    def model(self) -> ov.Model:
        embedding = self.matrix("model.embed_tokens.weight")
        x = ops.convert(ops.gather(embedding, self.ids, _int(0)), "f32")  # (B, T, D)
        for layer in range(self.shape.layers):
            x = self.layer(x, f"model.layers.{layer}.", layer)
        x = self.norm(x, "model.norm.weight")
        tied = "lm_head.weight" not in self.weights
        product = self.product(x, "model.embed_tokens.weight" if tied else "lm_head.weight")
        product.set_friendly_name("lm_head")
        logits = ops.convert(product, "f32")  # (B, T, V)
        return ov.Model([ops.result(logits)], self.states, [self.ids, self.mask, self.positions, self.order], "llama")

    def layer(self, x: Any, prefix: str, number: int) -> Any:
        shape = self.shape
        h = self.norm(x, prefix + "input_layernorm.weight")
        query, key, value = (
            self.heads(self.linear(h, f"{prefix}self_attn.{name}_proj"), count)
            for name, count in (("q", shape.H), ("k", shape.K), ("v", shape.K))
        )
        if prefix + "self_attn.q_norm.weight" in self.weights:
            query, key = (self.norm(a, f"{prefix}self_attn.{n}_norm.weight") for a, n in ((query, "q"), (key, "k")))
        query, key = (self.rotate(ops.transpose(a, _ints(0, 2, 1, 3))) for a in (query, key))  # (B, H, T, E)
        value = ops.transpose(value, _ints(0, 2, 1, 3))
        key, value = (self.state(a, f"past_key_values.{number}.{n}") for a, n in ((key, "key"), (value, "value")))
        scale = ops.constant(np.float32(shape.E**-0.5))
        attended = ops.scaled_dot_product_attention(query, key, value, self.visible, scale)
        flat = ops.reshape(ops.transpose(attended, _ints(0, 2, 1, 3)), _ints(0, 0, shape.H * shape.E), True)
        x = ops.add(x, self.linear(flat, prefix + "self_attn.o_proj"))
        h = self.norm(x, prefix + "post_attention_layernorm.weight")
        gate, up = (self.linear(h, f"{prefix}mlp.{name}_proj") for name in ("gate", "up"))
        return ops.add(
            x, self.linear(ops.multiply(ops.multiply(gate, ops.sigmoid(gate)), up), prefix + "mlp.down_proj")
        )

    def norm(self, x: Any, name: str) -> Any:
        """RMS norm over the last axis."""
        mean = ops.reduce_mean(ops.power(x, ops.constant(np.float32(2))), _ints(-1), keep_dims=True)
        inverse = ops.divide(
            ops.constant(np.float32(1)), ops.sqrt(ops.add(mean, ops.constant(np.float32(self.shape.epsilon))))
        )
        return ops.multiply(ops.constant(self.weights.f32(name)), ops.multiply(x, inverse))

    def linear(self, x: Any, name: str) -> Any:
        y = self.product(x, name + ".weight")
        y = y if self.quantised else ops.convert(y, "f32")
        return ops.add(y, ops.constant(self.weights.f32(name + ".bias"))) if name + ".bias" in self.weights else y

    def product(self, x: Any, name: str) -> Any:
        if self.quantised:
            return ops.matmul(x, self.rounded(name), False, True)
        return ops.matmul(ops.convert(x, self.kind), self.matrix(name), False, True)

    def matrix(self, name: str) -> Any:
        array, kind = self.weights[name]
        if KINDS[kind] != self.kind:
            array = self.weights.f32(name) if self.kind == ov.Type.f32 else to_bf16(self.weights.f32(name))
            return _constant(array, self.kind, shared=False)
        return _constant(array, self.kind, shared=True)

    def rounded(self, name: str) -> Any:
        """int8 times a scale per output row."""
        array = self.weights.f32(name)
        scale = np.maximum(np.abs(array).max(axis=1, keepdims=True), 1e-8) / 127
        numbers = np.rint(array / scale).astype(np.int8)
        return ops.multiply(ops.convert(ops.constant(numbers), "f32"), ops.constant(scale.astype(np.float32)))

    def heads(self, x: Any, count: int) -> Any:
        return ops.reshape(x, _ints(0, 0, count, self.shape.E), True)  # (B, T, H, E)

    def rotate(self, x: Any) -> Any:
        """Rotary positions (arXiv 2104.09864), halves as transformers stores them."""
        half = self.shape.E // 2
        first = ops.slice(x, _ints(0), _ints(half), _ints(1), _ints(3))
        second = ops.slice(x, _ints(half), _ints(END), _ints(1), _ints(3))
        turned = ops.concat([ops.multiply(second, ops.constant(np.float32(-1))), first], -1)
        return ops.add(ops.multiply(x, self.cos), ops.multiply(turned, self.sin))

    def state(self, x: Any, name: str) -> Any:
        """Keys or values so far and these, (B, H, T, E); shared by the query heads of a group."""
        H, K, E = self.shape.H, self.shape.K, self.shape.E
        empty = ops.broadcast(ops.constant(np.float32(0)), ops.concat([self.batch, _ints(K, 0, E)], 0))
        past = ops.read_value(empty, name, ov.Type.f32, ov.PartialShape([-1, K, -1, E]))
        whole = ops.concat([ops.gather(past, self.order, _int(0)), x], 2)
        self.states.append(ops.assign(whole, name))
        if K == H:
            return whole
        sizes = ops.shape_of(whole)
        ends = (ops.gather(sizes, _ints(*axes), _int(0)) for axes in ((0, 1), (2, 3)))
        target = ops.concat([next(ends), _ints(H // K), next(ends)], 0)
        repeated = ops.broadcast(ops.unsqueeze(whole, _ints(2)), target, "BIDIRECTIONAL")
        return ops.reshape(repeated, _ints(0, H, -1, E), True)

    def _table(self, function: Callable[[Any], Any], context: int) -> Any:
        """cos or sin of all positions, looked up: (B, 1, T, E)."""
        angles = np.outer(np.arange(context, dtype=np.float32), self.shape.frequencies())
        table = function(np.concatenate([angles, angles], -1)).astype(np.float32)
        return ops.unsqueeze(ops.gather(ops.constant(table), self.positions, _int(0)), _ints(1))


def _input(name: str, shape: list[int], kind: ov.Type) -> Any:
    node = ops.parameter(shape, kind, name=name)
    node.output(0).get_tensor().set_names({name})
    return node


def _tensor(array: NDArray[Any], kind: ov.Type) -> ov.Tensor:
    return ov.Tensor(array, ov.Shape(list(array.shape)), kind)


def _constant(array: NDArray[Any], kind: ov.Type, *, shared: bool) -> Any:
    return ops.constant(_tensor(np.ascontiguousarray(array), kind), shared_memory=shared)


def _int(value: int) -> Any:
    return ops.constant(np.int64(value))


def _ints(*values: int) -> Any:
    return ops.constant(np.array(values, np.int64))
