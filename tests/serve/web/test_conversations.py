"""Conversations on the chat page: versions, branches, the list, several tabs, phone and keyboard. In a real browser."""

import json
from pathlib import Path
from typing import Any

from tests.serve.conftest import ANSWER, ScriptedEngine
from tests.serve.web.browser import answers, ask, browser, needs_browser, page, ready, stored

pytestmark = needs_browser
__all__ = ["browser", "page"]  # fixtures


def test_asking_again_keeps_both_answers_and_both_ratings(page: Any, scripted: ScriptedEngine, database: Path) -> None:
    ask(page, "你好")
    page.click("[aria-label='這個回答不好']")
    page.wait_for_selector(".thumb[aria-pressed=true]")
    scripted.script = lambda prompt: "換一個答案。"
    page.click(".redo")
    page.wait_for_selector(".assistant .text:has-text('換一個答案。')")
    page.wait_for_selector(".assistant .versions:has-text('2 / 2')")
    assert scripted.seen[-1].temperature == 0.7  # at 0 it would say the same again
    assert page.locator(".turn").count() == 2
    page.click("[aria-label='這個回答很好']")
    page.wait_for_selector("[aria-label='這個回答很好'][aria-pressed=true]")
    page.click("[aria-label='上一個版本']")
    assert answers(page) == [ANSWER]
    assert page.get_attribute("[aria-label='這個回答不好']", "aria-pressed") == "true"
    rows = sorted((row.rating, row.messages[-1]["content"]) for row in stored(database))
    assert rows == [(-1, ANSWER), (1, "換一個答案。")]
    ask(page, "再來")
    assert ANSWER[:6] in scripted.prompts[-1]  # the version on the page is the one that is sent
    assert scripted.prompts[-1].count("USER:") == 2


def test_editing_a_question_makes_a_branch(page: Any, scripted: ScriptedEngine) -> None:
    ask(page, "問題一")
    ask(page, "問題二")
    page.hover(".user >> nth=0")
    page.click(".user >> nth=0 >> .edit")
    assert page.input_value(".editing textarea") == "問題一"
    page.fill(".editing textarea", "問題三")
    page.press(".editing textarea", "Enter")
    page.wait_for_selector(".user .versions:has-text('2 / 2')")
    page.wait_for_selector(".assistant .actions")
    assert page.locator(".user .text").all_inner_texts() == ["問題三"]
    assert "問題一" not in scripted.prompts[-1]
    page.click(".user [aria-label='上一個版本']")
    assert page.locator(".user .text").all_inner_texts() == ["問題一", "問題二"]
    page.press("#question", "ArrowUp")  # in the empty box: the last question
    assert page.input_value(".editing textarea") == "問題二"
    page.press(".editing textarea", "Escape")
    assert page.locator(".editing").count() == 0


def test_an_answer_goes_on_while_another_conversation_is_open(page: Any, scripted: ScriptedEngine) -> None:
    scripted.delay_s = 0.01
    page.fill("#question", "第一段對話")
    page.press("#question", "Enter")
    page.wait_for_selector(".assistant")
    page.click("#new-chat")
    assert page.locator(".turn").count() == 0
    assert page.is_visible("#welcome")
    page.wait_for_selector("#conversations .busy")
    page.wait_for_selector("#conversations .busy", state="detached")
    page.click("#conversations .open")
    assert answers(page) == [ANSWER]


def test_conversations_survive_a_reload_and_are_renamed_searched_and_deleted(page: Any) -> None:
    ask(page, "陽明山在哪裡？")
    page.click("#new-chat")
    ask(page, "阿里山的日出幾點？")
    page.reload()
    ready(page)
    assert page.locator(".user .text").inner_text() == "阿里山的日出幾點？"  # the one that was open
    assert page.locator("#conversations .title").all_inner_texts() == ["阿里山的日出幾點？", "陽明山在哪裡？"]
    page.fill("#search", "陽明")
    assert page.locator("#conversations .title").all_inner_texts() == ["陽明山在哪裡？"]
    page.fill("#search", "沒有這個詞")
    assert "找不到" in page.locator("#conversations").inner_text()
    page.fill("#search", "")
    page.click("li.current .rename")
    page.fill(".renaming input", "看日出")
    page.press(".renaming input", "Enter")
    page.wait_for_selector("#conversations .title:has-text('看日出')")
    page.click("li.current .delete")
    assert page.locator("#conversations .title").all_inner_texts() == ["陽明山在哪裡？"]
    assert page.locator(".turn").count() == 0
    page.click("#toast button")  # undo
    page.wait_for_selector("#conversations .title:has-text('看日出')")
    page.click("li.current .delete")
    page.reload()
    ready(page)
    assert page.locator("#conversations .title").all_inner_texts() == ["陽明山在哪裡？"]


def test_an_answer_cut_by_a_reload_is_kept_and_can_be_asked_again(page: Any, scripted: ScriptedEngine) -> None:
    scripted.delay_s = 0.05
    page.fill("#question", "慢慢說")
    page.press("#question", "Enter")
    page.wait_for_selector(".assistant .text:has-text('台灣最高')")
    page.reload()
    ready(page)
    page.wait_for_selector(".note:has-text('頁面就關閉了')")
    assert answers(page)[0].startswith("台灣最高")
    scripted.delay_s = 0
    page.click(".redo")
    page.wait_for_selector(".versions:has-text('2 / 2')")
    assert answers(page) == [ANSWER]


def test_two_tabs_show_the_same_conversations(page: Any) -> None:
    ask(page, "第一個分頁問的")
    other = page.context.new_page()
    other.goto(page.url)
    ready(other)
    ask(other, "第二個分頁問的")
    page.wait_for_selector(".user .text:has-text('第二個分頁問的')")
    page.wait_for_selector(".turn:nth-child(4) .copy")
    page.click("li.current .delete")
    other.wait_for_selector("#conversations .nothing")
    assert other.locator(".turn").count() == 0


def test_conversations_are_exported_and_imported(page: Any, tmp_path: Path) -> None:
    ask(page, "匯出的對話")
    with page.expect_download() as download:
        page.click("#export")
    file = tmp_path / "conversations.json"
    download.value.save_as(file)
    given = json.loads(file.read_text(encoding="utf-8"))
    assert given["format"] == "twllm-conversations"
    page.click("li.current .delete")
    page.set_input_files("#import-file", file)
    page.wait_for_selector("#conversations .title:has-text('匯出的對話')")
    page.click("#conversations .open")
    assert answers(page) == [ANSWER]
    broken = tmp_path / "broken.json"
    (node,) = [one for one in given["conversations"][0]["nodes"].values() if one["role"] == "user"]
    node["parent"] = node["id"]  # a circle
    for text in (json.dumps(given), "{", "[]"):
        broken.write_text(text, encoding="utf-8")
        page.evaluate("document.querySelector('#toast')?.remove()")
        page.set_input_files("#import-file", broken)
        page.wait_for_selector("#toast:has-text('不是從這裡匯出的')")
    assert page.locator("#conversations .title").count() == 1


def test_dark_mode_and_english_are_remembered(page: Any) -> None:
    back = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(back)
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(back)
    assert dark != light
    page.click("#theme")  # from automatic to light
    assert page.evaluate(back) == light
    page.emulate_media(color_scheme="light")
    page.click("#theme")
    assert page.evaluate(back) == dark
    page.click("#language")
    assert page.locator("#welcome h2").inner_text() == "What shall we talk about?"
    page.reload()
    ready(page)
    assert page.evaluate(back) == dark
    assert page.get_attribute("#send", "aria-label") == "Send"
    assert page.get_attribute("html", "lang") == "en"
    page.click("#language")
    assert page.locator("#welcome h2").inner_text() == "想聊什麼？"


def test_phone_width_has_a_drawer_and_no_sideways_scrolling(page: Any, scripted: ScriptedEngine) -> None:
    scripted.script = lambda prompt: (
        "| 一個很長的欄位名稱 | 另一個很長的欄位名稱 | 第三個 |\n|---|---|---|\n| a | b | c |\n\n```\n"
        + "x" * 150
        + "\n```"
    )
    page.set_viewport_size({"width": 360, "height": 700})
    page.wait_for_selector("#side", state="hidden")
    ask(page, "你好")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate("document.querySelector('main').scrollWidth <= document.querySelector('main').clientWidth")
    page.click("#menu")
    assert page.is_visible("#side")
    page.keyboard.press("Escape")
    assert not page.is_visible("#side")
    page.click("#menu")
    page.click("#conversations .open")
    assert not page.is_visible("#side")
    page.click("#settings")
    page.wait_for_selector("dialog[open]")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_keyboard_alone_reaches_everything(page: Any) -> None:
    ask(page, "你好")
    reached = set()
    page.focus("#new-chat")
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "document.activeElement.getAttribute('aria-label') || document.activeElement.id || document.activeElement.textContent"
            )
        )
    assert {"搜尋對話", "設定", "重新回答，換個說法", "這個回答很好", "這個回答不好", "訊息", "consent"} <= reached
    unnamed = page.evaluate("""() => [...document.querySelectorAll("button, input, textarea, select, a")].filter((one) =>
        one.type !== "file" && !one.getAttribute("aria-label") && !one.textContent.trim() && !one.labels?.length).length""")
    assert unnamed == 0
    page.focus("#settings")
    page.keyboard.press("?")
    page.wait_for_selector("dialog .shortcuts")
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "question"
    page.keyboard.press("Control+Shift+O")
    assert page.locator(".turn").count() == 0
