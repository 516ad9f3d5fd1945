"""DPO (arXiv 2305.18290) and KTO (arXiv 2402.01306): learning from what people preferred, against the starting model.

With π the model, π₀ the starting weights, and r = log π(y|x) − log π₀(y|x) summed over the completion's tokens:
  DPO, a pair:     −log σ(β (r_chosen − r_rejected)), mean over pairs; label_smoothing, ipo and sft_weight as in TRL ("robust", "ipo", "sft")
  KTO, an answer:  w (1 − σ(± β (r − z))), mean over answers; + and w = desirable_weight for a wanted one, − and
                   undesirable_weight for an unwanted one; z = max(0, mean r of mismatched pairs), without gradient
log π₀ is computed once, before the first step (adapters disabled), and kept beside the run's states: no second model is in memory. z is taken over the
whole optimizer step, so accumulation changes nothing (TRL takes it per micro-batch); its price is one more forward pass.
Equal to TRL's losses on the same batch, held by a test. Not covered: further variants, held-out sets, a reference-free form.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from safetensors import safe_open
from safetensors.numpy import save
from torch import Tensor
from transformers import PreTrainedModel

from twllm.artifact import write_bytes
from twllm.tokens.preferences import LABELS
from twllm.train.adapters import base_only
from twllm.train.config import FeedbackConfig
from twllm.train.data import Batch, PackedData
from twllm.train.distributed import all_sum, count, from_main, gather, is_main, share
from twllm.train.loss import chunk_tokens, hidden_states
from twllm.train.machine import Machine
from twllm.train.parallel import inside

# N learned tokens, D model width, V vocabulary, S documents (pieces) in a batch


def sequence_logprobs(model: PreTrainedModel, batch: Batch, attention: str) -> Tensor:
    """(S,) log-probability of each document's learned tokens, in the order of `batch.pieces`."""
    return inside(model, _sequence_logprobs, model, batch, attention)


def _sequence_logprobs(model: PreTrainedModel, batch: Batch, attention: str) -> Tensor:
    flat = batch.labels.reshape(-1)
    places = batch.places()  # (N,)
    hidden = hidden_states(model, batch, attention)
    picked = hidden.reshape(-1, hidden.shape[-1]).index_select(0, places)  # (N, D)
    tokens = token_logprobs(picked, model.get_output_embeddings().weight, flat.index_select(0, places))  # (N,)
    owner = torch.zeros(batch.ids.shape, dtype=torch.long)
    for number, (row, start, length) in enumerate(batch.pieces):
        owner[row, start : start + length] = number
    owner = owner.reshape(-1).to(places.device).index_select(0, places)
    return torch.zeros(len(batch.pieces), device=tokens.device).index_add(0, owner, tokens)


def token_logprobs(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """(N,) log-probabilities of labels after (N, D) hidden states; logits exist for a chunk of tokens at a time, in fp32."""
    size = chunk_tokens(len(weight), hidden.device, trains_head=False)
    if len(labels) <= size:
        return -F.cross_entropy(F.linear(hidden, weight).float(), labels, reduction="none")
    chunks = zip(hidden.split(size), labels.split(size), strict=True)
    return torch.cat(
        [torch.utils.checkpoint.checkpoint(token_logprobs, h, weight, y, use_reentrant=False) for h, y in chunks]
    )


def dpo_losses(ratios: Tensor, lengths: Tensor, config: FeedbackConfig) -> Tensor:
    """(S / 2,) losses of (S,) log-ratios in the order chosen, rejected, chosen, … over so many tokens each."""
    if config.dpo_loss == "ipo":
        means = ratios / lengths
        return (means[0::2] - means[1::2] - 1 / (2 * config.beta)) ** 2
    margin, wrong = config.beta * (ratios[0::2] - ratios[1::2]), config.label_smoothing
    return -((1 - wrong) * F.logsigmoid(margin) - wrong * F.logsigmoid(-margin)) / (1 - 2 * wrong)


def kto_losses(ratios: Tensor, labels: Tensor, kl: Tensor, config: FeedbackConfig) -> Tensor:
    """Losses of (S,) log-ratios whose labels are 1 or -1, around the reference point `kl`."""
    weight = torch.where(labels > 0, config.desirable_weight, config.undesirable_weight)
    return weight * (1 - torch.sigmoid(config.beta * labels * (ratios - kl)))


class PreferenceObjective:
    """DPO or KTO over documents that come in twos (tokens/preferences.py)."""

    def __init__(
        self, model: PreTrainedModel, machine: Machine, data: PackedData, config: FeedbackConfig, work: Path
    ) -> None:
        self.model, self.machine, self.config = model, machine, config
        labels = [np.load(shard.folder / LABELS) for shard in data.shards]
        self.labels = torch.from_numpy(np.concatenate(labels).astype(np.int64))
        self.kl = torch.zeros(())
        self._sft = 0.0  # dpo: what a chosen token's loss counts in this step
        self.seen: list[Tensor] = []  # each micro-batch's rewards, wanted minus unwanted where both are known
        self.reference = torch.from_numpy(self._reference(data, work / "reference.safetensors"))

    def begin(self, batches: Sequence[Batch]) -> float:
        """The number of pairs, or of rated answers; for KTO, z is computed."""
        self.seen = []
        labels = self.labels[[number for batch in batches if not batch.filler for number in batch.documents]]
        if self.config.method == "dpo":
            if self.config.sft_weight:
                counted = [int(_lengths(b)[self.labels[b.documents] > 0].sum()) for b in batches if not b.filler]
                pairs, tokens = all_sum([len(labels) / 2, float(sum(counted))])
                self._sft = self.config.sft_weight * pairs / max(1.0, tokens)
            return len(labels) / 2
        training = self.model.training
        self.model.eval()  # without dropout: z is the same however the step's rows are dealt out
        with torch.no_grad():
            mismatched = [self._ratios(batch)[(self._labels(batch) == 0) & (not batch.filler)] for batch in batches]
        self.model.train(training)
        self.kl = _mean(torch.cat(mismatched)).clamp(min=0)
        return float((labels != 0).sum())

    def loss(self, batch: Batch) -> Tensor:
        """Summed loss of a micro-batch."""
        ratios, labels = self._ratios(batch), self._labels(batch)
        if batch.filler:
            return 0 * ratios.sum()
        rated = labels != 0
        self.seen.append(torch.stack([ratios.detach()[rated], labels[rated].to(ratios.dtype)]))
        if self.config.method == "dpo":
            loss = dpo_losses(ratios, _lengths(batch).to(ratios.device), self.config).sum()
            chosen = ratios + self.reference[batch.documents].to(ratios.device)  # log π
            return loss - self._sft * chosen[labels > 0].sum() if self._sft else loss
        return kto_losses(ratios[rated], labels[rated], self.kl, self.config).sum()

    def metrics(self) -> dict[str, float]:
        """Mean reward β r of wanted and unwanted answers; DPO: the share of pairs in the right order; KTO: z."""
        ratios, labels = torch.cat(self.seen, dim=1) if self.seen else torch.zeros(2, 0)
        found = {}
        wanted = {"reward_wanted": labels > 0, "reward_unwanted": labels < 0}
        sums = [float(value) for chosen in wanted.values() for value in (ratios[chosen].sum(), chosen.sum())]
        right = (ratios[0::2] > ratios[1::2]).float() if self.config.method == "dpo" else ratios[:0]
        *sums, won, pairs = all_sum([*sums, float(right.sum()), len(right)])
        for name, total, number in zip(wanted, sums[0::2], sums[1::2], strict=True):
            if number:
                found[name] = self.config.beta * total / number
        if self.config.method == "dpo":
            return {**found, "accuracy": won / max(1, pairs)}
        return {**found, "kl": float(self.kl)}

    def _labels(self, batch: Batch) -> Tensor:
        return self.labels[batch.documents].to(self.model.device)

    def _ratios(self, batch: Batch) -> Tensor:
        """(S,) log π − log π₀."""
        with self.machine.autocast():
            found = sequence_logprobs(self.model, batch.to(self.model.device), self.machine.attention)
        return found - self.reference[batch.documents].to(found.device)

    def _reference(self, data: PackedData, file: Path) -> np.ndarray:
        """(documents,) log π₀ of every document, from the file where it was computed with the same weights."""
        from twllm.model.build import weights_fingerprint

        weights = weights_fingerprint(self.model.state_dict())

        def known() -> bool:
            if not file.is_file():
                return False
            with safe_open(file, "np") as kept:
                return (kept.metadata() or {}).get("weights") == weights

        if from_main(known):
            with safe_open(file, "np") as kept:
                return np.asarray(kept.get_tensor("logprobs"))
        found = np.zeros(len(data.lengths), np.float32)
        training = self.model.training
        self.model.eval()
        with torch.no_grad(), self.machine.autocast(), base_only(self.model):
            rows, (mine, shares) = data.each_once(), share()
            for start in range(
                0, len(rows), shares
            ):  # each process one of `shares` rows; the last ones are asked again
                batch = data.batch([rows[min(start + mine, len(rows) - 1)]])
                logprobs = sequence_logprobs(self.model, batch.to(self.model.device), self.machine.attention)
                found[batch.documents] = logprobs.float().cpu().numpy()
        self.model.train(training)
        for part in gather(found) if count() > 1 else ():
            found = np.where(found == 0, part, found)  # what another process computed
        if is_main():
            write_bytes(file, save({"logprobs": found}, metadata={"weights": weights}))
        return found


def _lengths(batch: Batch) -> Tensor:
    """(S,) learned tokens of each document."""
    return torch.from_numpy(np.diff(batch.label_spans())[:, 0])


def _mean(values: Tensor) -> Tensor:
    """Over all processes; 0 of nothing."""
    if count() == 1:
        return values.mean()
    total, number = all_sum([float(values.sum()), len(values)])
    return torch.tensor(total / max(1.0, number), device=values.device)
