"""How a model is spread over processes: FSDP2 on a mesh (replicate × shard), and tensor parallel inside it where the model has a plan.

`sharding`  none: every process has all weights, gradients are summed (as DDP does); optimizer: weights, gradients and moments are
            shared out and the weights are gathered once a micro-batch (as ZeRO-2 does); full: gathered for each layer, forward
            and backward (ZeRO-3). `shard_ranks` below all of them: groups of so many share out, the groups are copies of each other.
In bf16 the layers' weights travel in bf16, embedding and head as they are, and gradients are summed in fp32; the weights that are updated
are fp32, as in one process. An embedding that came in bf16 would make the residual stream bf16, and rows of its gradient be summed in
bf16: the first loss was 9e-5 off, the gradient's norm 4e-3 (with it: 0 and 1e-6; what is left are norms, rounded once they are not 1).
Gradients are summed, not averaged: the loss is divided by the step's global number of labelled tokens before. Processes that share out rows
(context.py) are for all this processes with other data.
Not covered: tensor with context parallel, pipeline and expert parallel, FP8. GPUs: not run here.
"""

from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate
from transformers import PreTrainedModel

from twllm.errors import UserError
from twllm.train import distributed
from twllm.train.config import MachineConfig
from twllm.train.context import chunk_size, cut
from twllm.train.data import Batch
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
    """The place of this process among the others: number `rank` of `count` that have rows of their own. In one process: number 0 of 1,
    and nothing is done to the model.
    """

    def __init__(self, config: MachineConfig) -> None:
        self.config, self.rank, self.count = config, 0, 1
        self._readers: list[Any] = []  # handles of tensor parallel's hooks
        self.row: Any = None  # of the processes that share out a row, this one's mesh
        self.whole: Whole | None = None
        self.mesh: DeviceMesh | None = None
        if distributed.count() > 1:
            self._lay_out(distributed.count())
        elif config.tensor_parallel > 1 or config.shard_ranks or config.context_parallel > 1:
            what = "只有一個行程，分不開 (one process: nothing to share out)"
            keys = "machine.tensor_parallel, context_parallel, shard_ranks"
            raise UserError(what, keys, f"用 {distributed.TORCHRUN} 啟動")

    def _lay_out(self, processes: int) -> None:
        config = self.config
        tensor, context = config.tensor_parallel, config.context_parallel
        members, rest = divmod(processes, tensor)  # to FSDP
        shards = 1 if config.sharding == "none" else config.shard_ranks or members
        if rest or members % shards or members % context:
            asked = f"tensor_parallel {tensor} × context_parallel {context} × shard_ranks {shards}"
            what = f"{processes} 個行程分不成 {asked} (does not divide)"
            raise UserError(what, "machine", "讓行程數是它們的倍數")
        device = "cuda" if dist.get_backend() == "nccl" or "nccl" in str(dist.get_backend_config()) else "cpu"
        shape = (members // shards, shards, tensor)
        self.mesh = init_device_mesh(device, shape, mesh_dim_names=("replicate", "shard", "tensor"))
        meshes = [self.mesh[name] for name in self.mesh.mesh_dim_names or ()]
        if context > 1:
            rows = init_device_mesh(device, (members // context, context), mesh_dim_names=("rows", "context"))
            self.row = rows["context"]
            meshes.append(self.row)
        for mesh in meshes:
            distributed.wait_as_configured(mesh.get_group())
        self.count, self.rank = members // context, distributed.rank() // tensor // context
        groups = [distributed.new_group(range(t, processes, tensor)) for t in range(tensor)]
        distributed.use_group(groups[distributed.rank() % tensor], (self.rank, self.count))

    def cut(self, batch: Batch) -> Batch:
        """What this process has of a micro-batch's rows."""
        if self.row is None:
            return batch
        return cut(batch, self.row.get_local_rank(), self.row.size(), self.row.get_group())

    def tokens(self, context: int) -> int:
        """How many of a row's tokens this process has."""
        return 2 * chunk_size(context, self.row.size()) if self.row is not None else context

    @property
    def fuses(self) -> bool:
        """Whether layers may be fused: with tensor parallel their weights are no plain tensors."""
        return self.config.tensor_parallel == 1

    @property
    def facts(self) -> dict[str, Any]:
        """For the manifest."""
        if self.mesh is None:
            return {}
        names = self.mesh.mesh_dim_names or ()
        sizes = {"context": self.row.size()} if self.row is not None else {}
        return {"sharding": self.config.sharding, **dict(zip(names, self.mesh.shape, strict=True)), **sizes}

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
            self._readers = apply_tensor_plan(model, self.mesh["tensor"])
        bf16 = machine.precision == "bf16"
        low = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        replicas = self.mesh.size(0) > 1 or self.mesh.size(1) == 1
        mesh = self.mesh["replicate", "shard"] if replicas else self.mesh["shard"]
        for layer in model.get_decoder().layers:
            fully_shard(
                layer, mesh=mesh, mp_policy=low if bf16 else MixedPrecisionPolicy(), reshard_after_forward=self.config.sharding == "full"
            )  # fmt: skip
        self.whole = Whole(model)
        fully_shard(self.whole, mesh=mesh, reshard_after_forward=False)
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
            for handle in self._readers:
                handle.remove()
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


def apply_tensor_plan(model: PreTrainedModel, mesh: DeviceMesh) -> list[Any]:
    """Cut the linear layers as transformers' `base_model_tp_plan` says, with torch's tensor parallel; gives the handles of what was put
    before modules whose matrices read one input.

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
    parts = {name.rsplit(".", 1)[0].rsplit(".", 1)[-1] for name, style in plan.items() if style == "colwise"}
    return [
        getattr(layer, part).register_forward_pre_hook(_read_together(mesh), with_kwargs=True)
        for layer in model.get_decoder().layers
        for part in parts
    ]


def _read_together(mesh: DeviceMesh) -> Callable[..., Any]:
    """They read one DTensor, so that the input's gradient is summed once and not for each of them: 4 sums of hidden states a layer, not 7."""

    def hook(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        x = args[0] if args else kwargs["hidden_states"]
        told = DTensor.from_local(x, mesh, [Replicate()], run_check=False)
        return ((told, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": told})

    return hook


def split_groups(optimizer: torch.optim.Optimizer) -> None:
    """One group of parameters for each mesh: an optimizer's fused step takes tensors of one mesh."""
    found = []
    for group in optimizer.param_groups:
        meshes: dict[Any, list[Tensor]] = {}
        for p in group["params"]:
            meshes.setdefault(p.device_mesh if isinstance(p, DTensor) else None, []).append(p)
        found += [{**group, "params": params} for params in meshes.values()] or [group]
    optimizer.param_groups[:] = found
