"""Our tasks as lm-evaluation-harness runs them: the exported files, and both programs on one tiny model, item by item."""

import csv
import importlib
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tests.evaluate.conftest import write
from twllm.errors import UserError
from twllm.evaluate.commands import app
from twllm.evaluate.lmeval import export as lmeval
from twllm.evaluate.lmeval import functions
from twllm.evaluate.lmeval.export import DATA, export, exported, group_name, has_choices
from twllm.evaluate.runner import evaluate_model
from twllm.evaluate.sources import read_items
from twllm.evaluate.task import Item, find_tasks, make_item, tasks

NUM_TOKENS = 6
PROTOCOLS = sorted({task.protocol for task in find_tasks(["tceval"]) + exported() if task.group == "tceval"})


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No data folder from outside, and a cache of our own."""
    monkeypatch.delenv(DATA, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    functions._items.cache_clear()


class Loader(yaml.SafeLoader):
    """Reads what lm-eval reads, functions as their objects."""


def _resolve(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    module, _, name = str(loader.construct_scalar(node)).rpartition(".")  # type: ignore[arg-type]
    return getattr(importlib.import_module(module), name)


Loader.add_constructor("!function", _resolve)


def read(folder: Path) -> dict[str, dict[str, Any]]:
    return {file.stem: yaml.load(file.read_text(encoding="utf-8"), Loader) for file in folder.glob("*.yaml")}


# -- the files --------------------------------------------------------------------------------------------------------


def test_every_task_is_exported_under_every_protocol(tceval: Path) -> None:
    """A new task or protocol comes along by itself; what has no gold here is named, not written."""
    folder, left_out = export(str(tceval))
    configs = read(folder)
    for task in exported():
        name, both = f"{group_name(task)}_{task.name}", task.kind == "generate" and has_choices(task)
        assert (name in configs) != (task.label in left_out)
        assert (f"{name}_mc" in configs) == (both and task.label not in left_out)
    for protocol in PROTOCOLS:
        members = configs[f"tceval_{protocol}"]["task"]
        assert {f"tceval_{protocol}_{name}" for name in ("drcd", "ttqa", "penguins", "tmmlu")} <= set(members)
        assert all(member in configs for member in members)
    assert "twllm_culture" in configs
    for name, config in configs.items():
        assert config.get("task") == name or config["group"] == name


def test_topics_have_a_task_each_and_an_unweighted_mean(tceval: Path) -> None:
    configs = read(export(str(tceval))[0])
    group = configs["tceval_strict_tmmlu"]
    assert group["task"] == ["tceval_strict_tmmlu_國際法", "tceval_strict_tmmlu_會計學"]
    assert group["aggregate_metric_list"] == [{"metric": "accuracy", "aggregation": "mean", "weight_by_size": False}]
    sizes = [len(load(configs[name])) for name in group["task"]]
    assert sizes == [1, 2]


def load(config: dict[str, Any]) -> Any:
    pytest.importorskip("datasets")
    return config["custom_dataset"](**config["metadata"], pretrained="x", config_source="y")["test"]


def test_without_data_the_gold_is_looked_for_when_loaded(tceval: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, left_out = export()
    assert left_out == {}
    config = read(folder)["tceval_strict_tmmlu"]
    with pytest.raises(UserError, match="tmmlu"):
        load(config)
    monkeypatch.setenv(DATA, str(tceval))
    docs = load(config)
    assert len(docs) == 3
    marks = [config["process_results"](doc, ["答案：A"])["accuracy"] for doc in docs]
    assert sum(marks) == 1
    assert config["metric_list"][0]["aggregation"](marks) == 0.5  # 1 of 1 and 0 of 2
    assert config["metric_list"][0]["aggregation"](pickle.loads(pickle.dumps(marks))) == 0.5
    assert export()[0] != folder  # with the variable set the folder is known


def test_the_command_prints_the_folder_and_nothing_else(tceval: Path, tmp_path: Path) -> None:
    printed = CliRunner().invoke(app, ["tasks-path", "--data", str(tceval)])
    assert printed.exit_code == 0
    assert Path(printed.stdout.rstrip("\n")).is_dir()
    assert printed.stdout.count("\n") == 1
    assert "fgc" in printed.stderr
    again = CliRunner().invoke(app, ["tasks-path", "--data", str(tceval)])
    assert again.stdout == printed.stdout
    named = CliRunner().invoke(app, ["tasks-path", "--data", str(tceval), "--out", str(tmp_path / "out")])
    assert named.stdout == f"{tmp_path / 'out'}\n"
    assert read(tmp_path / "out") == read(Path(printed.stdout.rstrip("\n")))
    with pytest.raises(UserError, match="資料夾"):
        export(str(tmp_path / "沒有"))


def test_answers_to_choose_from() -> None:
    ttqa, imdb = tasks()["ttqa@strict"], tasks()["imdb@strict"]
    assert functions.candidates(ttqa, make_item(ttqa, "0", "？", ["B"], choices=["甲", "乙"])) == ["A", "B"]
    assert functions.candidates(imdb, make_item(imdb, "0", "", ["正面"])) == ["負面", "正面"]
    listed = {"(A) 甲 (B) 乙 (C) 丙": "ABCD", "(A)甲（E）戊": "ABCDE", "沒有列出": "ABCD"}
    tmmlu = tasks()["tmmlu@strict"]
    for question, letters in listed.items():
        assert functions.candidates(tmmlu, make_item(tmmlu, "0", question, ["A"])) == list(letters)
    culture = tasks()["culture"]
    assert functions.document(culture, make_item(culture, "0", "？", ["玉山"]), scored=True) is None


def test_a_task_asked_by_likelihood_has_that_form_alone() -> None:
    """TMMLU+: lm-eval's own delimiter and metrics; `acc_norm` counts characters."""
    found = [task for task in exported() if task.kind == "likelihood"]
    assert found
    configs = read(export()[0])
    for task in found:
        config = configs[f"{group_name(task)}_{task.name}"]
        assert f"{group_name(task)}_{task.name}_mc" not in configs
        assert config["output_type"] == "multiple_choice"
        assert config["target_delimiter"] == task.options.get("delimiter", "")
        assert [metric["metric"] for metric in config["metric_list"]] == ["acc", "acc_norm"]
    culture = {"twllm_task": "culture", "topic": "", "answers": ["甲", "乙乙乙"], "gold": 1}
    assert functions.mark_choice(culture, [(-2.0, False), (-3.0, False)]) == {"acc": 0.0, "acc_norm": 1.0}


def test_rouge_has_its_three_names() -> None:
    task = tasks()["xsum@strict"]
    item = make_item(task, "0", "", ["今天天氣很好"], context="今天")
    doc = functions.document(task, item, scored=False)
    assert doc is not None
    assert set(functions.mark_answer(doc, ["今天天氣很好"])) == {"rouge1", "rouge2", "rougeL"}
    assert functions.mark_answer(doc, ["今天天氣很好"])["rouge1"] == 1.0


# -- both programs on one model ---------------------------------------------------------------------------------------


@pytest.fixture
def in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    torch.set_num_threads(1)
    monkeypatch.setattr("twllm.serve.engines.torch.engine.pick_device", lambda: ("cpu", torch.float32))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """Ids of every prompt that lm-eval's hf backend generates from."""
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    prompts: list[tuple[int, ...]] = []
    generate: Callable[..., Any] = huggingface.HFLM._model_generate

    def spy(self: Any, context: Any, *args: Any, **kwargs: Any) -> Any:
        prompts.extend(map(tuple, context.tolist()))
        return generate(self, context, *args, **kwargs)

    monkeypatch.setattr(huggingface.HFLM, "_model_generate", spy)
    yield prompts


def harness(folder: Path, names: list[str], model: Any, *, template: bool = True) -> dict[str, Any]:
    """lm-eval's result with its samples."""
    lm_eval = pytest.importorskip("lm_eval")
    manager = importlib.import_module("lm_eval.tasks").TaskManager(include_path=str(folder), include_defaults=False)
    result: dict[str, Any] = lm_eval.simple_evaluate(
        model=model, tasks=names, task_manager=manager, apply_chat_template=template,
        gen_kwargs={"max_gen_toks": NUM_TOKENS}, bootstrap_iters=0, log_samples=True,
    )  # fmt: skip
    return result


def hf(checkpoint: Path, **more: Any) -> Any:
    module = pytest.importorskip("lm_eval.models.huggingface")
    return module.HFLM(pretrained=str(checkpoint), dtype="float32", device="cpu", batch_size=1, **more)


def ours(checkpoint: Path, data: Path, out: Path, protocol: str) -> dict[str, Any]:
    return evaluate_model(
        str(checkpoint), suites=["drcd", "ttqa", "penguins", "tmmlu"], protocol=protocol, data=data, out=out,
        max_new_tokens=NUM_TOKENS, batch_size=2,
    )  # fmt: skip


def accept_what_is_said(data: Path, result: dict[str, Any]) -> None:
    """Make the answer to DRCD's first question right, so that marks of both kinds are compared."""
    block = next(block for name, block in result.items() if name.startswith("drcd"))
    file = data / "DRCD_Test/DRCD_test.json"
    gold = json.loads(file.read_text(encoding="utf-8"))
    said = block["items"][0]["answer"]
    gold["data"][0]["paragraphs"][0]["qas"][0]["answers"] = [{"id": "1", "text": said, "answer_start": 0}]
    write(file, gold)


def samples(result: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """By (our task's label, item id)."""
    rows = [row for rows in result["samples"].values() for row in rows]
    return {(row["doc"]["twllm_task"], row["doc"]["id"]): row for row in rows}


@pytest.mark.usefixtures("in_fp32")
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_hf_backend_and_our_runner_agree(
    protocol: str, tiny_checkpoint: Path, tceval: Path, tmp_path: Path, asked: list[tuple[int, ...]]
) -> None:
    """With the chat template: same prompts, same ids with one BOS, same answers, same marks, same scores."""
    from twllm.evaluate.model import LocalModel

    accept_what_is_said(tceval, ours(tiny_checkpoint, tceval, tmp_path / "first.json", protocol))
    mine = ours(tiny_checkpoint, tceval, tmp_path / "mine.json", protocol)
    theirs = harness(export(str(tceval))[0], [f"tceval_{protocol}"], hf(tiny_checkpoint))
    found = samples(theirs)
    local = LocalModel(tiny_checkpoint, NUM_TOKENS)
    bos = local._tokenizer.bos_id
    wanted: list[tuple[int, ...]] = []
    for task in find_tasks(["drcd", "ttqa", "penguins", "tmmlu"], protocol):
        items = {item.id: item for item in read_items(task, "", tceval)}
        assert [row["id"] for row in mine[task.label]["items"]] == list(items)
        for row in mine[task.label]["items"]:
            other = found.pop((task.label, row["id"]))
            assert other["arguments"][0][0] == rendered(local, items[row["id"]])
            assert other["resps"][0][0].strip() == row["answer"]
            assert other[task.metrics[0]] == float(row["correct"])
            wanted.append(tuple(local._encode(items[row["id"]].messages)))
        score = theirs["results"][f"tceval_{protocol}_{task.name}"][f"{task.metrics[0]},none"]
        assert score == pytest.approx(mine[task.label]["score"])
    assert not found
    assert sorted(asked) == sorted(wanted)
    assert all(ids[0] == bos and ids.count(bos) == 1 for ids in asked)
    drcd = next(block for name, block in mine.items() if name.startswith("drcd"))
    assert [row["correct"] for row in drcd["items"]] == [True, False]


def rendered(local: Any, item: Item) -> str:
    """The text that our runner's ids stand for."""
    text: str = local._tokenizer.render(item.messages[:1], add_generation_prompt=True).text
    return text + item.answer_prefix


@pytest.mark.usefixtures("in_fp32")
def test_likelihoods_of_the_letters(tiny_checkpoint: Path, tceval: Path) -> None:
    """The `_mc` form: lm-eval's numbers are those of one forward pass of ours, and the mark is the best letter's."""
    from twllm.serve.engines.torch.engine import TorchEngine
    from twllm.serve.engines.torch.scoring import score

    engine = TorchEngine(tiny_checkpoint)
    theirs = harness(export(str(tceval))[0], ["tceval_strict_mc"], hf(tiny_checkpoint))
    found = samples(theirs)
    assert len(found) == 6
    for (label, _), row in found.items():
        doc = row["doc"]
        prompt = engine.tokenizer.encode_chat([{"role": "user", "content": doc["prompt"]}], add_generation_prompt=True)
        letters = [engine.tokenizer.encode(answer) for answer in doc["answers"]]
        scored = score(engine.model, [prompt.ids + ids for ids in letters])
        mine = [scores.given[-1] for scores in scored]
        assert all(len(ids) == 1 for ids in letters)
        assert [response[0][0] for response in row["resps"]] == pytest.approx(mine, abs=1e-5)
        assert row["acc"] == float(mine.index(max(mine)) == doc["gold"]), label
    engine.close()


@pytest.mark.usefixtures("in_fp32")
def test_plain_text_likelihoods_are_those_of_our_questions(tiny_checkpoint: Path, tceval: Path) -> None:
    """Without a template and with one begin token: the ids of `ask` (`--by likelihood`) give lm-eval's numbers, prefixes too."""
    from twllm.evaluate.ask import Question, encode_questions
    from twllm.serve.engines.torch.engine import TorchEngine
    from twllm.serve.engines.torch.scoring import score

    engine = TorchEngine(tiny_checkpoint)
    names = ["tceval_strict_mc", "tceval_twllm_ttqa_mc", "tceval_mediatek_ttqa_mc"]
    found = samples(harness(export(str(tceval))[0], names, hf(tiny_checkpoint, add_bos_token=True), template=False))
    assert len(found) == 10
    for (label, _), row in found.items():
        question = Question(row["doc"]["prompt"], tuple(row["doc"]["answers"]), tasks()[label].answer_prefix, "text")
        (pairs,) = encode_questions(engine.tokenizer, [question])
        scored = score(engine.model, [context + answer for context, answer in pairs])
        mine = [sum(scores.given[-len(answer) :]) for scores, (_, answer) in zip(scored, pairs, strict=True)]
        assert [response[0][0] for response in row["resps"]] == pytest.approx(mine, abs=2e-5), label
    engine.close()


@pytest.mark.usefixtures("in_fp32")
def test_topics_mean_is_the_same_with_and_without_known_data(
    tiny_checkpoint: Path, tceval: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One task a subject, or one task for all: the unweighted mean over subjects (here of unequal size) either way."""
    model = hf(tiny_checkpoint)
    known, unknown = export(str(tceval))[0], export()[0]
    monkeypatch.setenv(DATA, str(tceval))
    name = "tceval_strict_tmmlu_mc"
    values = []
    with (tceval / "TMMLU/subjects/國際法/data.csv").open(encoding="utf-8") as stream:
        assert len(list(csv.DictReader(stream))) == 1
    for folder in (known, unknown):
        result = harness(folder, [name], model)
        values.append(result["results"][name]["acc,none"])
        marks = [row["acc"] for rows in result["samples"].values() for row in rows]
        assert 0 < sum(marks) < len(marks)
        assert values[-1] != sum(marks) / len(marks)
    assert values[0] == values[1]


@pytest.mark.slow
def test_the_command_line_of_the_docs(tiny_checkpoint: Path, tceval: Path, tmp_path: Path) -> None:
    """`lm-eval run --include_path $(twllm eval tasks-path) --tasks tceval_strict`, the folder known by the variable."""
    pytest.importorskip("lm_eval")
    import os
    import subprocess
    import sys

    settings = {**os.environ, DATA: str(tceval), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": ""}
    path = [sys.executable, "-m", "twllm.cli", "eval", "tasks-path"]
    folder = subprocess.run(path, env=settings, capture_output=True, text=True, check=True).stdout.strip()
    command = f"""-m lm_eval run --model hf --model_args pretrained={tiny_checkpoint},dtype=float32 --device cpu
        --include_path {folder} --tasks tceval_strict --apply_chat_template --gen_kwargs max_gen_toks=4
        --output_path {tmp_path / "out.json"}"""
    done = subprocess.run([sys.executable, *command.split()], env=settings, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = tmp_path.glob("out*.json")
    results = json.loads(file.read_text(encoding="utf-8"))["results"]
    assert results["tceval_strict_tmmlu"]["accuracy,none"] == pytest.approx(
        (
            results["tceval_strict_tmmlu_國際法"]["accuracy,none"]
            + results["tceval_strict_tmmlu_會計學"]["accuracy,none"]
        )
        / 2
    )


def test_the_default_name_of_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert lmeval.cache_folder() == Path.home() / ".cache/twllm/lm-eval"
