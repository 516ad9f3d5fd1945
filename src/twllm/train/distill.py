"""Distillation: the model learns a larger one's whole distribution at each labelled token, in the ordinary training loop.

Loss of a token, with student logits s, teacher logits t, weight w and temperature T (arXiv 1503.02531, forward KL):
    (1 − w) · cross entropy(s, label)  +  w · T² · KL(softmax(t / T) ‖ softmax(s / T))
Both heads are computed for a chunk of labelled tokens at a time and the gradients made there and then, so (tokens × vocabulary) logits
never exist at once. The price is the teacher's forward pass: about 2 FLOPs a teacher parameter and token beside the student's 6. The
teacher is frozen, in evaluation mode, in bf16 where the run is, and a function of the batch alone: a resumed run stays equal bit for
bit. The held-out loss is plain cross entropy.
Equal to a plain reference on whole logits, held by a test. Not covered: hidden-state losses, teachers with another tokenizer,
logits kept on disk, a teacher sharded over GPUs (each process holds a whole one).
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from twllm.errors import UserError
from twllm.tokens.contract import check_same_tokenizer
from twllm.tokens.tokenizer import ChatTokenizer
from twllm.train.data import Batch
from twllm.train.loss import add_product, check_model, chunk_tokens, hidden_states
from twllm.train.machine import Machine
from twllm.train.objective import TokenObjective
from twllm.train.teacher_config import TeacherConfig

# N labelled tokens, D and E widths of student and teacher, V vocabulary


def load_teacher(config: TeacherConfig, tokenizer: ChatTokenizer, context: int) -> PreTrainedModel:
    """The frozen teacher.

    Raises:
        UserError: no such model, another tokenizer than the student's, or one that cannot read rows this long.
    """
    from twllm.model.build import load
    from twllm.model.hub import fetch

    folder = fetch(config.model, config.revision)
    check_same_tokenizer(ChatTokenizer.load(folder), tokenizer, config.model)
    teacher = load(folder)
    limit = getattr(teacher.config, "max_position_embeddings", context)
    if context > limit:
        what = f"老師只讀得了 {limit} 個詞元，context 是 {context} (the teacher's positions are too few)"
        raise UserError(what, config.model, f"把 context 降到 {limit} 以下")
    check_model(teacher, context)
    return teacher.requires_grad_(False).eval()


class DistillObjective(TokenObjective):
    """Cross entropy and the teacher's distribution, mixed; only cross entropy while the model is evaluated."""

    def __init__(
        self, model: PreTrainedModel, machine: Machine, teacher: PreTrainedModel, config: TeacherConfig
    ) -> None:
        super().__init__(model, machine)
        from twllm.train.attention import IMPLEMENTATIONS

        self.config = config
        self.teacher = teacher.to(machine.device, torch.bfloat16 if machine.precision == "bf16" else torch.float32)
        self.teacher.set_attn_implementation(IMPLEMENTATIONS[machine.attention])
        if machine.compile and machine.attention == "mask":
            self.teacher.get_decoder().compile(dynamic=False)
        self._entropy = self._divergence = 0.0  # of this step, summed over labelled tokens

    def begin(self, batches: Sequence[Batch]) -> float:
        """The number of labelled tokens."""
        self._entropy = self._divergence = 0.0
        return super().begin(batches)

    def token_loss(self, batch: Batch, routers: list[Tensor] | None) -> tuple[Tensor, int]:
        """(summed mixed loss, number of labelled tokens)."""
        if not self.model.training:
            return super().token_loss(batch, routers)
        places = batch.places()  # (N,)
        labels = batch.labels.reshape(-1).index_select(0, places)
        attention = self.machine.attention
        student = _picked(hidden_states(self.model, batch, attention, routers), places)  # (N, D)
        with torch.no_grad():
            teacher = _picked(hidden_states(self.teacher, batch, attention), places)  # (N, E)
        heads = [m.get_output_embeddings().weight for m in (self.model, self.teacher)]
        loss, entropy, divergence = distill_losses(
            student, heads[0], (teacher, heads[1]), labels, self.config, self.told
        )
        self._entropy += float(entropy)
        self._divergence += float(divergence)
        return loss, len(places)

    def metrics(self) -> dict[str, float]:
        """Cross entropy with the text and divergence from the teacher, a labelled token; `loss` is their mix."""
        parts = {"cross_entropy": self._entropy, "divergence": self._divergence}
        return {**super().metrics(), **self._means(parts)}


def _picked(hidden: Tensor, places: Tensor) -> Tensor:
    return hidden.reshape(-1, hidden.shape[-1]).index_select(0, places)


class _DistillLoss(torch.autograd.Function):
    """The mixed loss with its gradients made in the forward pass, as in loss.py: no logits are kept, none computed twice."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, teacher: tuple[Tensor, Tensor], labels: Tensor, mix: tuple[float, float], dtype: torch.dtype,
        told: list[Tensor] | None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        weight, T = mix
        wants_hidden, wants_head = ctx.needs_input_grad[:2]
        V = min(len(head), len(teacher[1]))
        h, w, t, u = (x.detach().to(dtype) for x in (hidden, head, teacher[0], teacher[1][:V]))
        entropy, divergence = torch.zeros((), device=h.device), torch.zeros((), device=h.device)
        each = []
        d_hidden = torch.empty_like(h) if wants_hidden else None
        d_head = torch.zeros_like(head, dtype=torch.float32) if wants_head else None
        size = chunk_tokens(len(head), h.device, wants_head)
        with torch.autocast(h.device.type, enabled=False):
            for at in range(0, len(labels), size):
                here, y = slice(at, at + size), labels[at : at + size, None]
                logits = F.linear(h[here], w).float()  # (chunk, V of the student)
                log_q = torch.log_softmax(F.linear(t[here], u).float() / T, -1)  # the teacher's
                log_p = torch.log_softmax(logits[:, :V] / T, -1)
                q = log_q.exp()
                divergence += (q * log_q.sub_(log_p)).sum()
                grad = torch.log_softmax(logits, -1)
                each.append(grad.gather(1, y)[:, 0])
                entropy -= each[-1].sum()
                grad = grad.exp_().scatter_add_(1, y, grad.new_full((len(y), 1), -1.0)).mul_(1 - weight)
                grad[:, :V] += log_p.exp_().sub_(q).mul_(weight * T)  # T² of the loss, 1 / T of the inner derivative
                grad = grad.to(dtype)
                if d_hidden is not None:
                    torch.mm(grad, w, out=d_hidden[here])
                if d_head is not None:
                    add_product(d_head, grad, h[here])
                del logits, log_q, log_p, q, grad  # else they stand while the next chunk's are made
        if told is not None:
            told.append(-torch.cat(each) if each else entropy.new_zeros(0))
        ctx.save_for_backward(d_hidden, d_head)
        ctx.dtypes = hidden.dtype, head.dtype
        ctx.mark_non_differentiable(entropy, divergence)
        return (1 - weight) * entropy + weight * T**2 * divergence, entropy, divergence

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        found = [
            None if x is None else x.to(dtype).mul_(grads[0])
            for x, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return *found, None, None, None, None, None


def distill_losses(
    student: Tensor, head: Tensor, teacher: tuple[Tensor, Tensor], labels: Tensor, config: TeacherConfig, told: list[Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(summed mixed loss, summed cross entropy, summed KL) of (N, D) hidden states and a (V, D) head, and the teacher's, in that order.

    Only the first has a gradient, for one backward. Rows that only one head has (a vocabulary filled up to a multiple) take no part in the KL.
    `told`, where given, gets the N cross entropies.
    """
    device = student.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head.dtype
    mix = (config.weight, config.temperature)
    found: tuple[Tensor, Tensor, Tensor] = _DistillLoss.apply(student, head, teacher, labels, mix, dtype, told)
    return found
