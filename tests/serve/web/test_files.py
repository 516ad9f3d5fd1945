"""The files of the pages, read without a browser: words in both languages, contrast, nothing from elsewhere, no innerHTML."""

import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.serve.conftest import ScriptedEngine
from twllm.feedback.store import RatingStore
from twllm.serve.app import create_app
from twllm.serve.operation.service import Model, ServeSettings, Service
from twllm.serve.web.pages import PAGES, WEB

SCRIPTS = sorted(WEB.rglob("*.js"))
HTML = sorted(WEB.glob("*.html"))
BASE = (WEB / "style/base.css").read_text(encoding="utf-8")
PAIRS = [  # text on background
    *[(text, back) for text in ("text", "soft") for back in ("back", "side", "card", "raised", "code", "hover")],
    *[("text", "mine"), ("accent-strong", "mine"), ("accent-strong", "back"), ("accent-strong", "side")],
    *[("on-accent", "accent"), ("on-accent", "accent-strong"), ("bad", "bad-back"), ("bad", "card"), ("bad", "back")],
    *[(f"hl-{kind}", "code") for kind in ("comment", "string", "number", "keyword", "call", "name")],
]


def colours(scheme: str) -> dict[str, str]:
    """The custom properties of a colour scheme."""
    start = {"light": ":root {", "dark": ":root[data-theme=dark] {", "system": ":root:not([data-theme=light]) {"}[
        scheme
    ]
    block = BASE[BASE.index(start) :]
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block[: block.index("}")]))


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("text", "back"), PAIRS)
def test_contrast_is_enough_to_read(scheme: str, text: str, back: str) -> None:
    found = colours(scheme)
    one, other = luminance(found[text]), luminance(found[back])
    assert (max(one, other) + 0.05) / (min(one, other) + 0.05) >= 4.5  # WCAG AA


def test_dark_by_choice_and_dark_by_system_are_the_same() -> None:
    assert colours("dark") == colours("system")


def code_of(file: Path) -> str:
    """A file without its comment lines."""
    return re.sub(r"(?m)^ *//.*$", "", file.read_text(encoding="utf-8"))


def words() -> dict[str, list[str]]:
    """Key: the sentences of a table of words, in Chinese and English."""
    found = {}
    for file in WEB.glob("lib/words*.js"):
        text = file.read_text(encoding="utf-8")
        for key, value in re.findall(r'(\w+): \[((?:\s*"(?:[^"\\]|\\.)*",?)+\s*)\]', text):
            assert key not in found, key
            found[key] = re.findall(r'"((?:[^"\\]|\\.)*)"', value)
    return found


def test_everything_said_has_words_in_both_languages() -> None:
    known = words()
    assert len(known) > 150
    for key, said in known.items():
        assert len(said) == 2, key
        assert all(said), key
        assert set(re.findall(r"\{\w+\}", said[0])) == set(re.findall(r"\{\w+\}", said[1])), key
    used: set[str] = set()
    for file in [*SCRIPTS, *HTML]:
        text = code_of(file)
        used |= set(re.findall(r'\bt\("(\w+)"', text)) | set(re.findall(r'data-(?:t|label|placeholder)="(\w+)"', text))
    assert used - set(known) == set()


def test_pages_load_nothing_from_elsewhere_and_never_parse_text_as_markup() -> None:
    for file in [*SCRIPTS, *HTML, *WEB.rglob("*.css")]:
        text = re.sub(r"http://www\.w3\.org/\S+", "", code_of(file))
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            file
        )
        assert not re.search(r"""(src|href|from|import|url)\s*[=(]?\s*["'(]?https?://""", text), file
        assert len(text.splitlines()) <= 300, file
        for address in re.findall(r'from "(\.[^"]+)"', text):
            assert (file.parent / address).is_file(), f"{file}: {address}"
    for file in HTML:
        text = file.read_text(encoding="utf-8")
        assert "default-src 'self'" in text
        for address in re.findall(r'(?:src|href)="([\w./-]+)"', text):
            assert address in ("./",) or (WEB / address).is_file(), address


def test_pages_are_found_at_their_addresses(client: TestClient) -> None:
    for name in ("", *PAGES):
        answer = client.get(f"/{name}")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/html")
        assert answer.headers["cache-control"] == "no-cache"
    script = client.get("/chat/main.js")
    assert script.headers["content-type"].split(";")[0] in ("text/javascript", "application/javascript")
    again = client.get("/chat/main.js", headers={"If-None-Match": script.headers["etag"]})
    assert again.status_code == 304
    assert client.get("/%2e%2e/app.py").status_code == 404


def test_the_configuration_tells_what_the_pages_show(scripted: ScriptedEngine, database: Path) -> None:
    models = {"甲": Model("甲", scripted, card="# 甲"), "乙": Model("乙", scripted, vision=True)}
    settings = ServeSettings(api_key="a-secret", max_context=300, system="你是助理。", arena=False)
    app = create_app(Service(models, RatingStore(database), settings))
    with TestClient(app) as client:
        config = client.get("/api/config").json()
        assert [(m["name"], m["vision"], m["card"], m["context"]) for m in config["models"]] == [
            ("甲", False, True, 300),
            ("乙", True, False, 300),
        ]
        assert config["defaults"]["top_p"] == 1.0
        assert (config["model"], config["system"], config["login"]) == ("甲", "你是助理。", True)
        assert "a-secret" not in str(config)
        assert (config["arena"], config["compare"]) == (False, True)
        assert client.get("/api/card", params={"model": "甲"}).json() == {"markdown": "# 甲"}
        assert client.get("/api/card", params={"model": "乙"}).status_code == 404
