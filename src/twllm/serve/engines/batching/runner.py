"""What a model has to offer to be served with continuous batching: ids in, logits out, key/value slots that can be cut and copied.

The scheduler does everything else: queueing, sampling, grammars, text, ends, cancels, shared prefixes. A runner is
called from one thread only. Torch is not imported here; logits are numpy arrays, so OpenVINO and llama.cpp fit as well.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from twllm.serve.engines.interface import PromptScores

Logits = NDArray[np.float32]  # (V,)


class Work(NamedTuple):
    """Part of one step: `ids` (at least one) follow what the slot holds; `logits`: those after the last id are wanted."""

    slot: int
    ids: Sequence[int]
    logits: bool


class Runner(Protocol):
    """A model with `slots` sequences in memory, numbered from 0; all are empty at first."""

    @property
    def slots(self) -> int:
        """How many sequences fit in memory."""
        ...

    @property
    def context(self) -> int | None:
        """Tokens one slot can hold, None: no limit."""
        ...

    @property
    def capacity(self) -> int | None:
        """Tokens all slots together can hold, None: slots times context."""
        ...

    @property
    def vocab(self) -> int:
        """Width of the logits; ids are below it."""
        ...

    @property
    def step_tokens(self) -> int:
        """Prompt tokens worth computing in one step beside the running answers."""
        ...

    def step(self, work: Sequence[Work]) -> Sequence[Logits | None]:
        """Append each slot's ids and compute; no slot comes twice. Logits in the order of `work`, fp32, None where not wanted.

        The arrays may be reused by the next step. After an exception the scheduler trims the slots to their old lengths.
        """
        ...

    def trim(self, slot: int, length: int) -> None:
        """Keep the first `length` tokens of the slot; 0 empties it and may free its memory. Never longer than it is."""
        ...

    def copy(self, source: int, target: int, length: int) -> bool:
        """Let the empty slot `target` begin with the first `length` tokens of `source`; False: this runner cannot (nothing happened)."""
        ...

    def prompt_logprobs(self, sequences: Sequence[list[int]], top: int) -> list[PromptScores]:
        """As `Engine.prompt_logprobs`; uses no slot, called between steps.

        Raises:
            UserError: this runner cannot tell them.
        """
        ...

    def close(self) -> None:
        """Free the model."""
        ...
