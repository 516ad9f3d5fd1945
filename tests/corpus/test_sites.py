"""The review of web sites: ranking, samples, marks that stay, the step that obeys them."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from twllm.corpus.config import CorpusConfig
from twllm.corpus.document import Document, Dropped
from twllm.corpus.sites import host_of, read_marks, review
from twllm.corpus.steps import make_step
from twllm.errors import UserError

GOOD = "台北市的捷運今天因為颱風停駛，市政府請民眾改搭公車。"
SPAM = "娛樂城推薦，百家樂、老虎機、捕魚機，首儲送體驗金，出金快速！<script>"


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    rows = [{"text": GOOD * 3, "url": f"https://www.news.example.tw/{n}"} for n in range(8)]
    rows += [{"text": SPAM, "url": f"http://bet.example.com:80/{n}"} for n in range(3)]
    path = tmp_path / "documents.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return path


def test_largest_host_first_with_reasons(documents: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "sites.toml", tmp_path / "sites.html"
    table = review([documents], out, page, samples=2)
    assert [site.host for site in table] == ["news.example.tw", "bet.example.com"]
    written = tomllib.loads(out.read_text(encoding="utf-8"))["sites"]
    assert list(written) == ["news.example.tw", "bet.example.com"]
    assert written["news.example.tw"] | {"score": 0} == {
        "mark": "", "documents": 8, "chars": 8 * 3 * len(GOOD), "share": pytest.approx(0.8455, abs=0.001),
        "kept": 1.0, "score": 0, "regions": {"TW": 8}, "reasons": {},
    }  # fmt: skip
    assert written["bet.example.com"]["reasons"] == {"gambling": 3}
    shown = page.read_text(encoding="utf-8")
    assert shown.count("<blockquote>") == 4 and "&lt;script&gt;" in shown and "<script>" not in shown


def test_marks_stay(documents: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "sites.toml", tmp_path / "sites.html"
    review([documents], out, page)
    text = out.read_text(encoding="utf-8")
    head, _, tail = text.partition('[sites."bet.example.com"]')
    marked = head + '[sites."bet.example.com"]' + tail.replace('mark = ""', 'mark = "drop"', 1)
    out.write_text(marked + '[sites."gone.example.tw"]\nmark = "keep"\n', encoding="utf-8")
    review([documents], out, page)
    assert read_marks(out) == {"bet.example.com": "drop", "gone.example.tw": "keep"}
    before = out.read_bytes()
    review([documents], out, page)
    assert out.read_bytes() == before


def test_step_obeys(tmp_path: Path) -> None:
    marks = tmp_path / "sites.toml"
    marks.write_text('[sites]\n"example.com" = "drop"\n"good.example.com" = "keep"\n', encoding="utf-8")
    urls = ["http://a.example.com/1", "https://good.example.com/2", "https://other.tw/3", ""]
    documents = [Document(str(n), GOOD, url=url) for n, url in enumerate(urls)]

    def run(unreviewed: str) -> list[str]:
        config = CorpusConfig(region={"sites": str(marks), "unreviewed_sites": unreviewed})
        items = make_step("sites", config)(documents)
        return [item.reason if isinstance(item, Dropped) else "" for item in items]

    assert run("keep") == ["site_dropped", "", "", ""]
    assert run("drop") == ["site_dropped", "", "site_unreviewed", ""]


def test_bad_marks_and_missing_file_are_told(tmp_path: Path) -> None:
    marks = tmp_path / "sites.toml"
    marks.write_text('[sites."a.tw"]\nmark = "kepp"\n', encoding="utf-8")
    with pytest.raises(UserError, match="kepp"):
        read_marks(marks)
    with pytest.raises(UserError):
        make_step("sites", CorpusConfig())


@pytest.mark.parametrize("url", ["", "not a url", "http://[::1", "https:///x"])
def test_odd_urls_have_no_host_or_a_plain_one(url: str) -> None:
    assert host_of(url) in ("", "not a url")


def test_labelled_rows_are_not_classified_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"text": GOOD, "url": "https://a.tw/1", "keep": False, "reason": "mine", "region": "TW", "score": 0.1}
    path = tmp_path / "labelled.jsonl"
    path.write_text(json.dumps(row), encoding="utf-8")
    never: Callable[..., None] = lambda *_: pytest.fail("classified again")  # noqa: E731
    monkeypatch.setattr("twllm.corpus.classify.classify", never)
    (site,) = review([path], tmp_path / "s.toml", tmp_path / "s.html")
    assert site.reasons == {"mine": 1}
