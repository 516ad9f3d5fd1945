"""Side by side: real tiny models, resuming, marks, pages that escape everything, broken question files."""

import json
import re
import shutil
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from twllm.cli import app
from twllm.errors import UserError
from twllm.evaluate import model as models
from twllm.evaluate.compare import QUESTIONS, ask, compare_models, mark, read_asked, short_names
from twllm.evaluate.compare_page import cell, html_page, markdown, marked
from twllm.evaluate.keywords import is_correct
from twllm.evaluate.responses import ResponseFile


def write(file: Path, *rows: dict[str, Any]) -> str:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(file)


@pytest.fixture
def questions(tmp_path: Path) -> str:
    rows = [
        {"question": "台灣最高的山？", "accept": ["玉山"], "topic": "地理"},
        {"question": "電腦的「軟體」是什麼？", "reject": ["软件"]},
        {"question": "早安！"},
    ]
    return write(tmp_path / "q.jsonl", *rows)


def test_two_models_side_by_side(tiny_checkpoint: Path, questions: str, tmp_path: Path) -> None:
    other = shutil.copytree(tiny_checkpoint, tmp_path / "other")
    out = tmp_path / "out"
    result = compare_models([str(tiny_checkpoint), str(other)], questions, out, max_new_tokens=6, batch_size=2)
    first, second = result["models"]
    assert [first["name"], second["name"]] == ["tiny", "other"]
    assert first["answers"] == second["answers"]  # the same weights
    assert [row["correct"] for row in first["answers"]][2] is None
    assert (first["marked"], len(first["model_fingerprint"]), len(first["template_fingerprint"])) == (2, 16, 16)
    assert json.loads((out / "compare.json").read_text(encoding="utf-8")) == result
    assert sorted(path.name for path in out.iterdir()) == [
        "compare.html", "compare.json", "compare.md", "compare.responses.jsonl",
    ]  # fmt: skip
    one = compare_models([str(tiny_checkpoint)], questions, tmp_path / "one", max_new_tokens=6, batch_size=1)
    assert one["models"][0]["answers"] == first["answers"]  # whatever the batch


class Parrot:
    """Says the question back; breaks after `budget` questions."""

    fingerprint, template_fingerprint = "p", "t"

    def __init__(self, budget: int = 100) -> None:
        self.budget, self.asked = budget, list[str]()

    def __call__(self, chats: Sequence[list[dict[str, str]]]) -> list[str | None]:
        for chat in chats:
            if len(self.asked) == self.budget:
                raise KeyboardInterrupt
            self.asked.append(chat[0]["content"])
        return [None if chat[0]["content"] == "早安！" else chat[0]["content"] for chat in chats]


def test_goes_on_where_it_stopped(questions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked, path = read_asked(questions), tmp_path / "r.jsonl"
    with pytest.raises(KeyboardInterrupt):
        list(ask(Parrot(budget=1), "甲", asked, ResponseFile(path), 8, 1))
    model = Parrot()
    answers = list(ask(model, "甲", asked, ResponseFile(path), 8, 3))
    assert model.asked == ["電腦的「軟體」是什麼？", "早安！"]
    assert answers == ["台灣最高的山？", "電腦的「軟體」是什麼？", None]
    assert "[甲 3/3] 早安！" in capsys.readouterr().err
    again = Parrot()
    assert list(ask(again, "甲", asked, ResponseFile(path), 8, 2)) == answers
    assert again.asked == []
    assert len(list(ask(again, "甲", asked, ResponseFile(path), 9, 2))) == len(again.asked)  # another limit: asked anew


def test_marks() -> None:
    geo, word, free = read_asked_rows({"accept": ["玉山"], "reject": ["富士"]}, {"reject": ["软件"]}, {})
    assert [mark(geo, text) for text in ("是玉山", "玉山像富士山", "", None)] == [True, False, False, False]
    assert [mark(word, text) for text in ("程式", "软件", "")] == [True, False, False]
    assert mark(free, "什麼都好") is None


def read_asked_rows(*rows: dict[str, Any]) -> list[Any]:
    from twllm.evaluate.compare import _asked

    return [_asked({"question": "？", **row}, number, "") for number, row in enumerate(rows)]


class Page(HTMLParser):
    """Collects tags, whatever would load something, and the text of answers."""

    def __init__(self) -> None:
        super().__init__()
        self.tags, self.links, self.text = list[str](), list[str](), ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [str(value) for name, value in attrs if name in ("src", "href", "onerror", "onclick")]

    def handle_data(self, data: str) -> None:
        self.text += data


EVIL = '<script>alert("x")</script>\n| a | ![t](https://example.org/t.png) `視频` & 软件 </p>'


def evil_result() -> dict[str, Any]:
    column = {
        "name": "<b>甲</b>", "model": "a|b", "model_fingerprint": "f", "template_fingerprint": "", "leak_rate": 0.25,
        "correct": 0, "marked": 1, "answers": [{"answer": EVIL, "correct": False}, {"answer": None, "correct": None}],
    }  # fmt: skip
    rows = [{"question": "<i>？</i>", "topic": '"><img src=x>'}, {"question": "二", "topic": ""}]
    return {
        "questions": rows, "settings": {"decoding": "greedy", "max_new_tokens": 8}, "code_version": "1", "models": [column],
    }  # fmt: skip


def test_html_runs_and_loads_nothing_of_what_a_model_says() -> None:
    page = Page()
    page.feed(html_page(evil_result()))
    assert {"script", "img", "i", "b"} & set(page.tags) == set()
    assert page.links == []
    assert EVIL in page.text
    assert "放不下" in page.text
    assert page.text.count("✗") == 2  # the legend and the answer
    assert 'lang="zh-Hant-TW"' in html_page(evil_result())
    assert "prefers-color-scheme: dark" in html_page(evil_result())


def test_markdown_keeps_its_shape() -> None:
    text = markdown(evil_result())
    (row,) = [line for line in text.split("\n") if "alert" in line]
    assert row.count("|") == 3  # three borders of two cells
    assert "<script" not in text
    assert "![" not in re.sub(r"\\\[", "", text)
    assert cell("甲\n乙*丙*") == "甲<br>乙\\*丙\\*"


def test_other_regions_words_are_marked_in_place() -> None:
    assert marked("這個软件 <好>") == '這個<mark title="軟體">软件</mark> &lt;好&gt;'
    assert marked("這個軟體") == "這個軟體"


def test_shipped_questions_are_answerable() -> None:
    asked = read_asked(QUESTIONS)
    assert len(asked) == 12
    for one in asked:
        assert all(mark(one, key) for key in one.accept), one.id
        assert not is_correct("我不知道", one.accept, one.reject)
        assert not is_correct(one.question, one.accept), one.id  # saying the question back is no answer


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("", "沒有題目"),
        ('{"question": " "}\n', "question"),
        ('{"question": "？", "accept": "玉山"}\n', "accept"),
        ('{"id": 1, "question": "？"}\n{"id": "1", "question": "！"}\n', "題號重複"),
    ],
)
def test_broken_questions_are_told(tmp_path: Path, content: str, what: str) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=what):
        read_asked(str(file))


def test_questions_of_a_text_file(tmp_path: Path) -> None:
    file = tmp_path / "q.txt"
    file.write_text("\ufeff第一題？\n\n 第二題？\n", encoding="utf-8")
    assert [one.question for one in read_asked(str(file))] == ["第一題？", "第二題？"]


def test_missing_or_doubled_models_are_told_before_anything_is_loaded(
    questions: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "open_model", lambda *_: pytest.fail("loaded"))
    with pytest.raises(UserError, match="找不到模型"):
        compare_models(["http://127.0.0.1:9", str(tmp_path / "沒有")], questions, tmp_path / "out")
    with pytest.raises(UserError, match="兩次"):
        compare_models(["http://127.0.0.1:9"] * 2, questions, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names() -> None:
    assert short_names(["/a/model", "/b/other", "http://h:1/v1"]) == ["model", "other", "http://h:1/v1"]
    assert short_names(["/a/model", "/b/model"]) == ["/a/model", "/b/model"]


def test_command(tiny_checkpoint: Path, questions: str, tmp_path: Path) -> None:
    arguments = [
        "compare",
        str(tiny_checkpoint),
        "--questions",
        questions,
        "--out",
        str(tmp_path / "o"),
        "--max-new-tokens",
        "4",
    ]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 0, found.output
    assert "關鍵詞" in found.output
    assert (tmp_path / "o/compare.html").read_text(encoding="utf-8").startswith("<!doctype html>")
