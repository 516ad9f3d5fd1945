"""How a model is spread over processes: FSDP2 on a mesh (replicate × shard), and tensor parallel inside it where the model has a plan.

`sharding`  none: every process has all weights, gradients are summed (as DDP does); optimizer: weights, gradients and moments are
            shared out and the weights are gathered once a micro-batch (as ZeRO-2 does); full: gathered for each layer, forward
            and backward (ZeRO-3). `shard_ranks` below all of them: groups of so many share out, the groups are copies of each other.
In bf16 the weights travel in bf16 and gradients are summed in fp32; the weights that are updated are fp32, as in one process.
Gradients are summed, not averaged: the loss is divided by the step's global number of labelled tokens before.
Not covered: context parallel (torch's ring attention has no mask for packed documents), pipeline and expert parallel, FP8. GPUs: not run here.
"""

from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from twllm.errors import UserError
from twllm.train import distributed
from twllm.train.config import MachineConfig
from twllm.train.machine import Machine

T = TypeVar("T")
STYLES = (
    "colwise",
    "rowwise",
)  # of transformers' plans, those that torch's tensor parallel does with plain linear layers


class Whole(nn.Module):
    """What FSDP takes for the root: whatever is computed with the model, head and loss included, is its forward pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.inside = model, False

    def forward(self, work: Callable[..., Any], *args: Any) -> Any:
        """The result of `work`, which sees whole weights."""
        self.inside = True
        try:
            return work(*args)
        finally:
            self.inside = False


_wholes: WeakKeyDictionary[nn.Module, Whole] = WeakKeyDictionary()


def inside(model: nn.Module, work: Callable[..., T], *args: Any) -> T:
    """`work(*args)`, which may use any weight of `model`; all processes of a sharded model must come along."""
    whole = _wholes.get(model)
    if whole is None or whole.inside:
        return work(*args)
    found: T = whole(work, *args)
    if not torch.is_grad_enabled():  # no backward pass will do it, and weights may be exchanged meanwhile (ema.py)
        for module in whole.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
    return found


class Parallel:
    """The place of this process among the others. In one process: number 0 of 1, and nothing is done to the model."""

    def __init__(self, config: MachineConfig) -> None:
        self.config, self.rank, self.count = config, 0, 1
        self.whole: Whole | None = None
        self.mesh: DeviceMesh | None = None
        if distributed.count() > 1:
            self._lay_out(distributed.count())
        elif config.tensor_parallel > 1 or config.shard_ranks:
            what = "只有一個行程，分不開 (one process: nothing to share out)"
            raise UserError(what, "machine.tensor_parallel, shard_ranks", f"用 {distributed.TORCHRUN} 啟動")

    def _lay_out(self, processes: int) -> None:
        config = self.config
        self.count, rest = divmod(processes, config.tensor_parallel)
        shards = 1 if config.sharding == "none" else config.shard_ranks or self.count
        if rest or self.count % shards:
            what = f"{processes} 個行程分不成 tensor_parallel {config.tensor_parallel} × shard_ranks {shards} (does not divide)"
            raise UserError(what, "machine", "讓行程數是兩者的倍數")
        device = "cuda" if dist.get_backend() == "nccl" or "nccl" in str(dist.get_backend_config()) else "cpu"
        shape = (self.count // shards, shards, config.tensor_parallel)
        self.mesh = init_device_mesh(device, shape, mesh_dim_names=("replicate", "shard", "tensor"))
        for name in self.mesh.mesh_dim_names or ():
            distributed.wait_as_configured(self.mesh[name].get_group())
        tensor = config.tensor_parallel
        self.rank = distributed.rank() // tensor
        groups = [distributed.new_group(range(t, processes, tensor)) for t in range(tensor)]
        distributed.use_group(groups[distributed.rank() % tensor], (self.rank, self.count))

    @property
    def fuses(self) -> bool:
        """Whether layers may be fused: with tensor parallel their weights are no plain tensors."""
        return self.config.tensor_parallel == 1

    @property
    def facts(self) -> dict[str, Any]:
        """For the manifest."""
        assert self.mesh is not None
        names = self.mesh.mesh_dim_names or ()
        return {"sharding": self.config.sharding, **dict(zip(names, self.mesh.shape, strict=True))}

    def split(self, model: PreTrainedModel, machine: Machine) -> None:
        """Same weights everywhere first, then each process keeps its part.

        Raises:
            UserError: quantised weights, or no plan for tensor parallel.
        """
        if self.mesh is None:
            return
        if any(not p.is_floating_point() for p in model.parameters()):
            what = "量化的底模不能分給多個行程 (quantised weights cannot be shared out)"
            raise UserError(what, "lora.quantise", "QLoRA 用一張卡；多張卡用 lora 不量化")
        with torch.no_grad():
            for tensor in {id(t): t for t in (*model.parameters(), *model.buffers())}.values():
                dist.broadcast(tensor, 0)
        if self.config.tensor_parallel > 1:
            apply_tensor_plan(model, self.mesh["tensor"])
        bf16 = machine.precision == "bf16"
        policy = (
            MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
            if bf16
            else MixedPrecisionPolicy()
        )
        replicas = self.mesh.size(0) > 1 or self.mesh.size(1) == 1
        mesh = self.mesh["replicate", "shard"] if replicas else self.mesh["shard"]
        options: dict[str, Any] = {"mesh": mesh, "mp_policy": policy}
        for layer in model.get_decoder().layers:
            fully_shard(layer, **options, reshard_after_forward=self.config.sharding == "full")
        self.whole = Whole(model)
        fully_shard(self.whole, **options, reshard_after_forward=False)
        for module in self._modules():
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
        _wholes[model] = self.whole

    def _modules(self) -> list[FSDPModule]:
        return [] if self.whole is None else [m for m in self.whole.modules() if isinstance(m, FSDPModule)]

    def begin_micro(self, last: bool) -> None:
        """Before each micro-batch: without sharding, gradients travel after the last one only."""
        if isinstance(self.whole, FSDPModule) and self.config.sharding == "none":
            self.whole.set_requires_gradient_sync(last)

    def clip(self, model: nn.Module, limit: float) -> float:
        """Scale the gradients so that the norm over all processes is at most `limit`; gives the norm before."""
        if self.mesh is None:
            return float(torch.nn.utils.clip_grad_norm_(model.parameters(), limit))
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norm = self._norm(gradients)
        torch._foreach_mul_([local(g) for g in gradients], min(1.0, limit / (norm + 1e-6)))
        return norm

    def _norm(self, gradients: list[Tensor]) -> float:
        """Squares are summed over the mesh dimensions that a gradient is cut along, and no others."""
        assert self.mesh is not None
        squares: dict[tuple[str, ...], Tensor] = {}
        for gradient in gradients:
            cut: tuple[str, ...] = ()
            if isinstance(gradient, DTensor):
                names = gradient.device_mesh.mesh_dim_names or ()
                cut = tuple(
                    n for n, p in zip(names, gradient.placements, strict=True) if not p.is_replicate()
                )  # two cuts of one dimension: _StridedShard, no Shard
            square = local(gradient).float().square().sum()
            squares[cut] = squares[cut] + square if cut in squares else square
        total = 0.0
        for cut in sorted(squares):
            for name in cut:
                dist.all_reduce(squares[cut], group=self.mesh[name].get_group())
            total += float(squares[cut])
        return float(total**0.5)

    @torch.no_grad()
    def gather(self, model: nn.Module) -> None:
        """Undo `split`: process 0 has the whole model again, on the CPU where it was on a GPU; the others' is empty."""
        if self.whole is None:
            return
        for whole in self._modules():
            state = whole._get_fsdp_state()
            state._pre_forward_hook_handle.remove()
            state._post_forward_hook_handle.remove()
        for whole in self._modules():
            whole.__class__ = type(whole).__mro__[2]
        if self.config.tensor_parallel > 1:  # its hooks cut and join what goes through plain linear layers
            for module in model.modules():
                if isinstance(module, nn.Linear):
                    module._forward_pre_hooks.clear()
                    module._forward_hooks.clear()
        made: dict[int, Any] = {}
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if not isinstance(parameter, DTensor):
                    continue
                if id(parameter) not in made:
                    full = parameter.full_tensor()
                    value = full.cpu().clone() if distributed.is_main() else torch.empty(0)
                    made[id(parameter)] = nn.Parameter(value, parameter.requires_grad)
                    made[-id(parameter)] = parameter  # keeps its id taken
                module._parameters[name] = made[id(parameter)]
        _wholes.pop(model, None)
        self.whole = None


def local(tensor: Tensor) -> Tensor:
    """This process's part."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full(tensor: Tensor) -> Tensor:
    """All of it, in every process."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def apply_tensor_plan(model: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Cut the linear layers as transformers' `base_model_tp_plan` says, with torch's tensor parallel.

    Raises:
        UserError: no plan, a style that is not for plain linear layers (a mixture's experts), or heads that do not divide.
    """
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    if any(isinstance(getattr(module, "base_layer", None), nn.Module) for module in model.modules()):
        what = "有 LoRA 的層不能做 tensor parallel (no tensor parallel of adapters)"
        raise UserError(what, "machine.tensor_parallel", 'tensor_parallel = 1，改用 sharding = "full"')
    config, size = model.config.get_text_config(), mesh.size()
    plan = getattr(config, "base_model_tp_plan", None) or {}
    strange = sorted(set(plan.values()) - set(STYLES))
    heads = [config.num_attention_heads, getattr(config, "num_key_value_heads", None) or config.num_attention_heads]
    if not plan or strange or any(h % size for h in heads) or config.intermediate_size % size:
        why = (
            f"做法 {'、'.join(strange)}"
            if strange
            else f"heads {heads}, intermediate {config.intermediate_size}"
            if plan
            else "沒有 tp_plan"
        )
        what = f"這個模型不能做 tensor parallel {size} (no tensor parallel here): {why}"
        raise UserError(what, config.model_type, 'tensor_parallel = 1，改用 sharding = "full"')
    styles = {"colwise": ColwiseParallel, "rowwise": RowwiseParallel}
    parallelize_module(model.get_decoder(), mesh, {name: styles[style]() for name, style in plan.items()})


def split_groups(optimizer: torch.optim.Optimizer) -> None:
    """One group of parameters for each mesh: an optimizer's fused step takes tensors of one mesh."""
    found = []
    for group in optimizer.param_groups:
        meshes: dict[Any, list[Tensor]] = {}
        for p in group["params"]:
            meshes.setdefault(p.device_mesh if isinstance(p, DTensor) else None, []).append(p)
        found += [{**group, "params": params} for params in meshes.values()] or [group]
    optimizer.param_groups[:] = found
