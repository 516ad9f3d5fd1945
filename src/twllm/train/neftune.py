"""NEFTune (arXiv 2310.05914): uniform noise on the embeddings while training, ± alpha / √(L D) with L the tokens of a document.

The noise comes from torch's generator, which the loop seeds by the step, so a resumed run draws the same. In packed rows each document has
noise of its own length; a shared prefix has that of the row's mean document. Nothing is added in evaluation mode.
"""

import torch
from torch import Tensor, nn

from twllm.train.data import Batch

# B rows, T tokens a row, D model width


class EmbeddingNoise:
    """Adds noise to what `embedding` gives, for the batch announced last; without one every row counts as a document."""

    def __init__(self, embedding: nn.Module, alpha: float) -> None:
        self.alpha = alpha
        self.size: Tensor | None = None
        self.handle = embedding.register_forward_hook(self._add)

    def announce(self, batch: Batch) -> None:
        """Which documents the next forward pass is about."""
        self.size = document_tokens(batch)

    def _add(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not module.training:
            return output
        B, T, D = output.shape
        size = torch.full((B, T), float(T)) if self.size is None else self.size
        reach = self.alpha / torch.sqrt(size.to(output.device, output.dtype) * D)  # (B, T)
        return output + torch.empty_like(output).uniform_(-1, 1) * reach[..., None]


def document_tokens(batch: Batch) -> Tensor:
    """(B, T) tokens of the document at each place, its prefix counted; the row's length in padding."""
    B, T = batch.ids.shape
    size = torch.full((B, T), float(T))
    lengths: list[list[int]] = [[] for _ in range(B)]
    for row, start, length in batch.pieces:
        size[row, start : start + length] = batch.prefix + length
        lengths[row].append(batch.prefix + length)
    if batch.prefix:
        for row, found in enumerate(lengths):
            size[row, : batch.prefix] = sum(found) / max(1, len(found)) or T
    return size
