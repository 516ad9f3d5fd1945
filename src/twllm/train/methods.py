"""What a phase trains and how: adapters, frozen parts, noise. `apply` changes the model in place before the optimizer is built."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from twllm.train.config import OptimConfig
from twllm.train.data import Batch
from twllm.train.frozen import Frozen
from twllm.train.machine import Machine
from twllm.train.neftune import EmbeddingNoise
from twllm.train.parts import freeze

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from twllm.train.adapters import Adapter


@dataclass
class Methods:
    """What was applied to a model; nothing by default."""

    facts: dict[str, Any]  # for the manifest
    frozen: Frozen
    adapter: "Adapter | None" = None
    noise: EmbeddingNoise | None = None

    def announce(self, batch: Batch) -> None:
        """Which rows the next forward pass is about."""
        if self.noise:
            self.noise.announce(batch)

    def remove(self) -> None:
        """Take the hooks off; adapters stay until they are merged."""
        if self.noise:
            self.noise.handle.remove()


def apply(model: "PreTrainedModel", config: OptimConfig, machine: Machine) -> Methods:
    """Adapters into the model, frozen parts out of training, noise onto its embedding, as the phase's config says."""
    from twllm.model.rope import forget_lengths

    facts: dict[str, Any] = {}
    adapter = None
    forget_lengths(model)
    if config.lora:
        from twllm.train.adapters import Adapter

        adapter = Adapter(model, config.lora, machine, config.seed)
        facts["lora"] = adapter.facts()
    if config.freeze:
        facts["frozen_parameters"] = freeze(model, config.freeze)
    found = Methods(facts, Frozen(model, machine), adapter)
    if config.neftune_alpha:
        found.noise = EmbeddingNoise(model.get_input_embeddings(), config.neftune_alpha)
    return found
