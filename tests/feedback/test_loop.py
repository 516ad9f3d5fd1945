"""The loop closes: chat over HTTP → thumbs → export → feedback training → what was rated changes. Real app, real small model."""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from typer.testing import CliRunner

from tests.serve.conftest import running
from twllm.artifact import write_json
from twllm.cli import app
from twllm.model.build import load
from twllm.recipe import load_recipe
from twllm.serve.engines.torch.engine import TorchEngine
from twllm.tokens.build import tokenize_chats
from twllm.tokens.shards import TokenShard
from twllm.tokens.tokenizer import ChatTokenizer

QUESTIONS = ["早餐吃什麼？", "怎麼去玉山？"]
ANSWERS = [("蛋餅加豆漿。", "吐司配咖啡。"), ("搭公車到塔塔加。", "騎機車上山。")]
RECIPE = Path(__file__).parents[2] / "recipes" / "tiny.toml"


def call(*arguments: str) -> None:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, (result.output, result.exception)


def train(phase: str, model: Path, data: Path, out: Path, machine: Path, **settings: Any) -> None:
    shared = {"context": 288, "batch_tokens": 576, **settings}  # a row holds both answers of a pair
    sets = [part for key, value in shared.items() for part in ("--set", f"{key}={value}")]
    more = ["--license", "CC-BY-4.0"] if phase == "sft" else []
    call(
        "train",
        phase,
        "--model",
        str(model),
        "--data",
        str(data),
        "--out",
        str(out),
        "--machine",
        str(machine),
        *sets,
        *more,
    )


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("machine") / "machine.toml"
    file.write_text('threads = 1\nprecision = "fp32"\ntensorboard = false\n')
    return file


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, machine: Path) -> Path:
    """A model that knows two answers to each question, and says now one and now the other."""
    folder = tmp_path_factory.mktemp("sft")
    pairs = [(q, a) for q, both in zip(QUESTIONS, ANSWERS, strict=True) for a in both]
    rows = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in pairs]
    write_json(folder / "facts.json", rows)
    base = shutil.copytree(tiny_checkpoint, folder / "base")
    config = json.loads((base / "config.json").read_text())
    write_json(base / "config.json", config | {"max_position_embeddings": 512})
    train("sft", base, folder / "facts.json", folder / "model", machine, lr=1e-2, epochs=60)
    return folder / "model"


def ask(url: str, question: str, **settings: Any) -> str:
    body = {"messages": [{"role": "user", "content": question}], "max_tokens": 30, **settings}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()["choices"][0]["message"]["content"]


def rate(url: str, question: str, answer: str, rating: int, user: str) -> None:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    body = {
        "conversation_id": f"{user}{answer}"[:60],
        "turn": 1,
        "rating": rating,
        "consent": True,
        "user": user,
        "messages": messages,
    }
    assert httpx.post(f"{url}/api/rating", json=body, timeout=60).json()["stored"]


def logprob(folder: Path, question: str, answer: str) -> float:
    """Of the answer after the question, as transformers computes it."""
    tokenizer = ChatTokenizer.load(folder)
    chat = tokenizer.encode_chat([{"role": "user", "content": question}, {"role": "assistant", "content": answer}])
    with torch.no_grad():
        scores = load(folder)(input_ids=torch.tensor([chat.ids])).logits[0].log_softmax(-1)
    return sum(
        float(scores[i - 1, id]) for i, (id, learned) in enumerate(zip(chat.ids, chat.mask, strict=True)) if learned
    )


@pytest.fixture(scope="module")
def rated(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, tuple[str, str]]]:
    """The database after people talked and rated; by question, the answer they liked and the one they did not.

    They like what the model does not say by itself, and dislike what it does.
    """
    database = tmp_path_factory.mktemp("db") / "ratings.db"
    judged = {}
    with running(TorchEngine(model, threads=1), database) as url:
        for question in QUESTIONS:
            usual = ask(url, question, temperature=0)
            drawn = (ask(url, question, temperature=1.0, seed=seed) for seed in range(40))
            other = next(answer for answer in drawn if answer != usual and answer in itertools.chain(*ANSWERS))
            for user in ("a" * 32, "b" * 32):
                rate(url, question, usual, -1, user)
                rate(url, question, other, 1, user)
            judged[question] = (other, usual)
    return database, judged


@pytest.mark.parametrize(
    ("method", "format", "settings"),
    [
        ("sft-positive", "ratings", {"lr": 1e-3, "epochs": 12}),
        ("sft-positive", "sft-positive", {"lr": 1e-3, "epochs": 12}),
        ("kto", "kto", {"lr": 1e-3, "epochs": 15, "beta": 0.5}),
        ("dpo", "dpo", {"lr": 1e-3, "epochs": 15, "beta": 0.5}),
    ],
)
def test_thumbs_change_what_the_model_says(
    rated: tuple[Path, dict[str, tuple[str, str]]],
    model: Path,
    machine: Path,
    tmp_path: Path,
    method: str,
    format: str,
    settings: Any,
) -> None:
    database, judged = rated
    snapshot, out = tmp_path / "snapshot", tmp_path / "next"
    call("feedback", "export", "--db", str(database), "--out", str(snapshot), "--format", format, "--min-gap", "0")
    train("feedback", model, snapshot, out, machine, method=method, **settings)
    with running(TorchEngine(out, threads=1), tmp_path / "r.db") as url:
        said = {question: ask(url, question, temperature=0) for question in judged}
    for question, (liked, disliked) in judged.items():
        assert logprob(out, question, liked) > logprob(model, question, liked)
        assert logprob(out, question, disliked) < logprob(model, question, disliked)
        assert said[question] == liked


@pytest.mark.parametrize("method", ["sft-positive", "kto", "dpo"])
def test_the_tiny_recipe_reads_an_export(
    rated: tuple[Path, dict[str, tuple[str, str]]], tiny_tokenizer: ChatTokenizer, tmp_path: Path, method: str
) -> None:
    export = tmp_path / "export"
    call("feedback", "export", "--db", str(rated[0]), "--out", str(export), "--min-gap", "0")
    sets = [f'feedback.method="{method}"', f'feedback.datasets=[{{path="{export}"}}]', "feedback.context=512"]
    phase = load_recipe(RECIPE, sets).recipe.feedback
    facts = tokenize_chats(tmp_path / "tokens", phase.datasets, tiny_tokenizer, phase.context, 0.0, phase.method)
    assert facts["000"]["licenses"] == {"user-feedback": 2 if method == "sft-positive" else 4}
    assert len(TokenShard(tmp_path / "tokens" / "000")) == {"sft-positive": 2, "kto": 8, "dpo": 4}[method]
