"""Linear layers in the memory order that oneDNN multiplies fastest, on CPUs.

torch reorders weights at every call; done once it reads them 15 to 50 % faster (bf16, 1 to 64 rows; dev/LOG.md), and layers that take the
same input (query, key and value; gate and up) become one. The model's own modules are replaced by views of the packed ones, so
nothing is held twice and evaluation, which calls the model itself, is faster as well. fp32 rows are multiplied at least two at a time: then a
product's numbers do not depend on how many others there are. Inference only; the weights cannot be read back or trained.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class PackedLinear(nn.Module):
    """One or several linear layers over the same input as one product."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.sizes = [layer.out_features for layer in layers]
        weight = torch.cat([layer.weight.detach() for layer in layers])
        biases = [layer.bias for layer in layers]
        self._bias = torch.cat([b.detach() for b in biases if b is not None]) if biases[0] is not None else None
        self._pairs = weight.dtype == torch.float32
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, None)

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, sum of sizes)."""
        if self._pairs and x.numel() == x.shape[-1]:
            return self._product(torch.cat([x, x]))[: x.shape[0]]
        return self._product(x)

    def _product(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return out


class Part(nn.Module):
    """One of the layers of a PackedLinear, for callers that ask for them one after the other with the same input."""

    def __init__(self, whole: PackedLinear, which: int) -> None:
        super().__init__()
        self._whole = [whole]  # not a submodule: several parts have the same one
        self.out_features = whole.sizes[which]
        self._start = sum(whole.sizes[:which])
        self._last = which == len(whole.sizes) - 1

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, size)."""
        whole = self._whole[0]
        known: tuple[Tensor, Tensor] | None = whole.__dict__.get("known")
        if known is None or known[0] is not x:
            known = (x, whole(x))
        whole.__dict__["known"] = None if self._last else known  # nothing is kept beyond a layer
        return known[1][..., self._start : self._start + self.out_features]


def pack(parent: nn.Module, names: Sequence[str]) -> PackedLinear:
    """Replace the linear layers of these names by one packed product; parents have to ask for them in this order."""
    packed = PackedLinear([getattr(parent, name) for name in names])
    for which, name in enumerate(names):
        setattr(parent, name, packed if len(names) == 1 else Part(packed, which))
    return packed


def can_pack(model: nn.Module) -> bool:
    """Whether this model's layers may be packed: on a CPU with oneDNN, weights in fp32 or bf16."""
    parameter = next(model.parameters())
    kinds = (torch.float32, torch.bfloat16)
    return parameter.device.type == "cpu" and parameter.dtype in kinds and torch.backends.mkldnn.is_available()
