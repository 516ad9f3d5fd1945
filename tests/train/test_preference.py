"""DPO and KTO (and SFT): TRL's losses on the same batch, accumulation, the reference, exact resume, and that they teach what was wanted."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.train.test_loop import run_and_kill
from twllm.errors import UserError
from twllm.model.build import load, weights_fingerprint
from twllm.tokens.preferences import LABELS
from twllm.tokens.shards import TokenShard, write_shard
from twllm.train.config import FeedbackConfig, MachineConfig
from twllm.train.data import PackedData
from twllm.train.loop import Trainer
from twllm.train.preference import PreferenceObjective

Row = tuple[list[int], list[int]]  # prompt, completion
PROMPTS = [[0, 5, 9, 33], [0, 8, 8, 2, 90], [0, 300, 301], [0, 44, 45, 46, 47, 48]]
WANTED = [[70, 71, 1], [91, 92, 93, 94, 1], [310, 1], [60, 61, 62, 1]]
UNWANTED = [[80, 1], [95, 96, 1], [320, 321, 322, 1], [63, 1]]
SHIFT, FLATTER = (
    0.05,
    0.8,
)  # how the tested policy differs from the reference; flatter: z, the mean over mismatched pairs, is > 0
# TRL 1.16.0, torch 2.13.0, transformers 5.24: `trl_losses.py` on the rows and models of `models` below
TRL = {
    "sft": {"loss": 6.3290358, "gradient": 1.1434488},
    "dpo": {"loss": 1.0754278, "gradient": 1.0623198},
    "kto": {"loss": 0.6222471, "gradient": 0.3326361},
    "chats": {"loss": 6.5346484, "gradient": 0.9004257},
    "ipo": {"loss": 5.3744869, "gradient": 7.9463921},
    "robust": {"loss": 1.2634387, "gradient": 1.5762899},
    "with_sft": {"loss": 5.4985266, "gradient": 1.7549064},
}
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # name: (ours, TRL's)
    "ipo": ({"dpo_loss": "ipo"}, {"loss_type": ["ipo"]}),
    "robust": ({"label_smoothing": 0.2}, {"loss_type": ["robust"], "label_smoothing": 0.2}),
    "with_sft": ({"sft_weight": 0.7}, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7]}),
}
CHATS = [
    [{"role": "user", "content": "台灣的首都是哪裡？"}, {"role": "assistant", "content": "臺北。"}],
    [
        {"role": "user", "content": "玉山多高？"}, {"role": "assistant", "content": "三千九百五十二公尺。"},
        {"role": "user", "content": "謝謝"}, {"role": "assistant", "content": "不客氣！NTU 2024"},
    ],
    [{"role": "system", "content": "請用注音。"}, {"role": "user", "content": "好"}, {"role": "assistant", "content": "ㄏㄠˇ"}],
]  # fmt: skip
SETTINGS = {"beta": 0.3, "desirable_weight": 1.0, "undesirable_weight": 1.5}


def dpo_documents() -> tuple[list[Row], list[int]]:
    rows = [(p, c) for p, w, u in zip(PROMPTS, WANTED, UNWANTED, strict=True) for c in (w, u)]
    return rows, [1, -1] * len(PROMPTS)


def kto_documents() -> tuple[list[Row], list[int]]:
    """Answers 0 and 2 wanted, 1 and 3 not; the mismatched completion is the one before, as in TRL."""
    answers = [WANTED[0], UNWANTED[1], WANTED[2], UNWANTED[3]]
    rows = [row for i, p in enumerate(PROMPTS) for row in ((p, answers[i]), (p, answers[i - 1]))]
    return rows, [1, 0, -1, 0, 1, 0, -1, 0]


def write(folder: Path, method: str) -> TokenShard:
    rows, labels = dpo_documents() if method == "dpo" else kto_documents()
    documents = [(str(i), p + c, [False] * len(p) + [True] * len(c)) for i, (p, c) in enumerate(rows)]
    write_shard(folder, documents, 600)
    np.save(folder / LABELS, np.asarray(labels, np.int8))
    return TokenShard(folder)


def trainer(
    work: Path,
    checkpoint: Path,
    shard: TokenShard,
    method: str,
    *,
    micro: int = 8192,
    every: float = 1e9,
    **settings: Any,
) -> Trainer:
    given = {
        "lr": 3e-3,
        "epochs": 6,
        "batch_tokens": 64,
        "context": 32,
        "seed": 3,
        "method": method,
        "beta": 0.3,
        **settings,
    }
    config = FeedbackConfig.model_validate(given)
    machine = MachineConfig(
        threads=1, precision="fp32", tensorboard=False, micro_batch_tokens=micro, checkpoint_every_s=every
    )
    data = PackedData([shard], [1.0], config.context, config.seed, group=2)

    def objective(model: Any, machine: Any) -> PreferenceObjective:
        return PreferenceObjective(model, machine, data, config, work)

    return Trainer("feedback", load(checkpoint), data, config, machine, work, None, objective)


@pytest.fixture
def models(tiny_checkpoint: Path, tmp_path: Path) -> tuple[Path, Path]:
    """(policy, reference): the policy is the reference with a known change to every weight."""
    model = load(tiny_checkpoint)
    generator = torch.Generator().manual_seed(10)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(FLATTER).add_(SHIFT * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(tmp_path / "policy")
    for file in [*tiny_checkpoint.glob("*token*"), *tiny_checkpoint.glob("*.jinja")]:
        (tmp_path / "policy" / file.name).write_bytes(file.read_bytes())
    return tmp_path / "policy", tiny_checkpoint


def ours(models: tuple[Path, Path], tmp_path: Path, method: str, **variant: Any) -> dict[str, float]:
    """Loss and gradient of one step over all rows, in one micro-batch, at the policy's weights."""
    weights = SETTINGS if method == "kto" else {"beta": SETTINGS["beta"], **variant}
    made = trainer(tmp_path / f"w-{method}", models[1], write(tmp_path / method, method), method, **weights)
    made.model.load_state_dict(load(models[0]).state_dict())
    rows = made.data.each_once()
    batch = made.data.batch(rows)
    divisor = made.objective.begin([batch])  # first: KTO's z, and what a chosen token counts, are made there
    assert method == "dpo" or made.objective.kl > 0.01  # type: ignore[attr-defined]  # not clamped away: else no difference
    loss = made.loss(batch) / divisor
    loss.backward()
    return {"loss": float(loss.detach()), "gradient": float(made.model.get_output_embeddings().weight.grad.norm())}


SFT_DOCUMENTS = [  # two answers in the last: labels on both, none on the question between them
    *[(p + c, [False] * len(p) + [True] * len(c)) for p, c in zip(PROMPTS, WANTED, strict=True)],
    ([0, 5, 9, 70, 1, 8, 2, 60, 61, 1], [False] * 3 + [True] * 2 + [False] * 2 + [True] * 3),
]


def our_sft(model: Path, folder: Path) -> dict[str, float]:
    """Of SFT_DOCUMENTS."""
    write_shard(folder, [(str(i), ids, mask) for i, (ids, mask) in enumerate(SFT_DOCUMENTS)], 600)
    return sft_step(model, TokenShard(folder), 32, folder / "work")


def sft_step(model: Path, shard: TokenShard, context: int, work: Path) -> dict[str, float]:
    """Of one step over packed rows, fp32."""
    from twllm.train.config import SftConfig

    data = PackedData([shard], [1.0], context, 1)
    machine = MachineConfig(threads=1, precision="fp32", tensorboard=False)
    config = SftConfig(lr=1e-3, batch_tokens=2 * context, context=context)
    made = Trainer("sft", load(model), data, config, machine, work)
    batch = data.batch(data.each_once())
    loss = made.loss(batch) / made.objective.begin([batch])
    loss.backward()
    return {"loss": float(loss.detach()), "gradient": float(made.model.get_output_embeddings().weight.grad.norm())}


def our_chats(model: Path, folder: Path) -> tuple[dict[str, float], list[list[int]]]:
    """Of conversations, from messages to packed rows; and each one's labels."""
    from twllm.tokens.build import chat_shard
    from twllm.tokens.conversation import Conversation
    from twllm.tokens.tokenizer import ChatTokenizer

    rows = [Conversation(tuple(messages), id=str(i)) for i, messages in enumerate(CHATS)]
    chat_shard(folder, rows, ChatTokenizer.load(model), 256)
    shard = TokenShard(folder)
    kept = [slice(*shard.offsets[i : i + 2].tolist()) for i in range(len(shard))]
    labels = [np.where(shard.mask(k.start, k.stop), shard.ids[k].astype(int), -100).tolist() for k in kept]
    return sft_step(model, shard, 256, folder / "work"), labels


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_same_loss_and_gradient_as_trl_had(models: tuple[Path, Path], tmp_path: Path, method: str) -> None:
    assert ours(models, tmp_path, method) == pytest.approx(TRL[method], rel=2e-4)


def test_same_loss_and_gradient_as_trl_here(models: tuple[Path, Path], tmp_path: Path) -> None:
    """Live, where TRL is installed or $TWLLM_TRL_PYTHON names a Python that has it."""
    python = os.environ.get("TWLLM_TRL_PYTHON") or (sys.executable if importlib.util.find_spec("trl") else "")
    if not python:
        pytest.skip("no TRL (pip install trl, or set TWLLM_TRL_PYTHON)")
    answers, labels = kto_documents()
    kto = [
        {"prompt_ids": answers[i][0], "completion_ids": answers[i][1], "KL_completion_ids": answers[i + 1][1], "label": labels[i] > 0}
        for i in range(0, len(answers), 2)
    ]  # fmt: skip
    dpo = [
        {"prompt_ids": p, "chosen_ids": w, "rejected_ids": u} for p, w, u in zip(PROMPTS, WANTED, UNWANTED, strict=True)
    ]
    sft = [
        {"input_ids": ids, "labels": [i if learned else -100 for i, learned in zip(ids, mask, strict=True)]}
        for ids, mask in SFT_DOCUMENTS
    ]
    rows = {
        "sft": sft,
        "chats": CHATS,
        "dpo": dpo,
        "kto": kto,
        "variants": {name: v[1] for name, v in VARIANTS.items()},
    }
    request = {"policy": str(models[0]), "reference": str(models[1]), **rows, **SETTINGS}
    (tmp_path / "request.json").write_text(json.dumps(request))
    command = [python, str(Path(__file__).with_name("trl_losses.py")), str(tmp_path / "request.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = json.loads(done.stdout.split("RESULT ")[1])
    print({name: value for name, value in theirs.items() if name != "labels"})
    for method in ("dpo", "kto"):
        assert ours(models, tmp_path, method) == pytest.approx(theirs[method], rel=2e-4), theirs
    for name, (variant, _) in VARIANTS.items():
        assert ours(models, tmp_path / name, "dpo", **variant) == pytest.approx(theirs[name], rel=2e-4), name
    step, labels = our_chats(models[0], tmp_path / "chats")
    assert step == pytest.approx(theirs["chats"], rel=1e-5)
    assert labels == [row[: len(mine)] for row, mine in zip(theirs["labels"], labels, strict=True)]
    assert all(set(row[len(mine) :]) <= {-100} for row, mine in zip(theirs["labels"], labels, strict=True))
    assert our_sft(models[0], tmp_path / "sft") == pytest.approx(theirs["sft"], rel=1e-5), theirs


def test_same_sft_loss_as_trl_had(models: tuple[Path, Path], tmp_path: Path) -> None:
    assert our_sft(models[0], tmp_path / "sft") == pytest.approx(TRL["sft"], rel=1e-5)
    assert our_chats(models[0], tmp_path / "chats")[0] == pytest.approx(TRL["chats"], rel=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_same_variants_of_dpo_as_trl_had(models: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    assert ours(models, tmp_path, "dpo", **VARIANTS[name][0]) == pytest.approx(TRL[name], rel=2e-4)


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_twos_stay_in_one_row_and_every_document_has_its_own_logprob(
    tiny_checkpoint: Path, tmp_path: Path, method: str
) -> None:
    """The reference of packed rows equals transformers' log-probabilities of each document alone."""
    made = trainer(tmp_path / "w", tiny_checkpoint, write(tmp_path / "s", method), method)
    for row in made.data.epoch_rows(0) + made.data.each_once():
        documents = [document for document, _, _ in row.pieces]
        assert documents[1::2] == [d + 1 for d in documents[0::2]] and all(d % 2 == 0 for d in documents[0::2])
    model = load(tiny_checkpoint)
    rows, _ = dpo_documents() if method == "dpo" else kto_documents()
    for number, (prompt, completion) in enumerate(rows):
        with torch.no_grad():
            logprobs = model(input_ids=torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
        expected = sum(float(logprobs[len(prompt) + i - 1, id]) for i, id in enumerate(completion))
        assert float(made.objective.reference[number]) == pytest.approx(expected, abs=1e-3)  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_accumulation_changes_nothing(tiny_checkpoint: Path, tmp_path: Path, method: str) -> None:
    shard = write(tmp_path / "s", method)
    whole = trainer(tmp_path / "a", tiny_checkpoint, shard, method)
    parts = trainer(tmp_path / "b", tiny_checkpoint, shard, method, micro=32)
    assert (whole.plan.rows_per_micro, parts.plan.rows_per_micro) == (2, 1)
    for step in range(4):
        one, two = whole.train_step(step), parts.train_step(step)
        assert one == pytest.approx(two, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_wanted_answers_gain_on_unwanted_ones(tiny_checkpoint: Path, tmp_path: Path, method: str) -> None:
    made = trainer(tmp_path / "w", tiny_checkpoint, write(tmp_path / "s", method), method, epochs=30)
    metrics = made.run()
    assert metrics["reward_wanted"] > metrics["reward_unwanted"] + 0.5
    if method == "dpo":
        assert metrics["accuracy"] == 1.0
    else:
        assert metrics["reward_unwanted"] < 0 and metrics["kl"] >= 0


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_resumed_equals_uninterrupted_bit_for_bit(tiny_checkpoint: Path, tmp_path: Path, method: str) -> None:
    shard = write(tmp_path / "s", method)
    whole = trainer(tmp_path / "whole", tiny_checkpoint, shard, method)
    whole.run()
    run_and_kill(trainer(tmp_path / "w", tiny_checkpoint, shard, method, every=1e-9), 3)
    kept = (tmp_path / "w" / "reference.safetensors").stat().st_mtime_ns
    resumed = trainer(tmp_path / "w", tiny_checkpoint, shard, method, every=1e-9)
    assert resumed.run()["resumed_at"] == 3
    assert (tmp_path / "w" / "reference.safetensors").stat().st_mtime_ns == kept  # not computed again
    assert weights_fingerprint(resumed.model.state_dict()) == weights_fingerprint(whole.model.state_dict())


def test_a_reference_of_other_weights_is_not_used(models: tuple[Path, Path], tmp_path: Path) -> None:
    shard = write(tmp_path / "s", "dpo")
    first = trainer(tmp_path / "w", models[1], shard, "dpo").objective.reference  # type: ignore[attr-defined]
    second = trainer(tmp_path / "w", models[0], shard, "dpo").objective.reference  # type: ignore[attr-defined]
    assert not torch.allclose(first, second)


def test_a_prompt_that_all_share_keeps_its_first_answer_token(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The token before the first learned one predicts it, so it must not be in the shared prefix."""
    prompt = [0, *range(40, 52)]
    documents = [(str(i), [*prompt, 70 + i, 1], [False] * 13 + [True] * 2) for i in range(4)]
    write_shard(tmp_path / "s", documents, 600)
    data = PackedData([TokenShard(tmp_path / "s")], [1.0], 40, 1)
    assert data.prefix == 12
    assert int((data.batch(data.epoch_rows(0)).labels >= 0).sum()) == 8


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "sft-positive", "beta": 0.2},
        {"method": "dpo", "desirable_weight": 2.0},
        {"method": "kto", "sft_weight": 1.0},
        {"method": "dpo", "dpo_loss": "ipo", "label_smoothing": 0.1},
    ],
)
def test_settings_that_would_be_ignored_are_refused(settings: dict[str, Any]) -> None:
    from twllm.recipe import validate

    with pytest.raises(UserError, match="ignored"):
        validate(FeedbackConfig, settings, "test")
