"""The arena, the leaderboard and the comparison in a real browser, on the real app with two or three scripted models."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.serve.conftest import ScriptedEngine
from tests.serve.web.browser import browser, needs_browser, serving, watch
from twllm.feedback.store import RatingStore
from twllm.serve.app import create_app
from twllm.serve.operation.service import Model, Service
from twllm.serve.web.pages import PAGES
from twllm.tokens.tokenizer import ChatTokenizer

pytestmark = needs_browser
__all__ = ["browser"]  # a fixture
SAYS = {"杉木-one": "**一**號的答案 <b>x</b>", "楠木-two": "二號的答案", "檜木-three": "三號的答案"}


@dataclass
class Arena:
    """A server with three models, and a page on it."""

    page: Any
    url: str
    engines: dict[str, ScriptedEngine]
    store: RatingStore


@pytest.fixture
def arena(browser: Any, tiny_tokenizer: ChatTokenizer, database: Path) -> Iterator[Arena]:
    engines = {name: ScriptedEngine(tiny_tokenizer, lambda _, said=said: said) for name, said in SAYS.items()}
    for number, engine in enumerate(engines.values()):
        engine.model_fingerprint = f"feedbeef{number:08}"
    store = RatingStore(database)
    service = Service({name: Model(name, engine) for name, engine in engines.items()}, store)
    problems: list[str] = []
    with serving(create_app(service)) as url:
        context = browser.new_context(locale="zh-TW", viewport={"width": 1200, "height": 800})
        page = context.new_page()
        watch(page, url, problems)
        yield Arena(page, url, engines, store)
        context.close()
    assert problems == []


def visit(arena: Arena, name: str) -> Any:
    arena.page.goto(f"{arena.url}/{name}")
    arena.page.wait_for_selector("body[data-ready]")
    return arena.page


def ask(page: Any, question: str) -> None:
    page.fill("#question", question)
    page.press("#question", "Enter")
    page.wait_for_selector("#vote-a:not(:disabled)")


@pytest.mark.parametrize("name", PAGES)
def test_each_page_has_its_address_and_links_to_the_others(arena: Arena, name: str) -> None:
    page = visit(arena, name)
    assert page.get_attribute("#pages [aria-current=page]", "href") == name
    page.click("#language")
    page.click("#theme")
    page.click("#pages a >> nth=0")
    page.wait_for_selector("#welcome h2:has-text('What shall we talk about?')")


def test_a_battle_is_voted_on_and_only_then_named(arena: Arena) -> None:
    page = visit(arena, "arena")
    assert page.is_disabled("#send")
    ask(page, "台灣最高的山？")
    said = page.locator(".side .text").all_inner_texts()
    assert len(set(said)) == 2
    assert page.locator(".side .text b").count() == 0
    html = page.content()
    assert not any(name in html for name in SAYS)
    ask(page, "再說一次")
    assert page.locator(".round").count() == 2
    assert any("再說一次" in prompt and "台灣最高" in prompt for e in arena.engines.values() for prompt in e.prompts)
    page.fill("#comment", "比較完整")
    page.check("#consent")
    page.click("#vote-a")
    page.wait_for_selector("#result")
    shown = page.locator(".round >> nth=0 >> .side .model-name").all_inner_texts()
    assert set(shown) <= set(SAYS)
    first = page.locator(".round >> nth=0 >> .side .text").all_inner_texts()
    assert [re.sub(r"[*]", "", SAYS[name]) for name in shown] == first
    assert page.locator(".side.chosen").count() == 2  # both turns of side a
    assert not page.is_visible("#composer")
    board = visit(arena, "leaderboard")
    assert board.locator("tbody tr").count() >= 2
    assert shown[0] in board.locator("tbody tr >> nth=0").inner_text()
    assert board.locator("figure svg .dot").count() == board.locator("tbody tr").count()
    assert "共 1 場投票" in board.locator(".facts").inner_text()


def test_a_vote_that_was_not_stored_names_nobody(arena: Arena) -> None:
    page = visit(arena, "arena")
    ask(page, "你好")
    page.route("**/api/arena/vote", lambda r: r.fulfill(status=503, json={"error": {"message": "磁碟滿了"}}))
    page.click("#vote-tie")
    page.wait_for_selector("#toast:has-text('磁碟滿了')")
    assert page.locator("#result").count() == 0
    page.unroute("**/api/arena/vote")
    page.click("#vote-tie")
    page.wait_for_selector("#result:has-text('一樣好')")
    page.click("#next")
    assert page.locator(".round").count() == 0
    assert page.is_visible("#composer")


def test_a_side_that_fails_is_told_and_cannot_be_voted_on(arena: Arena, caplog: Any) -> None:
    caplog.set_level("CRITICAL", "twllm.serve")
    for engine in arena.engines.values():
        engine.fail_after = 2
    page = visit(arena, "arena")
    page.fill("#question", "你好")
    page.press("#question", "Enter")
    page.wait_for_selector(".side .failed >> nth=1")
    assert page.is_disabled("#vote-a")


def test_stop_in_the_arena_gives_the_question_back(arena: Arena) -> None:
    for engine in arena.engines.values():
        engine.delay_s = 0.2
    page = visit(arena, "arena")
    page.fill("#question", "慢慢來")
    page.press("#question", "Enter")
    page.click("#stop")
    page.wait_for_function("document.querySelector('#question').value === '慢慢來'")
    assert page.locator(".round").count() == 0


def test_models_are_compared_on_a_question_from_the_list(arena: Arena) -> None:
    page = visit(arena, "compare")
    topics = page.locator("#topic option").all_inner_texts()
    assert len(topics) > 3
    page.select_option("#topic", index=1)
    page.click("#dice")
    question = page.input_value("#question")
    assert question == page.locator("#pick option:checked").inner_text()
    page.check("#models input >> nth=2")
    page.click("#send")
    page.wait_for_selector(".side .status:has-text('秒') >> nth=2")
    found = dict(
        zip(page.locator(".model-name").all_inner_texts(), page.locator(".side .text").all_inner_texts(), strict=True)
    )
    assert found == {name: said.replace("*", "") for name, said in SAYS.items()}
    assert all(question in engine.prompts[-1] for engine in arena.engines.values())
    page.uncheck("#models input >> nth=2")
    page.uncheck("#models input >> nth=1")
    assert page.is_visible("#hint")
    assert page.is_disabled("#send")


def test_a_phone_shows_one_answer_below_the_other(arena: Arena) -> None:
    arena.page.set_viewport_size({"width": 360, "height": 740})
    page = visit(arena, "arena")
    ask(page, "你好")
    boxes = [page.locator(f".side >> nth={number}").bounding_box() for number in (0, 1)]
    assert boxes[1]["y"] >= boxes[0]["y"] + boxes[0]["height"]
    for name in PAGES:
        visit(arena, name)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, name


def test_an_empty_leaderboard_leads_to_the_arena(arena: Arena) -> None:
    page = visit(arena, "leaderboard")
    assert page.locator("#board").inner_text().startswith("還沒有投票")
