"""Model shapes by name, with parameter, FLOP and memory counts that need no torch."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Size:
    """A Llama shape. D model width, L layers, H heads, K key/value heads, F feed-forward width."""

    D: int
    L: int
    H: int
    K: int
    F: int
    tied: bool = False

    def llama(self, vocab_size: int, context: int) -> dict[str, Any]:
        """Keyword arguments of transformers' LlamaConfig."""
        return {
            "vocab_size": vocab_size,
            "hidden_size": self.D,
            "intermediate_size": self.F,
            "num_hidden_layers": self.L,
            "num_attention_heads": self.H,
            "num_key_value_heads": self.K,
            "max_position_embeddings": context,
            "tie_word_embeddings": self.tied,
            "initializer_range": max(0.02, 0.57 / self.D**0.5),  # narrow models need more: dev/LOG.md
        }


SIZES = {
    "tiny": Size(128, 4, 2, 2, 352, tied=True),
    "mini": Size(512, 8, 8, 8, 1408, tied=True),
    "1b": Size(2048, 22, 32, 4, 5632),
    "3b": Size(3072, 28, 24, 8, 8192),
    "7b": Size(4096, 32, 32, 32, 11008),
    "13b": Size(5120, 40, 40, 40, 13824),
}


def count_parameters(size: Size, vocab_size: int) -> int:
    """All parameters of a Llama of this shape.

    >>> count_parameters(SIZES["7b"], 32_000)
    6738415616
    """
    attention = 2 * size.D * size.D + 2 * size.D * size.D * size.K // size.H
    layer = attention + 3 * size.D * size.F + 2 * size.D
    return size.L * layer + size.D + vocab_size * size.D * (1 if size.tied else 2)


def train_flops_per_token(size: Size, vocab_size: int, context: int) -> int:
    """FLOPs of one training step per token: 6 per weight in a matrix product, plus causal attention (arXiv 2204.02311, app. B).

    The input embedding is a look-up and does not count, the output head does.
    """
    body = size.L * (2 * size.D * size.D * (1 + size.K / size.H) + 3 * size.D * size.F)
    attention = 6 * size.L * size.D * context  # 12 L D T, halved by the causal mask
    return int(6 * (body + vocab_size * size.D) + attention)
