"""A model rebuilt with other layers or other widths: the same class, weights by name, nothing initialised that is then thrown away.

Llama, Mistral, Qwen2 and Qwen3 as transformers has them: layers under `model.layers`, in each the projections named below.
Not covered: mixtures of experts, layers of different kinds or widths, quantised weights.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from twllm.errors import UserError

KINDS = ("llama", "mistral", "qwen2", "qwen3")
PREFIX = "model.layers."


def check_kind(model: PreTrainedModel, verb: str) -> None:
    """Refuse what is not of this shape.

    Raises:
        UserError: see above.
    """
    config = model.config
    if config.model_type not in KINDS:
        raise UserError(
            f"還不能{verb}這種模型 (not a Llama-shaped model): {config.model_type}",
            "config.json",
            f"換 {'、'.join(KINDS)} 型的密集模型",
        )


def rebuild(model: PreTrainedModel, state: Mapping[str, Tensor], **changes: Any) -> PreTrainedModel:
    """A model of the same class whose config differs by `changes`, holding exactly the tensors of `state` (shared, not copied)."""
    config = copy.deepcopy(model.config)
    for key, value in changes.items():
        setattr(config, key, value)
    with torch.device("meta"):
        built = type(model)(config)
    tied = bool(config.tie_word_embeddings)
    given = {name: tensor for name, tensor in state.items() if not (tied and name == "lm_head.weight")}
    built.load_state_dict(given, strict=not tied, assign=True)
    built.tie_weights()
    built.model.rotary_emb = type(built.model.rotary_emb)(config)  # its angles are no weights
    built.get_input_embeddings().padding_idx = None
    left = [name for name, parameter in built.named_parameters() if parameter.is_meta]
    assert not left, left
    return built.requires_grad_(True).train(model.training)


def pick_layers(state: Mapping[str, Tensor], sources: Sequence[int]) -> dict[str, Tensor]:
    """The state of a model whose layer i is a copy of layer `sources[i]`."""
    found = {name: value for name, value in state.items() if not name.startswith(PREFIX)}
    for name, value in state.items():
        if name.startswith(PREFIX):
            number, _, rest = name.removeprefix(PREFIX).partition(".")
            for place, source in enumerate(sources):
                if source == int(number):
                    found[f"{PREFIX}{place}.{rest}"] = value.detach().clone()
    return found


def layer_changes(model: PreTrainedModel, sources: Sequence[int]) -> dict[str, Any]:
    """What the config says about layers, for layers `sources` of this model."""
    changes: dict[str, Any] = {"num_hidden_layers": len(sources)}
    if types := getattr(model.config, "layer_types", None):
        changes["layer_types"] = [types[source] for source in sources]
    return changes
