"""What each part of a model contributes on calibration text, measured in one pass: the ground for pruning (prune.py).

  layer    1 − mean cosine of what goes in and what comes out (block influence, ShortGPT, arXiv 2403.03853)
  head     mean square of what it adds to the residual stream, through its own columns of the output projection
  neuron   the same of a feed-forward unit: mean square activation × square norm of its column
  channel  of the residual stream: mean square after each norm × square norm of the rows that read it, every reader counted alike
Activation-based like Minitron's (arXiv 2407.14679), which takes the activations alone; times the weights, a score is what a part really puts
into the next sum. Price: a forward pass over the calibration tokens, plus D × head width products for heads.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from twllm.tokens.tokenizer import ChatTokenizer

# L layers, H heads of width E, F feed-forward units, D channels, T tokens
ROW = 1024  # tokens the model reads at once, at most


@dataclass
class Importance:
    """Scores by layer; `squares`: mean square of each channel before each norm, by the norm's name."""

    layers: list[float]
    heads: list[Tensor]  # (H,) a layer
    neurons: list[Tensor]  # (F,) a layer
    channels: Tensor  # (D,)
    squares: dict[str, Tensor] = field(default_factory=dict)
    tokens: int = 0


def calibration_rows(
    tokenizer: ChatTokenizer, texts: Sequence[str], context: int, tokens: int, seed: int = 1
) -> tuple[list[list[int]], list[list[int]]]:
    """(rows to measure on, rows kept for the loss: each fifth), drawn over all texts, about `tokens` in all."""
    length = min(ROW, context)
    parts = [text[start : start + 4 * length] for text in texts for start in range(0, len(text), 4 * length)]
    rows: list[list[int]] = []
    seen = 0
    for number in torch.randperm(len(parts), generator=torch.Generator().manual_seed(seed)).tolist():
        row = tokenizer.encode(parts[number], bos=True)[:length]
        if len(row) > 1:
            rows.append(row)
            seen += len(row)
        if seen >= tokens:
            break
    return [row for i, row in enumerate(rows) if i % 5], rows[::5]


@torch.no_grad()
def mean_loss(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> float:
    """Nats a token."""
    training, total, count = model.training, 0.0, 0
    model.eval()
    for row in rows:
        ids = torch.tensor([row], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        total += float(F.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        count += len(row) - 1
    model.train(training)
    return total / max(1, count)


@torch.no_grad()
def measure(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> Importance:
    """One pass over the rows."""
    layers, config = model.model.layers, model.config
    sums = _Sums(model)
    training = model.training
    model.eval()
    with sums.hooked():
        for row in rows:
            model.get_decoder()(input_ids=torch.tensor([row], device=model.device), use_cache=False)
            sums.tokens += len(row)
    model.train(training)
    heads, neurons = [], []
    for number, layer in enumerate(layers):
        out = layer.self_attn.o_proj.weight.float().view(
            config.hidden_size, config.num_attention_heads, -1
        )  # (D, H, E)
        heads.append(torch.einsum("dhe,hef,dhf->h", out, sums.outer[number] / sums.tokens, out).cpu())
        column = layer.mlp.down_proj.weight.float().square().sum(0)  # (F,)
        neurons.append((sums.units[number] / sums.tokens * column).cpu())
    influence = [1 - float(total) / sums.tokens for total in sums.cosine]
    squares = {name: (total / sums.tokens).cpu() for name, total in sums.before.items()}
    return Importance(influence, heads, neurons, _channels(model, sums), squares, sums.tokens)


def _channels(model: PreTrainedModel, sums: "_Sums") -> Tensor:
    """(D,) shares of what the norms' readers get, summed over the readers."""
    readers: dict[str, list[nn.Module]] = {"model.norm": [model.get_output_embeddings()]}
    for number, layer in enumerate(model.model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        readers[f"model.layers.{number}.input_layernorm"] = [attention.q_proj, attention.k_proj, attention.v_proj]
        readers[f"model.layers.{number}.post_attention_layernorm"] = [mlp.gate_proj, mlp.up_proj]
    total = torch.zeros(model.config.hidden_size)
    for name, modules in readers.items():
        read = torch.stack([w.float().square().sum(0) for w in _weights(modules)]).sum(0)  # (D,)
        score = (sums.after[name] * read).cpu()
        total += score / score.sum()
    return total


def _weights(modules: Sequence[nn.Module]) -> list[Tensor]:
    return [module.get_parameter("weight") for module in modules]


class _Sums:
    """Running sums, filled by hooks."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.tokens = model, 0
        count = model.config.num_hidden_layers
        self.cosine: list[Any] = [0.0] * count
        self.outer: list[Any] = [0.0] * count  # (H, E, E)
        self.units: list[Any] = [0.0] * count  # (F,)
        self.before: dict[str, Any] = {}
        self.after: dict[str, Any] = {}

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Hooks in place."""
        handles = []
        for number, layer in enumerate(self.model.model.layers):
            handles.append(layer.register_forward_hook(self._block(number), with_kwargs=True))
            handles.append(layer.self_attn.o_proj.register_forward_pre_hook(self._heads(number)))
            handles.append(layer.mlp.down_proj.register_forward_pre_hook(self._units(number)))
        for name, module in self.model.named_modules():
            if name == "model.norm" or name.endswith("layernorm"):
                handles.append(module.register_forward_hook(self._norm(name)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _block(self, number: int) -> Callable[..., None]:
        def hook(_: nn.Module, given: tuple[Tensor, ...], named: dict[str, Tensor], result: Any) -> None:
            before = given[0] if given else named["hidden_states"]
            after = result[0] if isinstance(result, tuple) else result
            cosine = F.cosine_similarity(before.float(), after.float(), dim=-1)
            self.cosine[number] = self.cosine[number] + cosine.sum()

        return hook

    def _heads(self, number: int) -> Callable[..., None]:
        def hook(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            parts = (
                given[0].float().flatten(0, -2).unflatten(-1, (self.model.config.num_attention_heads, -1))
            )  # (T, H, E)
            self.outer[number] = self.outer[number] + torch.einsum("the,thf->hef", parts, parts)

        return hook

    def _units(self, number: int) -> Callable[..., None]:
        def hook(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            self.units[number] = self.units[number] + given[0].float().flatten(0, -2).square().sum(0)

        return hook

    def _norm(self, name: str) -> Callable[..., None]:
        def hook(_: nn.Module, given: tuple[Tensor, ...], result: Tensor) -> None:
            for sums, value in ((self.before, given[0]), (self.after, result)):
                sums[name] = sums.get(name, 0.0) + value.float().flatten(0, -2).square().sum(0)

        return hook
