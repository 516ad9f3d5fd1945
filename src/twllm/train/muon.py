"""torch's Muon with the matrices of one shape orthogonalised together: the same bits, 60 % of the processor time for tiny's 28 matrices.

torch takes one matrix after the other, 35 small operations each; 20 → 12 ms a step, one thread (dev/LOG.md). Price: a stack of each
shape's updates in bf16 and one in fp32 while it steps. State, settings and saved form are torch's.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim._muon import _adjust_lr

from twllm.train.parallel import local

# n matrices of one shape, R rows, C columns; of several processes n


class Muon(torch.optim.Muon):
    """One step moves all matrices of a group; see torch.optim.Muon."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Averages, orthogonal factors, update."""
        for group in self.param_groups:
            alike: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    alike[tuple(matrix.shape)].append(matrix)
            for shape, matrices in alike.items():
                updates = shared_out(matrices[0], self._average(group, matrices), group)
                parts = [local(matrix) for matrix in matrices]
                if group["weight_decay"]:
                    torch._foreach_mul_(parts, 1 - group["lr"] * group["weight_decay"])
                rate = _adjust_lr(group["lr"], group["adjust_lr_fn"], torch.Size(shape))
                torch._foreach_add_(parts, updates, alpha=-rate)

    def _average(self, group: dict[str, Any], matrices: list[Tensor]) -> Sequence[Tensor]:
        """Gradients and their running averages, mixed as Nesterov's momentum does; of each this process's part."""
        for matrix in matrices:
            if "momentum_buffer" not in self.state[matrix]:
                self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
        gradients = [local(matrix.grad) for matrix in matrices if matrix.grad is not None]
        averages = [local(self.state[matrix]["momentum_buffer"]) for matrix in matrices]
        torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
        return torch._foreach_lerp(gradients, averages, group["momentum"]) if group["nesterov"] else averages


def shared_out(like: Tensor, updates: Sequence[Tensor], group: dict[str, Any]) -> list[Tensor]:
    """`orthogonal` of matrices spread over processes as `like` is, given and returned in parts: number j is computed by process j modulo n.

    Where rows are cut, they are exchanged twice, in bf16 (the iteration's own precision, so no bit is lost); where every process has the
    whole, results are told. Copies of a sharded group (shard_ranks) do the same work.
    """
    if not isinstance(like, DTensor) or like.device_mesh.size() == 1:
        return orthogonal(updates, group)
    mesh, (R, C) = like.device_mesh, like.shape
    cut = [d for d, place in enumerate(like.placements) if place.is_shard() and mesh.size(d) > 1]
    processes = mesh.get_group(cut[0] if cut else 0)
    n, rank = dist.get_world_size(processes), dist.get_rank(processes)
    slots, rows = -(-len(updates) // n), -(-R // n) if cut else R
    parts = updates[0].new_zeros(n, slots, rows, C, dtype=torch.bfloat16)  # of the matrices of process i, in slots
    for j, part in enumerate(updates):
        parts[j % n, j // n, : len(part)] = part
    if not cut:
        mine = torch.stack(orthogonal(parts[rank], group)).bfloat16()
        dist.all_gather_single(parts.flatten(0, 1), mine, group=processes)
    else:
        found = torch.empty_like(parts)
        dist.all_to_all_single(found, parts, group=processes)
        whole = found.transpose(0, 1).flatten(1, 2)[:, :R]  # (slots, R, C)
        mine = F.pad(torch.stack(orthogonal(whole, group)).bfloat16(), (0, 0, 0, n * rows - R))
        dist.all_to_all_single(parts, mine.unflatten(1, (n, rows)).transpose(0, 1).contiguous(), group=processes)
    return [parts[j % n, j // n, : len(part)].float() for j, part in enumerate(updates)]


def orthogonal(updates: Sequence[Tensor] | Tensor, group: dict[str, Any]) -> list[Tensor]:
    """About the orthogonal factor of each, by Newton and Schulz's iteration in bf16 as torch's Muon does it; of one shape."""
    a, b, c = group["ns_coefficients"]
    x = torch.stack(list(updates)).bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x  # (n, R, C), R ≤ C from here on
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=group["eps"])
    for _ in range(group["ns_steps"]):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return list((x.mT if tall else x).float().unbind())
