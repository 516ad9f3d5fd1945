"""Pictures through the OpenAI API: a real model that sees, next to text requests; limits; what is never fetched; the web page."""

import contextlib
import http.server
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from tests.seeing import data_url, picture, seeing_folder
from tests.serve.web.browser import browser, needs_browser, ready, serving, watch
from tests.tokens.test_pictures import bomb, encoded
from twllm.feedback.store import RatingStore
from twllm.serve.api.chat.picture_fetch import _is_public
from twllm.serve.app import create_app
from twllm.serve.engines.torch.engine import TorchEngine
from twllm.serve.operation.service import ServeSettings, Service

__all__ = ["browser"]
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def folder(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return seeing_folder(tiny_checkpoint, tmp_path_factory.mktemp("seeing") / "sees")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[TorchEngine]:
    engine = TorchEngine(folder, threads=1, precision="fp32")
    yield engine
    engine.close()


@contextlib.contextmanager
def app_of(engine: Any, database: Path, **settings: Any) -> Iterator[TestClient]:
    service = Service.single(engine, RatingStore(database), "看圖", ServeSettings(**settings))
    service.close = service.store.close  # type: ignore[method-assign]  # the engine is the module's
    with TestClient(create_app(service), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def client(engine: TorchEngine, database: Path) -> Iterator[TestClient]:
    with app_of(engine, database) as client:
        yield client


def ask(*urls: str, text: str = "這是什麼？", role: str = "user", **more: Any) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {
        "messages": [{"role": role, "content": [*parts, {"type": "text", "text": text}]}],
        "max_tokens": 12,
        "temperature": 0,
        **more,
    }


def theirs(folder: Path, numbers: list[int]) -> tuple[str, int]:
    """What transformers says of these pictures, and how long its prompt is."""
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    processor, model = AutoProcessor.from_pretrained(folder), LlavaForConditionalGeneration.from_pretrained(folder)
    chat = [{"role": "user", "content": [*[{"type": "image"}] * len(numbers), {"type": "text", "text": "這是什麼？"}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    given = processor(images=[picture(n) for n in numbers], text=text, return_tensors="pt")
    with torch.no_grad():
        ids = model.generate(**given, max_new_tokens=12, do_sample=False)
    length = given.input_ids.shape[1]
    return processor.tokenizer.decode(ids[0, length:], skip_special_tokens=True).strip(), length


def test_answers_are_those_of_transformers_among_text_requests(client: TestClient, folder: Path) -> None:
    sets = [[1], [2], [1, 3], [3, 1]]
    bodies = [ask(*(data_url(picture(n)) for n in numbers)) for numbers in sets]
    bodies += [{"messages": [{"role": "user", "content": f"第 {n} 題"}], "max_tokens": 12} for n in range(4)]
    with ThreadPoolExecutor(len(bodies)) as pool:
        answers = [response.json() for response in pool.map(lambda body: client.post(CHAT, json=body), bodies)]
    for numbers, answer in zip(sets, answers, strict=False):
        said, length = theirs(folder, numbers)
        assert answer["choices"][0]["message"]["content"].replace("\ufffd", "") == said.replace("\ufffd", "")
        assert answer["usage"]["prompt_tokens"] == length  # image tokens included
    assert answers[2]["choices"] != answers[3]["choices"] or theirs(folder, [1, 3]) == theirs(folder, [3, 1])
    alone = client.post(CHAT, json=bodies[-1]).json()
    assert alone["choices"][0]["message"]["content"] == answers[-1]["choices"][0]["message"]["content"]


def test_a_picture_is_seen_once_and_its_beginning_is_reused(engine: TorchEngine, client: TestClient) -> None:
    url = data_url(picture(7))
    first = client.post(CHAT, json=ask(url, repetition_penalty=1.3)).json()
    seen, reused = engine.eyes._next, engine.counts["reused"]  # type: ignore[union-attr]
    again = client.post(CHAT, json=ask(url, repetition_penalty=1.3)).json()
    assert again["choices"][0]["message"] == first["choices"][0]["message"]
    assert engine.eyes._next == seen  # type: ignore[union-attr]
    assert engine.counts["reused"] - reused >= first["usage"]["prompt_tokens"] - 2
    body = ask(url, stream=True, stream_options={"include_usage": True})
    with client.stream("POST", CHAT, json=body) as response:
        text = "".join(response.iter_text())
    assert f'"prompt_tokens":{first["usage"]["prompt_tokens"]}' in text.replace(" ", "") and "[DONE]" in text


def test_features_live_as_long_as_a_prompt_needs_them(engine: TorchEngine) -> None:
    from twllm.serve.engines.torch.pictures import Eyes, picture_prompt

    eyes = engine.eyes
    assert eyes is not None
    small = Eyes(eyes._model, eyes._processor, kept_bytes=1)
    (held,) = small.see([picture(1)])
    prompt: Any = picture_prompt(engine.tokenizer, [{"role": "user", "content": [{"type": "image"}]}], [held])
    first, features = held.ids[0], held.features
    del held
    small.see([picture(2)])  # only the latest is kept, and what a prompt holds
    rows = small.embed(torch.tensor(prompt))
    place = list(prompt).index(first)
    assert torch.equal(rows[place : place + len(features)], features)
    del prompt
    with pytest.raises(KeyError):
        small.embed(torch.tensor([first]))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "address": (ask("https://example.org/a.png"), "not fetched"),
    "metadata service": (ask("http://169.254.169.254/latest"), "not fetched"),
    "file": (ask("file:///etc/passwd"), "not a data URL"),
    "broken": (ask("data:image/png;base64,aGVsbG8="), "not a picture"),
    "base64": (ask("data:image/png;base64,@@"), "broken base64"),
    "text": (ask("data:text/plain;base64,aGVsbG8="), "not a base64 picture"),
    "in a system text": (ask(data_url(picture(1)), role="system"), "only user messages"),
    "too many": (ask(*[data_url(picture(1))] * 9), "too many images"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str, client: TestClient) -> None:
    body, what = REFUSED[name]
    response = client.post(CHAT, json=body)
    assert response.status_code == 400 and what in response.json()["error"]["message"]
    assert client.post("/tokenize", json={"messages": ask(data_url(picture(1)))["messages"]}).status_code == 400


def test_bombs_and_sizes(engine: TorchEngine, database: Path) -> None:
    import base64

    url = f"data:image/png;base64,{base64.b64encode(bomb(50_000, 50_000)).decode()}"
    with app_of(engine, database, max_image_bytes=20_000, max_body_with_images=60_000, max_body_bytes=1000) as client:
        assert "too many pixels" in client.post(CHAT, json=ask(url)).json()["error"]["message"]
        assert (
            "too many bytes"
            in client.post(CHAT, json=ask("data:image/png;base64," + "A" * 40_000)).json()["error"]["message"]
        )
        assert client.post(CHAT, json=ask("data:image/png;base64," + "A" * 70_000)).status_code == 413


def test_a_model_that_does_not_see_says_so(tiny_checkpoint: Path, database: Path) -> None:
    engine = TorchEngine(tiny_checkpoint, threads=1, precision="fp32")
    with TestClient(create_app(Service.single(engine, RatingStore(database), "盲"))) as client:
        response = client.post(CHAT, json=ask(data_url(picture(1))))
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "image_input_not_supported"
        assert "does not see" in response.json()["error"]["message"]
        assert client.get("/api/config").json()["models"][0]["vision"] is False
        text = client.post(CHAT, json={**ask(), "max_tokens": 2})  # parts, but no picture
        assert text.status_code == 200


def test_nobody_reads_a_picture_by_its_ids(engine: TorchEngine, client: TestClient) -> None:
    (seen,) = engine.see([picture(5)])
    response = client.post("/v1/completions", json={"prompt": [1, *seen.ids], "max_tokens": 1})
    assert response.status_code == 400


def test_typed_image_is_text(engine: TorchEngine, client: TestClient) -> None:
    body = {"messages": [{"role": "user", "content": "<image>"}], "max_tokens": 1}
    assert client.post(CHAT, json=body).status_code == 200
    mixed = client.post(CHAT, json=ask(data_url(picture(1)), text="<image> <image>", max_tokens=1))
    assert mixed.status_code == 200


@contextlib.contextmanager
def pictures_at() -> Iterator[int]:
    """A web server on this machine with one picture, and a redirect to it."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/moved":
                self.send_response(302)
                self.send_header("Location", "/a.png")
                self.end_headers()
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(encoded(picture(1)))

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join()


def test_addresses_only_of_named_hosts(engine: TorchEngine, database: Path) -> None:
    with pictures_at() as port:
        url = f"http://127.0.0.1:{port}/a.png"
        with app_of(engine, database, image_hosts=("127.0.0.1",)) as client:
            fetched = client.post(CHAT, json=ask(url)).json()
            sent = client.post(CHAT, json=ask(data_url(picture(1)))).json()
            assert fetched["choices"][0]["message"] == sent["choices"][0]["message"]
            for other, what in (
                (f"http://127.0.0.1:{port}/moved", "302"),
                ("http://localhost/a", "not allowed"),
                ("http://a@127.0.0.1/", "credentials"),
            ):
                assert what in client.post(CHAT, json=ask(other)).json()["error"]["message"]
    with app_of(
        engine, database, image_hosts=("*",)
    ) as client:  # any public one: this machine and its network are none
        for private in (
            url,
            f"http://localhost:{port}/a.png",
            "http://10.0.0.1/",
            "http://[::1]/",
            "http://169.254.169.254/",
        ):
            assert "not a public address" in client.post(CHAT, json=ask(private)).json()["error"]["message"]


def test_public_addresses() -> None:
    assert _is_public("8.8.8.8") and _is_public("2001:4860:4860::8888")
    for private in (
        "127.0.0.1",
        "10.1.2.3",
        "192.168.0.1",
        "169.254.169.254",
        "::1",
        "::ffff:10.0.0.1",
        "fe80::1",
        "224.0.0.1",
        "0.0.0.0",
        "100.64.0.1",
    ):
        assert not _is_public(private), private


@needs_browser
def test_upload_in_the_web_chat(
    browser: Any, engine: TorchEngine, folder: Path, database: Path, tmp_path: Path
) -> None:
    """A picture chosen from disk, sent by the page, answered by the real model."""
    problems: list[str] = []
    picture(1).resize((300, 200)).save(tmp_path / "上傳.png")
    service = Service.single(engine, RatingStore(database), "看圖")
    service.close = service.store.close  # type: ignore[method-assign]
    with serving(create_app(service)) as url:
        context = browser.new_context(locale="zh-TW")
        page = context.new_page()
        watch(page, url, problems)
        page.goto(url)
        ready(page)
        before = engine.eyes._next  # type: ignore[union-attr]
        page.set_input_files("#picture-file", str(tmp_path / "上傳.png"))
        page.wait_for_selector("#pictures img")
        page.fill("#question", "這是什麼？")
        page.press("#question", "Enter")
        page.wait_for_selector(".assistant .actions", timeout=20_000)
        assert page.locator(".user .pictures img").count() == 1
        assert page.locator(".assistant .error").count() == 0
        assert engine.eyes._next == before + 1  # type: ignore[union-attr]
        context.close()
    assert problems == []
