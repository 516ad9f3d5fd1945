"""`twllm check` and `twllm convert` as a user runs them: the JSON contract, charsets, rows, exit codes."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from twllm.cli import app
from twllm.errors import UserError

runner = CliRunner()
CONTRACT = {"file", "n_chars", "leak_rate", "simplified", "vocabulary", "punctuation", "verdict", "score"}


def run(*arguments: object, stdin: bytes | None = None) -> str:
    result = runner.invoke(app, [str(argument) for argument in arguments], input=stdin, catch_exceptions=False)
    return result.stdout


def test_check_prints_one_object_a_file(tmp_path: Path) -> None:
    good, bad = tmp_path / "好.txt", tmp_path / "壞.md"
    good.write_text("臺灣的軟體品質很好。", encoding="utf-8")
    bad.write_text("这个視頻,很好。", encoding="utf-8")
    first, second = map(json.loads, run("check", "--json", good, bad).splitlines())
    assert set(first) >= CONTRACT
    assert (first["file"], first["verdict"], first["leak_rate"], first["score"]) == (str(good), "zh-TW", 0, 1)
    assert second["simplified"] == [{"text": "这个", "start": 0, "suggest": "這個"}]
    assert second["vocabulary"] == [{"text": "視頻", "start": 2, "suggest": "影片"}]
    assert second["punctuation"] == [{"text": ",", "start": 4, "suggest": "，"}]
    assert second["verdict"] in ("zh-CN", "mixed")


def test_check_reads_big5_rows_and_standard_input(tmp_path: Path) -> None:
    old = tmp_path / "old.txt"
    old.write_bytes("臺灣的軟體品質很好，網路也快。".encode("cp950"))
    assert json.loads(run("check", "--json", old))["verdict"] == "zh-TW"
    rows = tmp_path / "chat.jsonl"
    row = {
        "id": "视频",
        "license": "简体",
        "messages": [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "這個软件"}],
    }
    rows.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    found = json.loads(run("check", "--json", rows))
    assert [span["text"] for span in found["simplified"]] == ["软"]  # neither id nor licence is text
    assert json.loads(run("check", "--json", "-", stdin="这个软件".encode()))["verdict"] == "zh-CN"


def test_check_table_and_exit_code(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("這個視頻很好看。", encoding="utf-8")
    result = runner.invoke(app, ["check", str(file), "--max-leak-rate", "0.1"])
    assert result.exit_code == 1
    assert "影片" in result.stdout
    assert runner.invoke(app, ["check", str(file), "--max-leak-rate", "0.5"]).exit_code == 0


def test_convert_prints_the_text_and_flags_to_stderr(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("这些文件\r\n说他干。".encode("gb18030"))
    result = runner.invoke(app, ["convert", "--to", "zh-TW", str(file)])
    assert result.stdout == "這些文件\n說他幹。" or result.stdout == "這些文件\r\n說他幹。"
    assert "檔案" in result.stderr
    found = json.loads(run("convert", "--json", file))
    assert (found["changed"], found["text"]) == (True, "這些文件\r\n說他幹。")
    for flag in found["flags"]:
        assert found["text"][flag["start"] :].startswith(flag["text"])
    assert {flag["text"] for flag in found["flags"]} == {"文件", "幹"}


def test_convert_to_a_file_leaves_native_text_as_it_is(tmp_path: Path) -> None:
    file, out = tmp_path / "a.txt", tmp_path / "b.txt"
    file.write_bytes("\ufeff臺灣的里長，\r\n后里的麵。\n".encode())
    run("convert", file, "--out", out)
    assert out.read_bytes() == file.read_bytes()
    run("convert", out, "--out", out)
    assert out.read_bytes() == file.read_bytes()


def test_mistakes(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("好", encoding="utf-8")
    for arguments, says in (
        (["check", tmp_path / "沒有.txt"], "找不到"),
        (["check", tmp_path], "資料夾"),
        (["convert", "--to", "zh-HK", file], "zh-TW"),
        (["convert", file, file, "--out", tmp_path / "b"], "一次只能寫一個"),
    ):
        with pytest.raises(UserError, match=says):
            run(*arguments)
    broken = tmp_path / "b.jsonl"
    broken.write_text('{"text": "好"}\n{壞', encoding="utf-8")
    with pytest.raises(UserError, match="JSON") as error:
        run("check", broken)
    assert error.value.where.endswith("b.jsonl:2")
