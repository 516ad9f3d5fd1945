"""Wikipedia dumps: the stream, Taiwan's variant, readable text of the markup, damage."""

import bz2
from pathlib import Path
from xml.sax.saxutils import escape

import pytest

from twllm.corpus.config import CorpusSource
from twllm.corpus.document import Document, Dropped
from twllm.corpus.read import Reading, read_source
from twllm.corpus.sources import plan_source, read_part
from twllm.corpus.wikipedia import article_text
from twllm.errors import UserError

SITE = "<siteinfo><sitename>Wikipedia</sitename><dbname>{db}</dbname><base>https://{lang}.wikipedia.org/wiki/Wikipedia:%E9%A6%96%E9%A1%B5</base></siteinfo>"


def dump(*pages: tuple[str, str, str], db: str = "zhwiki", lang: str = "zh") -> bytes:
    """(title, namespace, wikitext) as an export of MediaWiki."""
    parts = [
        f'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="{lang}">',
        SITE.format(db=db, lang=lang),
    ]
    for number, (title, ns, text) in enumerate(pages, 1):
        redirect = '<redirect title="X" />' if text.startswith("#REDIRECT") else ""
        parts.append(
            f"<page><title>{escape(title)}</title><ns>{ns}</ns><id>{number}</id>{redirect}<revision><id>9{number}</id>"
            f"<timestamp>2024-01-01T00:00:00Z</timestamp><contributor><username>甲</username><id>7</id></contributor>"
            f'<text bytes="1" xml:space="preserve">{escape(text)}</text></revision></page>'
        )
    return "\n".join([*parts, "</mediawiki>"]).encode()


PAGES = (
    ("夜市", "0", "'''夜市'''是[[臺灣]]的特色。"),
    ("Talk:夜市", "1", "討論"),
    ("夜市場", "0", "#REDIRECT [[夜市]]"),
    ("C++", "0", "程式語言 & <br/>標記。"),
)


def read(path: Path, skip: bool = False) -> list[Document | Dropped]:
    return list(read_source(CorpusSource(path=str(path), name="wiki"), skip))


def test_articles_of_a_dump(tmp_path: Path) -> None:
    (tmp_path / "zhwiki-20240301-pages-articles.xml.bz2").write_bytes(bz2.compress(dump(*PAGES)))
    first, second = read(tmp_path)
    assert first == Document(
        "wiki/1", "夜市是臺灣的特色。", "wiki", "https://zh.wikipedia.org/wiki/%E5%A4%9C%E5%B8%82", "CC-BY-SA-4.0",
        {"title": "夜市", "date": "2024-01-01T00:00:00Z"},
    )  # fmt: skip
    assert isinstance(second, Document)
    assert (second.id, second.text, second.url) == (
        "wiki/4",
        "程式語言 &\n標記。",
        "https://zh.wikipedia.org/wiki/C%2B%2B",
    )


def test_streams_one_after_the_other_and_damage(tmp_path: Path) -> None:
    whole = dump(*PAGES, *(PAGES[:1] * 3000))
    cut = len(whole) // 2
    file = tmp_path / "zhwiki-pages-articles-multistream.xml.bz2"
    file.write_bytes(bz2.compress(whole[:cut]) + bz2.compress(whole[cut:]))
    assert len(read(file)) == 3002
    file.write_bytes((bz2.compress(whole[:cut]) + bz2.compress(whole[cut:]))[:-30])
    with pytest.raises(UserError, match="damaged file"):
        read(file)
    items = read(file, skip=True)
    assert isinstance(items[-1], Dropped) and items[-1].reason == "broken_file"
    assert len(items) > 1000
    file.write_bytes(bz2.compress(b"<rss></rss>"))
    with pytest.raises(UserError, match="is no MediaWiki dump"):
        read(file)
    bomb = b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]>' + dump(
        ("甲", "0", "x")
    )
    file.write_bytes(bz2.compress(bomb))
    with pytest.raises(UserError, match="declares entities"):
        read(file)


def test_a_page_too_large_is_named(tmp_path: Path) -> None:
    (tmp_path / "zhwiki-pages-articles.xml").write_bytes(dump(PAGES[0], ("大", "0", "字" * 5000), PAGES[3]))
    source = CorpusSource(path=str(tmp_path), name="wiki")
    items = list(read_part(plan_source(source)[0], Reading(source, skip_broken=True, max_bytes=2000)))
    assert [item.reason if isinstance(item, Dropped) else item.id for item in items] == [
        "wiki/1",
        "too_large",
        "wiki/3",
    ]


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("-{zh-hans:软件; zh-hant:軟件; zh-tw:軟體;}-好用。", "軟體好用。"),
        ("-{zh-hans:总线;zh-hant:匯流排}-", "匯流排"),
        ("-{zh-cn:打印}-機", "列印機"),  # only a mainland form: converted
        ("這-{里}-是原文", "這里是原文"),  # raw: no conversion
        ("-{A|zh-cn:服务器;zh-tw:伺服器}-很快，服务器很貴。", "伺服器很快，伺服器很貴。"),
        ("-{H|zh-cn:内存;zh-tw:記憶體}-内存很貴。", "記憶體很貴。"),
        ("-{H|巨集=>zh-cn:宏;}-巨集", "巨集"),
        ("-{T|zh-cn:甲;zh-tw:乙}-標題規則不顯示", "標題規則不顯示"),
        ("-{R|zh-cn:甲}-", "zh-cn:甲"),
        ("-{H|zh-hk:軟件;zh-tw:軟體}--{-|zh-hk:軟件;zh-tw:軟體}-軟件", "軟件"),
        ("外-{zh-tw:甲-{zh-tw:乙}-丙}-面", "外甲乙丙面"),
        ("沒關的-{標記", "沒關的-{標記"),
        ("多出的}-標記", "多出的}-標記"),
        (
            "{{NoteTA|G1=IT|1=zh-hans:程序;zh-tw:程式;|2=zh-cn:网络;zh-tw:網路}}執行程序，连接网络。",
            "執行程式，連接網路。",
        ),
        ("这是简体页面，软件里面有后台。", "這是簡體頁面，軟體裡面有後臺。"),
        (
            "台灣的里長寫了「软」字。" + "這是一段正體的文字。" * 9,
            "台灣的里長寫了「软」字。" + "這是一段正體的文字。" * 9,
        ),  # a Traditional page stays as it is
    ],
)
def test_variants(wikitext: str, text: str) -> None:
    assert article_text("題", wikitext)[1] == text


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("見[[臺北市|臺北]]與[[高雄]]。[[File:a.jpg|thumb|說明[[x]]]][[分類:城市]]", "見臺北與高雄。"),
        ("[https://a.tw 官方網站]、<ref name=a>{{cite web|url=x}}</ref>完", "官方網站、完"),
        ("甲{{lang|en|NASA}}乙{{le|捷運|MRT}}丙{{unknown|x}}丁", "甲NASA乙捷運丙丁"),
        ("臺北（{{lang-en|Taipei}}，{{IPA|x}}）是", "臺北（Taipei，）是"),
        ("空（{{unknown}}）括號", "空括號"),
        ("* 一\n* 二\n:縮排", "- 一\n- 二\n縮排"),
        ('{| class="w"\n! 年 !! 事\n|-\n| 1990 || 建<br>成\n|}', "年 | 事\n1990 | 建 成"),
        (
            "甲。\n== 歷史 ==\n乙。\n== 參考文獻 ==\n丙\n=== 子節 ===\n丁\n== 影響 ==\n戊。",
            "甲。\n\n歷史\n乙。\n\n影響\n戊。",
        ),
        ("<!-- 註解 -->'''粗'''''斜''&nbsp;x<math>a^2</math><nowiki>[[原文]]</nowiki>", "粗斜\xa0x[[原文]]"),
        ("{{Infobox|名稱={{x|y}}|圖=[[File:b.png]]}}內文", "內文"),
        ("沒關[[連結 與{{範本", "沒關[[連結 與{{範本"),
        ("{{ruby|漢字|ㄏㄢˋ}}", "漢字"),
    ],
)
def test_markup(wikitext: str, text: str) -> None:
    assert article_text("題", wikitext)[1] == text


def test_titles_and_other_wikis(tmp_path: Path) -> None:
    assert article_text("软件", "软件很好。")[0] == "軟體"
    assert article_text("鼠标", "{{NoteTA|T=zh-cn:鼠标;zh-tw:滑鼠}}滑鼠。")[0] == "滑鼠"
    (tmp_path / "enwiki-pages-articles.xml").write_bytes(
        dump(("Taiwan", "0", "'''Taiwan''' -{x}- is."), db="enwiki", lang="en")
    )
    [document] = read(tmp_path)
    assert isinstance(document, Document)
    assert (document.text, document.url) == ("Taiwan -{x}- is.", "https://en.wikipedia.org/wiki/Taiwan")
