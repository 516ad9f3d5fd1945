"""`twllm model sizes`: what each size costs to train and to serve. No torch.

Parameters are counted by formula and held against transformers' own modules for every size (tests/model/test_sizes.py). Training memory is
for one device without sharding: fp32 weights, gradients and two moments are 16 bytes a parameter, activations come on top
(`twllm run --dry-run` counts them for a recipe). Serving memory is bf16 weights and one full context of keys and values.
"""

from dataclasses import dataclass

from twllm.model.sizes import SIZES, Size, count_parameters, train_flops_per_token

STATE_BYTES = 16  # fp32 weight, gradient and two Adam moments of a parameter
VOCABULARY = {"tiny": 4096, "mini": 16_000}  # what their recipes train; the others have Llama-2's 32,000
CONTEXT = {"tiny": 256, "mini": 1024}


@dataclass(frozen=True)
class SizeRow:
    """One line of the table; bytes and FLOPs."""

    name: str
    size: Size
    vocabulary: int
    context: int
    parameters: int
    train_flops_per_token: int
    serve_flops_per_token: int
    train_bytes: int
    weight_bytes: int
    cache_bytes: int


def serve_flops_per_token(size: Size, vocabulary: int, context: int) -> int:
    """FLOPs of one generated token after `context` tokens: 2 per weight in a matrix product, and attention over the cache."""
    training = train_flops_per_token(size, vocabulary, 0) // 3
    return training + 4 * size.L * size.D * context


def cache_bytes_per_token(size: Size, value_bytes: int = 2) -> int:
    """Keys and values of one token in all layers."""
    return 2 * size.L * size.K * (size.D // size.H) * value_bytes


def size_row(name: str, vocabulary: int | None = None, context: int | None = None) -> SizeRow:
    """The line of a size; without vocabulary and context, those of its recipe."""
    size = SIZES[name]
    V, T = vocabulary or VOCABULARY.get(name, 32_000), context or CONTEXT.get(name, 4096)
    parameters = count_parameters(size, V)
    return SizeRow(
        name, size, V, T, parameters, train_flops_per_token(size, V, T), serve_flops_per_token(size, V, T),
        STATE_BYTES * parameters, 2 * parameters, cache_bytes_per_token(size) * T,
    )  # fmt: skip
