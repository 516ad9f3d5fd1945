"""LoRA in our loop: peft puts low-rank changes into the model in place, the loop trains them, the end is an adapter and a merged folder.

What is trained is fp32, whatever the base is held in (frozen.py: bf16 in bf16 runs). With `quantise = "nf4"` the frozen layers of the decoder are
kept in 4 bits by bitsandbytes (GPU, and its slower CPU kernels), one layer at a time on the device; the merge then goes into the base
at full precision, so the merged model differs from the trained one by what the quantisation took. The merge is release/merge.py's, in fp32.
Not covered: adapters of the output head (train it whole: modules_to_save), of a mixture's experts (they stay frozen), several at once.
"""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from twllm.errors import UserError
from twllm.model.moe import is_moe
from twllm.release.merge import Changes, read_adapter_config
from twllm.train.frozen import Frozen
from twllm.train.machine import Machine
from twllm.train.methods_config import LoraConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TABLES = {"embed_tokens", "lm_head"}


class Adapter:
    """The low-rank changes inside `model`, which stays the object that the loop trains."""

    def __init__(self, model: "PreTrainedModel", config: LoraConfig, machine: Machine, seed: int) -> None:
        self.config, self.model = config, model
        peft = _need("peft", "lora")
        self.base_parameters = sum(parameter.numel() for parameter in model.parameters())
        if config.quantise == "nf4":
            quantise(model, machine)
        saved = set(config.modules_to_save)
        tied = bool(model.config.tie_word_embeddings and saved & TABLES)
        settings = peft.LoraConfig(
            r=config.r, lora_alpha=config.alpha, lora_dropout=config.dropout, use_rslora=config.rslora, task_type="CAUSAL_LM",
            target_modules=self._targets() if config.targets == "all-linear" else list(config.targets),
            modules_to_save=sorted(saved - TABLES | {"embed_tokens"} if tied else saved) or None, ensure_weight_tying=tied,
        )  # fmt: skip
        self._check_names(saved if config.targets == "all-linear" else {*config.targets, *saved})
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 asks transformers 5 by an old name
            self.peft = peft.get_peft_model(model, settings)

    def _targets(self) -> str | list[str]:
        """peft's own "all-linear" means a mixture's experts and router, too, which no merge takes (release/merge.py): its attention alone."""
        if not is_moe(self.model):
            return "all-linear"
        head = self.model.get_output_embeddings()
        named = [(name, module) for name, module in self.model.named_modules() if module is not head]
        return sorted({name.rsplit(".", 1)[-1] for name, module in named if isinstance(module, nn.Linear)})

    def _check_names(self, wanted: set[str]) -> None:
        from twllm.train.parts import check_patterns

        check_patterns(sorted(wanted), (name for name, _ in self.model.named_modules()), "lora")

    def facts(self) -> dict[str, Any]:
        """For the manifest."""
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        return {
            **self.config.model_dump(mode="json"),
            "trained_parameters": trained,
            "trained_share": round(trained / self.base_parameters, 6),
        }

    def save(self, folder: Path) -> None:
        """Write the adapter as peft does, without its README."""
        self.peft.save_pretrained(folder, save_embedding_layers=False)  # whole tables are in modules_to_save
        (folder / "README.md").unlink(missing_ok=True)

    def merge(
        self, folder: Path, frozen: Frozen, again: "Callable[[], PreTrainedModel] | None" = None
    ) -> "PreTrainedModel":
        """The base model with the adapter that `save` wrote into `folder` added; `again` makes the base anew where it was quantised or rounded.

        Raises:
            UserError: the base was quantised and cannot be made anew.
        """
        base: PreTrainedModel = self.peft.unload()
        if self.config.quantise != "none":
            if again is None:
                raise UserError(
                    "量化過的底模要重新載入才能合併 (the base is needed again)", "lora.quantise", "給底模資料夾"
                )
            base = again()
        elif frozen.rounded and again:
            base = again()
        frozen.restore(base)
        merge_into(base, folder)
        base.requires_grad_(True)
        return base


def merge_into(base: "PreTrainedModel", folder: Path) -> None:
    """Add the adapter in `folder` to the weights of `base`."""
    changes = Changes(folder, read_adapter_config(folder), base.config.to_dict())
    with torch.no_grad():
        for name, parameter in base.named_parameters(remove_duplicate=False):
            parameter.copy_(changes.apply(name, parameter.detach().cpu()))
    changes.require_all_used()


@contextmanager
def base_only(model: nn.Module) -> Iterator[None]:
    """The model without its adapters: the reference of KTO and DPO, with no second copy of the weights."""
    layers: list[Any] = []
    if "peft" in sys.modules:
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils.other import AuxiliaryTrainingWrapper

        layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def quantise(model: "PreTrainedModel", machine: Machine) -> None:
    """Every linear layer but the output head → NF4 with double quantisation, on the machine's device, one at a time.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    bnb = _need("bitsandbytes", "qlora")
    head = model.get_output_embeddings()
    compute = torch.bfloat16 if machine.precision == "bf16" else torch.float32
    linear = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head]
    for name, layer in linear:
        small = bnb.nn.Linear4bit(
            layer.in_features, layer.out_features, bias=layer.bias is not None, compute_dtype=compute,
            compress_statistics=True, quant_type="nf4",
        )  # fmt: skip
        # on CPUs it would repack the weights at the first evaluation, rounding their scales: a resumed run would differ
        small.support_avx512bf16_for_cpu = False
        small.weight = bnb.nn.Params4bit(
            layer.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4"
        )
        if layer.bias is not None:
            small.bias = layer.bias
        if compute == torch.bfloat16:  # it gives what it is given: the norms' fp32, twice the activations
            small.register_forward_pre_hook(_lower)
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, small.to(machine.device))
    model.is_loaded_in_4bit = True  # what peft asks before it chooses its layer


def _lower(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A four-bit layer's hook: bf16 in, so bf16 out, as autocast has it for an ordinary one."""
    return (inputs[0].to(torch.bfloat16), *inputs[1:])


def _need(module: str, extra: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        what = f"沒有安裝 {module} (not installed)"
        raise UserError(what, "lora", f"pip install 'twllm[{extra}]'") from error
