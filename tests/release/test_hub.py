"""Pushing to a hub on this machine, over real HTTP with the real client."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.release.fake_hub import TOKEN, FakeHub, fake_hub
from twllm.errors import UserError
from twllm.release.hub import push

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")  # huggingface_hub 2.4 on httpx2


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    from huggingface_hub import constants

    with fake_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    out = Path(shutil.copytree(tiny_checkpoint, tmp_path / "release"))
    shutil.copyfile(out / "model.safetensors", out / "copy.safetensors")
    with (out / "copy.safetensors").open("ab") as stream:
        stream.write(b" ")  # another file to the hub
    (out / "README.md").write_text("---\nlicense: mit\n---\n# 模型\n", encoding="utf-8")
    (out / "manifest.json").write_text("{}", encoding="utf-8")
    (out / ".cache").mkdir()
    (out / ".cache" / "x").write_text("x")
    return out


def test_what_is_pushed_is_what_is_there(hub: FakeHub, folder: Path) -> None:
    seen: list[str] = []
    sent = push(folder, "lab/chat", tell=seen.append)
    files = hub.files("lab/chat")
    assert hub.private == {"lab/chat": True}
    assert files == {name: (folder / name).read_bytes() for name in sent.files}
    assert "manifest.json" not in files and not any(name.startswith(".") for name in files)
    assert sent.url.startswith(f"{hub.url}/lab/chat/commit/") and len(seen) == len(files)


def test_the_pushed_model_is_fetched_and_loads(hub: FakeHub, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from twllm.model.hub import fetch

    (folder / "copy.safetensors").unlink()
    push(folder, "lab/chat")
    fetched = fetch("lab/chat")
    one, other = (AutoModelForCausalLM.from_pretrained(place) for place in (folder, fetched))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_public_and_a_branch(hub: FakeHub, folder: Path) -> None:
    push(folder, "lab/open", private=False, revision="v2")
    assert hub.private == {"lab/open": False}
    assert hub.files("lab/open", "v2") and not hub.files("lab/open")


def test_a_broken_upload_shows_nothing_and_goes_on_where_it_stopped(hub: FakeHub, folder: Path) -> None:
    hub.break_after = 1
    with pytest.raises(UserError, match="broke off") as error:
        push(folder, "lab/chat")
    assert "重跑" in error.value.fix and len(hub.uploads) == 1 and not hub.files("lab/chat")
    hub.break_after = None
    push(folder, "lab/chat")
    assert len(hub.uploads) == len(set(hub.uploads)) == 2 and len(hub.files("lab/chat")) > 2


def test_a_dry_run_asks_nothing(hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    sent = push(folder, "lab/chat", dry_run=True)
    assert not hub.private and sent.size_bytes == sum((folder / name).stat().st_size for name in sent.files)


def test_tokens_and_rights(hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match="token refused"):
        push(folder, "lab/chat")
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    with pytest.raises(UserError, match="no right to write"):
        push(folder, "lab/chat")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UserError, match="no token"):
        push(folder, "lab/chat")
    assert not hub.commits


def test_no_server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(UserError, match="broke off"):
        push(folder, "lab/chat")


def test_bad_names_and_folders(hub: FakeHub, folder: Path, tmp_path: Path) -> None:
    for name in ("chat", "lab/", "a/b/c", "lab/台灣"):
        with pytest.raises(UserError):
            push(folder, name)
    (folder / "README.md").unlink()
    with pytest.raises(UserError, match=r"no README\.md"):
        push(folder, "lab/chat")
