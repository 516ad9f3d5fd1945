"""One command a row: vocabulary, sizes, depth, pruning with distillation, mixture of experts, release, doctor — at tiny size, in one chain.

Each row is the command that docs/models.md and docs/release.md show, run through the real command line on what the row before it wrote, and
opened by the real consumer. The order of ROWS is the order of a model's life, so a row may be read on its own but not run on its own.
"""

import importlib.util
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from tests.tokens.extend_bases import byte_level_base, corpus
from twllm.cli import app
from twllm.model.build import save
from twllm.release.facts import card_licence
from twllm.tokens.tokenizer import ChatTokenizer

pytest.importorskip("gguf")
MACHINE = 'threads = 1\nprecision = "fp32"\ntensorboard = false\ncompile = "off"\n'
TRAIN = "--machine {root}/machine.toml --set context=512 --set batch_tokens=512 --set max_tokens=4096 --set lr=1e-3 --set held_out=0.2"


@torch.no_grad()
def logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """What transformers says, opened with nothing of ours."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found: torch.Tensor = model(input_ids=ids).logits
    assert torch.isfinite(found).all()
    return found


def facts(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["metrics"]
    return found


IDS = torch.arange(60).reshape(2, 30) * 5 % 300


def extended(root: Path, told: str) -> None:
    old, new = ChatTokenizer.load(root / "base"), ChatTokenizer.load(root / "tokenizer")
    assert new.vocab_size == old.vocab_size + 120
    text = corpus()[-1]
    assert len(new.encode(text)) < len(old.encode(text)) and new.encode("The capital") == old.encode("The capital")


def resized(root: Path, told: str) -> None:
    after = logits(root / "extended", IDS)
    assert after.shape[-1] % 64 == 0
    before = logits(root / "base", IDS)
    assert float((after[..., : before.shape[-1]] - before).abs().max()) < 1e-6


def sized(root: Path, told: str) -> None:
    rows = {row["name"]: row["parameters"] for row in json.loads(told)}
    assert rows["7b"] == 6_738_415_616 and set(rows) == {"tiny", "mini", "1b", "3b", "7b", "13b"}


def deepened(root: Path, told: str) -> None:
    assert torch.equal(logits(root / "expanded", IDS), logits(root / "extended", IDS))


def stacked(root: Path, told: str) -> None:
    assert facts(root / "deep")["layer_sources"] == [0, 1, 2, 1, 2, 3] and "0–2, 1–3" in told
    logits(root / "deep", IDS)


def pruned(root: Path, told: str) -> None:
    report = facts(root / "small")
    config = json.loads((root / "small" / "config.json").read_text())
    assert (config["num_hidden_layers"], config["num_attention_heads"], config["num_key_value_heads"]) == (3, 2, 2)
    assert (config["intermediate_size"], config["hidden_size"], config["head_dim"]) == (64, 32, 16)
    assert report["parameters"][1] < 0.6 * report["parameters"][0] and len(report["layers_cut"]) == 3
    assert card_licence(str(root / "small")) == "cc-by-4.0"  # of the first base, through resize, deepen and prune
    assert (report["card"]["base"], report["card"]["name"]) == ("deep", "small")
    assert report["card"]["parameters"] == report["parameters"][1]
    logits(root / "small", IDS)


def distilled(root: Path, told: str) -> None:
    rows = [json.loads(line) for line in (root / "student" / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    assert len(steps) == 8 and rows[-1]["held_out_loss"] < rows[0]["held_out_loss"]
    for row in steps:
        assert row["loss"] == pytest.approx(0.5 * row["cross_entropy"] + 0.5 * row["divergence"], rel=1e-4)
    logits(root / "student", IDS)


def upcycled(root: Path, told: str) -> None:
    assert float((logits(root / "moe", IDS) - logits(root / "student", IDS)).abs().max()) < 1e-4
    assert json.loads((root / "moe" / "config.json").read_text())["architectures"] == ["MixtralForCausalLM"]


def shown(root: Path, told: str) -> None:
    assert (root / "experts" / "experts.png").read_bytes().startswith(b"\x89PNG")


def released(root: Path, told: str) -> None:
    import gguf

    out = root / "release"
    assert torch.equal(logits(out, IDS), logits(root / "student", IDS))
    chat = [{"role": "user", "content": "玉山多高？"}]
    theirs = AutoTokenizer.from_pretrained(out).apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    assert theirs == ChatTokenizer.load(root / "student").encode_chat(chat, add_generation_prompt=True).ids
    file = next((out / "gguf").glob("*.gguf"))
    reader = gguf.GGUFReader(file)
    assert reader.get_field("llama.block_count").contents() == 3
    assert (
        reader.get_field("llama.attention.key_length").contents() == 16
    )  # heads keep their width, the stream got narrower
    assert (out / "ollama" / "Modelfile").read_text(encoding="utf-8").startswith("FROM")
    told_by_llama_cpp(file, root / "student")


def told_by_llama_cpp(file: Path, folder: Path) -> None:
    """llama.cpp's own logits, where it is installed."""
    if not importlib.util.find_spec("llama_cpp"):
        return
    from twllm.serve.engines.batching.runner import Work
    from twllm.serve.engines.cpu.llamacpp import LlamaCppRunner

    runner = LlamaCppRunner(file, precision="fp32", slots=1, threads=1)
    try:
        (found,) = runner.step([Work(0, IDS[0].tolist(), True)])
    finally:
        runner.close()
    assert found is not None
    assert float((torch.from_numpy(found) - logits(folder, IDS[:1])[0, -1]).abs().max()) < 1e-4


def int8(root: Path, told: str) -> None:
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(root / "int8")(input_ids=IDS).logits.float()
    wanted = logits(root / "student", IDS)
    assert 0 < float((found - wanted).abs().max()) < 0.2 * float(wanted.std())


def healthy(root: Path, told: str) -> None:
    assert "fault" not in {finding["level"] for finding in json.loads(told)["findings"]}


class Row(NamedTuple):
    """A command as people type it, and what must be true afterwards."""

    command: str
    check: Callable[[Path, str], None]


ROWS = {
    "vocabulary": Row("tokenizer extend {root}/base {root}/corpus.txt --add 120 --out {root}/tokenizer", extended),
    "resize": Row("model resize {root}/base {root}/tokenizer --init focus --texts {root}/corpus.txt --out {root}/extended", resized),
    "sizes": Row("model sizes --json", sized),
    "deepen": Row("model deepen {root}/extended --layers 6 --method expand --machine {root}/machine.toml --out {root}/expanded", deepened),
    "deepen solar": Row("model deepen {root}/extended --layers 6 --machine {root}/machine.toml --out {root}/deep", stacked),
    "prune": Row(
        "model prune {root}/deep --texts {root}/corpus.txt --layers 3 --heads 2 --intermediate 64 --width 32 --tokens 2000 --machine {root}/machine.toml --out {root}/small",
        pruned,
    ),
    "distill": Row(f"train sft --model {{root}}/small --data twllm:taiwan_facts --out {{root}}/student --set teacher.model={{root}}/deep {TRAIN}", distilled),
    "upcycle": Row("model upcycle {root}/student --experts 4 --top-k 2 --granularity 2 --out {root}/moe", upcycled),
    "experts": Row("model experts {root}/moe zh={root}/corpus.txt --out {root}/experts", shown),
    "release": Row(
        "export {root}/student --out {root}/release --format hf --format gguf --format ollama --type f32 --license internal --no-scores",
        released,
    ),
    "int8": Row("export {root}/student --out {root}/int8 --format int8 --license internal --no-scores", int8),
    **{
        f"doctor {name}": Row(f"doctor {{root}}/{name} --json", healthy)
        for name in ("extended", "deep", "small", "student", "moe", "release", "release/gguf", "release/ollama", "int8")
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model that knows little Chinese, and texts."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("rows")
    tokenizer = byte_level_base().with_template("taiwan-llm-v2")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, initializer_range=0.1, bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id, pad_token_id=None,
    )  # fmt: skip
    save(LlamaForCausalLM(config), tokenizer, folder / "base")
    (folder / "base" / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# base\n", encoding="utf-8")
    (folder / "corpus.txt").write_text("\n".join(corpus()), encoding="utf-8")
    (folder / "machine.toml").write_text(MACHINE)
    return folder


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:Glyph:UserWarning")
@pytest.mark.parametrize("name", ROWS)
def test_row(name: str, root: Path) -> None:
    if name.endswith("int8"):
        pytest.importorskip("torchao")
    row = ROWS[name]
    result = CliRunner().invoke(app, shlex.split(row.command.format(root=root)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    row.check(root, result.stdout)
