"""What the page tests share: one Chromium, pages that note every error, the chat page on the real app, the files alone."""

import contextlib
import mimetypes
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serve.conftest import ScriptedEngine
from twllm.feedback.store import RatingStore
from twllm.serve.app import create_app
from twllm.serve.operation.service import Service
from twllm.serve.start import bind
from twllm.serve.web.pages import WEB

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
try:
    from playwright import sync_api
except ImportError:
    sync_api = None  # type: ignore[assignment]
needs_browser = pytest.mark.skipif(CHROMIUM is None or sync_api is None, reason="no playwright or no Chromium")
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One Chromium for the tests of a module; each test opens its own context in it."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


@contextlib.contextmanager
def serving(app: Any) -> Iterator[str]:
    """An app behind a real uvicorn in a thread; the address."""
    import uvicorn

    server_socket = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [server_socket]}, daemon=True)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server_socket.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        server_socket.close()


def watch(page: Any, url: str, problems: list[str]) -> None:
    """Note JavaScript errors, refused resources (CSP) and requests to other hosts."""
    page.set_default_timeout(8000)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda r: r.url.startswith((url, "data:", "blob:")) or problems.append(r.url))
    page.on("console", lambda m: "Content Security Policy" in m.text and problems.append(m.text))


def fulfil_from_folder(route: Any) -> None:
    """Answer a request from the folder of the pages."""
    path = WEB / route.request.url.split("/", 3)[3].split("?")[0]
    if not path.is_file():
        route.fulfill(status=404, json={"error": {"message": "沒有"}})
        return
    route.fulfill(body=path.read_bytes(), content_type=mimetypes.guess_type(path.name)[0] or "text/plain")


@pytest.fixture
def page(browser: Any, scripted: ScriptedEngine, database: Path) -> Iterator[Any]:
    """The page, loaded; a JavaScript error, a refused resource or a request to another host fails the test."""
    problems: list[str] = []
    with serving(create_app(Service.single(scripted, RatingStore(database), "玉山-tiny"))) as url:
        context = browser.new_context(locale="zh-TW", permissions=["clipboard-read", "clipboard-write"])
        page = context.new_page()
        watch(page, url, problems)
        page.goto(url)
        ready(page)
        yield page
        context.close()
    assert problems == []


def ready(page: Any) -> None:
    page.wait_for_selector("body[data-ready]")


def ask(page: Any, question: str) -> None:
    before = page.locator(".assistant").count()
    page.fill("#question", question)
    page.press("#question", "Enter")
    page.wait_for_selector(f"#log > :nth-child({2 * (before + 1)}) .actions")


def answers(page: Any) -> list[str]:
    return list(page.locator(".assistant .text").all_inner_texts())


def stored(database: Path) -> list[Any]:
    with RatingStore(database) as store:
        return list(store.latest())
