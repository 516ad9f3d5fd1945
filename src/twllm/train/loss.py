"""Cross entropy over labelled tokens only: the output head is not computed anywhere else.

Hidden states of the labelled places are gathered first and go through the head in chunks (torch's own
`linear_cross_entropy`), so a 128k vocabulary never materialises (tokens × vocabulary) logits.
"""

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
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
    out = body(input_ids=batch.ids, position_ids=batch.position, use_cache=False, **inputs)
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
    config = model.config
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


CHUNK = 1024  # tokens whose logits exist at a time; chosen, not tuned


def head_loss(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Summed cross entropy of (N, D) hidden states against (N,) labels; logits exist for CHUNK tokens at a time, in fp32."""
    if len(labels) <= CHUNK:
        return F.cross_entropy(F.linear(hidden, weight).float(), labels, reduction="sum")
    chunks = zip(hidden.split(CHUNK), labels.split(CHUNK), strict=True)
    parts = [torch.utils.checkpoint.checkpoint(head_loss, h, weight, y, use_reentrant=False) for h, y in chunks]
    return torch.stack(parts).sum()
