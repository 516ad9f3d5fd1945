"""[tokenizer] method = "extend" and [base.moe] through `run`: from a base checkpoint to a trained, extended mixture of experts."""

import json
from pathlib import Path

import pytest
import torch

from tests.model.test_vocabulary import dense
from tests.tokens.extend_bases import byte_level_base, corpus
from twllm.errors import UserError
from twllm.model.build import load, save
from twllm.pipeline.run import run_recipe
from twllm.recipe import load_machine, load_recipe
from twllm.tokens.tokenizer import ChatTokenizer

RECIPE = """
name = "extended"
[base]
model = "base"
[base.moe]
experts = 4
granularity = 2
[tokenizer]
method = "extend"
add = 150
init = "focus"
multiple = 32
[template]
name = "taiwan-llm-v2"
[corpus]
held_out = 0.0
[[corpus.sources]]
path = "twllm:knowledge"
[pretrain]
lr = 1e-3
context = 64
batch_tokens = 128
max_tokens = 512
[sft]
enabled = false
[feedback]
enabled = false
"""


def test_extend_and_upcycle_in_a_run(tmp_path: Path) -> None:
    base = byte_level_base()
    save(dense(base), base, tmp_path / "base")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "machine.toml").write_text('threads = 1\nprecision = "fp32"\ntensorboard = false\n')
    loaded = load_recipe(tmp_path / "recipe.toml")
    run_recipe(loaded, tmp_path / "run", load_machine(tmp_path / "machine.toml"), "pretrain")
    model, tokenizer = load(tmp_path / "run" / "pretrain"), ChatTokenizer.load(tmp_path / "run" / "pretrain")
    assert model.config.model_type == "mixtral" and model.config.intermediate_size == 32
    assert len(tokenizer.encode(corpus()[0])) < len(base.encode(corpus()[0])) and tokenizer.encode(
        "The capital"
    ) == base.encode("The capital")
    assert model.config.vocab_size == -(-tokenizer.vocab_size // 32) * 32
    facts = json.loads((tmp_path / "run" / "tokenizer" / "manifest.json").read_text())["metrics"]
    assert facts["unreachable_pieces"] == facts["changed_elsewhere"] == 0 and facts["speed_up"] > 1
    rows = [json.loads(line) for line in (tmp_path / "run" / "pretrain" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["balance"] >= 0.9 and torch.isfinite(model.get_input_embeddings().weight).all()


def test_moe_recipe_is_the_tiny_one_but_for_the_experts_and_adamw() -> None:
    folder = Path(__file__).parents[2] / "recipes"
    moe, tiny = (load_recipe(folder / f"{name}.toml").recipe for name in ("moe", "tiny"))
    assert moe.sft.optimizer == moe.pretrain.optimizer == "adamw"
    settings = {"optimizer", "lr", "lr_factors", "epochs", "batch_tokens", "datasets"}
    for phase in ("pretrain", "sft"):
        of_moe, of_tiny = (getattr(recipe, phase).model_dump(exclude=settings) for recipe in (moe, tiny))
        assert of_moe == of_tiny
    assert moe.base.moe is not None and moe.base.moe.before == "sft" and moe.base.moe.granularity == moe.base.moe.top_k
    from twllm.planning.plan import dry_run
    from twllm.train.config import MachineConfig

    plans = [dry_run(load_recipe(folder / f"{name}.toml"), None, MachineConfig(), 1.0) for name in ("moe", "tiny")]
    assert plans[0].parameters - plans[1].parameters == 4 * 128 * (3 * 352 * 3 + 8)
    costs = [[row.flops / row.tokens for row in found.phases] for found in plans]
    assert costs[0] == pytest.approx(costs[1])


def test_bad_settings_are_told(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE.replace("experts = 4", "experts = 3"))
    with pytest.raises(UserError, match="no multiple of granularity"):
        load_recipe(tmp_path / "recipe.toml")
