"""Bad input through the real command: exit code 2 and exactly three lines on stderr, whatever the mistake.

In-process (`main` with `sys.argv`), since starting Python and torch for each row would take minutes.
"""

import json
import shutil
import socket
import sys
from pathlib import Path

import pytest

from twllm.cli import main
from twllm.train.alone import make_job

TINY = str(Path(__file__).parents[1] / "recipes" / "tiny.toml")
PAIR = [{"role": "user", "content": "你好[/b]"}, {"role": "assistant", "content": "嗨 [/]"}]


@pytest.fixture
def place(tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, made the current one, with one thing of each wrong kind."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_checkpoint, "model")
    for name, missing in (("no-tokenizer", "tokenizer.json"), ("no-config", "config.json")):
        shutil.copytree("model", name)
        Path(name, missing).unlink()
    for name, damaged in (("bad-tokenizer", "tokenizer.json"), ("bad-weights", "model.safetensors")):
        shutil.copytree("model", name)
        Path(name, damaged).write_bytes(b"\xff{")
    Path("folder").mkdir()
    Path("theirs").mkdir()
    Path("theirs", "thesis.txt").write_text("三年的心血", encoding="utf-8")
    for name, content in {
        "file": "x", "empty.jsonl": "", "bad.jsonl": '{bad\n{"text": "好"}\n', "list.json": "[1, 2]", "text.jsonl": '{"text": "台北的夜市很熱鬧，大家都喜歡去逛。"}\n', "bad.json": "{bad",
        "bad.parquet": "x", "question.jsonl": json.dumps({"messages": PAIR[:1]}), "bad.toml": "name = ",
        "chat.jsonl": json.dumps({"id": "a[/x]", "license": "x", "messages": PAIR}), "gbk.toml": "",
    }.items():  # fmt: skip
        Path(name).write_text(content, encoding="utf-8")
    Path("gbk.toml").write_bytes(b'name = "\xb0\xa1"')
    damaged = {"json": b"{", "bytes": b"\xff\xfe", "shape": b"[]", "keys": b'{"recipe": {"nam": 1}, "file": "x"}'}
    for name, raw in damaged.items():
        Path(f"run-{name}").mkdir()
        Path(f"run-{name}", "recipe.json").write_bytes(raw)
    return tmp_path


def call(monkeypatch: pytest.MonkeyPatch, command: str) -> int | str | None:
    """Exit code of `twllm COMMAND`."""
    monkeypatch.setattr(sys, "argv", ["twllm", *command.replace("TINY", TINY).split()])
    try:
        main()
    except SystemExit as exit:
        return exit.code
    return 0


MISTAKES = {
    # recipes and runs
    "run nope.toml": "no such recipe",
    "run folder": "a folder, not a file",
    "run bad.toml": "broken TOML",
    "run gbk.toml": "broken TOML",
    "run TINY --out r --set sft.lrr=1": "did you mean 'lr'",
    "run TINY --out r --set sft=1": "sft 的值不對",
    "run TINY --out r --set sft.lr": "bad --set",
    "run TINY --out r --set sft.lr=fast": "sft.lr 的值不對",
    "run TINY --out r --set sft.lr.x=1": "not a table",
    "run TINY --out r --set evaluate.suites=['nope']": "unknown suite",
    "run TINY --out r --set evaluate.suites=['tceval']": "tceval_data missing",
    "run TINY --out r --set evaluate.suites=['ttqa'] --set evaluate.tceval_data='folder'": "not in MediaTek's layout",
    "run TINY --out r --set evaluate.gates={cultur=0.5}": "gate of a suite",
    "run TINY --out r --set evaluate.questions='bad.jsonl'": "broken JSON line",
    "run TINY --out r --until nope": "unknown stage",
    "run TINY --out file": "a file where a folder belongs",
    "run TINY --out file/below": "a file where a folder belongs",
    "run TINY --machine nope.toml": "no such machine file",
    "run TINY --machine folder": "a folder, not a file",
    "recipe show folder": "a folder, not a file",
    "status nope": "not a run folder",
    "status folder": "not a run folder",
    "status file": "not a run folder",
    "status run-json": "damaged run record",
    "status run-bytes": "damaged run record",
    "status run-shape": "damaged run record",
    "status run-keys": "missing key",
    # corpus and tokenizer
    "corpus build TINY --out theirs": "not made by twllm",
    "corpus build TINY --out file": "not made by twllm",
    "corpus report folder": "not a corpus folder",
    "tokenizer train folder --out t": "not a corpus folder",
    "tokenizer report file folder": "unknown file type",
    # training
    "train sft --model nope --data chat.jsonl --out o": "no such model",
    "train sft --model file --data chat.jsonl --out o": "a file, not a folder",
    "train sft --model no-tokenizer --data chat.jsonl --out o": "no tokenizer",
    "train sft --model bad-tokenizer --data chat.jsonl --out o": "broken tokenizer.json",
    "train sft --model model --data nope --out o": "no such data",
    "train sft --model model --data empty.jsonl --out o": "no conversation fits",
    "train sft --model model --data bad.jsonl --out o": "broken JSON line",
    "train sft --model model --data bad.json --out o": "not a JSON list",
    "train sft --model model --data list.json --out o": "not a JSON list",
    "train sft --model model --data bad.parquet --out o": "damaged parquet",
    "train sft --model model --data question.jsonl --out o": "no assistant answer",
    "train sft --model model --data chat.jsonl --out o --set sft.nope=1": "unknown key",
    "train sft --model model --data chat.jsonl --out o --template nope": "unknown chat template",
    "train sft --model model --data chat.jsonl --out theirs": "not made by twllm",
    "train feedback --model model --data chat.jsonl --out o": "row without rating",
    "train sft --model model --data chat.jsonl --out o --set seed=-1": "at least",
    "train sft --model model --data chat.jsonl --out o --set eval_every=2": "would be ignored",
    "train sft --model model --data chat.jsonl --out o --set pretrain.lr=1": "would be ignored",
    "train sft --model model --data chat.jsonl --out o --set machine.threads=1": "a file of their own",
    "train sft --model model --data chat.jsonl --out o --set context=9999": "longer than the model's positions",
    "train pretrain --model model --data text.jsonl --out o --license x --set corpus.mix.max_repeats=3": "would be ignored",
    "recipe keys sft.nope": "no such section",
    "train pretrain --model model --data text.jsonl --out o": "no licence",
    "train pretrain --model model --data bad.jsonl --out o --license x": "broken JSON line",
    "train pretrain --model model --data empty.jsonl --out o --license x": "no documents left",
    # evaluation, chat, serving, feedback
    "eval nope": "no such model",
    "eval file": "a file, not a folder",
    "eval no-config": "no config.json",
    "eval bad-weights": "cannot load",
    "eval model --suite nope": "unknown suite",
    "eval model --suite tceval": "--data missing",
    "eval model --questions empty.jsonl": "no questions",
    "eval model --questions list.json": "not a JSON list",
    "eval model --limit 0": "at least 1",
    "eval model --batch-size 0": "at least 1",
    "eval model --out folder": "--out is a folder",
    "eval score folder --data folder": "a folder, not a file",
    "eval score": "responses and --data needed",
    "eval http://127.0.0.1:9": "server error",
    "chat nope": "no such model folder",
    "chat file": "a file, not a folder",
    "serve folder": "no tokenizer",
    "serve model --port 99999": "no such port",
    "feedback stats --db nope.db": "no ratings database",
    "feedback stats --db file": "not a database",
    "feedback export --db nope.db --out o.jsonl": "no ratings database",
}


@pytest.mark.parametrize(("command", "said"), MISTAKES.items(), ids=MISTAKES)
def test_a_mistake_is_told_in_three_lines(
    command: str, said: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, command) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("▶ ")]
    assert [line[:3] for line in lines] == ["錯誤：", "位置：", "處理："], lines
    assert said in "\n".join(lines)
    assert (place / "theirs" / "thesis.txt").read_text(encoding="utf-8") == "三年的心血"
    assert (place / "file").read_text(encoding="utf-8") == "x"


def test_of_torchruns_processes_one_tells_the_mistake(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank, lines in (("0", 3), ("1", 0)):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert call(monkeypatch, "recipe show nope.toml") == 2
        assert len(capsys.readouterr().err.splitlines()) == lines


def test_ctrl_c_says_how_to_go_on(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("twllm.train.alone.train_alone", interrupted)
    assert call(monkeypatch, "train sft --model model --data chat.jsonl --out o") == 130
    assert "已中斷" in capsys.readouterr().err


def test_looking_for_a_learning_rate_never_replaces_a_model(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "model" / "manifest.json").write_text('{"stage": "sft"}', encoding="utf-8")
    shutil.copytree("model", "trained")
    assert call(monkeypatch, "train sft --model model --data chat.jsonl --out trained --find-lr") == 2
    assert "holds something else" in capsys.readouterr().err
    assert (place / "trained" / "model.safetensors").is_file()


def test_a_command_is_the_same_job_from_another_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else unfinished work is not found again; weights of the data are the data set's own."""
    sets = ["context=64", "datasets.weight=2.5"]
    here = make_job("sft", "model", ["chat.jsonl"], Path("o"), sets, None, "x")
    found = here.work.name
    monkeypatch.chdir(place / "folder")
    there = make_job("sft", "../model", ["../chat.jsonl"], Path("../o"), sets, None, "x")
    assert here.weights == [2.5] and here.facts == there.facts
    assert found == there.work.name


def test_a_port_in_use(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        assert call(monkeypatch, f"serve model --port {taken.getsockname()[1]}") == 2
    assert "port in use" in capsys.readouterr().err


def test_a_reply_of_many_lines_stays_three_lines() -> None:
    from twllm.errors import UserError

    assert len(str(UserError("<html>\n<p>404</p>\n", "http://x\n", "")).splitlines()) == 3


def test_markup_in_data_is_only_text(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "train sft --model model --data chat.jsonl --out o --show 2") == 0
    assert "a[/x]" in capsys.readouterr().out
    assert not (place / "o").exists()


def test_a_template_that_marks_no_answer_is_named(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither marks nor an end of the answer: what is learned cannot be told (tests/tokens/test_unmarked.py for those where it can)."""
    template = place / "model" / "chat_template.jinja"
    text = template.read_text(encoding="utf-8")
    text = text.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "").replace(" + eos_token", "")
    template.write_text(text, encoding="utf-8")
    assert call(monkeypatch, "train sft --model model --data chat.jsonl --out o") == 2
    assert "no {% generation %}" in capsys.readouterr().err


def test_an_id_with_a_lone_surrogate_is_trained_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "odd.jsonl").write_text(json.dumps({"id": "\ud800", "license": "x", "messages": PAIR}), encoding="utf-8")
    assert (
        call(monkeypatch, "train sft --model model --data odd.jsonl --out o --set context=128 --set batch_tokens=128")
        == 0
    )
    assert (place / "o" / "model.safetensors").is_file()
