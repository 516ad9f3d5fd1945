"""[base.prune], [base.deepen] and [sft.teacher] through `run`, what depends on what, and mistakes told before the first costly step."""

import json
from pathlib import Path

import pytest

from tests.model.test_vocabulary import dense
from tests.tokens.extend_bases import byte_level_base
from twllm.errors import UserError
from twllm.model.build import load, save
from twllm.model.sizes import Size, count_parameters
from twllm.pipeline.checks import check_recipe
from twllm.pipeline.run import run_recipe
from twllm.pipeline.stages import build_stages
from twllm.recipe import load_machine, load_recipe

RECIPE = """
name = "smaller"
[base]
model = "base"
[base.prune]
layers = 1
intermediate = 32
tokens = 1000
[tokenizer]
method = "keep"
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
[pretrain.teacher]
model = "base"
weight = 0.7
temperature = 2.0
[sft]
enabled = false
[feedback]
enabled = false
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    base = byte_level_base().with_template("taiwan-llm-v2")
    save(dense(base), base, tmp_path / "base")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "machine.toml").write_text('threads = 1\nprecision = "fp32"\ntensorboard = false\n')
    return tmp_path


def test_prune_and_distill_in_a_run(folder: Path) -> None:
    loaded = load_recipe(folder / "recipe.toml")
    run_recipe(loaded, folder / "run", load_machine(folder / "machine.toml"), "pretrain")
    model = load(folder / "run" / "pretrain")
    assert (model.config.num_hidden_layers, model.config.intermediate_size) == (1, 32)
    manifest = json.loads((folder / "run" / "pretrain" / "manifest.json").read_text())
    report = manifest["metrics"]["reshaped"]
    assert len(report["layers_cut"]) == 1 and len(report["loss"]) == 2
    rows = [json.loads(line) for line in (folder / "run" / "pretrain" / "metrics.jsonl").read_text().splitlines()]
    mixed = 0.3 * rows[-1]["cross_entropy"] + 0.7 * 4 * rows[-1]["divergence"]
    assert rows[-1]["loss"] == pytest.approx(mixed, rel=1e-4)
    assert str(folder / "base") in manifest["inputs"]  # another teacher or base makes the stage stale
    before = build_stages(loaded)
    changed = build_stages(load_recipe(folder / "recipe.toml", ["base.prune.layers=2"]))
    stale = {name for name in before if before[name].fingerprint != changed[name].fingerprint}
    assert "pretrain" in stale and not {"corpus", "tokenizer", "tokens-pretrain"} & stale


def test_deepen_in_a_run(folder: Path) -> None:
    text = RECIPE.replace(
        "[base.prune]\nlayers = 1\nintermediate = 32\ntokens = 1000", '[base.deepen]\nlayers = 4\nmethod = "expand"'
    )
    (folder / "recipe.toml").write_text(
        text.replace('[pretrain.teacher]\nmodel = "base"\nweight = 0.7\ntemperature = 2.0', "")
    )
    run_recipe(load_recipe(folder / "recipe.toml"), folder / "run", load_machine(folder / "machine.toml"), "pretrain")
    assert load(folder / "run" / "pretrain").config.num_hidden_layers == 4


def test_the_dry_run_counts_what_is_left(folder: Path) -> None:
    from twllm.planning.plan import dry_run
    from twllm.train.config import MachineConfig

    def parameters() -> int:
        return int(dry_run(load_recipe(folder / "recipe.toml"), None, MachineConfig(), 1.0).parameters)

    base = load(folder / "base")
    vocabulary = base.config.vocab_size
    assert parameters() == count_parameters(Size(32, 1, 4, 2, 32), vocabulary)
    deepened = RECIPE.replace("[base.prune]\nlayers = 1\nintermediate = 32\ntokens = 1000", "[base.deepen]\nlayers = 3")
    (folder / "recipe.toml").write_text(deepened)
    assert parameters() == count_parameters(Size(32, 3, 4, 2, 64), vocabulary)


def test_mistakes_are_told_before_anything_runs(folder: Path, tmp_path: Path) -> None:
    def check(*sets: str) -> None:
        check_recipe(load_recipe(folder / "recipe.toml", sets))

    check()
    with pytest.raises(UserError, match="no model folder"):
        check(f'pretrain.teacher.model="{folder}/non"')
    with pytest.raises(UserError, match="prune or deepen"):
        check("base.deepen={layers=3}")
    with pytest.raises(UserError, match=r"new tokenizer is not the teacher's|embeddings would mean nothing"):
        check('tokenizer.method="train"')
    with pytest.raises(UserError, match="unknown key"):
        check("pretrain.teacher.wieght=0.5")
    with pytest.raises(UserError, match="nothing to cut"):
        load_recipe(folder / "recipe.toml", ["base.prune={tokens=1000}"])
    other = byte_level_base("qwen2").with_template("taiwan-llm-v2")
    other.backend.add_tokens(["臺灣大學"])
    save(dense(other), other, folder / "other")
    with pytest.raises(UserError, match="another tokenizer"):
        check(f'pretrain.teacher.model="{folder / "other"}"')


def test_the_shipped_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(Path(__file__).parents[2] / "recipes" / "distill.toml").recipe
    assert recipe.base.prune is not None and recipe.sft.teacher is not None
    assert recipe.base.model == recipe.sft.teacher.model
