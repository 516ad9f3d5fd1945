"""`twllm corpus report` on conversations, and the licence check before a run begins."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from twllm.cli import main
from twllm.errors import UserError
from twllm.pipeline.checks import check_recipe
from twllm.recipe import load_recipe
from twllm.tokens.config import DatasetConfig
from twllm.tokens.report import dataset_report

PAIR = [{"role": "user", "content": "哪裡買得到鳳梨酥？"}, {"role": "assistant", "content": "機場和超商都有。"}]


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def mixed(tmp_path: Path) -> str:
    return write(
        tmp_path / "mixed.jsonl",
        {"messages": PAIR, "license": "cc-by-nc-4.0", "source": "網友"},
        {"messages": PAIR, "license": "CC BY 4.0", "model": "gpt-4", "rating": 1},
        {"messages": PAIR},
        {"prompt": "寫一首詩"},
    )


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["twllm", "corpus", "report", *arguments])
    try:
        main()
    except SystemExit as exit:
        return exit.code
    return 0


def test_counts(mixed: str) -> None:
    report = dataset_report(DatasetConfig(path=mixed, license="MIT"))
    assert (report.conversations, report.turns, report.user_chars, report.assistant_chars) == (3, 3, 27, 24)
    assert report.licences == {"cc-by-nc-4.0": 1, "CC BY 4.0": 1, "MIT": 1} and report.rated == {1: 1}
    assert report.sources == {"網友": 1, "mixed": 2} and report.tally.skipped == {"prompt_only": 1}


def test_the_command(mixed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, mixed, "twllm:taiwan_feedback") == 0
    out = capsys.readouterr().out
    for told in ("不得商用 non-commercial", "model-generated：OpenAI", "授權不明 unknown", "prompt_only", "mixed.jsonl:4", "網友", "twllm:taiwan_feedback"):  # fmt: skip
        assert told in out


def test_a_built_corpus_shows_its_licences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from twllm.corpus.build import build_corpus
    from twllm.corpus.config import CorpusConfig, CorpusSource

    text = "臺灣的夜市在傍晚開張，賣蚵仔煎、臭豆腐和珍珠奶茶，一直熱鬧到半夜。"
    write(tmp_path / "a.jsonl", {"id": "1", "text": text}, {"id": "2", "text": text + "再見。"})
    built = tmp_path / "built"
    built.mkdir()
    source = CorpusSource(path=str(tmp_path / "a.jsonl"), license="CC-BY-NC-SA-4.0")
    build_corpus(CorpusConfig(sources=(source,), held_out=0), built)
    assert call(monkeypatch, str(built)) == 0
    out = capsys.readouterr().out
    assert "語料漏斗" in out and "不得商用 non-commercial" in out and "CC-BY-NC-SA-4.0" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["empty"], "not a corpus folder"),
        (["nope.jsonl"], "no such data"),
        (["twllm:nope"], "no such shipped data"),
        (["x.jsonl", "--format", "nope"], "format"),
    ],
)
def test_mistakes(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write(tmp_path / "x.jsonl", {"messages": PAIR})
    assert call(monkeypatch, *arguments) == 2
    assert said in capsys.readouterr().err


def test_a_recipe_whose_conversations_have_no_licence_stops_before_it_starts(tmp_path: Path) -> None:
    write(tmp_path / "x.jsonl", {"messages": PAIR})
    text = """name = "x"
[base]
size = "tiny"
[[corpus.sources]]
path = "twllm:knowledge"
[feedback]
enabled = false
[evaluate]
suites = ["culture"]
questions = "twllm:culture"
[[sft.datasets]]
path = "x.jsonl"
"""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="no licence"):
        check_recipe(load_recipe(recipe))
    recipe.write_text(text + 'license = "CC0-1.0"\n', encoding="utf-8")
    check_recipe(load_recipe(recipe))
