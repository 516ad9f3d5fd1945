"""Cross entropy over labelled tokens only: the output head is not computed anywhere else.

Hidden states of the labelled places are gathered first and go through the head in chunks, so a 128k vocabulary never
materialises (tokens × vocabulary) logits. Gradients are made in the forward pass (as Liger kernels do on GPUs): 1.5 times as fast as
computing the logits again (dev/LOG.md).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from twllm.errors import UserError
from twllm.train.attention import attention_inputs
from twllm.train.data import Batch

# N labelled tokens, D model width, V vocabulary


def hidden_states(model: PreTrainedModel, batch: Batch, attention: str, routers: list[Tensor] | None = None) -> Tensor:
    """Final hidden states, (B, T, D). `routers`, where given, gets a mixture's router logits, per layer (B T, experts)."""
    body = model.get_decoder()
    inputs = attention_inputs(attention)(batch)
    if routers is not None:
        inputs["output_router_logits"] = True
    out = body(**batch.inputs(model), position_ids=batch.position, use_cache=False, **inputs)
    if routers is not None:
        routers += out.router_logits
    return out.last_hidden_state


def token_loss(
    model: PreTrainedModel, batch: Batch, attention: str, routers: list[Tensor] | None = None
) -> tuple[Tensor, int]:
    """(summed cross entropy in nats, number of labelled tokens N). Divide by the global N to get the mean."""
    places = (batch.labels.reshape(-1) >= 0).nonzero().squeeze(1)  # (N,)
    hidden = hidden_states(model, batch, attention, routers)
    picked = hidden.reshape(-1, hidden.shape[-1]).index_select(0, places)  # (N, D)
    labels = batch.labels.reshape(-1).index_select(0, places)  # (N,)
    weight = model.get_output_embeddings().weight  # (V, D)
    return head_loss(picked, weight, labels), len(places)


def check_model(model: PreTrainedModel, context: int) -> None:
    """Refuse models whose logits or attention are more than this module computes, before a wrong loss is trained on.

    Raises:
        UserError: a head with a bias, scaled or capped logits (Phi, Cohere, Granite, Gemma 2), or a sliding window
            shorter than the rows.
    """
    config = model.config.get_text_config()
    found = [
        key
        for key in ("final_logit_softcapping", "logit_scale", "logits_scaling")
        if getattr(config, key, None) not in (None, 1, 1.0)
    ]
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        found.append("lm_head.bias")
    window = getattr(config, "sliding_window", None)
    layers = getattr(config, "layer_types", None) or (["sliding_attention"] if window else [])
    if "sliding_attention" in layers and window and window < context:
        found.append(f"sliding_window = {window} < context = {context}")
    if found:
        what = f"還不能訓練這種模型 (not supported in training yet): {'、'.join(found)}"
        raise UserError(what, config.model_type, "換一個 Llama、Mistral 或 Qwen 型的模型，或縮短 context")


CHUNK = 1024  # tokens whose logits exist at a time; measured: 256 to 1,536 make no difference with 8,000 pieces (dev/LOG.md)
CHUNK_LOGITS = 1 << 25  # and at most so many logits (128 MiB in fp32): 256 tokens with 128k pieces


class _HeadLoss(torch.autograd.Function):
    """Cross entropy whose gradients are made together with the loss, chunk by chunk: no logits are kept, none computed twice."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, dtype: torch.dtype) -> Tensor:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        h, w = hidden.detach().to(dtype), weight.detach().to(dtype)
        total = torch.zeros((), device=hidden.device)
        d_hidden = torch.empty_like(h) if wants_hidden else None
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        size = max(1, min(CHUNK, CHUNK_LOGITS // len(weight)))
        with torch.autocast(hidden.device.type, enabled=False):
            for at in range(0, len(labels), size):
                here = slice(at, at + size)
                y = labels[here, None]
                log_p = torch.log_softmax(F.linear(h[here], w), -1, dtype=torch.float32)  # (chunk, V)
                total -= log_p.gather(1, y).sum()
                if d_hidden is None and d_weight is None:
                    continue
                grad = log_p.exp_().scatter_add_(1, y, log_p.new_full((len(y), 1), -1.0)).to(dtype)  # p - one-hot
                if d_hidden is not None:
                    torch.mm(grad, w, out=d_hidden[here])
                if d_weight is not None and dtype == torch.float32:
                    d_weight.addmm_(grad.t(), h[here])
                elif d_weight is not None:
                    d_weight += torch.mm(grad.t(), h[here])
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.dtypes, ctx.used = (hidden.dtype, weight.dtype), False
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.used:
            raise RuntimeError("head_loss has one backward only: its gradients are scaled in place")
        ctx.used = True
        found = [
            None if x is None else x.to(dtype).mul_(grads[0])
            for x, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return *found, None, None


def head_loss(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Summed cross entropy of (N, D) hidden states against (N,) labels; logits exist for CHUNK tokens at a time.

    Products run in the autocast precision where it is on, the rest in fp32.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    if not torch.is_grad_enabled():
        hidden, weight = hidden.detach(), weight.detach()
    loss: Tensor = _HeadLoss.apply(hidden, weight, labels, dtype)
    return loss
