"""The chat page in a real browser, on the real app. Skips itself without playwright and a Chromium."""

import json
import time
from pathlib import Path
from typing import Any

from tests.serve.conftest import ANSWER, ScriptedEngine
from tests.serve.web.browser import answers, ask, browser, needs_browser, page, ready, serving, stored, watch
from twllm.feedback.store import RatingStore
from twllm.serve.app import create_app
from twllm.serve.operation.service import ServeSettings, Service

pytestmark = needs_browser
__all__ = ["browser", "page"]  # fixtures
HOSTILE = '<img src=x onerror="document.title=1"> **粗** [連](javascript:document.title=1)\n\n```html\n<b>程式</b>\n```'


def configure(page: Any, **changes: Any) -> None:
    """The server's configuration with changes, from the next load on."""

    def answer(route: Any) -> None:
        route.fulfill(json={**route.fetch().json(), **changes})

    page.route("**/api/config", answer)
    page.reload()
    ready(page)


def test_enter_sends_and_shift_enter_does_not(page: Any, scripted: ScriptedEngine) -> None:
    assert page.is_disabled("#send")
    page.fill("#question", "第一行")
    page.press("#question", "Shift+Enter")
    page.keyboard.type("第二行")
    assert page.locator(".turn").count() == 0
    page.press("#question", "Enter")
    page.wait_for_selector(".assistant .actions")
    assert page.locator(".user .text").inner_text() == "第一行\n第二行"
    assert answers(page) == [ANSWER]
    assert "第一行\n第二行" in scripted.prompts[-1]
    assert page.input_value("#question") == ""
    assert ANSWER in page.locator("#live").inner_text()  # read out, once
    assert page.locator("#live").inner_text().count("玉山") == ANSWER.count("玉山")


def test_enter_of_an_input_method_never_sends(page: Any) -> None:
    """The real composition path of Chromium, then the event orders of Chrome and Safari, played by hand."""
    page.focus("#question")
    cdp = page.context.new_cdp_session(page)
    cdp.send("Input.imeSetComposition", {"text": "ㄋㄧˇ", "selectionStart": 3, "selectionEnd": 3})
    page.keyboard.press("Enter")
    assert page.locator(".turn").count() == 0
    cdp.send("Input.insertText", {"text": "你"})
    play = """(box, order) => {
        const fire = (type, extra) => box.dispatchEvent(
            type === "keydown" ? new KeyboardEvent(type, { key: "Enter", bubbles: true, cancelable: true, ...extra })
                               : new CompositionEvent(type, { bubbles: true, ...extra }));
        box.value = "你好";
        fire("compositionstart");
        for (const [type, extra] of order) fire(type, extra);
    }"""
    chrome = [["keydown", {"isComposing": True, "keyCode": 229}], ["compositionend", {}]]
    safari = [["compositionend", {}], ["keydown", {"isComposing": False, "keyCode": 229}]]
    safari_without_229 = [["compositionend", {}], ["keydown", {"isComposing": False, "keyCode": 13}]]
    not_told = [["keydown", {"isComposing": False, "keyCode": 13}], ["compositionend", {}]]
    for order in (chrome, safari, safari_without_229, not_told):
        page.locator("#question").evaluate(play, order)
        assert page.locator(".turn").count() == 0, order
    time.sleep(0.15)
    page.press("#question", "Enter")  # the next, real Enter does send
    page.wait_for_selector(".assistant .actions")
    page.hover(".user")
    page.click(".edit")  # the box of an edited question is careful, too
    page.locator(".editing textarea").evaluate(play, chrome)
    assert page.locator(".editing").count() == 1


def test_thumbs_reason_and_comment_land_in_the_database(page: Any, database: Path) -> None:
    ask(page, "台灣最高的山？")
    page.check("#consent")
    sent: list[dict[str, Any]] = []
    page.on("request", lambda r: r.url.endswith("api/rating") and sent.append(r.post_data_json))
    page.click("[aria-label='這個回答很好']")
    page.wait_for_selector("[aria-label='這個回答很好'][aria-pressed=true]")
    (row,) = stored(database)
    assert (row.rating, row.turn, row.consent, row.comment) == (1, 1, True, "")
    assert row.messages == [{"role": "user", "content": "台灣最高的山？"}, {"role": "assistant", "content": ANSWER}]
    page.uncheck("#consent")
    page.click("[aria-label='這個回答不好']")
    page.wait_for_selector("[aria-label='這個回答不好'][aria-pressed=true]")
    assert page.locator(".thumb[aria-pressed=true]").count() == 1
    page.click(".chip:has-text('用語不像台灣')")
    page.fill(".why textarea", "應該先說縣市。")
    page.click(".why [type=submit]")
    page.wait_for_selector(".status:has-text('意見已記錄')")
    assert "不用於訓練" in page.locator(".status").inner_text()
    (row,) = stored(database)  # the latest of three clicks
    assert (row.rating, row.consent, row.comment, row.id) == (-1, False, "應該先說縣市。", 3)
    assert sent[-1]["reason"] == "mainland"
    page.reload()
    ready(page)
    page.wait_for_selector("[aria-label='這個回答不好'][aria-pressed=true]")  # remembered with the conversation


def test_a_rating_that_was_not_stored_is_not_shown_as_stored(page: Any) -> None:
    ask(page, "你好")
    page.route("**/api/rating", lambda route: route.fulfill(status=503, json={"error": {"message": "磁碟滿了"}}))
    page.click("[aria-label='這個回答很好']")
    page.wait_for_selector(".status:has-text('沒有存下來：磁碟滿了')")
    assert page.locator(".thumb[aria-pressed=true]").count() == 0
    page.unroute("**/api/rating")
    page.click("[aria-label='這個回答很好']")
    page.wait_for_selector(".thumb[aria-pressed=true]")


def test_ratings_are_deleted_on_request(page: Any) -> None:
    asked: list[Any] = []

    def delete(route: Any) -> None:
        asked.append((route.request.method, route.request.post_data_json))
        route.fulfill(json={"deleted": 1})

    page.route("**/api/ratings", delete)
    ask(page, "你好")
    page.click("[aria-label='這個回答很好']")
    page.wait_for_selector(".thumb[aria-pressed=true]")
    page.click("text=會存下什麼？")
    assert "瀏覽器隨機產生的編號" in page.locator("#consent-text").inner_text()
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("#delete-ratings")
    page.wait_for_selector("#toast:has-text('已刪除 1 筆評分')")
    assert page.locator(".thumb[aria-pressed=true]").count() == 0
    user = page.evaluate("JSON.parse(localStorage.getItem('twllm.user'))")
    assert asked == [("DELETE", {"user": user})]
    assert len(user) == 32


def test_model_text_never_becomes_markup(page: Any, scripted: ScriptedEngine) -> None:
    scripted.script = lambda prompt: HOSTILE
    ask(page, "<i>你好</i>")
    answer = page.locator(".assistant .text")
    assert answer.locator("img, b, a").count() == 0
    assert answer.locator("strong").inner_text() == "粗"
    assert answer.locator("pre").inner_text() == "<b>程式</b>"
    assert page.locator(".user .text").inner_text() == "<i>你好</i>"
    assert page.locator("#conversations .title").inner_text() == "<i>你好</i>"
    answer.locator(".code-head button").click()
    page.wait_for_selector(".code-head [aria-label='已複製']")
    assert page.evaluate("navigator.clipboard.readText()") == "<b>程式</b>"
    page.click(".actions .copy")
    page.wait_for_selector(".actions [aria-label='已複製']")
    assert page.evaluate("navigator.clipboard.readText()") == HOSTILE
    assert page.title().startswith("<i>你好</i>")


def test_errors_are_shown_and_can_be_retried(page: Any, scripted: ScriptedEngine, caplog: Any) -> None:
    caplog.set_level("CRITICAL", "twllm.serve")
    scripted.fail_after = 5
    page.click("#examples button >> nth=0")
    page.wait_for_selector(".error:has-text('internal error')")
    scripted.fail_after = None
    page.click(".retry")
    page.wait_for_selector(".assistant .copy")
    page.fill("#question", "很長" * 300)
    page.press("#question", "Enter")
    page.wait_for_selector(".error:has-text('對話太長')")
    page.fill("#question", "短的")  # takes the place of the question that failed, which stays as a version
    page.press("#question", "Enter")
    page.wait_for_selector(".turn:nth-child(4) .copy")
    assert "很長" not in scripted.prompts[-1]
    assert page.locator(".user .versions").inner_text().replace("\n", "") == "2 / 2"


def test_too_many_requests_counts_down_to_the_retry(page: Any) -> None:
    busy = {"error": {"message": "排隊已滿"}}
    page.route(
        "**/v1/chat/completions", lambda route: route.fulfill(status=429, headers={"Retry-After": "2"}, json=busy)
    )
    page.fill("#question", "你好")
    page.press("#question", "Enter")
    page.wait_for_selector(".error:has-text('排隊已滿')")
    assert page.is_disabled(".retry")
    assert "秒後可重試" in page.locator(".retry").inner_text()
    page.unroute("**/v1/chat/completions")
    page.click(".retry:not(:disabled)")
    page.wait_for_selector(".assistant .copy")
    assert page.locator(".error").count() == 0
    assert answers(page) == [ANSWER]


def test_a_server_that_is_gone_is_told(page: Any) -> None:
    page.route("**/v1/chat/completions", lambda route: route.abort())
    page.fill("#question", "你好")
    page.press("#question", "Enter")
    page.wait_for_selector(".error:has-text('連不上伺服器')")


def test_stop_cancels_at_the_server_and_keeps_what_was_written(page: Any, scripted: ScriptedEngine) -> None:
    scripted.delay_s = 0.1
    page.fill("#question", "慢慢說")
    page.press("#question", "Enter")
    page.wait_for_selector(".assistant .text:has-text('台灣')")
    page.click("#stop")
    page.wait_for_selector(".note:has-text('已停止')")
    assert scripted.cancelled.wait(3)
    assert ANSWER.startswith(answers(page)[0])
    assert page.is_visible("#send")
    page.fill("#question", "再說")
    page.press("#question", "Enter")
    page.press("#question", "Escape")  # before the first word: the question goes back into the box
    page.wait_for_function("document.querySelector('#question').value === '再說'")
    assert page.locator(".turn").count() == 2


def test_settings_reach_the_server_and_are_remembered(page: Any, scripted: ScriptedEngine) -> None:
    page.click("#settings")
    page.fill("#set-system", "你是海盜。")
    for name, value in (("temperature", "0.4"), ("max_tokens", "6"), ("top_k", "7"), ("seed", "3")):
        page.fill(f"#set-{name}", value)
    page.fill("#set-stop", "甲\n乙")
    page.fill("#set-top_p", "9")  # not allowed: told, and not taken
    page.press("#set-top_p", "Tab")
    page.keyboard.press("Escape")
    ask(page, "你好")
    seen = scripted.seen[-1]
    assert (seen.temperature, seen.max_tokens, seen.top_k, seen.top_p, seen.seed) == (0.4, 6, 7, 1.0, 3)
    assert seen.stop == ("甲", "乙")
    assert "你是海盜。" in scripted.prompts[-1]
    page.wait_for_selector(".note:has-text('到達長度上限')")
    page.reload()
    ready(page)
    page.click("#settings")
    assert page.input_value("#set-max_tokens") == "6"
    assert page.input_value("#set-system") == "你是海盜。"
    page.click("#reset")
    assert page.input_value("#set-max_tokens") == ""
    page.keyboard.press("Escape")
    ask(page, "再來")
    assert answers(page)[-1] == ANSWER
    assert page.is_visible("#meter")
    assert "/ 400" in page.locator("#meter").inner_text()


def test_pictures_are_sent_where_the_model_sees(page: Any, tmp_path: Path) -> None:
    assert not page.is_visible("#attach")
    configure(page, models=[{"name": "看得見", "vision": True, "context": 400}])
    assert page.is_visible("#attach")
    file = tmp_path / "a.png"
    page.set_input_files(
        "#picture-file", files=[{"name": "a.txt", "mimeType": "image/png", "buffer": b"not a picture"}]
    )
    page.wait_for_selector("#toast:has-text('讀不了')")
    wide = page.evaluate("""async () => {
        const canvas = document.createElement("canvas");
        canvas.width = 3000; canvas.height = 1000;
        const blob = await new Promise((done) => canvas.toBlob(done));
        return [...new Uint8Array(await blob.arrayBuffer())];
    }""")
    file.write_bytes(bytes(wide))
    page.set_input_files("#picture-file", file)
    page.wait_for_selector("#pictures img")
    sent: list[Any] = []

    def chat(route: Any) -> None:
        sent.append(route.request.post_data_json)
        event = {"choices": [{"delta": {"content": "看到了"}, "finish_reason": "stop"}]}
        route.fulfill(content_type="text/event-stream", body=f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n")

    page.route("**/v1/chat/completions", chat)
    ask(page, "這是什麼？")
    picture, text = sent[0]["messages"][0]["content"]
    assert text == {"type": "text", "text": "這是什麼？"}
    assert picture["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert page.evaluate("document.querySelector('.user img').naturalWidth") == 1536
    assert page.locator("#pictures img").count() == 0


def test_several_models_and_the_card(page: Any) -> None:
    models = [{"name": name, "card": True, "context": 400, "defaults": {"temperature": 0.3}} for name in ("甲", "乙")]
    configure(page, models=models)
    page.route(
        "**/api/card?*",
        lambda route: route.fulfill(json={"markdown": "---\nlicense: mit\n---\n# 卡片\n\n**說明** <script>"}),
    )
    page.select_option("#model-picker", "乙")
    page.click("#card")
    page.wait_for_selector("dialog[open] h3:has-text('卡片')")
    assert page.locator("dialog .text").inner_text().split() == ["卡片", "說明", "<script>"]
    page.keyboard.press("Escape")
    sent: list[Any] = []
    page.on("request", lambda r: r.url.endswith("completions") and sent.append(r.post_data_json))
    ask(page, "你好")
    assert sent[0]["model"] == "乙"
    assert page.locator(".who").inner_text() == "乙"
    page.reload()
    ready(page)
    assert page.input_value("#model-picker") == "乙"


def test_a_server_with_a_key_asks_for_it_once(browser: Any, scripted: ScriptedEngine, database: Path) -> None:
    service = Service.single(scripted, RatingStore(database), "玉山-tiny", ServeSettings(api_key="right-key"))
    problems: list[str] = []
    with serving(create_app(service)) as url:
        page = browser.new_page(locale="zh-TW")
        watch(page, url, problems)
        page.goto(url)
        ready(page)
        page.fill("#question", "你好")
        page.press("#question", "Enter")
        page.fill("dialog #key", "wrong")
        page.press("dialog #key", "Enter")
        page.wait_for_selector("dialog .failed")
        page.fill("dialog #key", "right-key")
        page.press("dialog #key", "Enter")
        page.wait_for_selector("#log .copy")
        assert answers(page) == [ANSWER]
        page.reload()
        ready(page)
        ask(page, "再問")
        assert page.locator("dialog").count() == 0
        page.close()
    assert problems == []
