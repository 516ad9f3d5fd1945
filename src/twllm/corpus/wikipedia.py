"""Wikipedia dumps (`…-pages-articles*.xml.bz2` and the sister projects') as a stream of articles in readable text.

Articles only (namespace 0), no redirects. Of a Chinese wiki the text is Taiwan's: variants.py. The markup goes through
mwparserfromhell: templates are dropped but for those that carry text (TEXT_TEMPLATES), references, files, categories and
formulas go, tables become one line a row, sections of links and notes (SKIPPED_SECTIONS) go. Each article keeps its URL,
title, time of revision, and CC BY-SA 4.0. Memory: one article. A damaged XML ends the file there; in parts
(`articles1.xml-p1p…bz2`) a dump is read by several workers. Not covered: what only Lua modules or transcluded templates
write.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from xml.parsers import expat

from twllm.corpus.document import Document, Dropped
from twllm.corpus.files import File, open_stream
from twllm.corpus.variants import Page as VariantPage
from twllm.corpus.variants import choose, parse_rule

if TYPE_CHECKING:
    from twllm.corpus.read import Reading

LICENCE = "CC-BY-SA-4.0"
CHUNK_BYTES = 1 << 16
# fmt: off
SKIPPED_LINKS = (
    "file:", "image:", "category:", "檔案:", "文件:", "圖像:", "图像:", "圖片:", "图片:", "分類:", "分类:", "media:",
)
SKIPPED_TAGS = {
    "ref", "references", "gallery", "math", "chem", "timeline", "score", "imagemap", "syntaxhighlight", "source", "style",
    "graph", "mapframe", "maplink", "templatestyles", "hiero", "section", "inputbox", "noinclude", "includeonly", "del", "s", "rt", "rp",
}
SKIPPED_SECTIONS = {
    "參考文獻", "参考文献", "參考資料", "参考资料", "參考來源", "参考来源", "參考", "参考", "註釋", "注释", "注釋", "註解", "腳註", "脚注", "備註", "备注",
    "外部連結", "外部链接", "外部鏈接", "外部連接", "參見", "参见", "參看", "参看", "相關條目", "相关条目", "延伸閱讀", "延伸阅读", "擴展閱讀", "扩展阅读",
    "來源", "来源", "引用", "圖集", "图集", "畫廊", "画廊", "關聯項目", "书目", "書目",
}
TEXT_TEMPLATES = {  # name → the parameter that holds the text
    "lang": 2, "le": 1, "tsl": 3, "link": 1, "nowrap": 1, "nobr": 1, "ruby": 1, "zhuyin": 1, "quote": 1, "cquote": 1, "rquote": 2, "bq": 1,
    "blockquote": 1, "nihongo": 1, "jpn": 1, "small": 1, "big": 1, "color": 2, "abbr": 1, "tooltip": 1, "ilh": 1, "internal link helper": 1,
    "langi": 2, "transl": 2, "ill": 1, "青": 1, "綠": 1, "僻字": 1, "專名號": 1, "le2": 1, "專名": 1, "text": 1, "underline": 1, "u": 1,
}
# fmt: on
REDIRECT = re.compile(r"\s*#\s*(?:redirect|重定向|重新導向)", re.IGNORECASE)
BLANK_LINES = re.compile(r"\n[ \t]*(?:\n[ \t]*)+")
EMPTY_BRACKETS = re.compile(r"[（(][\s，、；：,;:]*[）)]")
BULLETS = re.compile(r"^(?:- *)+(?=\S)", re.MULTILINE)
OPENED_BY_COMMA = re.compile(r"(?<=[（(])[\s，、；,;]+")


@dataclass
class RawPage:
    """A page as it stands in the dump."""

    title: str = ""
    ns: str = ""
    id: str = ""
    timestamp: str = ""
    redirect: bool = False
    text: str = ""
    too_large: bool = False


@dataclass
class DumpParser:
    """The pages of a dump, fed piece by piece; the text of a page above the limit is not held."""

    max_chars: int
    pages: list[RawPage] = field(default_factory=list)
    site: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartElementHandler, self.parser.EndElementHandler = self._start, self._end
        self.parser.CharacterDataHandler = self._data
        self.parser.EntityDeclHandler = self._refuse
        self._path: list[str] = []
        self._page: RawPage | None = None
        self._text: list[str] = []
        self._chars = 0

    @staticmethod
    def _refuse(*_: Any) -> None:
        raise ValueError("the XML declares entities")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._path.append(name)
        self._text, self._chars = [], 0
        if len(self._path) == 1 and name != "mediawiki":
            raise ValueError(f"<{name}> is no MediaWiki dump")
        if name == "page":
            self._page = RawPage()
        elif name == "redirect" and self._page:
            self._page.redirect = True

    def _data(self, text: str) -> None:
        self._chars += len(text)
        if self._chars <= self.max_chars:
            self._text.append(text)
        elif self._page:
            self._text, self._page.too_large = [], True

    def _end(self, name: str) -> None:
        path = self._path[1:]
        self._path.pop()
        text, self._text = "".join(self._text), []
        if path[:1] == ["siteinfo"] and len(path) == 2:
            self.site[name] = text
        elif self._page is None:
            return
        elif path == ["page"]:
            self.pages.append(self._page)
            self._page = None
        elif path in (["page", "title"], ["page", "ns"], ["page", "id"]):
            setattr(self._page, name, text)
        elif path == ["page", "revision", "timestamp"]:
            self._page.timestamp = text
        elif path == ["page", "revision", "text"]:
            self._page.text = text


def read_dump(file: File, reading: "Reading") -> Iterator[Document | Dropped]:
    """The articles of a dump."""
    parser = DumpParser(reading.max_bytes // 2)
    try:
        with open_stream(file, reading.on_bytes) as stream:
            while True:
                chunk = stream.read(CHUNK_BYTES)
                parser.parser.Parse(chunk, not chunk)
                pages, parser.pages = parser.pages, []
                for page in pages:
                    yield from _article(page, parser.site, reading, str(file))
                if not chunk:
                    return
    except (expat.ExpatError, ValueError) as error:
        told = f"檔案不完整或損壞 (damaged file): {error}"
        yield reading.broken("broken_file", told, str(file), fix="重新下載這個檔案")


def _article(page: RawPage, site: dict[str, str], reading: "Reading", where: str) -> Iterator[Document | Dropped]:
    if page.too_large:
        yield reading.broken("too_large", f"這一頁太大 (page too large): {page.title}", f"{where}:{page.id}")
        return
    if page.ns != "0" or page.redirect or REDIRECT.match(page.text):
        return
    chinese = site.get("dbname", "").startswith("zhwi")
    try:
        title, text = article_text(page.title, page.text, chinese)
    except RecursionError:
        yield reading.broken(
            "broken_record", f"標記巢狀太深 (markup nested too deep): {page.title}", f"{where}:{page.id}"
        )
        return
    url = site.get("base", "").rpartition("/")[0] + "/" + quote(page.title.replace(" ", "_"), safe="/:()!,'*")
    row = {
        "id": page.id,
        "url": url,
        "title": title,
        "date": page.timestamp,
        "license": reading.source.license or LICENCE,
    }
    yield reading.document(row, text, page.id)


def article_text(title: str, wikitext: str, chinese: bool = True) -> tuple[str, str]:
    """(title, text) of an article; of a Chinese wiki in Taiwan's variant.

    >>> article_text("软件", "'''-{zh-hans:软件;zh-tw:軟體}-'''（{{lang|en|software}}）是[[程序]]。<ref>註</ref>")[1]
    '軟體（software）是程式。'
    """
    import mwparserfromhell

    variants = VariantPage()
    if not chinese:
        return title, tidy(plain(mwparserfromhell.parse(wikitext), variants))
    code = mwparserfromhell.parse(variants.resolve(wikitext))
    for template in code.filter_templates(matches=lambda node: str(node.name).strip().lower() == "noteta"):
        numbered = [str(p.value) for p in template.params if str(p.name).strip().isdecimal()]
        variants.note_ta([variants.release(value) for value in numbered])
        if template.has("T"):
            forms, _ = parse_rule(variants.release(str(template.get("T").value)))
            title = variants.hold(choose(forms)) if forms else title
    text = variants.to_taiwan(plain(code, variants))
    return variants.to_taiwan(title), tidy(text)


def plain(code: Any, variants: VariantPage) -> str:
    """Readable text of parsed markup."""
    from mwparserfromhell.nodes import Heading

    parts, skipping = list[str](), 0
    for node in code.nodes:
        if isinstance(node, Heading):
            name = plain(node.title, variants).strip()
            if skipping and node.level > skipping:
                continue
            skipping = node.level if variants.release(name) in SKIPPED_SECTIONS else 0
            if not skipping:
                parts.append(f"\n\n{name}")  # a line feed follows
        elif not skipping:
            parts.append(_node(node, variants))
    return "".join(parts)


def _node(node: Any, variants: VariantPage) -> str:
    from mwparserfromhell import nodes

    if isinstance(node, nodes.Text):
        return str(node.value)
    if isinstance(node, nodes.Wikilink):
        title = str(node.title).strip()
        if title.lower().startswith(SKIPPED_LINKS):
            return ""
        return plain(node.text, variants) if node.text is not None else title.lstrip(":").partition("#")[0]
    if isinstance(node, nodes.ExternalLink):
        return plain(node.title, variants) if node.title is not None else ""
    if isinstance(node, nodes.HTMLEntity):
        return str(node.normalize())
    if isinstance(node, nodes.Tag):
        return _tag(node, variants)
    if isinstance(node, nodes.Template):
        return _template(node, variants)
    return ""


def _tag(node: Any, variants: VariantPage) -> str:
    name = str(node.tag).strip().lower()
    if name in SKIPPED_TAGS:
        return ""
    if name in ("br", "hr"):
        return "\n"
    if node.wiki_markup in ("*", "#", ";", ":"):
        return "- " if node.wiki_markup in ("*", "#") else ""  # tidy takes the second blank
    if name == "table":
        return "\n" + "\n".join(_table_rows(node.contents, variants)) + "\n"
    return plain(node.contents, variants) if node.contents is not None else ""


def _table_rows(code: Any, variants: VariantPage) -> Iterator[str]:
    """A line a row of a table, cells between bars; cells before the first row mark are a row too."""
    loose = list[str]()
    for node in code.nodes:
        tag = str(getattr(node, "tag", "")).strip()
        if tag in ("td", "th"):
            loose.append(_cell(node, variants))
        elif tag == "tr":
            cells = node.contents.filter_tags(matches=lambda tag: str(tag.tag) in ("td", "th"), recursive=False)
            for row in (loose, [_cell(cell, variants) for cell in cells]):
                if any(row):
                    yield " | ".join(row)
            loose = []
    if any(loose):
        yield " | ".join(loose)


def _cell(node: Any, variants: VariantPage) -> str:
    return " ".join(plain(node.contents, variants).split())


def _template(node: Any, variants: VariantPage) -> str:
    name = str(node.name).strip().lower().replace("_", " ")
    place = TEXT_TEMPLATES.get(name, 0)
    if not place and name.startswith(("link-", "lang-", "le-", "internal link helper/", "ill-")):
        place = 1
    if not place:
        return ""
    for key in (str(place), "text", "content", "內容"):
        if node.has(key):
            return plain(node.get(key).value, variants)
    return ""


def tidy(text: str) -> str:
    """Without empty brackets (what a dropped template leaves) and with at most one blank line between paragraphs."""
    text = BULLETS.sub("- ", OPENED_BY_COMMA.sub("", EMPTY_BRACKETS.sub("", text)))
    return BLANK_LINES.sub("\n\n", "\n".join(line.strip(" \t") for line in text.split("\n"))).strip()
