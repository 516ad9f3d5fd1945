"""Recipes: keys, origins, extends, overrides, paths, cross-checks; each mistake is one clear sentence."""

from pathlib import Path

import pytest

from twllm.errors import UserError
from twllm.pipeline.checks import check_recipe
from twllm.recipe import describe, load_recipe

RECIPES = Path(__file__).parents[1] / "recipes"
SMALL = """
name = "小模型"
[base]
size = "tiny"
[[corpus.sources]]
path = "twllm:knowledge"
[sft]
lr = 1e-4
[[sft.datasets]]
path = "twllm:taiwan_facts"
[feedback]
enabled = false
"""


def write(folder: Path, text: str, name: str = "r.toml") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


@pytest.mark.parametrize("name", ["tiny.toml", "mini.toml"])
def test_shipped_recipes_are_valid(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TWLLM_SHARED_DATA", str(tmp_path))
    assert load_recipe(RECIPES / name).recipe.name == name.removesuffix(".toml")


def test_every_value_has_an_origin(tmp_path: Path) -> None:
    write(tmp_path, SMALL, "parent.toml")
    child = write(tmp_path, 'extends = "parent.toml"\nname = "child"\n[sft]\nepochs = 3\n', "child.toml")
    loaded = load_recipe(child, ["sft.lr=5e-5", "corpus.min_chars=9"])
    origins = {key: (value, origin) for key, value, origin in describe(loaded)}
    assert origins["name"] == ("child", "child.toml")
    assert origins["sft.epochs"] == (3.0, "child.toml")
    assert origins["base.size"] == ("tiny", "parent.toml")
    assert origins["sft.lr"] == (5e-5, "--set")
    assert origins["corpus.min_chars"] == (9, "--set")
    assert origins["sft.beta1"] == (0.9, "default")
    assert loaded.recipe.sft.datasets[0].path == "twllm:taiwan_facts"


@pytest.mark.parametrize(
    ("change", "what", "fix"),
    [
        ("[sft]\nlrr = 1", "sft.lrr", "lr"),
        ("[pretain]\nlr = 1", "pretain", "pretrain"),
        ("[[corpus.sources]]\npath = 'twllm:knowledge'\ntextkey = 'x'", "textkey", "text_key"),
        ("[sft]\nlr = 'fast'", "sft.lr 的值不對 (bad value): 要是數字", "recipe keys sft"),
        ("[sft]\nlr = -1.0", "sft.lr 的值不對 (bad value): 要大於 0.0", "recipe keys sft"),
        (
            "[template]\nname = 'taiwan-llm-v3'",
            "template.name 的值不對 (bad value): 要是其中之一",
            "recipe keys template",
        ),
        ("[base]\nsize = ", "TOML", ""),
    ],
)
def test_mistakes_are_named(tmp_path: Path, change: str, what: str, fix: str) -> None:
    parent = write(tmp_path, SMALL, "parent.toml")
    child = write(tmp_path, f'extends = "{parent.name}"\n{change}\n')
    with pytest.raises(UserError) as error:
        load_recipe(child)
    assert what in error.value.what and fix in error.value.fix and str(error.value).count("\n") == 2


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("base.model=/nowhere", "exactly one"),
        ('base.size="hughe"', "unknown size"),
        ("sft.batch_tokens=16", "smaller than one row"),
        ("corpus.sources=[]", "no [corpus]"),
        ("sft.datasets=[]", "no datasets"),
        ('evaluate.ablations=["no_feedback"]', "phase is disabled"),
        ('sft.datasets=[{path="no/such.jsonl"}]', "file not found"),
        ('sft.datasets=[{path="twllm:taiwan_fact"}]', "no such shipped data"),
        ('tokenizer.method="keep"', "nothing to keep"),
        ('evaluate.suites=["ttqa"]', "tceval_data"),
    ],
)
def test_cross_checks_run_before_anything_costly(tmp_path: Path, override: str, what: str) -> None:
    recipe = write(tmp_path, SMALL)
    check_recipe(load_recipe(recipe))
    with pytest.raises(UserError) as error:
        check_recipe(load_recipe(recipe, [override]))
    assert what in str(error.value)


def test_paths_are_relative_to_the_recipe_that_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    write(tmp_path / "a", SMALL.replace("twllm:taiwan_facts", "chats.jsonl"), "parent.toml")
    child = write(tmp_path, 'extends = "a/parent.toml"\n')
    monkeypatch.chdir("/")
    assert load_recipe(child).recipe.sft.datasets[0].path == str(tmp_path / "a" / "chats.jsonl")
    monkeypatch.chdir(tmp_path)
    override = 'sft.datasets=[{path="here.jsonl"}]'
    assert load_recipe(child, [override]).recipe.sft.datasets[0].path == str(tmp_path / "here.jsonl")
    monkeypatch.setenv("TEXTS", str(tmp_path / "t"))
    assert load_recipe(child, ['corpus.sources=[{path="$TEXTS/x.txt"}]']).recipe.corpus.sources[0].path == str(
        tmp_path / "t" / "x.txt"
    )
    with pytest.raises(UserError, match="variable not set"):
        load_recipe(child, ['corpus.sources=[{path="$NO_SUCH_VARIABLE/x.txt"}]'])


def test_a_parents_tables_can_be_cleared(tmp_path: Path) -> None:
    more = "lr_factors = { embed_tokens = 0.1 }\n[sft.lora]\nr = 8\n[evaluate]\nsuites = ['culture']\ngates = { culture = 0.8 }\n"
    write(tmp_path, SMALL.replace("lr = 1e-4\n", "lr = 1e-4\n" + more), "parent.toml")
    head = 'extends = "parent.toml"\n'
    same = load_recipe(write(tmp_path, head + "[sft]\n[sft.lora]\n[evaluate]\n")).recipe
    assert same.evaluate.gates == {"culture": 0.8} and same.sft.lora and same.sft.lora.r == 8 and same.sft.lr == 1e-4
    added = load_recipe(write(tmp_path, head + "[sft.lr_factors]\nnorm = 2.0\n")).recipe
    assert added.sft.lr_factors == {"embed_tokens": 0.1, "norm": 2.0}
    cleared = load_recipe(write(tmp_path, head + "[sft]\nlora = false\nlr_factors = {}\n[evaluate]\ngates = {}\n"))
    assert (
        cleared.recipe.evaluate.gates == {} and cleared.recipe.sft.lr_factors == {} and cleared.recipe.sft.lora is None
    )
    assert {key: origin for key, _, origin in describe(cleared)}["evaluate.gates"] == "r.toml"
    assert load_recipe(tmp_path / "parent.toml", ["sft.lora=false", "evaluate.gates={}"]).recipe.sft.lora is None
    with pytest.raises(UserError, match=r"sft\.datasets"):
        load_recipe(tmp_path / "parent.toml", ["sft.datasets=false"])


def test_extends_in_a_circle(tmp_path: Path) -> None:
    write(tmp_path, 'extends = "b.toml"\n', "a.toml")
    write(tmp_path, 'extends = "a.toml"\n', "b.toml")
    with pytest.raises(UserError, match="circular"):
        load_recipe(tmp_path / "a.toml")


@pytest.mark.parametrize(
    ("suites", "gates", "says"),
    [
        (["culture", "bits_per_char"], {"bits_per_char": 3.0}, "低比較好"),
        (["zh_tw_bench"], {}, "裁判"),
    ],
)
def test_suites_that_a_recipe_cannot_gate_or_run(
    tmp_path: Path, suites: list[str], gates: dict[str, float], says: str
) -> None:
    tiny = Path(__file__).parents[1] / "recipes" / "tiny.toml"
    listed = ", ".join(f'"{name}"' for name in suites)
    told = ", ".join(f"{name} = {value}" for name, value in gates.items())
    file = tmp_path / "r.toml"
    file.write_text(
        f'extends = "{tiny}"\nname = "x"\n[evaluate]\nsuites = [{listed}]\ngates = {{ {told} }}\n', encoding="utf-8"
    )
    with pytest.raises(UserError, match=says):
        check_recipe(load_recipe(file))
