"""A recipe's [base.prune] or [base.deepen], done to the base model before its first phase."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel

from twllm.model.deepen import deepen
from twllm.model.importance import calibration_rows
from twllm.model.prune import prune
from twllm.model.shape_config import DeepenConfig, PruneConfig
from twllm.tokens.tokenizer import ChatTokenizer


def reshape(
    model: PreTrainedModel, tokenizer: ChatTokenizer, cut: PruneConfig | None, deeper: DeepenConfig | None, texts: Sequence[str],
    context: int,
) -> tuple[PreTrainedModel, dict[str, Any]]:  # fmt: skip
    """(the model in its new shape, what `twllm model prune` or `deepen` reports)."""
    if cut:
        return prune(model, cut, *calibration_rows(tokenizer, texts, context, cut.tokens))
    assert deeper is not None
    found, sources = deepen(model, deeper.layers, deeper.method)
    return found, {"layer_sources": sources}
