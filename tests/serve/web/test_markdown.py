"""Markdown, maths and highlighting of the pages, run in the browser that will show them. One page, many small cases."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.serve.web.browser import browser, fulfil_from_folder, needs_browser

pytestmark = needs_browser
__all__ = ["browser"]  # a fixture


@pytest.fixture(scope="module")
def show(browser: Any) -> Iterator[Any]:
    """`show(markdown)` gives the HTML that the page makes of it. The files come from the folder, there is no server."""
    context = browser.new_context()
    page = context.new_page()
    page.route("**/*", lambda route: fulfil_from_folder(route))
    page.goto("http://web.test/icon.svg")
    page.goto("http://web.test/leaderboard.html")
    page.evaluate("async () => { window.markdown = await import('/text/markdown.js'); }")
    call = "(text) => { const box = document.createElement('div'); markdown.render(box, text); return box.innerHTML; }"

    def show(text: str) -> str:
        return str(page.evaluate(call, text))

    show.page = page  # type: ignore[attr-defined]
    yield show
    context.close()


CASES = [
    ("# 一\n## 二", "<h3>一</h3><h4>二</h4>"),
    ("一行\n二行", "<p>一行\n二行</p>"),
    ("**粗***斜*", "<p><strong>粗</strong><em>斜</em></p>"),
    ("**「重點」**是", "<p><strong>「重點」</strong>是</p>"),  # CommonMark leaves these stars standing
    ("他說**「好。」**然後走了", "<p>他說<strong>「好。」</strong>然後走了</p>"),
    ("***都有***", "<p><strong><em>都有</em></strong></p>"),
    ("~~刪~~ 2 * 3 * 4", "<p><del>刪</del> 2 * 3 * 4</p>"),
    ("snake_case_name", "<p>snake_case_name</p>"),
    ("`a*b*` ``c`d``", "<p><code>a*b*</code> <code>c`d</code></p>"),
    (r"\*不是斜體\*", "<p>*不是斜體*</p>"),
    ("沒關的 **粗", "<p>沒關的 **粗</p>"),
    ("---", "<hr>"),
    ("> 引\n> - 一", "<blockquote><p>引</p><ul><li>一</li></ul></blockquote>"),
    ("- 一\n  - 二\n    - 三\n- 四", "<ul><li>一<ul><li>二<ul><li>三</li></ul></li></ul></li><li>四</li></ul>"),
    ("3. 三\n4. 四", '<ol start="3"><li>三</li><li>四</li></ol>'),
    ("1、甲\n2、乙", '<ol start="1"><li>甲</li><li>乙</li></ol>'),
    ("1. 一\n\n2. 二", '<ol start="1"><li><p>一</p></li><li>二</li></ol>'),
    ("段落\n- 項", "<p>段落</p><ul><li>項</li></ul>"),
    ("第一<br>第二", "<p>第一<br>第二</p>"),
]


@pytest.mark.parametrize(("text", "html"), CASES, ids=range(len(CASES)))
def test_markdown(show: Any, text: str, html: str) -> None:
    assert show(text) == html


def test_tables_code_tasks_and_links(show: Any) -> None:
    table = show("| 山 | 高 |\n|:-:|--:|\n| **玉山** | 3952 |\n| a\\|b |")
    assert '<th class="center" scope="col">山</th>' in table
    assert '<td class="end">3952</td>' in table
    assert "<strong>玉山</strong>" in table
    assert "a|b" in table
    code = show("```python\nif x:  # 註\n    return '字'\n```")
    for kind in ('keyword">if', 'comment"># 註', "string\">'字'"):
        assert f'<span class="hl-{kind}</span>' in code
    assert "if x" in show("```\nif x\n```")
    assert "</code></pre>" in show("```js\nwhile (還沒寫完")  # the fence is open while the answer is written
    assert show("- [x] 做\n- [ ] 沒做").count('<input type="checkbox"') == 2
    nested = show("1. 步驟\n   ```sh\n   ls -l\n   ```\n2. 下一步")
    assert nested.count("<li>") == 2
    assert '<span class="hl-name">-l</span>' in nested
    link = show("[台灣](https://zh.wikipedia.org/wiki/台灣_(島)) 見 https://example.org/a?b=1。好")
    assert 'href="https://zh.wikipedia.org/wiki/台灣_(島)"' in link
    assert link.endswith(">https://example.org/a?b=1</a>。好</p>")
    assert 'rel="noopener noreferrer nofollow"' in link
    assert "<img" not in show("![山](https://example.org/a.png)")  # nothing is loaded from elsewhere


HOSTILE = [
    "<img src=x onerror=window.hacked=1>",
    "<script>window.hacked=1</script>",
    "[點我](javascript:window.hacked=1)",
    "[點我](JaVaScRiPt:alert(1)) [x](data:text/html,<script>window.hacked=1</script>) [y](vbscript:x)",
    "![x](javascript:window.hacked=1)",
    '[a](https://a.example/"onmouseover="window.hacked=1)',
    "<https://a.example/><svg onload=window.hacked=1>",
    "```<img src=x onerror=window.hacked=1>\n</code></pre><script>window.hacked=1</script>\n```",
    "`<b onclick=window.hacked=1>`",
    "| <img src=x onerror=window.hacked=1> |\n|---|\n| <iframe srcdoc='<script>parent.hacked=1</script>'> |",
    r"$\text{<img src=x onerror=window.hacked=1>}$ $$\frac{<script>}{</script>}$$",
    r"$\href{javascript:window.hacked=1}{x}$ $\constructor$ $\begin{__proto__}x\end{__proto__}$",
    "# <svg/onload=window.hacked=1>",
    "> <a href='javascript:window.hacked=1'>x</a>",
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_nothing_a_model_writes_becomes_markup(show: Any, text: str) -> None:
    found = show.page.evaluate(
        """async (text) => {
            const box = document.createElement('div');
            document.body.append(box);
            markdown.render(box, text);
            const bad = [...box.querySelectorAll('*')].filter((one) =>
                ['IMG', 'SCRIPT', 'IFRAME', 'SVG', 'B', 'OBJECT', 'EMBED', 'STYLE', 'LINK'].includes(one.tagName.toUpperCase())
                    && !one.closest('button')
                || [...one.attributes].some(({name}) => /^on|^style$|^src/.test(name))
                || (one.hasAttribute('href') && !/^(https?|mailto):/.test(one.href)));
            for (const link of box.querySelectorAll('a')) link.dispatchEvent(new MouseEvent('mouseover', {bubbles: true}));
            await new Promise((done) => setTimeout(done, 5));
            const result = {bad: bad.map((one) => one.outerHTML), hacked: window.hacked ?? null, text: box.textContent};
            box.remove();
            return result;
        }""",
        text,
    )
    assert found["bad"] == []
    assert found["hacked"] is None
    assert found["text"].strip()


FORMULAS = [
    (r"$\frac{a}{b}$", "<mfrac><mrow><mi>a</mi></mrow><mrow><mi>b</mi></mrow></mfrac>"),
    (r"\(x^2\)", "<msup><mi>x</mi><mn>2</mn></msup>"),
    (r"$x_i^{2}$", "<msubsup><mi>x</mi><mi>i</mi><mrow><mn>2</mn></mrow></msubsup>"),
    (r"$\sqrt[3]{8}$", "<mroot><mrow><mn>8</mn></mrow><mn>3</mn></mroot>"),
    (r"$\alpha\le\beta$", "<mi>α</mi><mo>≤</mo><mi>β</mi>"),
    (r"$$\sum_{i=1}^n i$$", '<munderover><mo largeop="true" movablelimits="true">∑</mo>'),
    (r"\[\int_0^1 f\,dx\]", '<msubsup><mo largeop="true">∫</mo>'),
    (r"$$\begin{pmatrix}1&2\\3&4\end{pmatrix}$$", "<mtr><mtd><mn>3</mn></mtd><mtd><mn>4</mn></mtd></mtr>"),
    (r"$f(x)=\begin{cases}1&x>0\\0&\text{其他}\end{cases}$", "<mtext>其他</mtext>"),
    (r"$\mathbb{R}\mathbf{v}$", "<mi>ℝ</mi>"),
    (r"$\left(\frac12\right)$", "<mfrac><mn>1</mn><mn>2</mn></mfrac>"),
    (r"$f''$", "<msup><mi>f</mi><mo>′′</mo></msup>"),
    ("$$\na &= b \\\\\n  &= c\n$$", 'class="aligned"'),
    (r"$\vec{F}=m\vec{a}$", '<mover accent="true"><mrow><mi>F</mi></mrow>'),
    (r"$\lim_{x\to0}\sin x$", "<munder>"),
]


@pytest.mark.parametrize(("text", "html"), FORMULAS, ids=range(len(FORMULAS)))
def test_maths(show: Any, text: str, html: str) -> None:
    shown = show(text)
    assert shown.startswith(("<p><math", '<div class="display"><math display="block">'))
    assert html in shown


@pytest.mark.parametrize(
    "text",
    [
        "一杯 $50，兩杯 $90。",
        "NT$100 和 NT$200",
        "$50元、$60元、$70",
        "價格是 $ 5 到 $ 6",
        "只有一個 $x",
        r"已跳脫 \$x\$",
    ],
)
def test_money_is_not_maths(show: Any, text: str) -> None:
    assert show(text) == f"<p>{text.replace(chr(92), '')}</p>"


@pytest.mark.parametrize(
    "tex", [r"\unknownthing{x}", r"\frac{1}", r"x^2^", r"\left( x", r"{a", r"\begin{tikz}\end{tikz}"]
)
def test_what_is_not_known_is_shown_as_its_source(show: Any, tex: str) -> None:
    shown = show(f"${tex}$")
    assert "<math" not in shown
    assert (
        show.page.evaluate(
            "(html) => { const box = document.createElement('p'); box.textContent = html; return box.innerHTML; }",
            f"${tex}$",
        )
        in shown
    )


def test_a_growing_answer_keeps_the_blocks_that_are_done(show: Any) -> None:
    kept = show.page.evaluate("""() => {
        const box = document.createElement('div');
        const text = '# 題\\n\\n第一段\\n\\n- 一\\n- 二\\n\\n```js\\nlet a = 1;\\n```\\n\\n最後 **一段**。';
        const whole = document.createElement('div');
        markdown.render(whole, text);
        let first = null, changed = 0;
        for (let end = 1; end <= text.length; end += 1) {
            markdown.render(box, text.slice(0, end));
            if (end === 8) first = box.firstChild;
            if (end > 8 && box.firstChild !== first) changed += 1;
        }
        return { same: box.innerHTML === whole.innerHTML, changed };
    }""")
    assert kept == {"same": True, "changed": 0}


def test_long_and_odd_texts_are_drawn_in_time(show: Any) -> None:
    """Texts on which careless regular expressions take minutes."""
    for text in (
        "*" * 4000,
        "[" * 4000,
        "`" * 3999 + "a",
        "$" + "x" * 8000,
        "**a" * 2000,
        "> " * 300 + "深",
        "_a" * 4000,
        "- " * 400,
    ):
        took = show.page.evaluate(
            "(text) => { const start = performance.now(); markdown.render(document.createElement('div'), text); return performance.now() - start; }",
            text,
        )
        assert took < 1500, text[:10]
