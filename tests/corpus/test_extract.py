"""Main text of pages: menus out, tables and threads readable."""

import pytest

from tests.corpus.conftest import GOOD
from twllm.corpus import html
from twllm.corpus.html import TooMuch, read_html

MENU = "".join(f'<li><a href="/{name}">{name}</a></li>' for name in ("政治", "社會", "生活", "國際", "財經"))
STORY = "".join(f"<p>第{n}段：{GOOD}</p>" for n in "一二三")
LINKS = "".join(f'<div><a href="/{n}">颱風外圍環流影響　東部防豪雨 {n}</a></div>' for n in range(8))


@pytest.mark.parametrize(
    "frame",
    [
        "<nav><ul>{menu}</ul></nav><main><article>{story}</article></main><footer>版權所有</footer>",
        '<div class="m"><ul>{menu}</ul></div><div id="x"><div>{story}</div><div>{links}</div></div><div>地址：中正區</div>',
        "<table><tr><td><ul>{menu}</ul><td>{story}</table>",
        '<div role="navigation">{menu}</div><div class="sidebar">訂閱電子報，天天收到好文章。</div>{story}<h3>延伸閱讀</h3>{links}',
        '<div id="cookie-consent"><p>本網站使用 Cookie，繼續瀏覽即表示同意。</p></div>{story}<div style="display: none">載入中</div>',
    ],
)
def test_only_the_story(frame: str) -> None:
    _, text = read_html(f"<title>站</title>{frame.format(menu=MENU, story=STORY, links=LINKS)}")
    assert text.split("\n") == [f"第{n}段：{GOOD}" for n in "一二三"]


def test_tables_are_rows() -> None:
    table = "<table><tr><th>日期<th>南下<th>北上<tr><td>四月三日<td>十四班<td><b>四</b>班<tr><td>四月四日<td>十班<td>三班</table>"
    assert read_html(f"<p>{GOOD}</p>{table}<p>{GOOD}</p>")[1].split("\n") == [
        GOOD, "日期 | 南下 | 北上", "四月三日 | 十四班 | 四班", "四月四日 | 十班 | 三班", GOOD,
    ]  # fmt: skip


def test_threads_keep_their_authors() -> None:
    floors = "".join(
        f'<div id="post_{n}"><div class="by"><a href="/u/{n}">{name}</a></div><div class="say">{text}</div></div>'
        for n, (name, text) in enumerate(
            (("阿嘉", GOOD), ("老陳", "車褲比座墊重要，買有厚墊的。"), ("小魚", "謝謝分享，週末去試試看。"))
        )
    )
    assert read_html(f"<ul>{MENU}</ul><div>{floors}</div>")[1].split("\n") == [
        "阿嘉", GOOD, "老陳", "車褲比座墊重要，買有厚墊的。", "小魚", "謝謝分享，週末去試試看。",
    ]  # fmt: skip


def test_bbs_keeps_its_lines() -> None:
    page = f'<div id="main-content" class="bbs-content">{GOOD}\n{GOOD}\n\n--\n<div class="push"><span>推 </span><span>momo</span><span>: 好文</span></div></div>'
    assert read_html(page)[1].split("\n") == [GOOD, GOOD, "", "--", "推 momo: 好文"]


def test_the_heading_comes_along() -> None:
    page = f"<title>老街重鋪 | 新聞網</title><div><h1>老街重鋪</h1></div><div><div>{STORY}</div></div>"
    assert read_html(page)[1].split("\n")[0] == "老街重鋪"


def test_pages_without_main_text() -> None:
    assert read_html(f"<title>列表</title><ul>{MENU}</ul>{LINKS}")[1] == ""
    assert read_html("") == ("", "")


def test_a_whole_chapter() -> None:
    assert read_html("<nav>目錄</nav><p>詩</p><p>其一</p>", main=False)[1] == "詩\n其一"


def test_depth_and_tags_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TooMuch, match="nested"):
        read_html("<div>" * 100_000 + GOOD)
    with pytest.raises(TooMuch, match="nested"):
        read_html("<div>" * 100_000 + GOOD + "</div>" * 100_000)
    assert GOOD in read_html(f"<p>{GOOD}" + "<p>一<br>" * 50_000)[1]  # never closed, and not deep
    assert read_html("<div>" * 1000 + GOOD)[1] == GOOD
    monkeypatch.setattr(html, "MAX_TAGS", 100)
    with pytest.raises(TooMuch, match="tags"):
        read_html("<b>" * 101)
