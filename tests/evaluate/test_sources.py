"""Readers: MediaTek's layout, `datasets`, and what they say when the layout is another."""

import json
from pathlib import Path

import pytest

from twllm.errors import UserError
from twllm.evaluate.sources import edition_of, missing_gold, read_items, with_gold
from twllm.evaluate.task import Item, find_tasks, make_item, tasks


def items(name: str, data: Path | None) -> list[Item]:
    return read_items(tasks()[name], "twllm:culture", data)


def test_reads_the_layout(tceval: Path) -> None:
    drcd = items("drcd", tceval)
    assert [(item.id, item.references) for item in drcd] == [("0", ("玉山", "玉山主峰")), ("1", ("3952",))]
    assert "{3952}" in drcd[0].prompt
    ttqa = items("ttqa", tceval)
    assert [(item.id, item.references, item.topic) for item in ttqa] == [("0", ("A",), "FOOD"), ("1", ("B",), "FOOD")]
    assert items("penguins", tceval)[0].references == ("A",)
    tmmlu = {item.id: item.references for item in items("tmmlu", tceval)}
    assert tmmlu == {"會計學/0": ("B",), "會計學/1": ("C",), "國際法/0": ("A",)}


def test_preprocessed_drcd_and_one_in_a_neighbour_folder(tceval: Path) -> None:
    row = {"paragraph": "玉山很高。", "question": "什麼很高？", "references": ["玉山"]}
    (tceval / "DRCD_Test/preprocessed_DRCD_test.json").write_text(json.dumps({"0": row}), encoding="utf-8")
    assert [item.question for item in items("drcd", tceval)] == ["什麼很高？"]
    (tceval / "DRCD_Test").rename(tceval.parent / "drcd")
    assert [item.question for item in items("drcd", tceval)] == ["台灣最高的山？", "標高幾公尺？"]


def test_fgc_as_given_out_and_preprocessed(tceval: Path) -> None:
    folder = tceval / "FGC_Test"
    folder.mkdir()
    asked = [{"QTEXT": "01.誰？", "ANSWER": "甲"}, {"QTEXT": "02.誰？", "ANSWER": "乙"}]
    (folder / "FGC_official_final.json").write_text(
        json.dumps([{"DTEXT": "一", "QUESTIONS": asked}, {"DTEXT": "二", "QUESTIONS": asked[:1]}]), encoding="utf-8"
    )
    found = items("fgc", tceval)
    assert [(item.id, item.question, item.references) for item in found] == [
        ("0", "01.誰？", ("甲",)), ("1", "02.誰？", ("乙",)), ("2", "01.誰？", ("甲",)),
    ]  # fmt: skip
    assert "二" in found[2].prompt
    row = {"paragraph": "文", "question": "誰？", "references": ["甲", "乙"]}
    (folder / "preprocessed_FGC_official_final.json").write_text(json.dumps({"5": row}), encoding="utf-8")
    assert [(item.id, item.references) for item in items("fgc", tceval)] == [("5", ("甲", "乙"))]


def test_xsum_and_imdb_count_rows(tceval: Path) -> None:
    for name, text in {
        "XSum_TC_5k/test_sub5000.csv": 'Unnamed: 0,document,summary\n31,"一\n二",要\n8,三,點\n',
        "IMDB_TC/test.csv": "text,label\n好,1\n\n壞,0\n",
    }.items():
        (tceval / name).parent.mkdir()
        (tceval / name).write_text(text, encoding="utf-8")
    assert [(item.id, item.references) for item in items("xsum", tceval)] == [("0", ("要",)), ("1", ("點",))]
    assert "\n\n 一 二 \n\n" in items("xsum", tceval)[0].prompt
    assert [(item.id, item.references) for item in items("imdb", tceval)] == [("0", ("正面",)), ("1", ("負面",))]
    assert [item.references for item in items("imdb@twllm", tceval)] == [("1",), ("0",)]


def test_editions_are_told_by_the_data() -> None:
    task = tasks()["tmmlu"]

    def edition(subjects: int, questions: int) -> str:
        rows = [make_item(task, str(i), "？", ["A"], topic=f"科{i % subjects}") for i in range(questions)]
        return edition_of(task, rows)

    assert [edition(53, 3343), edition(50, 3313)] == ["tmmlu-53", "tmmlu-50"]
    assert edition(53, 3000) == "tmmlu (53 subjects, 3000 questions)"
    assert edition_of(tasks()["ttqa"], []) == ""


def test_only_what_a_group_brought_is_left_out(tceval: Path, tmp_path: Path) -> None:
    kept, left_out = with_gold(find_tasks(["tceval"]), ["tceval"], tceval)
    assert [task.name for task in kept] == ["drcd", "penguins", "tmmlu", "ttqa"]
    assert list(left_out) == ["fgc", "imdb", "xsum"]
    assert "FGC_Test" in left_out["fgc"]
    kept, left_out = with_gold(find_tasks(["fgc", "tceval"]), ["fgc", "tceval"], tceval)
    assert kept[0].name == "fgc"  # it was named: reading it says what is missing
    assert list(left_out) == ["imdb", "xsum"]
    for data in (None, tmp_path / "沒有"):
        assert len(with_gold(find_tasks(["tceval"]), ["tceval"], data)[0]) == 7
    culture = find_tasks(["culture"])
    assert with_gold(culture, ["culture"], tceval) == (culture, {})
    assert missing_gold(culture[0], tceval) == ""


def test_gold_that_lies_elsewhere(tceval: Path) -> None:
    file = (tceval / "DRCD_Test/DRCD_test.json").rename(tceval / "其他.json")
    assert [item.id for item in read_items(tasks()["drcd"], "", tceval, file)] == ["0", "1"]
    with pytest.raises(UserError, match="no such gold file"):
        read_items(tasks()["drcd"], "", tceval, tceval / "沒有.json")


def test_what_was_expected_and_what_is_there(tceval: Path) -> None:
    with pytest.raises(UserError) as error:
        items("ttqa", tceval / "DRCD_Test")
    assert "TTQA/TTQA_mc.json" in error.value.fix
    assert "DRCD_test.json" in error.value.fix
    with pytest.raises(UserError, match="找不到題目資料夾"):
        items("ttqa", tceval / "沒有")
    with pytest.raises(UserError) as error:
        items("ttqa", None)
    assert "--data" in error.value.fix


@pytest.mark.parametrize(
    ("name", "file", "text"),
    [
        ("ttqa", "TTQA/TTQA_mc.json", "{壞"),
        ("ttqa", "TTQA/TTQA_mc.json", '{"0": {"question": "？", "choices": ["甲"], "answer": 7}}'),
        ("ttqa", "TTQA/TTQA_mc.json", '{"0": {"question": "？", "choices": ["甲"]}}'),
        ("ttqa", "TTQA/TTQA_mc.json", "[1]"),
        ("drcd", "DRCD_Test/DRCD_test.json", '{"data": [{"title": "x"}]}'),
        ("tmmlu", "TMMLU/subjects/國際法/data.csv", ",content.A,content.Q\n0,F,？\n"),
        ("tmmlu", "TMMLU/subjects/國際法/data.csv", "a,b\n0,1\n"),
        ("xsum", "XSum_TC_5k/test_sub5000.csv", "document,title\n文,題\n"),
        ("imdb", "IMDB_TC/test.csv", "text,label\n好,2\n"),
        (
            "fgc",
            "FGC_Test/FGC_official_final.json",
            '[{"DTEXT": "文", "QUESTIONS": [{"QTEXT": "？", "ANSWER": ["甲"]}]}]',
        ),
    ],
)
def test_broken_files_are_named(tceval: Path, name: str, file: str, text: str) -> None:
    (tceval / file).parent.mkdir(exist_ok=True)
    (tceval / file).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=name) as error:
        items(name, tceval)
    assert error.value.where == str(tceval / file)


@pytest.fixture
def hub_like(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A local folder that `datasets` reads like a data set of the hub, with the columns of TCEval-v2."""
    datasets = pytest.importorskip("datasets")
    folder = tmp_path / "mini"
    rows: dict[str, list[dict[str, object]]] = {
        "drcd": [{"id": "d0", "paragraph": "玉山很高。", "question": "什麼很高？", "references": ["玉山"]}],
        "ttqa": [{"id": "t0", "question": "名產？", "A": "雞肉飯", "B": "肉圓", "C": "麵", "D": "丸", "answer": "B"}],
        "XSUM_TC": [{"Unnamed: 0": 3, "document": "文", "summary": "要"}],
        "IMDB_TC": [{"text": "難看", "label": 0}, {"text": "好看", "label": 1}],
        "tmmlu": [
            {"subject": "會計學", "question": "？(A)(B)", "answer": "B"},
            {"subject": "會計學", "question": "？", "answer": "A"},
        ],
    }
    configs = ""
    for name, content in rows.items():
        file = folder / name / "test.jsonl"
        file.parent.mkdir(parents=True)
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content), encoding="utf-8")
        configs += f"- config_name: {name}\n  data_files:\n  - split: test\n    path: {name}/test.jsonl\n"
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    return "datasets://mini"


def test_reads_datasets_by_name(hub_like: str) -> None:
    (drcd,) = items("drcd", Path(hub_like))
    assert (drcd.id, drcd.references) == ("d0", ("玉山",))
    (ttqa,) = items("ttqa", Path(hub_like))
    assert (ttqa.references, ttqa.choices) == (("B",), ("雞肉飯", "肉圓", "麵", "丸"))
    assert [item.id for item in items("tmmlu", Path(hub_like))] == ["會計學/0", "會計學/1"]
    with pytest.raises(UserError, match="penguins"):
        items("penguins", Path(hub_like))
    kept, left_out = with_gold(find_tasks(["tceval"]), ["tceval"], Path(hub_like))
    assert [task.name for task in kept] == ["drcd", "imdb", "tmmlu", "ttqa", "xsum"]
    assert "no such config" in left_out["penguins"]
    assert [item.references for item in items("xsum", Path(hub_like))] == [("要",)]
    assert [item.references for item in items("imdb", Path(hub_like))] == [("負面",), ("正面",)]


def test_dataset_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="讀不到資料集"):
        items("drcd", Path("datasets://./沒有這個"))
