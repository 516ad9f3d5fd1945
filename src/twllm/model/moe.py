"""Looking into a mixture of experts: the loss that spreads tokens over experts, and which experts which texts use.

The balance loss is Switch Transformer's (arXiv 2101.03961, eq. 4) for top-k, layer by layer: experts × Σ share of choices × mean
probability. It is 1 where all experts are used alike and grows to the number of experts ÷ k. transformers' own sums over the layers first,
so that a layer may lean to one side if another leans to the other.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from twllm.artifact import write_bytes, write_json
from twllm.errors import UserError
from twllm.tokens.tokenizer import ChatTokenizer

MAX_TOKENS = 20_000  # of a domain; chosen
# N tokens, X experts, L layers


def is_moe(model: PreTrainedModel) -> bool:
    """Whether the model is a Mixtral, whose router we know."""
    return getattr(model.config, "model_type", "") == "mixtral"


def balance_loss(router_logits: Sequence[Tensor], top_k: int, valid: Tensor) -> Tensor:
    """Mean over layers of X Σ f p; router_logits: per layer (N, X), `valid` (N,) False for padding. 1 is balanced."""
    losses = []
    for logits in router_logits:
        probabilities = logits[valid].float().softmax(-1)  # (N, X)
        X = probabilities.shape[1]
        chosen = probabilities.topk(top_k, dim=-1).indices
        share = torch.bincount(chosen.reshape(-1), minlength=X).to(probabilities) / chosen.numel()
        losses.append(X * (share * probabilities.mean(0)).sum())
    return torch.stack(losses).mean()


@torch.no_grad()
def expert_use(model: PreTrainedModel, tokenizer: ChatTokenizer, texts: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Per domain: tokens, and for each layer the share of choices that each expert got (rows sum to 1).

    Raises:
        UserError: not a Mixtral, or a domain without text.
    """
    if not is_moe(model):
        raise UserError(
            "這不是專家混合模型 (not a mixture of experts)", model.config.model_type, "先用 twllm model upcycle"
        )
    config, domains = model.config, {}
    model.eval()
    for name, parts in texts.items():
        counts, seen = torch.zeros(config.num_hidden_layers, config.num_local_experts), 0
        for text in parts:
            if not text.strip():
                continue
            ids = tokenizer.encode(text, bos=True)[: min(config.max_position_embeddings, 1024)]
            given = torch.tensor([ids], device=model.device)
            out = model.get_decoder()(input_ids=given, use_cache=False, output_router_logits=True)
            for layer, logits in enumerate(out.router_logits):
                chosen = logits.topk(config.num_experts_per_tok).indices.reshape(-1).cpu()
                counts[layer] += torch.bincount(chosen, minlength=counts.shape[1])
            seen += len(ids)
            if seen >= MAX_TOKENS:
                break
        if not seen:
            raise UserError("這個領域沒有文字 (no text)", name, "給有內容的檔案")
        shares = counts / counts.sum(1, keepdim=True)
        domains[name] = {
            "tokens": seen,
            "shares": [[round(float(x), 4) for x in row] for row in shares],
            "effective_experts": [round(float(x), 2) for x in _effective(shares)],
        }
    return {"experts": config.num_local_experts, "top_k": config.num_experts_per_tok, "domains": domains}


def _effective(shares: Tensor) -> Tensor:
    """How many experts are in use, per layer: e to the entropy of their shares; all of them where use is even."""
    return torch.special.entr(shares).sum(1).exp()


def write_use(use: Mapping[str, Any], folder: Path) -> None:
    """`experts.json` and `experts.png` (a picture per domain: layers down, experts across)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    write_json(folder / "experts.json", use)
    domains = use["domains"]
    figure = Figure(figsize=(3.2 * len(domains) + 1, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    top = max(max(map(max, domain["shares"])) for domain in domains.values())
    axes = figure.subplots(1, len(domains), squeeze=False)[0]
    for axis, (name, domain) in zip(axes, domains.items(), strict=True):
        picture = axis.imshow(domain["shares"], vmin=0, vmax=top, cmap="viridis", aspect="auto")
        label = name if name.isascii() else f"domain {list(domains).index(name) + 1}"  # the default font has no Han
        axis.set(title=f"{label} ({domain['tokens']:,} tokens)", xlabel="expert", ylabel="layer")
    figure.colorbar(picture, ax=list(axes), label="share of choices")
    stream = io.BytesIO()
    figure.savefig(stream, dpi=120, format="png")
    write_bytes(folder / "experts.png", stream.getvalue())
