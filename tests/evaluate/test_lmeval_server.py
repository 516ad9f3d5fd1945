"""Our server driven by lm-evaluation-harness's API backends, against its hf backend and our runner, item by item."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.evaluate.test_lmeval import export, harness, hf, ours, samples
from tests.serve.conftest import running

pytest.importorskip("lm_eval")
pytest.importorskip("tenacity")

TASKS = ["tceval_strict_drcd", "tceval_strict_ttqa", "tceval_strict_ttqa_mc", "tceval_strict_tmmlu_mc"]


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """The tiny model with a tokenizer like Llama's: its post-processor puts the begin token before plain text."""
    from tokenizers import Tokenizer, processors

    folder = tmp_path / "llama"
    shutil.copytree(tiny_checkpoint, folder)
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    begin = ("<s>", backend.token_to_id("<s>"))
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[begin])
    backend.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def server(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    import torch

    from twllm.serve.engines.torch.engine import TorchEngine

    torch.set_num_threads(1)
    monkeypatch.setattr("twllm.serve.engines.torch.engine.pick_device", lambda: ("cpu", torch.float32))
    with running(TorchEngine(checkpoint), tmp_path / "ratings.db") as address:
        yield address


def api(server: str, checkpoint: Path, **more: Any) -> Any:
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    settings = {"tokenizer": str(checkpoint), "tokenizer_backend": "huggingface", "max_length": 256, **more}
    return LocalCompletionsAPI(model="tiny", base_url=f"{server}/v1/completions", **settings)


def compare(theirs: dict[str, Any], other: dict[str, Any]) -> float:
    """Same prompts, answers and marks; the largest difference of two log-likelihoods."""
    largest = 0.0
    for name, rows in theirs["samples"].items():
        others = {row["doc"]["id"]: row for row in other["samples"][name]}
        assert len(others) == len(rows) > 0
        for row in rows:
            twin = others[row["doc"]["id"]]
            assert row["arguments"] == twin["arguments"]
            for mark in row["metrics"]:
                assert row[mark] == twin[mark]
            for (said,), (heard,) in zip(row["resps"], twin["resps"], strict=True):
                if isinstance(said, str):
                    assert said == heard
                else:
                    largest = max(largest, abs(said[0] - heard[0]))
                    assert said[1] == heard[1]
    return largest


@pytest.mark.parametrize("batch", [{"batch_size": 1}, {"batch_size": 4}, {"batch_size": 2, "num_concurrent": 3}])
def test_local_completions_equal_the_hf_backend(
    server: str, checkpoint: Path, tceval: Path, batch: dict[str, int]
) -> None:
    """Plain text with `add_bos_token=True`, likelihood and generation: nothing differs but float rounding."""
    folder = export(str(tceval))[0]
    plain = harness(folder, TASKS, hf(checkpoint), template=False)
    served = harness(folder, TASKS, api(server, checkpoint, add_bos_token=True, **batch), template=False)
    assert compare(plain, served) < 2e-5
    assert plain["results"].keys() == served["results"].keys()


def test_the_begin_token_is_what_add_bos_token_decides(server: str, checkpoint: Path, tceval: Path) -> None:
    """Without it lm-eval sends ids without a begin token, and the server adds none: other numbers, as it must be."""
    folder = export(str(tceval))[0]
    name = ["tceval_strict_ttqa_mc"]
    plain = harness(folder, name, hf(checkpoint), template=False)
    without = harness(folder, name, api(server, checkpoint), template=False)
    wanted = harness(folder, name, hf(checkpoint, add_bos_token=False), template=False)
    assert compare(wanted, without) < 2e-5
    first, second = (result["samples"][name[0]][0]["resps"][0][0][0] for result in (plain, without))
    assert abs(first - second) > 1e-3


def test_with_the_chat_template_everything_equals_our_runner(
    server: str, checkpoint: Path, tceval: Path, tmp_path: Path
) -> None:
    """hf and local-completions with --apply_chat_template (no add_bos_token: the template has its own), local-chat-completions,
    and our runner: one and the same answer to each item."""
    from lm_eval.models.openai_completions import LocalChatCompletion

    folder = export(str(tceval))[0]
    names = ["tceval_strict_drcd", "tceval_strict_ttqa"]
    theirs = harness(folder, names, hf(checkpoint))
    assert compare(theirs, harness(folder, names, api(server, checkpoint))) == 0
    chat = LocalChatCompletion(
        model="tiny", base_url=f"{server}/v1/chat/completions", num_concurrent=2, eos_string="</s>"
    )
    chatted = samples(harness(folder, names, chat))
    run = ours(checkpoint, tceval, tmp_path / "mine.json", "strict")
    for (label, id), row in samples(theirs).items():
        answer = row["resps"][0][0].strip()
        assert chatted[(label, id)]["resps"][0][0].strip() == answer
        assert chatted[(label, id)]["metrics"] == row["metrics"]
        (mine,) = [item for item in run[label]["items"] if item["id"] == id]
        assert mine["answer"] == answer


def test_the_remote_tokenizer_is_found(server: str, checkpoint: Path, tceval: Path) -> None:
    """`tokenizer_backend=auto` takes our /tokenize: no begin token, whatever add_bos_token says."""
    folder = export(str(tceval))[0]
    remote = api(server, checkpoint, tokenizer=None, tokenizer_backend="auto", add_bos_token=True)
    assert remote.tokenizer_backend == "remote"
    assert remote.tokenizer.eos_token_id == 1
    assert remote.tokenizer.bos_token_id == 0
    found = harness(folder, TASKS, remote, template=False)
    assert compare(harness(folder, TASKS, hf(checkpoint, add_bos_token=False), template=False), found) < 2e-5
