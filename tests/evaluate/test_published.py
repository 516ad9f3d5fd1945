"""Answers in, scores out: the contract's JSON, published numbers, and every way in which answers and gold do not fit."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from twllm.errors import UserError
from twllm.evaluate.commands import app
from twllm.evaluate.published import score_responses

ANSWERS = {
    "TMMLU/會計學": ["B", "A"],
    "TMMLU/國際法": ["答案：A"],
    "DRCD": ["玉山主峰", "是 3952"],
    "TTQA": ["雞肉飯", "貢丸"],
    "PenguinsInTable_TC": {"train-0": "伯納德"},
    "FGC": ["甲"],
}


def write_answers(folder: Path, answers: dict[str, Any], **change: Any) -> Path:
    """A response file in MediaTek's format; lists are answers to the ids 0, 1, ….."""
    pairs = {
        name: texts.items() if isinstance(texts, dict) else enumerate(texts)
        for name, texts in {**answers, **change}.items()
    }
    results = {name: [{"id": id, "response": text} for id, text in rows] for name, rows in pairs.items()}
    file = folder / "responses.json"
    file.write_text(json.dumps({"name": "m", "results": results}), encoding="utf-8")
    return file


def test_the_contract(tceval: Path, tmp_path: Path) -> None:
    """Macro average over subjects: (1/2 + 1)/2, not 2/3."""
    out = tmp_path / "out/scores.json"
    command = ["score", "--suite", "tceval", "--protocol", "mediatek", "--data", str(tceval)]
    run = CliRunner().invoke(app, [*command, str(write_answers(tmp_path, ANSWERS)), "--out", str(out)])
    assert run.exit_code == 0, run.output
    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["scores"] == {
        "DRCD": {"prefix_exact_match": 0.5},
        "PenguinsInTable_TC": {"accuracy": 0.0},
        "TMMLU/國際法": {"accuracy": 1.0},
        "TMMLU/會計學": {"accuracy": 0.5},
        "TMMLU_Avg": {"accuracy": 0.75},
        "TTQA": {"accuracy": 0.5},
    }
    assert list(result["skipped"]) == ["FGC", "IMDB_TC", "XSum_TC_5k"]
    assert all("gold missing" in why for why in result["skipped"].values())
    assert "FGC_Test" in result["skipped"]["FGC"]
    assert (result["tmmlu"]["correct"], result["tmmlu"]["n"]) == (2, 3)
    assert (tmp_path / "out/scores.md").exists()
    assert "TMMLU_Avg: accuracy 0.75" in run.output


def test_drcd_from_elsewhere(tceval: Path, tmp_path: Path) -> None:
    file = (tceval / "DRCD_Test/DRCD_test.json").rename(tmp_path / "elsewhere.json")
    answers = write_answers(tmp_path, ANSWERS)
    assert "DRCD" in score_responses(answers, tceval)["skipped"]
    assert score_responses(answers, tceval, drcd=file)["scores"]["DRCD"] == {"prefix_exact_match": 0.5}
    with pytest.raises(UserError, match="no such gold file"):
        score_responses(answers, tceval, drcd=tmp_path / "沒有.json")
    with pytest.raises(UserError, match="no such gold file"):
        score_responses(answers, tceval, drcd=tceval)


def test_task_without_answers_is_skipped_and_named(tceval: Path, tmp_path: Path) -> None:
    answers = {name: texts for name, texts in ANSWERS.items() if name != "TTQA"}
    result = score_responses(write_answers(tmp_path, answers), tceval)
    assert "no answers" in result["skipped"]["TTQA"]
    assert "TTQA" not in result["scores"]


def test_empty_answers_are_wrong(tceval: Path, tmp_path: Path) -> None:
    result = score_responses(write_answers(tmp_path, ANSWERS, TTQA=["", "肉圓"], DRCD=["", " \n"]), tceval)
    assert result["scores"]["TTQA"] == {"accuracy": 0.5}
    assert result["scores"]["DRCD"] == {"prefix_exact_match": 0.0}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"TTQA": ["雞肉飯"]}, r"TTQA 有 1 題沒有回答 .*：1$"),
        ({"TTQA": {"q1": "A", "q2": "B"}}, r"TTQA 有 2 題.*：0、1；有 2 個題號不在題目裡 .*：q1、q2"),
        ({"TMMLU/會計學": ["B"]}, "TMMLU 有 1 題.*會計學/1"),
        ({"TMMLU/國際法": []}, "TMMLU 有 1 題.*國際法/0"),
        ({"DRCD": []}, None),  # no answer at all: the task is skipped
        ({"TTQA": ["A", None]}, "TTQA 1: response is no text"),
        ({"TTQA": ["A", 3]}, "response is no text"),
    ],
)
def test_answers_that_do_not_fit(tceval: Path, tmp_path: Path, change: dict[str, Any], named: str | None) -> None:
    file = write_answers(tmp_path, ANSWERS, **change)
    if named is None:
        assert "DRCD" in score_responses(file, tceval)["skipped"]
        return
    with pytest.raises(UserError) as error:
        score_responses(file, tceval)
    assert re.search(named, error.value.what), error.value.what
    assert error.value.where == str(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"name": "m", "results": {"TTQA": [{"id": 0}]}}', "response"),
        ('{"name": "m", "results": {"TTQA": ["A"]}}', "unexpected fields"),
        ('{"name": "m", "results": {"TTQA": 3}}', "unexpected fields"),
        ('{"answers": []}', "看不懂"),
        ("", "看不懂"),
        ('{"name": "m", "results": {"FGC": []}}', "沒有可以評分"),
        ('{"name": "m", "results": {}}', "沒有可以評分"),
    ],
)
def test_files_that_are_no_answers(tceval: Path, tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "responses.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        score_responses(file, tceval)


def test_gold_that_cannot_be_read_is_an_error(tceval: Path, tmp_path: Path) -> None:
    """Not skipped: it is there and broken."""
    file = write_answers(tmp_path, ANSWERS)
    with pytest.raises(UserError, match="no such data folder"):
        score_responses(file, tmp_path / "沒有")
    with pytest.raises(UserError, match="no such data folder"):
        score_responses(file, tceval / "TTQA/TTQA_mc.json")
    (tceval / "TTQA/TTQA_mc.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="ttqa"):
        score_responses(file, tceval)


def test_answers_without_a_question_are_counted_and_subjects_named(tceval: Path, tmp_path: Path) -> None:
    change = {"TTQA": ["雞肉飯", "貢丸", "多的"], "TMMLU/天文學": ["A"]}
    result = score_responses(write_answers(tmp_path, ANSWERS, **change), tceval)
    assert result["meta"]["unused_answers"] == {"TTQA": 1, "TMMLU": 1}
    assert "no gold" in result["skipped"]["TMMLU/天文學"]
    assert result["scores"]["TMMLU_Avg"] == {"accuracy": 0.75}


def test_former_names_and_the_last_of_two_answers(tceval: Path, tmp_path: Path) -> None:
    rows = [{"id": "train-0", "response": "A"}, {"id": "train-0", "response": "B"}]
    results = {"BB_Penguins_in_a_Table_TC": rows, "TMMLU_國際法": [{"id": 0, "response": "A"}]}
    shutil.rmtree(tceval / "TMMLU/subjects/會計學")
    file = tmp_path / "responses.json"
    file.write_text(json.dumps({"name": "m", "results": results}), encoding="utf-8")
    scores = score_responses(file, tceval)["scores"]
    assert scores["PenguinsInTable_TC"] == {"accuracy": 0.0}
    assert scores["TMMLU_Avg"] == {"accuracy": 1.0}


def test_protocols_differ_where_they_should(tceval: Path, tmp_path: Path) -> None:
    change = {"DRCD": ["最高的是玉山主峰", "3952 公尺"], "TTQA": ["A", "答案：B"]}
    file = write_answers(tmp_path, ANSWERS, **change)
    results = {name: score_responses(file, tceval, protocol=name)["scores"] for name in ("mediatek", "twllm", "strict")}
    drcd = {name: scores["DRCD"] for name, scores in results.items()}
    assert drcd == {"mediatek": {"prefix_exact_match": 0.5}, "twllm": {"exact_match": 1}, "strict": {"exact_match": 0}}
    assert {name: scores["TTQA"]["accuracy"] for name, scores in results.items()} == {
        "mediatek": 1, "twllm": 0.5, "strict": 1,
    }  # fmt: skip
    assert results["twllm"]["TMMLU"] == {"accuracy": 1 / 3}  # of all questions, and only a letter that comes first


def test_our_own_answers_and_a_protocol_of_their_own(tceval: Path, tmp_path: Path) -> None:
    rows = [{"task": "ttqa", "id": str(i), "output": "A"} for i in range(2)]
    rows += [{"task": "ttqa@strict", "id": str(i), "output": "B"} for i in range(2)]
    file = tmp_path / "r.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    ttqa = {name: score_responses(file, tceval, protocol=name)["scores"]["TTQA"] for name in ("mediatek", "strict")}
    assert ttqa == {"mediatek": {"accuracy": 0.5}, "strict": {"accuracy": 0.5}}
    assert score_responses(file, tceval, protocol="strict")["ttqa@strict"]["items"][1]["correct"]
    (only,) = score_responses(file, tceval, suites=["ttqa@twllm"], protocol="")["scores"]
    assert only == "TTQA"


def test_suites_that_answers_alone_do_not_score(tceval: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown suite"):
        score_responses(write_answers(tmp_path, ANSWERS), tceval, suites=["tcevall"])
    with pytest.raises(UserError, match="unknown protocol"):
        score_responses(write_answers(tmp_path, ANSWERS), tceval, protocol="mediatec")


def test_xsum_imdb_and_fgc_in_mediateks_layout(tceval: Path, tmp_path: Path) -> None:
    pytest.importorskip("sumeval")
    pytest.importorskip("jieba")
    files = {
        "XSum_TC_5k/test_sub5000.csv": ',document,summary\n7,"玉山\n很高。",玉山很高\n9,文章,高玉山雪山\n',
        "IMDB_TC/test.csv": "text,label\n好看,1\n難看,0\n",
        "FGC_Test/FGC_official_final.json": json.dumps(
            [{"DTEXT": "玉山很高。", "QUESTIONS": [{"QTEXT": "01.什麼很高？", "ANSWER": "玉山 "}]}]
        ),
    }
    for name, text in files.items():
        (tceval / name).parent.mkdir()
        (tceval / name).write_text(text, encoding="utf-8")
    change = {"XSum_TC_5k": ["玉山高", "玉山高"], "IMDB_TC": [" 正面。", "是負面"], "FGC": ["玉山。"]}
    result = score_responses(write_answers(tmp_path, ANSWERS, **change), tceval)
    assert result["skipped"] == {}
    assert result["scores"]["XSum_TC_5k"] == {
        "rouge1": pytest.approx(0.9), "rouge2": 0.5, "rougeL": pytest.approx(0.7),
    }  # fmt: skip
    assert result["scores"]["IMDB_TC"] == {"accuracy": 0.5}
    assert result["scores"]["FGC"] == {"prefix_exact_match": 1.0}
    low, high = result["xsum"]["interval"]
    assert low <= 0.5 <= high
    result = score_responses(write_answers(tmp_path, ANSWERS, **change), tceval, protocol="twllm")
    assert result["scores"]["XSum_TC_5k"] == {"rouge2": 0.5}


# -- real data ----------------------------------------------------------------------------------------------------


def printed(file: Path) -> dict[tuple[str, str], str]:
    """(task, metric) → the score printed for Taiwan-LLaMa v1.0."""
    rows = [line.split("|") for line in file.read_text(encoding="utf-8").splitlines()]
    numbered = [row for row in rows if re.fullmatch(r"\s*\d+\s*", row[1])]
    return {(row[2].strip(), row[3].strip()): row[5].strip() for row in numbered}


@pytest.mark.shared_data
def test_published_scores_come_out_equal(shared_data: Path, tmp_path: Path) -> None:
    """Every score printed for Taiwan-LLaMa v1.0 whose gold is here, to all digits: 3 tasks, 53 subjects and their average."""
    folder = shared_data / "tceval"
    out = tmp_path / "scores.json"
    score_responses(folder / "responses/tw_llama_v1.0.json", folder / "data-as-published", out)
    result = json.loads(out.read_text(encoding="utf-8"))
    ours = {(task, metric): value for task, row in result["scores"].items() for metric, value in row.items()}
    expected = printed(folder / "published_scores.md")
    assert {key: f"{value:.6g}" for key, value in ours.items()} == {key: expected[key] for key in ours}
    assert len(ours) == 57
    assert {task for task, _ in expected} - {task for task, _ in ours} == set(result["skipped"])
    assert set(result["skipped"]) == {"FGC", "IMDB_TC", "XSum_TC_5k"}
    assert [result[name]["n"] for name in ("drcd", "ttqa", "penguins", "tmmlu")] == [3493, 103, 149, 3343]
    assert result["tmmlu"]["task"]["edition"] == "tmmlu-53"


@pytest.mark.shared_data
def test_later_gold_is_another_edition(shared_data: Path) -> None:
    """50 subjects since December 2023: the data say so, the average differs, and the three subjects are named."""
    folder = shared_data / "tceval"
    result = score_responses(folder / "responses/tw_llama_v1.0.json", folder / "data", suites=["tmmlu"])
    assert f"{result['scores']['TMMLU_Avg']['accuracy']:.6g}" == "0.305296"
    assert (result["tmmlu"]["n"], result["tmmlu"]["task"]["edition"]) == (3313, "tmmlu-50")
    assert set(result["skipped"]) == {"TMMLU/分科測驗數學甲", "TMMLU/計算機數學", "TMMLU/分科測驗化學"}
    assert result["meta"]["unused_answers"] == {"TMMLU": 37}  # 30 questions taken out, and 7 never there


@pytest.mark.shared_data
def test_answers_that_change_their_mark(shared_data: Path) -> None:
    """The numbers of docs/tceval.md: (more, fewer) right answers than under MediaTek's rules."""
    folder = shared_data / "tceval"
    file, gold = folder / "responses/tw_llama_v1.0.json", folder / "data-as-published"
    base = score_responses(file, gold)
    expected = {
        "twllm": {"drcd": (299, 0), "ttqa": (0, 55), "penguins": (0, 33), "tmmlu": (0, 53)},
        "strict": {"drcd": (24, 643), "ttqa": (3, 7), "penguins": (5, 4), "tmmlu": (2, 3)},
    }
    for protocol, counts in expected.items():
        result = score_responses(file, gold, protocol=protocol)
        for name, count in counts.items():
            pairs = list(zip(base[name]["items"], result[f"{name}@{protocol}"]["items"], strict=True))
            more = sum(new["correct"] and not old["correct"] for old, new in pairs)
            fewer = sum(old["correct"] and not new["correct"] for old, new in pairs)
            assert (more, fewer) == count, (protocol, name)
