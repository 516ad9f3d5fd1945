"""The large recipes: they are valid, plan offline without data or base model, fit their machine file, and the docs say what is computed."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

from twllm.cli import app
from twllm.errors import UserError
from twllm.model.hub_shapes import HUB_SHAPES
from twllm.model.sizes import count_parameters
from twllm.recipe import load_machine, load_recipe

ROOT = Path(__file__).parents[2]


def load_tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("plan_tables", ROOT / "docs" / "plan_tables.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TABLES = load_tables()


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TWLLM_CORPUS", "TWLLM_TCEVAL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "200")


@pytest.mark.parametrize("name", sorted(TABLES.MACHINES))
def test_dry_run_needs_neither_data_nor_base_model(name: str, tmp_path: Path) -> None:
    machine = ROOT / "machines" / f"{TABLES.MACHINES[name]}.toml"
    result = CliRunner().invoke(
        app, ["run", str(ROOT / "recipes" / f"{name}.toml"), "--dry-run", "--machine", str(machine), "--out", str(tmp_path / "x")]
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "not downloaded" in result.output and "GPU hours" in result.output
    assert "does not fit" not in result.output
    assert ("data not here" in result.output) == (name != "qlora-1gpu")
    assert not (tmp_path / "x").exists()


def test_a_dry_run_says_that_this_computer_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twllm.planning.commands.memory_here", lambda device: 4.0)
    recipe, machine = ROOT / "recipes" / "qlora-1gpu.toml", ROOT / "machines" / "laptop.toml"
    result = CliRunner().invoke(app, ["run", str(recipe), "--dry-run", "--machine", str(machine)])
    assert "does not fit" in result.output and "4.0 GiB" in result.output and "twllm plan" in result.output


def test_run_still_refuses_what_a_dry_run_only_lists() -> None:
    with pytest.raises(UserError, match="variable not set"):
        load_recipe(ROOT / "recipes" / "taiwan-llm-7b-v2.toml")


def test_page_says_what_is_computed() -> None:
    text = TABLES.PAGE.read_text(encoding="utf-8")
    assert TABLES.page(text) == text, "run `make docs`"


def test_plan_writes_a_machine_file_that_loads(tmp_path: Path) -> None:
    out = tmp_path / "m.toml"
    recipe = str(ROOT / "recipes" / "taiwan-llm-7b-v2.toml")
    result = CliRunner().invoke(
        app, ["plan", recipe, "--gpus", "8", "--gpu", "h100", "--price", "90", "--out", str(out)]
    )
    assert result.exit_code == 0, result.output
    assert "chosen" in result.output and "放不下" in result.output and "元" in result.output
    assert f"torchrun --nproc-per-node 8 -m twllm run {recipe} --machine {out}" in result.output
    machine = load_machine(out)
    assert (machine.gpu, machine.gpus) == ("h100", 8)
    for arguments, says in ((["--gpus", "1", "--gpu", "4090"], "does not fit"), (["--gpus", "4096"], "fewer rows")):
        with pytest.raises(UserError, match=says):
            CliRunner().invoke(app, ["plan", recipe, *arguments], catch_exceptions=False)
    with pytest.raises(UserError, match="one card"):
        qlora = str(ROOT / "recipes" / "qlora-1gpu.toml")
        CliRunner().invoke(app, ["plan", qlora, "--gpus", "8"], catch_exceptions=False)


def test_plan_for_scripts_and_eyes(tmp_path: Path) -> None:
    picture, recipe = tmp_path / "p.png", str(ROOT / "recipes" / "taiwan-llm-7b-v2.toml")
    told = CliRunner().invoke(app, ["plan", recipe, "--gpus", "8", "--gpu", "a100", "--json", "--plot", str(picture)])
    found = json.loads(told.stdout)
    assert found["fits"] and found["chosen"]["sharding"] == "optimizer" and len(found["options"]) == 9
    parts = found["phases"][0]["memory"]
    assert sum(parts.values()) == pytest.approx(2 * parts["total"]) and picture.read_bytes().startswith(b"\x89PNG")
    told = CliRunner().invoke(app, ["plan", recipe, "--gpus", "1", "--gpu", "4090", "--json"])
    found = json.loads(told.stdout)
    assert told.exit_code == 2 and not found["fits"] and found["chosen"] is None
    ways = ["16 張這種卡 (16 GPUs", "換成 --gpu h200（", "LoRA：", "QLoRA："]
    assert [line.startswith(way) for line, way in zip(found["advice"], ways, strict=True)] == [True] * 4
    qlora = str(ROOT / "recipes" / "qlora-1gpu.toml")
    large = ["--set", "base.model=meta-llama/Llama-2-70b-hf", "--gpus", "1", "--json"]
    told = CliRunner().invoke(app, ["plan", qlora, *large, "--gpu", "4090"])
    assert json.loads(told.stdout)["advice"][0].startswith("換成 --gpu a100（")  # more cards would not help: quantised
    tight = ["plan", str(ROOT / "recipes" / "1b.toml"), "--gpus", "1", "--gpu", "4090", "--json"]
    assert any(line.startswith("context = ") for line in json.loads(CliRunner().invoke(app, tight).stdout)["advice"])


def test_pictures_and_a_teacher_are_in_the_plan(tmp_path: Path, tiny_checkpoint: Path) -> None:
    from twllm.planning.plan import dry_run
    from twllm.train.config import MachineConfig

    seen = dry_run(load_recipe(ROOT / "recipes" / "vision.toml"), None, MachineConfig(), 1.0)
    cost = {plan.name: plan for plan in seen.phases}
    assert (
        list(cost) == ["pretrain", "sft", "encode", "align", "instruct"]
        and cost["instruct"].flops > cost["align"].flops
    )
    where = [f"{key}={tiny_checkpoint}" for key in ("base.model", "sft.teacher.model")]
    alone = ["sft.teacher=false", "tokenizer.method='keep'", "base.prune=false", "sft.context=64"]
    plans = [
        dry_run(load_recipe(ROOT / "recipes" / "distill.toml", [*where, *more]), None, MachineConfig(), 1.0).phases[0]
        for more in (alone[1:], [*alone[1:], alone[0]])
    ]
    assert plans[0].memory.total > plans[1].memory.total and plans[0].flops > plans[1].flops


def test_a_context_beyond_the_model_is_refused() -> None:
    from twllm.planning.plan import recipe_model

    loaded = load_recipe(ROOT / "recipes" / "1b.toml", ["sft.context=4096"], unset_ok=True)
    with pytest.raises(UserError, match="longer than the model's positions"):
        recipe_model(loaded.recipe)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("meta-llama/Llama-2-7b-hf", 6_738_415_616),
        ("meta-llama/Llama-2-13b-hf", 13_015_864_320),
        ("meta-llama/Meta-Llama-3-8B", 8_030_261_248),
        ("meta-llama/Llama-2-70b-hf", 68_976_648_192),
        ("meta-llama/Meta-Llama-3-70B", 70_553_706_496),
        ("meta-llama/Llama-3.2-1B", 1_235_814_400),
        ("meta-llama/Llama-3.2-3B", 3_212_749_824),
        ("TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T", 1_100_048_384),
    ],
)
def test_shapes_have_the_published_number_of_parameters(name: str, parameters: int) -> None:
    assert count_parameters(HUB_SHAPES[name].size, HUB_SHAPES[name].vocab) == parameters
