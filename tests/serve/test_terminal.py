"""The terminal chat: piped, with a pretended terminal, and against a server."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serve.conftest import ANSWER, ScriptedEngine, running
from twllm.errors import UserError
from twllm.serve import terminal
from twllm.serve.terminal import Messages, chat, loop, remote


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Echo:
    """Answers with the last message; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Messages] = []

    def __call__(self, messages: Messages) -> Iterator[str]:
        self.asked.append([dict(message) for message in messages])
        question = messages[-1]["content"]
        yield "答："
        if "停" in question:
            raise KeyboardInterrupt
        if "錯" in question:
            raise UserError("壞了", "這裡", "那樣")
        yield question


def type_in(monkeypatch: pytest.MonkeyPatch, text: str, terminal: bool = True) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(text) if terminal else io.StringIO(text))


def test_piped_questions_give_answers_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_in(monkeypatch, "玉山多高？\n\n「拍謝」呢？\n", terminal=False)
    echo = Echo()
    loop(echo, "請用繁體中文。")
    assert capsys.readouterr().out == "答：玉山多高？\n答：「拍謝」呢？\n"
    assert [message["role"] for message in echo.asked[1]] == ["system", "user", "assistant", "user"]


def test_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    type_in(monkeypatch, "一\n/clear\n二\n/system 請用台語\n三\n/system\n四\n/help\n/hepl\n/exit\n五\n")
    echo = Echo()
    loop(echo, None)
    assert [[message["content"] for message in asked] for asked in echo.asked] == [
        ["一"],
        ["二"],
        ["請用台語", "三"],
        ["四"],
    ]
    out = capsys.readouterr().out
    assert out.count("/system 文字") == 2
    assert "沒有這個指令：/hepl" in out


def test_interrupt_stops_the_answer_and_not_the_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_in(monkeypatch, "停\n下一題\n")
    echo = Echo()
    loop(echo, None)
    assert "（已停止）" in capsys.readouterr().out
    assert [message["content"] for message in echo.asked[1]] == ["停", "答：", "下一題"]


def test_interrupt_at_the_prompt_is_explained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = iter([KeyboardInterrupt, "你好", EOFError])

    def type_next(prompt: str) -> str:
        word = next(typed)
        if isinstance(word, str):
            return word
        raise word

    type_in(monkeypatch, "")
    monkeypatch.setattr("builtins.input", type_next)
    echo = Echo()
    loop(echo, None)
    assert "/exit" in capsys.readouterr().out
    assert len(echo.asked) == 1


def test_errors_end_a_pipe_and_not_a_conversation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_in(monkeypatch, "錯\n", terminal=False)
    with pytest.raises(UserError):
        loop(Echo(), None)
    type_in(monkeypatch, "錯\n好\n")
    echo = Echo()
    loop(echo, None)
    assert "處理：那樣" in capsys.readouterr().out
    assert len(echo.asked) == 2


def test_a_model_cannot_steer_the_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    type_in(monkeypatch, "x\x1b[2Jy\x07\n", terminal=False)
    loop(Echo(), None)
    assert capsys.readouterr().out == "答：x[2Jy\n"


def test_local_model_repeats_itself_at_temperature_zero(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_in(monkeypatch, "玉山多高？\n/clear\n玉山多高？\n", terminal=False)
    chat(str(tiny_checkpoint), temperature=0.0, max_tokens=12)
    out = capsys.readouterr().out.removesuffix("\n")
    first, second = out[: len(out) // 2], out[len(out) // 2 + 1 :]
    assert first == second != ""


def test_local_model_without_room_is_explained(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    type_in(monkeypatch, "很長" * 300 + "\n", terminal=False)
    with pytest.raises(UserError, match="context length"):
        chat(str(tiny_checkpoint))


@pytest.mark.parametrize("tail", ["", "/", "/v1", "/v1/"])
def test_server_by_address(
    scripted: ScriptedEngine,
    database: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tail: str,
) -> None:
    type_in(monkeypatch, "你好\n", terminal=False)
    with running(scripted, database) as url:
        chat(url + tail, system="請用台語。", temperature=0.3, max_tokens=77)
    assert capsys.readouterr().out == ANSWER + "\n"
    assert scripted.prompts[-1].startswith("請用台語。")
    assert (scripted.seen[-1].temperature, scripted.seen[-1].max_tokens) == (0.3, 77)


def test_server_errors_are_told(scripted: ScriptedEngine, database: Path, caplog: pytest.LogCaptureFixture) -> None:
    ask = [{"role": "user", "content": "你好"}]
    with running(scripted, database) as url:
        with pytest.raises(UserError, match="context length"):
            list(remote(url, 0.0, 9)([{"role": "user", "content": "長" * 900}]))
        scripted.fail_after = 2
        with pytest.raises(UserError, match="internal error"):
            list(remote(url, 0.0, 9)(ask))
    with pytest.raises(UserError, match="cannot reach"):
        list(remote(url, 0.0, 9)(ask))
    assert terminal._reason("<html>") == "<html>"
