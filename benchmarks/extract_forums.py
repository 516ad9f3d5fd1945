"""Forum threads, questions and answers, phone pages, notation: the layouts of extract_pages.py that are not articles.

A thread's `posts` are (author, text); authors, floors and times may be there or not, but `boundaries` in extract_quality.py asks that each post
stands apart and behind its author.
"""

import html
import random

from extract_texts import MENU

Posts = list[tuple[str, str]]
BOARDS = ("男女", "居家生活", "單車", "美食", "感情", "工作", "穿搭", "寵物")


def esc(text: str) -> str:
    return html.escape(text, quote=False)


def head(title: str, site: str) -> str:
    return f'<!DOCTYPE html><html lang="zh-TW"><head><meta charset="utf-8"><title>{esc(title)} - {site}</title><script>var a="<div>不是內文</div>";</script><style>.x{{}}</style></head>'


def lines(text: str) -> str:
    return "<br>\n".join(map(esc, text.split("\n")))


def bbs(title: str, posts: Posts, rng: random.Random) -> str:
    """A BBS article on the web: preformatted text between spans, pushes as divs."""
    author, text = posts[0]
    pushes = "".join(
        f'<div class="push"><span class="hl push-tag">{rng.choice("推噓→")} </span><span class="f3 hl push-userid">{esc(a)}</span><span class="f3 push-content">: {esc(t)}</span><span class="push-ipdatetime"> 03/1{n} 12:0{n}\n</span></div>'
        for n, (a, t) in enumerate(posts[1:])
    )
    return f"""{head(title, "批踢踢實業坊")}<body><div id="topbar-container"><div id="topbar"><a id="logo" href="/bbs/">批踢踢實業坊</a><span>›</span><a class="board" href="/bbs/x"><span>看板 </span>x</a><a href="/about.html">關於我們</a><a href="/contact.html">聯絡資訊</a></div></div>
<div id="navigation-container"><div id="navigation"><a href="/bbs/x/index.html">返回看板</a><a href="#">分享</a></div></div><div id="main-container"><div id="main-content" class="bbs-screen bbs-content"><div class="article-metaline"><span class="article-meta-tag">作者</span><span class="article-meta-value">{author} (路人)</span></div><div class="article-metaline"><span class="article-meta-tag">標題</span><span class="article-meta-value">{esc(title)}</span></div><div class="article-metaline"><span class="article-meta-tag">時間</span><span class="article-meta-value">Mon Mar 10 12:00:01 2025</span></div>
{esc(text)}

--
<span class="f2">※ 發信站: 批踢踢實業坊(ptt.cc), 來自: 1.160.0.1 (臺灣)
</span><span class="f2">※ 文章網址: <a href="https://x.example/M.1.A.html">https://x.example/M.1.A.html</a>
</span>{pushes}</div><div id="article-polling"></div></div></body></html>"""


def board(title: str, posts: Posts, rng: random.Random) -> str:
    """A discussion board of the Discuz kind: a table a floor, the author's box at the left, signature, rating bars."""
    floors = "".join(
        f"""<div id="post_{n}"><table class="plhin" cellspacing="0"><tr><td class="pls" rowspan="2"><div class="authi"><a href="/u{n}">{esc(a)}</a></div><div class="tns"><table><tr><th><p><a href="/t">{n * 7 + 3}</a></p>主題</th><th><p>{n * 31}</p>帖子</th><td><p>{n * 99}</p>積分</td></tr></table></div><p><em><a href="/g">中級會員</a></em></p></td>
<td class="plc"><div class="pi"><strong><a href="#{n}">{n + 1}樓</a></strong><em>發表於 2024-5-{n + 10} 21:0{n}</em><span>|</span><a href="/only">只看該作者</a></div><div class="pct"><table><tr><td class="t_f">{lines(t)}</td></tr></table></div></td></tr><tr><td class="plc plm"><div class="sign">一天一蘋果，醫生遠離我</div></td></tr><tr><td class="pls"></td><td class="plc"><a href="/re">回覆</a><a href="/up">支持</a><a href="/down">反對</a><a href="/rep">舉報</a></td></tr></table></div>"""
        for n, (a, t) in enumerate(posts)
    )
    return f"""{head(title, "單車論壇")}<body><div id="toptb"><a>設為首頁</a><a>收藏本站</a></div><div id="nv"><ul>{"".join(f'<li><a href="/{b}">{b}</a></li>' for b in BOARDS)}</ul></div><form id="lsform"><label>帳號</label><input><label>密碼</label><input><button>登錄</button><a>找回密碼</a></form>
<div id="pt"><a href="/">論壇</a> › <a href="/f">裝備</a> › {esc(title)}</div><div id="postlist"><table><tr><td>查看: <span>3127</span> | 回覆: <span>{len(posts) - 1}</span></td><td><h1><a href="/t">{esc(title)}</a></h1></td></tr></table>{floors}</div>
<div id="f_pst"><form><table><tr><td>您需要登錄後才可以回帖 <a>登錄</a> | <a>立即註冊</a></td></tr></table></form></div><div id="ft">Powered by 論壇 X3.4 | <a>手機版</a> | <a>小黑屋</a> GMT+8, 2024-5-20 10:00</div></body></html>"""


def card(title: str, posts: Posts, rng: random.Random) -> str:
    """A students' forum as an app renders it: hashed class names, floors as B1, B2, reactions, recommended posts behind."""
    first, *rest = posts
    replies = "".join(
        f'<div class="c_{n}x"><div class="d1"><div class="e2"><span>{esc(a)}</span></div><div class="f3"><span>B{n}</span><span>・</span><span>3 月 {n} 日 12:3{n}</span></div></div><div class="g4"><div><span>{lines(t)}</span></div></div><div class="h5"><button>愛心 {n * 3}</button><button>回覆</button></div></div>'
        for n, (a, t) in enumerate(rest, 1)
    )
    more = "".join(
        f'<div class="r1"><a href="/p/{n}"><h2>{t}</h2><p>{t}，想聽大家的意見，先謝謝各位…</p></a><span>{n * 12} 則留言</span></div>'
        for n, t in enumerate(("宿舍室友半夜打電動", "期中考週的宵夜", "打工面試穿什麼"), 1)
    )
    return f"""{head(title, "島卡")}<body><div id="__next"><header class="a1"><a href="/">島卡</a><input placeholder="搜尋"><a href="/signup">註冊 / 登入</a></header><div class="b1"><nav class="n1">{"".join(f'<a href="/f/{b}"><span>{b}</span></a>' for b in BOARDS)}</nav><main class="m1"><article class="p1"><div class="q1"><span>{esc(first[0])}</span></div><h1>{esc(title)}</h1><div class="t1"><a href="/f/x">居家生活</a><span>・</span><time>3 月 1 日 10:00</time></div><div class="s1"><div><span>{lines(first[1])}</span></div></div><div class="k1"><a href="/topics/1">生活</a><a href="/topics/2">開箱</a></div><footer><span>268</span><span>・</span><span>留言 {len(rest)}</span><button>收藏</button></footer></article>
<section class="w1"><div>共 {len(rest)} 則留言</div>{replies}</section><section class="z1"><div>推薦文章</div>{more}</section></main></div></div></body></html>"""


def questions(title: str, posts: Posts, rng: random.Random) -> str:
    """Questions and answers: votes, schema.org, a list of linked questions."""

    def one(n: int, author: str, text: str) -> str:
        paragraphs = "".join(f"<p>{esc(part)}</p>" for part in text.split("\n"))
        return f"""<div class="{"answer" if n else "question"}" itemscope itemtype="https://schema.org/{"Answer" if n else "Question"}"><div class="votecell"><button>▲</button><span>{n * 4 + 2}</span><button>▼</button></div><div class="postcell"><div class="s-prose" itemprop="text">{paragraphs}</div><div class="post-menu"><a>分享</a><a>改善這個回答</a><a>追蹤</a></div><div class="user-info"><span>{"回答" if n else "提問"}於 2023年4月{n + 1}日</span><a href="/users/{n}">{esc(author)}</a><span>{n * 211} ●{n} ●{n + 3}</span></div></div></div>"""

    shown = "".join(one(n, a, t) for n, (a, t) in enumerate(posts))
    linked = "".join(
        f'<li><a href="/q/{n}">{t}</a> <span>{n * 5}</span></li>'
        for n, t in enumerate(("為什麼電鍋跳起來飯還沒熟", "五花肉去腥的方法", "醬油要什麼時候放"), 1)
    )
    return f"""{head(title, "知識問答")}<body><header><a href="/">知識問答</a><form><input placeholder="搜尋問題"></form><ol><li><a>登入</a></li><li><a>註冊</a></li></ol></header><div class="container"><div id="left-sidebar"><ul><li><a>首頁</a></li><li><a>問題</a></li><li><a>標籤</a></li><li><a>使用者</a></li></ul></div><div id="content"><div id="question-header"><h1><a href="/q">{esc(title)}</a></h1><a class="ask">提出問題</a></div><div>於 2 年前提問 已檢視 3k 次</div><div id="mainbar">{shown}</div><div id="sidebar"><div>相關問題</div><ul>{linked}</ul></div></div></div><footer><ul><li><a>關於</a></li><li><a>聯絡</a></li></ul><p>使用者貢獻的內容依 CC BY-SA 授權</p></footer></body></html>"""


# -- single pages: (title, html, gold, also) ---------------------------------------------------------------------


def notation() -> tuple[str, str, list[str], list[str]]:
    """A picture-book page with Bopomofo beside each character."""
    words = "小兔子在森林裡遇見一隻迷路的螢火蟲，牠們決定一起走到月亮出來的地方。"
    second = "螢火蟲說：「我的燈快要沒電了。」小兔子把耳朵借給牠擋風，燈就又亮了起來。"
    ruby = "".join(f"<ruby>{c}<rp>(</rp><rt>ㄅㄚˊ</rt><rp>)</rp></ruby>" if c not in "，。：「」" else c for c in words)
    legacy = "".join(f"<ruby><rb>{c}</rb><rt>ㄇㄛ</rt></ruby>" if c not in "，。：「」" else c for c in second)
    page = f"""{head("小兔子與螢火蟲", "注音故事屋")}<body><header><nav><a href="/1">故事</a><a href="/2">兒歌</a></nav></header><main><h1>小兔子與螢火蟲</h1><p>{ruby}</p><p>{legacy}</p></main><footer>注音故事屋</footer></body></html>"""
    return "小兔子與螢火蟲", page, ["小兔子與螢火蟲", words, second], []


def eatery() -> tuple[str, str, list[str], list[str]]:
    """A restaurant's menu as a table between two short paragraphs, on a phone page with a hidden drawer."""
    rows = "".join(f"<tr><td>{d}</td><td>{p}</td></tr>" for d, p in MENU)
    intro, end = (
        "我們家從阿公那一代就在廟口賣滷肉飯，每天早上五點開始滷，賣完就收。",
        "每週一公休，颱風天看阿嬤心情。外帶請提前二十分鐘打電話。",
    )
    page = f"""{head("阿財滷肉飯菜單", "阿財")}<body><div class="drawer" aria-hidden="true" style="display:none"><ul><li><a href="/">首頁</a></li><li><a href="/menu">菜單</a></li><li><a href="/map">怎麼來</a></li></ul></div><div class="m-head"><a class="burger" href="#">☰</a><span>阿財滷肉飯</span></div><div class="m-body"><h1>菜單</h1><p>{intro}</p><table class="menu">{rows}</table><p>{end}</p></div><div class="m-fix"><a href="tel:042222">打電話</a><a href="/line">加 LINE</a></div></body></html>"""
    return "阿財滷肉飯菜單", page, ["菜單", intro, *(f"{d} {p}" for d, p in MENU), end], ["阿財滷肉飯"]


def wall() -> tuple[str, str, list[str], list[str]]:
    """Nothing but a consent wall: no main text."""
    page = f"""{head("在繼續之前", "搜尋")}<body><div class="consent-wall" role="dialog"><h1>在繼續之前，請先閱讀 Cookie 說明</h1><p>我們使用 Cookie 和資料來提供及維護服務、追蹤服務中斷情形，並防範垃圾內容、詐騙和濫用行為。</p><p>如果你選擇「全部接受」，我們也會使用 Cookie 和資料來開發新服務、放送廣告並評估成效。</p><button>全部拒絕</button><button>全部接受</button><a>更多選項</a></div></body></html>"""
    return "在繼續之前", page, [], []


def link_list(rng: random.Random, titles: list[str]) -> tuple[str, str, list[str], list[str]]:
    """A category page: titles with dates, paging."""
    items = "".join(
        f'<div class="item"><a href="/n/{n}"><img src="/{n}.jpg" alt=""><h3>{esc(t)}</h3></a><span>2025-03-{n + 10}</span></div>'
        for n, t in enumerate(titles)
    )
    page = f"""{head("最新消息", "晨間快訊")}<body><div class="nav">{"".join(f'<a href="/{b}">{b}</a>' for b in BOARDS)}</div><h1>最新消息</h1><div class="list">{items}</div><div class="pager"><a>1</a><a>2</a><a>3</a><a>下一頁</a></div><div class="foot">版權所有</div></body></html>"""
    return "最新消息", page, [], ["最新消息"]


def missing() -> tuple[str, str, list[str], list[str]]:
    """An error page that answers 200."""
    page = f"""{head("找不到網頁", "縣政府")}<body><div class="menu"><ul><li><a href="/1">機關簡介</a></li><li><a href="/2">便民服務</a></li></ul></div><div class="c"><h2>404</h2><p>很抱歉，您要找的網頁不存在。</p><a href="/">回首頁</a></div><div class="footer"><p>地址：500 彰化市中山路二段 416 號</p></div></body></html>"""
    return "找不到網頁", page, [], ["404 很抱歉，您要找的網頁不存在。"]


def comments_heavy(title: str, article: list[str], posts: Posts) -> tuple[str, str, list[str], list[str]]:
    """A short article below which many readers write: the article is the main text, the comments may be there."""
    talk = "".join(
        f'<li class="fb-c"><b>{esc(a)}</b><span>{esc(t)}</span><i>讚 · 回覆 · 2天</i></li>' for a, t in posts
    )
    body = "".join(f"<p>{esc(line)}</p>" for line in article)
    page = f"""{head(title, "地方小報")}<body><div class="nav"><a href="/">首頁</a><a href="/2">地方</a></div><div class="post"><h1>{esc(title)}</h1><div class="txt">{body}</div></div><div class="comments" id="comments"><h3>{len(posts)} 則回應</h3><ul>{talk}</ul></div><div class="login">登入後才能留言</div></body></html>"""
    return title, page, [title, *article], [f"{len(posts)} 則回應", *(f"{a}{t}讚 · 回覆 · 2天" for a, t in posts)]
