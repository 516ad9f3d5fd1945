"""Take the pictures of docs/web.md again: `python docs/screenshots.py`, two minutes, needs playwright and a Chromium.

The real app runs with engines that say what `docs/screenshots.toml` says, so that the pictures show the pages and not a
model's mood. Fonts are the machine's: fonts-noto-cjk, fonts-noto-color-emoji and fonts-stix (maths) were there.
"""

import io
import json
import random
import sys
import tempfile
import time
import tomllib
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from tests.serve.conftest import ScriptedEngine  # noqa: E402
from tests.serve.web.browser import CHROMIUM, OPTIONS, serving  # noqa: E402
from twllm.feedback.store import RatingStore  # noqa: E402
from twllm.serve.app import create_app  # noqa: E402
from twllm.serve.operation.service import Model, Service  # noqa: E402
from twllm.serve.web import arena  # noqa: E402
from twllm.tokens.tokenizer import ChatTokenizer  # noqa: E402

SCRIPT = tomllib.loads((ROOT / "docs/screenshots.toml").read_text(encoding="utf-8"))
IMAGES = ROOT / "docs/images"
MAX_BYTES = 150_000
DESKTOP, PHONE = {"width": 1280, "height": 860}, {"width": 390, "height": 844}
NUM_BATTLES = 120
STRENGTH = {"玉山-8B": 1.6, "雪山-8B": 1.1, "合歡-3B": 0.2, "陽明-1B": -0.9}  # of the four demonstration models
HOUR = 3_600_000


def tokenizer() -> ChatTokenizer:
    """Bytes as tokens: enough for engines that follow a script."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>"]
    backend.train_from_iterator(
        [], trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    )
    return ChatTokenizer(backend).with_template("taiwan-llm-v2")


def said_by(name: str) -> Callable[[str], str]:
    """What a model answers: the last question of the script that the prompt contains, in this model's words."""

    def say(prompt: str) -> str:
        found = [entry for entry in SCRIPT["answer"] if entry["question"] in prompt]
        last = max(found, key=lambda entry: prompt.rindex(entry["question"]), default=SCRIPT["answer"][0])
        return str(last.get(name, last["text"]))

    return say


def service(folder: Path, engines: list[ScriptedEngine]) -> Service:
    """Four models on one tokenizer; their engines are put into `engines`."""
    shared = tokenizer()
    models = {}
    for number, name in enumerate(STRENGTH):
        engine = ScriptedEngine(shared, said_by(name))
        engine.context, engine.model_fingerprint = 8192, f"{number:016x}"
        engines.append(engine)
        models[name] = Model(name, engine, card=SCRIPT["card"], vision=number == 0)
    return Service(models, RatingStore(folder / "ratings.db"))


def post(url: str, body: dict[str, Any]) -> str:
    """The body of the answer."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return str(answer.read().decode())


def hold_battles(url: str) -> None:
    """Votes of visitors who prefer the stronger model more often, through the real API."""
    chance = random.Random(7)
    arena.CHANCE = random.Random(7)  # type: ignore[assignment]
    question = SCRIPT["arena_question"]
    texts = {said_by(name)(question): name for name in STRENGTH}
    for number in range(NUM_BATTLES):
        user = f"{number:032x}"
        lines = post(f"{url}/api/arena/battle", {"prompt": question, "user": user}).splitlines()
        events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        names = [texts["".join(e.get("delta", "") for e in events if e.get("side") == side)] for side in "ab"]
        lead = STRENGTH[names[0]] - STRENGTH[names[1]] + chance.gauss(0, 1.2)
        vote = "tie" if abs(lead) < 0.15 else "a" if lead > 0 else "b"
        post(f"{url}/api/arena/vote", {"battle": events[0]["battle"], "vote": vote, "user": user, "consent": True})


def past(folder: Path) -> Path:
    """A file of older conversations, for the list at the side."""
    now = int(time.time() * 1000)
    made = []
    for number, (hours, title) in enumerate(SCRIPT["past"]):
        user, answer = f"{number * 2 + 1:032x}", f"{number * 2 + 2:032x}"
        nodes = {
            user: {"id": user, "parent": "", "role": "user", "content": title, "created": 1},
            answer: {
                "id": answer,
                "parent": user,
                "role": "assistant",
                "content": "好的。",
                "created": 2,
                "finish": "stop",
            },
        }
        when = now - int(hours * HOUR)
        made.append(
            {
                "id": f"{number + 999:032x}",
                "title": title,
                "created": when,
                "updated": when,
                "system": "",
                "nodes": nodes,
            }
        )
    file = folder / "past.json"
    file.write_text(
        json.dumps({"format": "twllm-conversations", "version": 1, "conversations": made}), encoding="utf-8"
    )
    return file


def shoot(page: Any, name: str) -> None:
    """A picture with as many colours as fit into MAX_BYTES."""
    from PIL import Image

    page.evaluate("document.querySelector('#toast')?.remove()")
    time.sleep(0.3)
    picture = Image.open(io.BytesIO(page.screenshot(animations="disabled"))).convert("RGB")
    for colours in (256, 128, 64, 32):
        buffer = io.BytesIO()
        picture.quantize(colours, kmeans=4, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
        if buffer.tell() <= MAX_BYTES:
            break
    (IMAGES / f"{name}.png").write_bytes(buffer.getvalue())
    print(f"{name}.png {buffer.tell() / 1000:.0f} kB, {colours} colours")


class Visitor:
    """A page of one size and colour scheme."""

    def __init__(self, browser: Any, url: str, size: dict[str, int], scheme: str, scale: float = 1) -> None:
        self.url = url
        self.context = browser.new_context(
            locale="zh-TW", timezone_id="Asia/Taipei", viewport=size, color_scheme=scheme, device_scale_factor=scale
        )
        self.page = self.context.new_page()

    def go(self, name: str = "") -> Any:
        """Open a page."""
        self.page.goto(f"{self.url}/{name}")
        self.page.wait_for_selector("body[data-ready]")
        return self.page

    def ask(self, key: str, done: str = ".assistant:last-child .actions") -> None:
        """Ask a question of the script and wait for the answer."""
        self.page.fill("#question", key)
        self.page.press("#question", "Enter")
        self.page.wait_for_selector(done, timeout=60_000)
        self.page.mouse.move(2, 2)


def chats(browser: Any, url: str, folder: Path) -> None:
    """The chat page: empty, with a table, with code and maths, rated, on a phone, its settings."""
    desk = Visitor(browser, url, DESKTOP, "light")
    page = desk.go()
    page.set_input_files("#import-file", past(folder))
    page.wait_for_selector("#conversations .title >> nth=5")
    shoot(page, "chat-empty")
    desk.ask(SCRIPT["breakfast"])
    page.click("[aria-label='這個回答很好']")
    page.wait_for_selector(".why")
    page.click(".chip >> nth=2")
    page.evaluate("document.querySelector('main').scrollTop = 1e6")
    shoot(page, "chat-light")
    page.click("#settings")
    shoot(page, "chat-settings")
    dark = Visitor(browser, url, DESKTOP, "dark")
    page = dark.go()
    page.set_input_files("#import-file", past(folder))
    dark.ask(SCRIPT["maths"])
    page.evaluate("document.querySelector('main').scrollTop = 0")
    shoot(page, "chat-dark")
    phone = Visitor(browser, url, PHONE, "light", 1.5)
    page = phone.go()
    page.set_input_files("#import-file", past(folder))
    phone.ask(SCRIPT["breakfast"])
    shoot(page, "phone-light")
    phone = Visitor(browser, url, PHONE, "dark", 1.5)
    page = phone.go()
    page.set_input_files("#import-file", past(folder))
    phone.ask(SCRIPT["maths"])
    page.click("#menu")
    shoot(page, "phone-drawer")


def arenas(browser: Any, url: str, engines: list[ScriptedEngine]) -> None:
    """Arena before and after the vote, leaderboard, comparison."""
    hold_battles(url)
    for number, engine in enumerate(engines):
        engine.delay_s = 0.01 / (number + 1)  # the larger, the slower
    desk = Visitor(browser, url, DESKTOP, "light")
    page = desk.go("arena")
    desk.ask(SCRIPT["arena_question"], "#vote-a:not(:disabled)")
    shoot(page, "arena")
    page.click("#vote-a")
    page.wait_for_selector("#result")
    shoot(page, "arena-voted")
    shoot(desk.go("leaderboard"), "leaderboard")
    page = desk.go("compare")
    page.check("#models input >> nth=2")
    page.fill("#question", SCRIPT["compare_question"])
    page.click("#send")
    page.wait_for_selector(".side .status:has-text('秒') >> nth=2")
    shoot(page, "compare")
    phone = Visitor(browser, url, PHONE, "dark", 1.5)
    page = phone.go("arena")
    phone.ask(SCRIPT["arena_question"], "#vote-a:not(:disabled)")
    shoot(page, "phone-arena")
    shoot(phone.go("leaderboard"), "phone-leaderboard")


def main() -> None:
    """All pictures."""
    from playwright.sync_api import sync_playwright

    IMAGES.mkdir(exist_ok=True)
    engines: list[ScriptedEngine] = []
    with tempfile.TemporaryDirectory() as name, sync_playwright() as play:
        folder = Path(name)
        with serving(create_app(service(folder, engines))) as url:
            take(play.chromium.launch(executable_path=CHROMIUM, args=OPTIONS), url, folder, engines)


def take(browser: Any, url: str, folder: Path, engines: list[ScriptedEngine]) -> None:
    """All pictures with one browser."""
    chats(browser, url, folder)
    arenas(browser, url, engines)
    browser.close()


if __name__ == "__main__":
    main()
