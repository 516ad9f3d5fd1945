"""Web pages with known main text: the layouts of Taiwan's sites (news, blogs, PTT, forums, government, wiki, shops, 1999) around extract_texts.py.

`pages()` gives `Page(name, kind, split, html, gold, also)`: `gold` is the main text line by line (table rows with their cells side by side),
`also` what may be there or not (title, date, author, readers' comments): it counts neither way. Pages of the split "tune" were looked at while
the extractor was written; "test" has other texts in the same layouts, and its threads were looked at once: not a clean hold-out. A gold of nothing: there is no main text (link lists, search results, portals).
"""

import html
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import extract_forums as forums
from extract_texts import BLOG, GOV, NEWS, OTHERS, RECIPES, THREADS, WIKI

BOARDS = [
    "政治",
    "社會",
    "生活",
    "國際",
    "財經",
    "娛樂",
    "體育",
    "科技",
    "地方",
    "旅遊",
    "健康",
    "副刊",
    "投書",
    "影音",
    "專題",
    "房產",
    "汽車",
    "命理",
    "寵物",
    "校園",
]
HEADLINES = [
    "台積電股價創新高　法人看好下半年", "颱風外圍環流影響　東部防豪雨", "捷運萬大線延後兩年通車", "早餐店漲價潮　蛋餅一份四十五",
    "職棒明星賽門票秒殺", "健保署公布新制　部分負擔調整", "台東熱氣球嘉年華本週登場", "小學生票選最討厭的營養午餐", "全台十大賞櫻秘境一次看",
    "房仲業者：看屋人潮回溫", "電價審議會下週召開", "國旅補助第三波開放登記", "鳳梨外銷日本創紀錄", "新北歡樂耶誕城點燈", "軍公教調薪三趴定案",
]  # fmt: skip


@dataclass(frozen=True)
class Page:
    """One page and what of it is the main text."""

    name: str
    kind: str
    split: str
    html: str
    gold: tuple[str, ...]
    also: tuple[str, ...] = field(default=())
    posts: tuple[tuple[str, str], ...] = field(default=())


def esc(text: str) -> str:
    return html.escape(text, quote=False)


def blocks(text: str) -> list[tuple[str, list[str]]]:
    """("p" | "h" | "li" | "quote" | "row" | "code", texts): neighbouring items and rows together, a row as its cells joined by tabs."""
    found: list[tuple[str, list[str]]] = []
    for line in text.strip().split("\n"):
        kind, body = "p", line.strip()
        for mark, name in (("# ", "h"), ("- ", "li"), ("> ", "quote"), ("$ ", "code"), ("| ", "row")):
            if line.startswith(mark):
                kind, body = name, line[len(mark) :].strip()
        if kind == "row":
            body = "\t".join(cell.strip() for cell in body.strip("| ").split("|"))
        if found and found[-1][0] == kind and kind in ("li", "row"):
            found[-1][1].append(body)
        else:
            found.append((kind, [body]))
    return found


def gold_of(text: str) -> tuple[str, ...]:
    return tuple(line.replace("\t", " ") for _, lines in blocks(text) for line in lines)


def markup(text: str, p: str = "<p>{}</p>", h: str = "<h2>{}</h2>", table: str = "") -> str:
    """The text as HTML."""
    out = []
    for kind, lines in blocks(text):
        if kind == "li":
            out.append("<ul>" + "".join(f"<li>{esc(line)}</li>\n" for line in lines) + "</ul>")
        elif kind == "row":
            rows = [line.split("\t") for line in lines]
            head = "".join(f"<th>{esc(cell)}</th>" for cell in rows[0])
            body = "".join("<tr>" + "".join(f"<td>{esc(c)}</td>\n" for c in row) + "</tr>\n" for row in rows[1:])
            out.append(f"<table{table}><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>")
        elif kind == "quote":
            out.append(f"<blockquote><p>{esc(lines[0])}</p></blockquote>")
        elif kind == "code":
            out.append(f"<pre><code>{esc(lines[0])}</code></pre>")
        else:
            out.append((h if kind == "h" else p).format(esc(lines[0])))
    return "\n".join(out)


def links(rng: random.Random, count: int, cls: str = "") -> str:
    return "".join(
        f'<li class="{cls}"><a href="/news/{rng.randrange(10**6)}">{esc(h)}</a></li>\n'
        for h in rng.choices(HEADLINES, k=count)
    )


def nav(count: int = 14) -> str:
    return "".join(f'<li><a href="/{n}" title="{b}">{b}</a></li>' for n, b in enumerate(BOARDS[:count]))


SCRIPT = "<script>window.dataLayer=window.dataLayer||[];function gtag(){dataLayer.push(arguments)}gtag('js',new Date());var t='<p>不是內文</p>';</script>"
COOKIE = """<div id="cookie-consent" class="cookie-bar" role="dialog"><p>本網站使用 Cookie 以提供您更好的瀏覽體驗，繼續使用即表示您同意我們的隱私權政策與 Cookie 使用條款。</p>
<button>我同意</button><a href="/privacy">了解更多</a></div>"""
CSS = "<style>.a{color:#333}.b::after{content:'樣式'}</style>" + '<link rel="stylesheet" href="/s.css">' * 3


def head(title: str, site: str) -> str:
    return f"""<!DOCTYPE html><html lang="zh-Hant-TW"><head><meta charset="utf-8"><title>{esc(title)} | {site}</title>
<meta property="og:title" content="{esc(title)}"><meta name="description" content="{site}提供最即時的新聞">{CSS}{SCRIPT}</head>"""


# -- layouts: (title, text, rng) → (html, lines that may be there or not) --------------------------------------------

Layout = Callable[[str, str, random.Random], tuple[str, list[str]]]


def news_portal(title: str, text: str, rng: random.Random) -> tuple[str, list[str]]:
    """A big news site: semantic tags, share bars, related boxes inside the article, app download line."""
    body = markup(text)
    first, _, rest = body.partition("</p>")
    box = f'<div class="related-inline"><strong>延伸閱讀</strong><ul>{links(rng, 3)}</ul></div>'
    page = f"""{head(title, "島嶼新聞網")}<body class="story">{COOKIE}<div id="fb-root"></div><header class="site-header"><a href="/"><img src="logo.png" alt="島嶼新聞網"></a>
<nav><ul>{nav()}</ul></nav><form action="/search"><input name="q" placeholder="搜尋新聞"><button>搜尋</button></form></header>
<div class="breadcrumb"><a href="/">首頁</a> &gt; <a href="/life">生活</a></div><main><article><h1>{esc(title)}</h1>
<div class="meta"><time datetime="2025-02-11T10:20">2025-02-11 10:20</time><span class="author">記者陳怡君</span></div>
<div class="share"><a href="#">分享到 Facebook</a><a href="#">分享到 LINE</a><a href="#">複製連結</a></div>
<figure><img src="1.jpg" alt="圖"><figcaption>▲老街一景。（圖／記者攝）</figcaption></figure>
<div class="article-body">{first}</p>{box}{rest}<p class="app">※ 想看更多新聞？下載島嶼新聞 App，好禮天天抽！</p></div>
<div class="tags"><a href="/t/1">#老街</a> <a href="/t/2">#彰化</a> <a href="/t/3">#古蹟</a></div></article>
<aside><h3>熱門新聞</h3><ol>{links(rng, 10)}</ol></aside></main><section class="recommend"><h2>你可能也喜歡</h2><ul>{links(rng, 8)}</ul></section>
<footer><p>島嶼新聞網版權所有，非經授權，不許轉載本網站內容 © 2025</p><ul><li><a href="/about">關於我們</a></li><li><a href="/ad">廣告刊登</a></li></ul></footer>{SCRIPT}</body></html>"""
    return page, ["2025-02-11 10:20 記者陳怡君", "▲老街一景。（圖／記者攝）"]


def news_divs(title: str, text: str, rng: random.Random) -> tuple[str, list[str]]:
    """A news site without any semantic tag: divs, and the ranking list before the story."""
    paragraphs = markup(text, p='<div class="p">{}</div>', h='<div class="subtitle"><b>{}</b></div>')
    ranks = "".join(
        f'<div class="rank"><span class="no">{n}</span><a href="/r/{n}">{esc(h)}</a></div>'
        for n, h in enumerate(HEADLINES, 1)
    )
    page = f"""{head(title, "晨間快訊")}<body><div id="top"><div class="menu">{"".join(f'<div class="m"><a href="/{b}">{b}</a></div>' for b in BOARDS)}</div></div>
<div id="wrap"><div id="left"><div class="box"><div class="bt">即時排行</div>{ranks}</div><div class="box"><div class="bt">粉絲團</div><div>按讚追蹤，掌握最新消息</div></div></div>
<div id="mid"><div class="ttl">{esc(title)}</div><div class="dt">發布時間：2024/07/03 15:42　更新時間：2024/07/03 16:10</div>
<div id="story">{paragraphs}</div><div class="act"><span>字級</span><span>小</span><span>中</span><span>大</span><span>列印</span></div>
<div class="next"><a href="/p">上一篇：{HEADLINES[3]}</a><a href="/n">下一篇：{HEADLINES[5]}</a></div></div></div>
<div id="bottom"><div>地址：台北市中正區忠孝西路一段 1 號　電話：(02)2345-6789</div><div>Copyright © 晨間快訊 All Rights Reserved.</div></div></body></html>"""
    return page, ["發布時間：2024/07/03 15:42　更新時間：2024/07/03 16:10"]


def news_br(title: str, text: str, rng: random.Random) -> tuple[str, list[str]]:
    """Paragraphs by <br><br> in one div, wrapped lines in the source, an advertisement block in the middle."""
    lines = []
    for kind, parts in blocks(text):
        lines += [part.replace("\t", "　") for part in parts] if kind != "h" else [f"【{part}】" for part in parts]
    wrapped = ["\n".join(line[at : at + 38] for at in range(0, len(line), 38)) for line in map(esc, lines)]
    half = len(wrapped) // 2
    ad = '<div class="ad"><!-- ad --><a href="https://ad.example/1">廣告：天天特價，滿千送百</a></div>'
    story = "<br />\n<br />\n".join(wrapped[:half]) + f"<br /><br />{ad}" + "<br><br>\n".join(wrapped[half:])
    page = f"""{head(title, "地方日報")}<body><div class="hd"><ul>{nav(10)}</ul></div><div class="main-l"><h2 class="t">{esc(title)}</h2>
<span class="date">2023年05月18日 09:30</span> <span class="views">瀏覽數：1,284</span><div class="fs"><a>大</a><a>中</a><a>小</a></div><div class="content">{story}</div>
<div class="kw">關鍵字：<a href="/k1">地方</a>、<a href="/k2">新聞</a></div></div><div class="main-r"><h4>最新消息</h4><ul>{links(rng, 9)}</ul></div>
<div class="ft">地方日報社 版權所有 建議使用 Chrome 瀏覽器，解析度 1280x768 以上瀏覽</div></body></html>"""
    return page, ["2023年05月18日 09:30 瀏覽數：1,284"]


def amp(title: str, text: str, rng: random.Random) -> tuple[str, list[str]]:
    """Every paragraph in nested spans and divs as app frameworks write, lazy content in <template>, hidden duplicate."""
    body = markup(
        text,
        p='<div class="css-1x"><div><span><span dir="auto">{}</span></span></div></div>',
        h='<div role="heading" aria-level="2"><span>{}</span></div>',
    )
    page = f"""{head(title, "讀角獸")}<body><div id="__next"><div class="css-0"><div role="banner"><div class="css-b"><a href="/">讀角獸</a><a href="/login">登入</a><a href="/join">註冊</a></div></div>
<div role="navigation"><a href="/a">首頁</a><a href="/b">熱門</a><a href="/c">追蹤中</a></div><div class="css-m"><div role="main"><div role="heading" aria-level="1"><span>{esc(title)}</span></div>
<div class="css-au"><a href="/@kai">阿凱</a><span>·</span><span>8 分鐘閱讀</span></div>{body}<div class="css-cl"><span>👏</span><span>312</span><span>收藏</span><span>檢舉</span></div></div>
<div role="complementary"><div>作者其他文章</div>{"".join(f'<div><a href="/p/{n}"><span>{esc(h)}</span></a><span>{n + 2} 分鐘閱讀</span></div>' for n, h in enumerate(HEADLINES[:6]))}</div></div>
<div role="contentinfo"><span>© 2025 讀角獸股份有限公司</span><a href="/tos">服務條款</a></div></div></div><template><p>載入中，請稍候</p></template>
<noscript>您的瀏覽器不支援 JavaScript，請開啟後再瀏覽本網站。</noscript><script type="application/ld+json">{{"@type":"Article","headline":"{esc(title)}"}}</script></body></html>"""
    return page, ["阿凱 8 分鐘閱讀"]


def wordpress(title: str, text: str, rng: random.Random) -> tuple[str, list[str]]:
    """WordPress: post, tags, comments, sidebar widgets."""
    comments = [
        ("小魚", "寫得好詳細，收藏了！"),
        ("匿名", "請問第二天的部分可以再多說一點嗎？"),
        ("版主", "有空會補上，謝謝來訪。"),
    ]
    listed = "".join(
        f'<li class="comment"><div class="comment-author"><cite>{a}</cite> 說道：</div><div class="comment-meta"><a href="#c">2024 年 3 月 {n + 2} 日 下午 1:0{n}</a></div><p>{c}</p><a class="comment-reply-link" href="#">回覆</a></li>'
        for n, (a, c) in enumerate(comments)
    )
    page = f"""{head(title, "小島日常")}<body class="post-template-default single"><a class="skip-link" href="#content">跳至主要內容</a><div class="site"><header id="masthead"><p class="site-title"><a href="/">小島日常</a></p>
<p class="site-description">慢慢走，比較快</p><nav><ul class="menu">{nav(6)}</ul></nav></header><div id="content"><main><article class="post type-post"><header class="entry-header"><h1 class="entry-title">{esc(title)}</h1>
<div class="entry-meta">發表於 <time>2024 年 3 月 1 日</time>，作者：<a href="/author">小島</a></div></header><div class="entry-content">{markup(text)}
<div class="sharedaddy"><h3>分享此文：</h3><ul><li><a href="#">按一下即可分享至 X</a></li><li><a href="#">按一下以分享至 Facebook</a></li></ul></div><div id="jp-relatedposts"><h3>相關</h3><a href="/1">{HEADLINES[8]}</a></div></div>
<footer class="entry-footer">分類：<a href="/cat">旅行</a>　標籤：<a href="/t">花蓮</a>、<a href="/t2">火車</a></footer></article>
<nav class="post-navigation"><a href="/prev">← 上一篇文章</a><a href="/next">下一篇文章 →</a></nav><div id="comments"><h2>在〈{esc(title)}〉中有 3 則留言</h2><ol class="comment-list">{listed}</ol>
<div id="respond"><h3>發佈留言</h3><form><p>發佈留言必須填寫的電子郵件地址不會公開。 必填欄位標示為 *</p><textarea></textarea></form></div></div></main>
<aside id="secondary"><section class="widget"><h2>近期文章</h2><ul>{links(rng, 5)}</ul></section><section class="widget"><h2>彙整</h2><ul>{"".join(f'<li><a href="/{n}">2023 年 {n} 月</a> ({n * 3})</li>' for n in range(1, 13))}</ul></section>
<section class="widget"><h2>關於我</h2><p>住在東部的上班族，喜歡火車和貓。合作邀約請來信。</p></section></aside></div><footer id="colophon">本站由 WordPress 建置</footer></div></body></html>"""
    also = [f"發表於 2024 年 3 月 1 日，作者：小島 在〈{title}〉中有 3 則留言"] + [
        f"{a} 說道：2024 年 3 月 {n + 2} 日 下午 1:0{n} {c} 回覆" for n, (a, c) in enumerate(comments)
    ]
    return page, also


def pixnet(title: str, text: str, rng: random.Random) -> tuple[str, list[str]]:
    """A blog host of the 2000s: nested tables and divs, font tags, image after each paragraph, text broken by <br>."""
    parts = []
    for kind, lines in blocks(text):
        for line in lines:
            line = line.replace("\t", "：")
            mark = (
                '<b><font color="#cc0000" size="4">{}</font></b>'
                if kind == "h"
                else '<span style="font-size:12pt;">{}</span>'
            )
            parts.append(
                f'<p style="text-align:center">{mark.format(esc(line))}</p><p><img src="/{rng.randrange(999)}.jpg" alt="IMG_{rng.randrange(9999)}"></p><p>&nbsp;</p>'
            )
    page = f"""{head(title, "布丁狗的窩 :: 隨意窩")}<body><div id="container"><div id="banner"><h1><a href="/">布丁狗的窩</a></h1><h2>吃吃喝喝過生活</h2></div><div id="hot"><ul>{nav(8)}</ul></div><table width="100%"><tr><td valign="top" width="200">
<div class="sidebox"><h4>文章分類</h4><ul>{"".join(f'<li><a href="/c/{n}">{b}美食</a> ({n})</li>' for n, b in enumerate(("台北", "台中", "台南", "高雄", "宜蘭", "花蓮")))}</ul></div><div class="sidebox"><h4>參觀人氣</h4><p>本日人氣： 128</p><p>累積人氣： 2,345,678</p></div></td>
<td valign="top"><div class="article"><ul class="article-head"><li class="publish"><span class="month">Mar</span> <span class="date">11</span> <span class="year">2012</span> <span class="time">22:15</span></li><li class="title"><h2><a href="/post/1">{esc(title)}</a></h2></li></ul>
<div class="article-content-inner">{"".join(parts)}</div><div class="article-footer"><ul><li>全站分類：<a href="/x">國內旅遊</a></li><li>個人分類：<a href="/y">東部</a></li><li>此分類上一篇：<a href="/z">{HEADLINES[6]}</a></li></ul></div></div>
<div class="comments"><h3>留言列表 (1)</h3><ul><li>#1 路過 於 2012/03/12 09:01 <p>好好吃的樣子，下次跟你去！</p></li></ul></div></td></tr></table></div></body></html>"""
    return page, ["Mar 11 2012 22:15", "#1 路過 於 2012/03/12 09:01 好好吃的樣子，下次跟你去！"]


def homepage_1999(title: str, text: str, rng: random.Random) -> tuple[str, list[str]]:
    """A page of 1999: unclosed tags in capitals, layout tables, counter, marquee, best viewed with."""
    body = "".join(
        f"<P>{esc(line)}\n" if kind != "h" else f"<P><B>★{esc(line)}★</B>\n"
        for kind, lines in blocks(text)
        for line in (part.replace("\t", "　") for part in lines)
    )
    page = f"""<HTML><HEAD><META HTTP-EQUIV="Content-Type" CONTENT="text/html; charset=utf-8"><TITLE>{esc(title)}</TITLE></HEAD><BODY BGCOLOR=#FFFFCC BACKGROUND="bg.gif"><MARQUEE>歡迎光臨小明的家～請多多指教</MARQUEE>
<TABLE BORDER=0 WIDTH=760><TR><TD WIDTH=140 VALIGN=TOP><A HREF="index.htm">回首頁</A><BR><A HREF="about.htm">自我介紹</A><BR><A HREF="photo.htm">相片簿</A><BR><A HREF="guest.htm">留言版</A><BR><A HREF="link.htm">好站連結</A>
<TD><CENTER><FONT SIZE=5 COLOR=BLUE>{esc(title)}</FONT></CENTER><HR>{body}<HR><A HREF="#top">回頂端</A></TABLE>
<CENTER>您是第 <IMG SRC="/cgi-bin/count.cgi" ALT="12345"> 位訪客<BR>建議使用 IE5.0 以上，800x600 解析度瀏覽<BR>最後更新日期：1999/11/03</CENTER></BODY></HTML>"""
    return page, ["最後更新日期：1999/11/03"]


def government(title: str, text: str, rng: random.Random) -> tuple[str, list[str]]:
    """A government site: ::: access keys, site map links, attachment list, counters."""
    page = f"""{head(title, "區公所全球資訊網")}<body><noscript>您的瀏覽器不支援 JavaScript 語法，網站的程式功能將無法正常呈現</noscript><a href="#C" class="goCenter">跳到主要內容區塊</a><div class="header"><a href="#U" accesskey="U">:::</a><a href="/sitemap">網站導覽</a><a href="/">回首頁</a><a href="/en">English</a><a href="/faq">常見問答</a><a href="/mail">首長信箱</a></div>
<div class="menu"><ul>{"".join(f'<li><a href="/{n}">{t}</a><ul><li><a href="/{n}1">{t}一覽</a></li></ul></li>' for n, t in enumerate(("機關簡介", "便民服務", "公告訊息", "主題專區", "政府資訊公開", "下載專區")))}</ul></div>
<div class="center"><a href="#C" accesskey="C" id="C">:::</a><div class="path">現在位置：<a href="/">首頁</a> / <a href="/n">公告訊息</a> / 最新消息</div><h2 class="title">{esc(title)}</h2><ul class="tools"><li><a href="#">友善列印</a></li><li><a href="#">轉寄好友</a></li></ul>
<section class="cp">{markup(text, h="<h3>{}</h3>", table=' border="1" summary="表格"')}</section><div class="file_download"><h4>相關附件</h4><ul><li><a href="/f.pdf">申請書.pdf (120 KB)</a></li><li><a href="/f.odt">申請書.odt (80 KB)</a></li></ul></div>
<div class="info"><ul><li>市府分類：社會福利</li><li>最後異動時間：2025-01-06 10:11</li><li>發布日期：2025-01-06</li><li>發布單位：社會課</li><li>點閱次數：532</li></ul></div><a href="javascript:history.back()">回上一頁</a></div>
<div class="footer"><a href="#Z" accesskey="Z">:::</a><p>地址：420 臺中市豐原區市政路 2 號　總機：04-25263126</p><p>辦公時間：週一至週五 08:00-12:00、13:00-17:00</p><a href="/privacy">隱私權及資訊安全宣告</a><img src="a.png" alt="通過AA無障礙網頁檢測"></div></body></html>"""
    return page, [
        "市府分類：社會福利 最後異動時間：2025-01-06 10:11 發布日期：2025-01-06 發布單位：社會課 點閱次數：532"
    ]


def mediawiki(title: str, text: str, rng: random.Random) -> tuple[str, list[str]]:
    """MediaWiki: contents box, [編輯] links, footnotes, navigation box, categories."""
    linked = markup(
        text,
        h='<h2><span class="mw-headline">{0}</span><span class="mw-editsection">[<a href="/e">編輯</a>]</span></h2>',
    )
    linked = linked.replace("臺灣", '<a href="/wiki/tw">臺灣</a>').replace(
        "嘉義", '<a href="/wiki/cy">嘉義</a><sup class="reference"><a href="#cite">[1]</a></sup>', 1
    )
    headings = [line for kind, lines in blocks(text) if kind == "h" for line in lines]
    toc = "".join(f'<li><a href="#{n}"><span>{n}</span> <span>{h}</span></a></li>' for n, h in enumerate(headings, 1))
    page = f"""{head(title, "百科")}<body class="mediawiki"><div id="mw-page-base"></div><div id="content" class="mw-body" role="main"><h1 id="firstHeading">{title}</h1><div id="bodyContent"><div id="siteSub">維基百科，自由的百科全書</div><div id="jump-to-nav"><a href="#n">跳至導覽</a></div>
<div id="mw-content-text"><div class="mw-parser-output"><table class="infobox"><tr><th colspan="2">{title}</th></tr><tr><th>國家</th><td>臺灣</td></tr></table>{linked.replace("</p>", f'</p><div id="toc" class="toc"><h2>目次</h2><ul>{toc}</ul></div>', 1)}
<h2><span class="mw-headline">參考文獻</span><span class="mw-editsection">[<a href="/e">編輯</a>]</span></h2><div class="reflist"><ol><li id="cite"><a href="#r">^</a> <cite>王某某. <a href="http://x">某某志</a>. 1998.</cite></li></ol></div>
<div class="navbox" role="navigation"><table><tr><th>相關條目</th><td><a href="/1">鐵路</a> · <a href="/2">森林</a> · <a href="/3">茶</a></td></tr></table></div></div></div><div id="catlinks"><a href="/c">分類</a>：<ul><li><a href="/c1">臺灣文化</a></li></ul></div></div></div>
<div id="mw-navigation"><h2>導覽選單</h2><div id="p-personal"><ul><li>沒有登入</li><li><a href="/t">討論</a></li><li><a href="/c">貢獻</a></li></ul></div><div id="p-views"><ul><li><a>閱讀</a></li><li><a>編輯</a></li><li><a>檢視歷史</a></li></ul></div></div>
<footer id="footer"><ul><li>本頁面最後修訂於 2024年5月1日 (星期三) 12:00。</li><li>本站的全部文字在創用CC 姓名標示-相同方式分享 4.0協議之條款下提供</li></ul></footer></body></html>"""
    return page, [f"{title} 國家 臺灣 參考文獻 王某某. 某某志. 1998. 維基百科，自由的百科全書"]


def shop(title: str, text: str, rng: random.Random) -> tuple[str, list[str]]:
    """A product page: price, options, cart, long policy tab, other buyers also bought."""
    page = f"""{head(title, "好物選品")}<body><div class="topbar">全館滿 999 免運｜<a href="/login">會員登入</a>｜<a href="/cart">購物車 (0)</a></div><div class="cats"><ul>{"".join(f'<li><a href="/c{n}">{c}</a></li>' for n, c in enumerate(("咖啡器具", "餐廚", "居家", "文具", "戶外")))}</ul></div>
<div class="product"><div class="gallery"><img src="a.jpg"><img src="b.jpg"></div><div class="info"><h1>{esc(title)}</h1><div class="price"><del>NT$ 1,680</del> <b>NT$ 1,280</b></div><select><option>霧黑</option><option>米白</option></select><button>加入購物車</button><button>立即購買</button></div></div>
<div class="tabs"><a href="#d">商品描述</a><a href="#s">送貨及付款方式</a><a href="#r">顧客評價</a></div><div id="description">{markup(text)}</div><div id="ship"><ul><li>宅配</li><li>7-11 取貨</li></ul></div>
<div class="also"><h3>購買此商品的顧客也買了</h3>{"".join(f'<div class="card"><a href="/p{n}"><img src="{n}.jpg"><span>{p}</span></a><span>NT$ {n * 130 + 90}</span></div>' for n, p in enumerate(("濾紙 100 張", "電子秤", "雲朵壺", "手搖磨豆機", "隨行杯")))}</div>
<div class="footer"><p>客服時間：週一至週五 10:00-18:00</p><p>統一編號 12345675</p></div></body></html>"""
    return page, ["NT$ 1,680 NT$ 1,280 宅配 7-11 取貨"]


def plain(title: str, text: str, rng: random.Random) -> tuple[str, list[str]]:
    """A small site: header, one section, footer; paragraphs are short."""
    page = f"""{head(title, "小站")}<body><header><a href="/">小站</a><nav><a href="/a">關於</a> <a href="/b">文章</a> <a href="/c">聯絡</a></nav></header><section><h1>{esc(title)}</h1>{markup(text)}</section><footer><small>© 小站</small></footer></body></html>"""
    return page, []


def stanza(title: str, text: str, rng: random.Random) -> tuple[str, list[str]]:
    """A literary site: lines of a poem by <br>, next to a list of poets."""
    lines = "<br>\n".join(esc(line) for line in text.strip().split("\n"))
    page = f"""{head(title, "詩路")}<body><table><tr><td><ul>{"".join(f'<li><a href="/{n}">詩人{n}號</a></li>' for n in range(20))}</ul></td><td><h3>{title}</h3><p>{lines}</p><p><a href="/back">回目錄</a></p></td></tr></table></body></html>"""
    return page, []


# -- all of them -------------------------------------------------------------------------------------------------

USED: list[tuple[str, list[Layout], dict[str, str]]] = [
    ("news", [news_portal, news_divs, news_br, amp], NEWS),
    ("blog", [wordpress, pixnet, homepage_1999, amp], BLOG),
    ("government", [government, government, plain], GOV),
    ("recipe", [wordpress, pixnet], RECIPES),
    ("wiki", [mediawiki, mediawiki], WIKI),
    ("other", [shop, plain, stanza, government, wordpress, news_divs], OTHERS),
]
FORUMS = [forums.bbs, forums.bbs, forums.board, forums.card, forums.questions]


def pages() -> Iterator[Page]:
    """All pages, in order: every second one of a kind is of the split "test"."""
    rng, count = random.Random(6), dict[str, int]()

    def split_of(kind: str) -> str:
        count[kind] = count.get(kind, 0) + 1
        return "tune" if count[kind] % 2 else "test"

    for kind, layouts, texts in USED:
        for number, (title, text) in enumerate(texts.items()):
            for layout in (layouts[number % len(layouts)], layouts[(number + 1) % len(layouts)]):
                page, also = layout(title, text, rng)
                if layout in (news_br, homepage_1999):
                    text = text.replace("$ ", "")
                yield Page(
                    f"{kind}/{layout.__name__}/{title[:12]}",
                    kind,
                    split_of(kind),
                    page,
                    (title, *gold_of(text)),
                    tuple(also),
                )
    for number, (title, posts) in enumerate(THREADS.items()):
        for way in (FORUMS[number], FORUMS[(number + 2) % len(FORUMS)]):
            gold = (title, *(line for _, text in posts for line in text.split("\n") if line))
            also = forum_extras(posts)
            yield Page(
                f"forum/{way.__name__}/{title[:12]}",
                "forum",
                split_of("forum"),
                way(title, posts, rng),
                gold,
                also,
                tuple(posts),
            )
    story = list(gold_of(NEWS["國中生自製淨灘機器人　環保署頒獎"]))
    talk = [post for posts in THREADS.values() for post in posts[1:] if "\n" not in post[1]]
    singles = (forums.notation(), forums.eatery(), forums.comments_heavy("國中生自製淨灘機器人", story, talk))
    empty = (forums.wall(), forums.link_list(rng, HEADLINES), forums.missing())
    for kind, group in (("single", singles), ("empty", empty)):
        for title, page, gold, also in group:
            yield Page(f"{kind}/{title[:12]}", kind, split_of(kind), page, tuple(gold), tuple(also))


def forum_extras(posts: list[tuple[str, str]]) -> tuple[str, ...]:
    """Of a thread, what may stand beside the posts: authors, floors, times."""
    found = [
        "作者標題時間 Mon Mar 10 12:00:01 2025 (路人) 發信站: 批踢踢實業坊(ptt.cc), 來自: 1.160.0.1 (臺灣) 文章網址 https://x.example/M.1.A.html"
    ]
    for number, (author, _) in enumerate(posts):
        found += [
            author,
            f"{number + 1}樓發表於 2024-5-{number + 10} 21:0{number}",
            f"B{number}・3 月 {number} 日 12:3{number}",
            f": 03/1{number} 12:0{number}推噓→",
        ]
        found += [f"回答於 2023年4月{number + 1}日提問於 2023年4月{number + 1}日{author}"]
    return tuple(found)
