"""The two commands: options arrive, mistakes are told in three lines, the budget has its own exit code."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.synth.conftest import read
from tests.synth.fault_server import FaultServer, Reply
from tests.synth.planted import Dialogues, mirror
from twllm.artifact import read_manifest
from twllm.errors import UserError
from twllm.synth.commands import app
from twllm.synth.config import SelfplayConfig, make


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(app, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_selfplay_options_arrive(tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = make(SelfplayConfig, {"num_dialogues": 4, "seed": 5, "max_turns": 2})
    with FaultServer(Dialogues(settings, ("meta",))) as server:
        result = run(
            "selfplay", "--url", f"{server.url}/v1", "--model", "m", "--out", str(out), "--dialogues", "4", "--seed", "5",
            "--turns", "2", "--topic", "飲食", "--license", "CC0-1.0", "--price-in", "2", "--price-out", "4", "--body", "top_k=20",
            "--set", "max_tokens_user=77", "--set", "filters.off=[\"echo\"]", "--concurrency", "2",
        )  # fmt: skip
    assert result.exit_code == 0
    assert "留下 2，丟掉 2，沒做完 0" in result.output
    assert "meta: 2" in result.output
    assert "花費" in result.output
    for row in read(out / "conversations.jsonl"):
        assert row["topic"].startswith("飲食/")
        assert row["license"] == "CC0-1.0"
    assert {body["top_k"] for body in server.bodies} == {20}
    assert {body["max_tokens"] for body in server.bodies} == {77, 1500}
    manifest = read_manifest(out)
    assert manifest is not None
    assert manifest["config"]["filters"]["off"] == ["echo"]
    assert manifest["cost"] == pytest.approx((2 * manifest["tokens"]["in"] + 4 * manifest["tokens"]["out"]) / 1e6)
    assert manifest["models"] == ["m"]


def test_translate_options_arrive_and_a_budget_exits_with_3(tmp_path: Path) -> None:
    source = tmp_path / "s.jsonl"
    source.write_text('{"instruction": "Hello there.", "output": "How are you?"}\n' * 2, encoding="utf-8")
    with FaultServer(mirror({"Hello there.": "你好啊。", "How are you?": "你好嗎？"})) as server:
        base = (
            "translate",
            str(source),
            "--url",
            server.url,
            "--model",
            "m",
            "--out",
            str(tmp_path / "out"),
            "--rows",
            "1",
        )
        result = run(*base, "--max-tokens-total", "4100")
        assert result.exit_code == 3
        assert "budget reached" in result.output
        assert (read_manifest(tmp_path / "out") or {})["complete"] is False
        result = run(*base)
        assert result.exit_code == 0
        assert "留下 1" in result.output
        assert server.seen.total() == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--turns", "two"], "--turns"),
        (["--dialogues", "0"], "num_dialogues"),
        (["--topic", "飲食/小喫"], "小吃"),
        (["--set", "filters.max_leek=1"], "max_leaks"),
        (["--set", "max_tokens_user"], "KEY=VALUE"),
        (["--concurrency", "0"], "concurrency"),
        (["--set", "endpoint.max_attempt=1"], "max_attempts"),
        (["--max-cost", "3"], "--price-in"),
        (["--prompts", "nobody.toml"], "nobody.toml"),
        (["--api-key-env", "TWLLM_NO_SUCH_KEY"], "TWLLM_NO_SUCH_KEY"),
        (["--url", "localhost:8080"], "http"),
    ],
)
def test_mistakes_are_told(arguments: list[str], told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        run("selfplay", "--url", "http://127.0.0.1:9", "--model", "m", "--out", str(tmp_path / "out"), *arguments)
    assert told in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_nobody_there_is_an_error_and_writes_nothing(tmp_path: Path) -> None:
    arguments = ("--url", "http://127.0.0.1:9", "--model", "m", "--set", "endpoint.backoff_s=0.01")
    with pytest.raises(UserError, match="連不上"):
        run("selfplay", *arguments, "--out", str(tmp_path / "out"), "--dialogues", "2")
    assert not (tmp_path / "out").exists()


def test_endpoint_failures_say_how_to_try_again(tmp_path: Path) -> None:
    reply = Reply(status=400, raw={"error": {"message": "prompt is too long"}})
    with FaultServer(lambda *_: reply) as server:
        result = run(
            "selfplay", "--url", server.url, "--model", "m", "--out", str(tmp_path / "out"), "--dialogues", "2"
        )
    assert result.exit_code == 0
    assert "--retry-failed" in result.output
    assert [row["reason"] for row in read(tmp_path / "out" / "dropped.jsonl")] == ["endpoint"] * 2
