"""Distillation: the loss of a plain reference, in chunks; a frozen teacher; resumed bit for bit; the teacher's tokenizer must be the model's."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from tests.train.test_loop import run_and_kill
from twllm.errors import UserError
from twllm.model.build import save, weights_fingerprint
from twllm.tokens.tokenizer import ChatTokenizer
from twllm.train import distill
from twllm.train.config import SftConfig
from twllm.train.data import Batch
from twllm.train.distill import DistillObjective, load_teacher
from twllm.train.loop import Trainer
from twllm.train.rows import read_rows
from twllm.train.teacher_config import TeacherConfig

Make = Callable[..., Trainer]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def make_teacher(rows: int = 600) -> PreTrainedModel:
    """Wider and deeper than the student, sure of itself."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=rows, hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4,
        max_position_embeddings=256, initializer_range=0.15, bos_token_id=0, eos_token_id=1, pad_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).requires_grad_(False).eval()


def distilled(
    make: Make, work: Path, rows: int = 600, weight: float = 0.7, temperature: float = 2.0, **more: object
) -> Trainer:
    trainer = make(work, **more)
    config = TeacherConfig(model="teacher", weight=weight, temperature=temperature)
    trainer.objective = DistillObjective(trainer.model.train(), trainer.machine, make_teacher(rows), config)
    return trainer


def plain_loss(
    model: PreTrainedModel, teacher: PreTrainedModel, batch: Batch, weight: float, temperature: float
) -> torch.Tensor:
    """Summed loss from whole logits, each document on its own, as transformers computes them."""
    total = torch.zeros(())
    for row, start, length in batch.pieces:
        here = slice(start, start + length)
        ids, labels = batch.ids[row, here][None], batch.labels[row, here]
        chosen = labels >= 0
        s, t = model(input_ids=ids).logits[0, chosen], teacher(input_ids=ids).logits[0, chosen]
        V = min(s.shape[1], t.shape[1])
        p, q = (t[:, :V] / temperature).softmax(-1), (s[:, :V] / temperature).softmax(-1)
        kl = (p * (p.log() - q.log())).sum()
        total = (
            total + (1 - weight) * F.cross_entropy(s, labels[chosen], reduction="sum") + weight * temperature**2 * kl
        )
    return total


@pytest.mark.parametrize("chunk", [1024, 7])
@pytest.mark.parametrize("rows", [600, 640])
def test_loss_and_gradient_are_the_plain_ones(
    make_trainer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, rows: int
) -> None:
    monkeypatch.setattr("twllm.train.loss.CHUNK", chunk)
    seen: list[int] = []

    def linear(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        seen.append(len(hidden))
        return F.linear(hidden, weight)

    monkeypatch.setattr(distill, "F", SimpleNamespace(linear=linear))
    trainer = distilled(make_trainer, tmp_path / "w", rows)
    assert not trainer.data.prefix
    batch = trainer.data.batch(trainer.data.rows(0, 2))
    loss = trainer.loss(batch)
    loss.backward()
    found = {name: p.grad.clone() for name, p in trainer.model.named_parameters()}
    trainer.model.zero_grad()
    trainer.model.set_attn_implementation("sdpa")
    wanted = plain_loss(trainer.model, make_teacher(rows), batch, 0.7, 2.0)
    wanted.backward()
    count = int((batch.labels >= 0).sum())
    assert max(seen) == min(chunk, count) and sum(seen) == 2 * count  # logits of both exist for one chunk at a time
    assert float(loss.detach()) / count == pytest.approx(float(wanted.detach()) / count, abs=1e-5)
    for name, parameter in trainer.model.named_parameters():
        assert float((parameter.grad - found[name]).abs().max()) < 1e-4 * max(1.0, float(parameter.grad.abs().max())), (
            name
        )


def test_a_student_that_is_its_teacher_has_nothing_to_learn(
    make_trainer: Make, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    from twllm.model.build import load

    trainer = make_trainer(tmp_path / "w")
    config = TeacherConfig(model="teacher", weight=1.0)
    trainer.objective = DistillObjective(trainer.model.train(), trainer.machine, load(tiny_checkpoint), config)
    values = trainer.train_step(0)
    assert abs(values["loss"]) < 1e-6 and values["grad_norm"] < 1e-4 and values["cross_entropy"] > 1


def test_it_learns_the_teachers_distribution(make_trainer: Make, tmp_path: Path) -> None:
    """Nearer to the teacher than a model that learned from the same text alone; the teacher stays as it was."""
    with_teacher = distilled(make_trainer, tmp_path / "a", weight=1.0, temperature=1.0)
    alone = distilled(make_trainer, tmp_path / "b", weight=1e-9, temperature=1.0)
    before = weights_fingerprint(make_teacher().state_dict())
    with_teacher.run(), alone.run()
    ends = [read_rows(tmp_path / name / "metrics.jsonl") for name in ("a", "b")]
    first, last = ends[0][1]["divergence"], ends[0][-1]["divergence"]
    assert last < 0.8 * first and last < 0.7 * ends[1][-1]["divergence"]
    assert ends[1][-1]["cross_entropy"] < ends[0][-1]["cross_entropy"]
    teacher = with_teacher.objective.teacher  # type: ignore[attr-defined]
    assert weights_fingerprint(teacher.state_dict()) == before and not teacher.training
    assert all(p.grad is None for p in teacher.parameters())


def test_held_out_loss_is_plain_cross_entropy(make_trainer: Make, tmp_path: Path) -> None:
    trainer = distilled(make_trainer, tmp_path / "a")
    assert trainer.evaluate() == make_trainer(tmp_path / "b").evaluate()


def test_resumed_equals_uninterrupted_bit_for_bit(make_trainer: Make, tmp_path: Path) -> None:
    whole = distilled(make_trainer, tmp_path / "whole")
    whole.run()
    run_and_kill(distilled(make_trainer, tmp_path / "w", checkpoint_every_s=1e-9), 7)
    resumed = distilled(make_trainer, tmp_path / "w", checkpoint_every_s=1e-9)
    assert resumed.run()["resumed_at"] == 7
    assert weights_fingerprint(resumed.model.state_dict()) == weights_fingerprint(whole.model.state_dict())


def test_accumulation_and_bf16(make_trainer: Make, tmp_path: Path) -> None:
    whole, parts = (
        distilled(make_trainer, tmp_path / "a"),
        distilled(make_trainer, tmp_path / "b", micro_batch_tokens=64),
    )
    half = distilled(make_trainer, tmp_path / "c", precision="bf16")
    assert next(half.objective.teacher.parameters()).dtype == torch.bfloat16  # type: ignore[attr-defined]
    for step in range(2):
        values = whole.train_step(step)
        assert parts.train_step(step) == pytest.approx(values, rel=1e-4)
        assert half.train_step(step)["loss"] == pytest.approx(values["loss"], rel=0.03)


def test_the_teacher_must_have_the_same_tokenizer(tmp_path: Path, tiny_tokenizer: ChatTokenizer) -> None:
    save(make_teacher(), tiny_tokenizer, tmp_path / "teacher")
    config = TeacherConfig(model=str(tmp_path / "teacher"))
    teacher = load_teacher(config, tiny_tokenizer, 64)
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    other = Tokenizer.from_str(tiny_tokenizer.backend.to_str())
    other.add_tokens(["臺灣大學"])
    with pytest.raises(UserError, match=r"another tokenizer.*臺灣大學"):
        load_teacher(config, ChatTokenizer(other, tiny_tokenizer.template), 64)
    with pytest.raises(UserError, match="positions are too few"):
        load_teacher(config, tiny_tokenizer, 512)
    with pytest.raises(UserError, match="no such"):
        load_teacher(TeacherConfig(model="./none"), tiny_tokenizer, 64)


def test_bad_settings() -> None:
    for settings in ({"weight": 0}, {"weight": 1.5}, {"temperature": 0}):
        with pytest.raises(ValidationError):
            SftConfig.model_validate({"teacher": {"model": "x", **settings}})
