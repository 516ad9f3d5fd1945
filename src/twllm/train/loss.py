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
    model: PreTrainedModel, batch: Batch, attention: str, routers: list[Tensor] | None = None, told: list[Tensor] | None = None
) -> tuple[Tensor, int]:  # fmt: skip
    """(summed cross entropy in nats, number of labelled tokens N). Divide by the global N to get the mean. `told`, where given, gets
    the N tokens' own losses.
    """
    places = batch.places()  # (N,)
    hidden = hidden_states(model, batch, attention, routers)
    picked = hidden.reshape(-1, hidden.shape[-1]).index_select(0, places)  # (N, D)
    labels = batch.labels.reshape(-1).index_select(0, places)  # (N,)
    weight = model.get_output_embeddings().weight  # (V, D)
    return head_loss(picked, weight, labels, told), len(places)


def check_model(model: PreTrainedModel, context: int) -> None:
    """Refuse models whose logits or attention are more than this module computes, before a wrong loss is trained on. `context`: tokens of
    the longest document or piece of one; a window that is no shorter hides nothing.

    Raises:
        UserError: a head with a bias, scaled or capped logits (Phi, Cohere, Granite, Gemma 2), or a sliding window
            shorter than that.
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
        found.append(f"sliding_window = {window}，文件長到 {context} 個詞元")
    if found:
        what = f"還不能訓練這種模型 (not supported in training yet): {'、'.join(found)}"
        only_window = all(name.startswith("sliding_window") for name in found)
        fix = f"把 context 縮到 {window} 以下" if only_window else "換一個 Llama、Mistral 或 Qwen 型的模型"
        raise UserError(what, config.model_type, fix)


CHUNK = 1024  # tokens whose logits exist at a time; measured: 256 to 1,536 make no difference with 8,000 pieces (dev/LOG.md)
CHUNK_LOGITS = 1 << 25  # and at most so many logits (128 MiB in fp32): 256 tokens with 128k pieces
# On a GPU each chunk adds to the head's gradient in memory, 10 bytes a weight, for 6 FLOPs a weight and token: on an H100 (989 TFLOP/s,
# 3.35 TB/s) both take as long at 490 tokens, so chunks are larger there, 0.8 GB of logits at most. Computed, not measured.
GPU_CHUNK, GPU_CHUNK_LOGITS = 4096, 1 << 27

CACHED_LOGITS = (
    1 << 19
)  # on a CPU their softmax is made for so many at a time (2 MB in fp32), the products for a whole chunk (dev/LOG.md)
PIECES = 8192  # of the vocabulary whose gradient is made at a time, in bf16
ROWS = 64  # the last chunk is filled up: oneDNN makes a kernel for each new shape, 10 ms of a step's three products (dev/LOG.md)


def chunk_tokens(vocab: int, device: torch.device, trains_head: bool = True) -> int:
    """How many tokens' logits are made at a time.

    >>> [chunk_tokens(vocab, torch.device(name)) for name in ("cpu", "cuda") for vocab in (32_000, 128_256)]
    [1024, 261, 4096, 1046]
    """
    tokens, logits = (GPU_CHUNK, GPU_CHUNK_LOGITS) if device.type == "cuda" and trains_head else (CHUNK, CHUNK_LOGITS)
    return max(1, min(tokens, logits // vocab))


def add_product(total: Tensor, grad: Tensor, x: Tensor) -> None:
    """total (V, D, fp32) += grad (n, V)ᵀ x (n, D): of bf16 products so many rows at a time, else the whole of it would stand beside `total`
    twice, on a CPU once more in fp32 (6 bytes a weight; and twice as slow with 128k pieces: dev/LOG.md).
    """
    if grad.dtype == total.dtype:
        total.addmm_(grad.t(), x)
        return
    for part, columns in zip(total.split(PIECES), grad.split(PIECES, 1), strict=True):
        part += torch.mm(columns.t(), x)


class _HeadLoss(torch.autograd.Function):
    """Cross entropy whose gradients are made together with the loss, chunk by chunk: no logits are kept, none computed twice."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, dtype: torch.dtype, told: list[Tensor] | None
    ) -> Tensor:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        h, w = hidden.detach().to(dtype), weight.detach().to(dtype)
        total, each = torch.zeros((), device=hidden.device), []
        d_hidden = torch.empty_like(h) if wants_hidden else None
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        size = chunk_tokens(len(weight), hidden.device, wants_weight)
        slice_size = max(1, CACHED_LOGITS // len(weight)) if hidden.device.type == "cpu" else size
        with torch.autocast(hidden.device.type, enabled=False):
            for at in range(0, len(labels), size):
                here, y = slice(at, at + size), labels[at : at + size, None]
                n = len(y)
                x = F.pad(h[here], (0, 0, 0, min(size, -(-n // ROWS) * ROWS) - n))
                grad = F.linear(x, w)  # (chunk, V): logits, from here on p - one-hot
                for logits, labelled in zip(grad[:n].split(slice_size), y.split(slice_size), strict=True):
                    log_p = torch.log_softmax(logits, -1, dtype=torch.float32)
                    of_label = log_p.gather(1, labelled)
                    total -= of_label.sum()
                    each.append(of_label)
                    if wants_hidden or wants_weight:
                        one = log_p.new_full((len(labelled), 1), -1.0)
                        logits.copy_(log_p.exp_().scatter_add_(1, labelled, one))
                grad[n:] = 0
                if d_hidden is not None:
                    d_hidden[here] = torch.mm(grad, w)[:n]
                if d_weight is not None:
                    add_product(d_weight, grad, x)
                del grad, logits, log_p  # else they stand while the next chunk's are made
        if told is not None:
            told.append(-torch.cat([x[:, 0] for x in each]) if each else total.new_zeros(0))
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
        return *found, None, None, None


def head_loss(hidden: Tensor, weight: Tensor, labels: Tensor, told: list[Tensor] | None = None) -> Tensor:
    """Summed cross entropy of (N, D) hidden states against (N,) labels; logits exist for CHUNK tokens at a time. `told` gets the (N,) losses.

    Products run in the autocast precision where it is on, the rest in fp32.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    if not torch.is_grad_enabled():
        hidden, weight = hidden.detach(), weight.detach()
    loss: Tensor = _HeadLoss.apply(hidden, weight, labels, dtype, told)
    return loss
