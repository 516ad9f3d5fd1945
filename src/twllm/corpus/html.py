"""Main text of an HTML page: blocks of a parsed page (lexbor, through selectolax), the container that holds most of the prose, less
menus, link lists and buttons.

Chosen by measurement over trafilatura, resiliparse and others (docs/extract.md). Tables come as one line a row with " | " between cells, tables that only
lay out a page as their cells; threads keep every post behind its author; ruby readings (注音) are left out, they would cut the words.
Each element whose name (tag, role, class, id) says menu, footer, share, … goes, unless it holds most of the page's text. Every page is bounded: so
many tags, so deep (`TooMuch`); what the parser sees is at most max_document_mb. Price: about 0.3 ms a page of 7 kB. Not covered: rendering (CSS files, scripts
that write the page), text in pictures, a page whose main text is shorter than its consent wall.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

# fmt: off
SKIPPED = {
    "script", "style", "noscript", "template", "svg", "math", "nav", "form", "button", "select", "iframe", "object", "textarea", "rt", "rp",
    "head", "input", "dialog", "audio", "video", "canvas", "menu", "embed", "option", "datalist", "link", "meta", "img",
}
ASIDE = {"footer", "aside", "header"}  # of the page; of an article they may say who wrote it
BLOCKS = {
    "address", "article", "blockquote", "body", "br", "caption", "center", "dd", "details", "div", "dl", "dt", "fieldset", "figcaption", "figure", "h1", "h2", "h3",
    "h4", "h5", "h6", "header", "hr", "html", "li", "main", "ol", "p", "pre", "section", "summary", "table", "tbody", "thead", "tr", "ul", "td", "th", "footer",
    "aside", "form", "tfoot", "marquee",
}
CONTAINERS = {"article", "body", "div", "main", "section", "table", "tbody", "td", "center", "ol", "ul", "blockquote", "dl"}
HEADINGS = {"h1", "h2", "h3", "h4", "h5", "h6"}
ROLES = {"navigation", "banner", "contentinfo", "complementary", "search", "dialog", "alertdialog", "menu", "menubar", "toolbar", "tablist"}
# fmt: on
BOILERPLATE = re.compile(
    r"(?:^|[\s_-])(?:nav\w*|menu\w*|breadcrumbs?|crumbs?|footer|foot|ft|topbar|toolbar|sidebar|widget\w*|share\w*|sharing|social|related\w*|recommend\w*|"
    r"cookie\w*|consent|banner|ads?|advert\w*|promo\w*|pag(?:er|ing|ination)|prev|next|login|signin|signup|subscri\w*|newsletter|popup|modal|drawer|"
    r"skip\w*|print|toc|catlinks|navbox|editsection|tags?|keywords?|kw|copyright|masthead|rank\w*|hot\w*|sign|signature|tools?|burger|post-menu|"
    r"jp-relatedposts|votecell|post-navigation|respond|sitesub|jump-to-nav|file_download|linked|visually-hidden|sr-only|screen-reader-text|metabar)(?=$|[\s_-])",
    re.IGNORECASE,
)
CONSENT = re.compile(r"cookie|consent|gdpr", re.IGNORECASE)  # goes even where it is the whole page
DIGITS = re.compile(r"\d+")
UNMARKED = {"body", "html", "table"}  # <table class="menu"> is what a restaurant has
HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
KEEPS_LINES = re.compile(r"white-space\s*:\s*pre|bbs-content", re.IGNORECASE)
BUTTONS = re.compile(
    r"(?:按讚|讚|分享(?:到.{0,12})?|回覆|回應|收藏|檢舉|舉報|支持|反對|列印|友善列印|轉寄好友|字級|[小中大]|登[入錄]|註冊|搜尋|更多|複製連結|回(?:首頁|頂端|上一頁|目錄|列表)|"
    r"上一[篇頁則].{0,40}|下一[篇頁則].{0,40}|跳[到至].{0,8}(?:內容|導覽).{0,4}|:::|\[?編輯\]?|只看該作者|登入後才能留言|延伸閱讀|相關(?:文章|新聞|閱讀)?|推薦文章|你可能也喜歡|"
    r"(?:累積|本日)人氣[：: ]*[\d,]+|(?:瀏覽|點閱)(?:數|次數|人次)?[：: ]*[\d,]+|(?:愛心|讚|回覆|留言)[ ]*\d+|(?:版權所有|copyright|©|建議使用).{0,80}|分享此文.?|查看[：:].{0,40})",
    re.IGNORECASE,
)  # fmt: skip
SPACES = re.compile(r"[ \t\n\r\f]+")
SENTENCE = re.compile(r"[。！？!?；：，、,…」.]")
CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w:.-]+)", re.IGNORECASE)
TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]*)")
CLOSED_BY_NEXT = {"p", "li", "dt", "dd", "td", "th", "tr", "option", "br", "img", "hr", "input", "meta", "link", "col", "area", "wbr", "source", "base", "embed", "param", "font"}  # fmt: skip
MAX_DEPTH = 1500  # lexbor takes 0.1 s for so many <div>, and 48 s for 100,000
MAX_TAGS = 1_000_000  # 0.1 kB of memory each
MAX_LINK_SHARE = 0.5  # of a block's characters; chosen, not tuned
DOMINANT = (
    0.7  # a container with this share of its parent's prose is gone into; tuned on half of benchmarks/extract_pages.py
)
FLOOR_PROSE = 8.0
MAX_AUTHOR = 24
KEEP_SHARE = 0.5  # what holds so much of the page's text is no menu, whatever it is called


class TooMuch(Exception):
    """A page that would take too long or too much memory to parse: nested too deep, or too many tags."""


def meta_charset(page: bytes) -> str | None:
    """The charset a page declares in its first 2,048 bytes."""
    match = CHARSET.search(page[:2048])
    return match[1].decode("ascii") if match else None


def check_bounds(page: str) -> None:
    """Refuse what would be too costly to parse.

    Raises:
        TooMuch: so many tags, or so deep.
    """
    tags, closing = page.count("<"), page.count("</")
    if tags > MAX_TAGS:
        raise TooMuch(f"{tags} tags")
    if tags - closing < MAX_DEPTH:
        return
    depth = 0
    for match in TAG.finditer(page):
        if match[1]:
            depth -= depth > 0 and match[2].lower() not in CLOSED_BY_NEXT
        elif match[2].lower() not in CLOSED_BY_NEXT:
            depth += 1
            if depth > MAX_DEPTH:
                raise TooMuch(f"nested deeper than {MAX_DEPTH}")


@dataclass(slots=True)
class Box:
    """An element that may hold the main text."""

    parent: int
    tag: str
    marked: bool  # its name says that it is not the main text
    shape: str = ""  # tag and name without numbers: floors of a thread are alike
    consent: bool = False
    chars: int = 0  # outside of links
    prose: float = 0.0


@dataclass(slots=True)
class Block:
    """Text between two block boundaries."""

    box: int
    tag: str
    parts: list[str] = field(default_factory=list)
    link_chars: int = 0
    keeps_lines: bool = False
    text: str = ""
    keep: bool = False  # though it is a link

    def finish(self) -> bool:
        """Make `text` of the parts; whether there is any."""
        text = "".join(self.parts)
        self.text = text.strip("\n") if self.keeps_lines else SPACES.sub(" ", text).strip()
        return bool(self.text.strip())

    @property
    def linked(self) -> bool:
        """Mostly links."""
        return self.link_chars > MAX_LINK_SHARE * len(self.text) and not self.keep


class Reader:
    """Blocks and boxes of a page, in one walk over its tree without recursion."""

    def __init__(self, root: Any) -> None:
        self.boxes, self.blocks = [Box(-1, "html", False)], list[Block]()
        self.box, self.links, self.pre, self.block = 0, 0, 0, Block(0, "html")
        self._walk(root)
        self.end()

    def end(self, tag: str = "") -> None:
        """A block boundary; the next block belongs to `tag`."""
        if self.block.parts and self.block.finish():
            self.blocks.append(self.block)
        self.block = Block(self.box, tag or self.block.tag, keeps_lines=self.pre > 0)

    def _walk(self, root: Any) -> None:
        node, leave = root, list[Any]()
        while node is not None:
            tag = node.tag
            if tag == "-text":
                self._text(node.text_content or "")
            elif tag and tag[0] not in "-_!" and (undo := self._enter(node, tag)) is not None:
                child = node.child
                if child is not None:
                    leave.append((node, undo))
                    node = child
                    continue
                self._leave(undo)
            while node is not None and node.next is None:
                if not leave:
                    return
                node, undo = leave.pop()
                self._leave(undo)
            node = node.next if node is not None else None

    def _text(self, text: str) -> None:
        self.block.parts.append(text)
        if self.links:
            self.block.link_chars += len(text.strip())

    def _enter(self, node: Any, tag: str) -> tuple[str, int, int, int] | None:
        """Begin an element: what to restore when it ends, or None where it is passed over."""
        if tag in SKIPPED:
            return None
        undo = (tag, self.box, self.links, self.pre)
        attributes = node.attributes if tag in BLOCKS or tag == "span" else {}
        name = f"{attributes.get('class') or ''} {attributes.get('id') or ''}" if attributes else ""
        style = (attributes.get("style") or "") if attributes else ""
        if attributes and ("hidden" in attributes or HIDDEN.search(style)):
            return None
        if tag == "a":
            self.links += 1
        elif tag in ("pre",) or (name and (KEEPS_LINES.search(name) or KEEPS_LINES.search(style))):
            self.pre += 1
        marked = attributes.get("role") in ROLES or bool(
            name.strip() and tag not in UNMARKED and BOILERPLATE.search(name)
        )
        marked |= tag in ASIDE and all(box.tag != "article" for box in self.up())
        if tag == "tr" and (row := row_of(node)) is not None:
            self.end("tr")
            self._row(row)
            self.end("")
            return None
        if tag in CONTAINERS or marked:
            shape = f"{tag} {DIGITS.sub('', name)}"
            self.boxes.append(Box(self.box, tag, marked, shape, consent=bool(name.strip() and CONSENT.search(name))))
            self.box = len(self.boxes) - 1
        if tag in BLOCKS or marked:
            self.end(tag)
        return undo

    def _row(self, cells: list[tuple[str, int]]) -> None:
        self.block.parts.append(" | ".join(text for text, _ in cells if text))
        self.block.link_chars = sum(linked for _, linked in cells)

    def _leave(self, undo: tuple[str, int, int, int]) -> None:
        tag, box, links, pre = undo
        changed = box != self.box
        self.box, self.links, self.pre = box, links, pre
        if tag in BLOCKS or changed:
            self.end("")

    def up(self, box: int | None = None) -> Iterator[Box]:
        """A box and those around it."""
        number = self.box if box is None else box
        while number >= 0:
            yield self.boxes[number]
            number = self.boxes[number].parent


def row_of(row: Any) -> list[tuple[str, int]] | None:
    """(text, characters in links) of each cell of a data row; None where the row lays out the page: a cell has blocks or a table in it, or is long."""
    cells, child = [], row.child
    while child is not None:
        if child.tag in ("td", "th"):
            if child.css_first("table, div, p, ul, ol, h1, h2, h3, h4, br + br, form, hr, pre") is not None:
                return None
            for reading in child.css("rt, rp, script, style"):
                reading.decompose()
            text = SPACES.sub(" ", child.text(deep=True, separator=" " if child.css_first("br") else "")).strip()
            cells.append((text, sum(len(link.text(deep=True).strip()) for link in child.css("a"))))
        child = child.next
    if len(cells) < 2 or any(len(text) > 1000 for text, _ in cells):
        return None
    return cells


def prose(block: Block) -> float:
    """How much a block says that it is main text."""
    if block.linked:
        return 0.0
    length = len(block.text) - block.link_chars
    marks = len(SENTENCE.findall(block.text))
    return length * (1.0 if marks > 1 or (marks and length > 20) else 0.5 if block.tag == "tr" else 0.15)


def main_blocks(reader: Reader, title: str) -> list[Block]:
    """The blocks of the main text."""
    boxes, blocks = reader.boxes, [block for block in reader.blocks if not BUTTONS.fullmatch(block.text)]
    for block in blocks:
        number, value, size = block.box, prose(block), len(block.text) - block.link_chars
        while number >= 0:
            boxes[number].prose += value
            boxes[number].chars += size
            number = boxes[number].parent
    total = boxes[0].prose
    gone = [False] * len(boxes)
    for number, box in enumerate(boxes):
        out = box.consent or (box.marked and box.prose < KEEP_SHARE * total)
        gone[number] = out or (box.parent >= 0 and gone[box.parent])
    left = [block for block in blocks if not gone[block.box]]
    _keep_authors(boxes, left)
    main = _main_box(boxes, left)
    inside = [False] * len(boxes)
    for number, box in enumerate(boxes):
        inside[number] = number == main or (box.parent >= 0 and inside[box.parent])
    return _without_lists([block for block in left if inside[block.box]], title)


def _keep_authors(boxes: list[Box], blocks: list[Block]) -> None:
    """The first line of each floor stays, link or not: of siblings of one shape, two or more, that have prose, it says who writes."""
    alike: dict[tuple[int, str], list[int]] = {}
    for number, box in enumerate(boxes):
        if box.prose >= FLOOR_PROSE and box.tag not in ("body", "td"):
            alike.setdefault((box.parent, box.shape), []).append(number)
    floors = {number for group in alike.values() if len(group) > 1 for number in group}
    for block in blocks:
        number = block.box
        while number >= 0 and floors:
            if number in floors:
                floors.discard(number)
                block.keep = len(block.text) <= MAX_AUTHOR
            number = boxes[number].parent


def _main_box(boxes: list[Box], blocks: list[Block]) -> int:
    """From the page inwards, as long as one box holds most of the prose."""
    weights = [0.0] * len(boxes)
    for block in blocks:
        number, value = block.box, prose(block)
        while number >= 0:
            weights[number] += value
            number = boxes[number].parent
    children: dict[int, list[int]] = {}
    for number, box in enumerate(boxes):
        children.setdefault(box.parent, []).append(number)
    main = 0
    while inner := children.get(main):
        best = max(inner, key=lambda number: weights[number])
        if weights[best] < DOMINANT * weights[main] or not weights[best]:
            break
        main = best
    return main


def _without_lists(blocks: list[Block], title: str) -> list[Block]:
    """Without blocks of links, and without the headings that stand before nothing but such."""
    kept, waiting = list[Block](), list[Block]()
    after_links = 0
    for block in blocks:
        if block.linked and not (block.tag in HEADINGS and title.startswith(block.text)):
            after_links += 1
            continue
        if waiting and after_links >= 2:
            waiting = []
        kept += waiting
        waiting, after_links = ([block], 0) if block.tag in HEADINGS and not SENTENCE.search(block.text) else ([], 0)
        if not waiting:
            kept.append(block)
    return kept if after_links >= 2 else kept + waiting


def read_html(page: str, main: bool = True) -> tuple[str, str]:
    """(title, text) of a page; one line a block. Not `main`: all its text, as of a chapter of a book.

    >>> read_html("<title>站</title><nav>首頁</nav><p>台灣<b>夜市</b></p>")
    ('站', '台灣夜市')

    Raises:
        TooMuch: too many tags, or nested too deep.
    """
    from selectolax.lexbor import LexborHTMLParser

    check_bounds(page)
    tree = LexborHTMLParser(page)
    named = tree.css_first("title")
    title = SPACES.sub(" ", named.text(deep=True)).strip() if named is not None else ""
    if tree.root is None:
        return title, ""
    reader = Reader(tree.root)
    blocks = main_blocks(reader, title) if main else reader.blocks
    if main:
        blocks = _with_heading(reader, blocks, title)
    return title, "\n".join(block.text for block in blocks)


def _with_heading(reader: Reader, blocks: list[Block], title: str) -> list[Block]:
    """With the page's heading in front, where it stands outside of the main text: what <title> begins with."""
    if not blocks or len(title) < 2:
        return blocks
    seen = {id(block) for block in blocks}
    for block in reader.blocks:
        if 2 <= len(block.text) <= len(title) and title.startswith(block.text):
            return blocks if id(block) in seen else [block, *blocks]
    return blocks
