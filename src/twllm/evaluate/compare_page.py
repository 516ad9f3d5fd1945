"""The comparison as Markdown and as one HTML file: nothing is loaded from elsewhere, all text is escaped.

On a wide screen the answers stand side by side, on a phone below each other; dark where the reader's system is. Simplified
characters and other regions' words are marked, Taiwan's wording is in the mark's title.
"""

import re
from html import escape
from typing import Any

from twllm.corpus.check import check_text

MARKS = {True: ("✓", "yes", "關鍵詞符合"), False: ("✗", "no", "關鍵詞不符"), None: ("", "", "")}
TOO_LONG = "（題目太長，放不下 prompt too long）"
NO_ANSWER = "（沒有回答 empty）"
STYLE = """
:root { color-scheme: light dark; --text: #1c2422; --page: #f6f7f5; --card: #fff; --line: #d9dedb; --soft: #5c6a66;
  --yes: #1d6b57; --no: #a8322d; --mark: #ffe2a8; --mark-text: #4a2f00; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e9e6; --page: #141917; --card: #1e2522; --line: #36403c;
  --soft: #9fada8; --yes: #6fd0b3; --no: #ff9a92; --mark: #5a4310; --mark-text: #ffe2a8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 84rem; padding: 1rem; background: var(--page); color: var(--text); line-height: 1.7;
  font-family: system-ui, "Noto Sans TC", "PingFang TC", "Microsoft JhengHei", "Noto Sans CJK TC", sans-serif; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
small, .facts, footer { color: var(--soft); font-size: .85rem; }
.row { display: grid; gap: .75rem; grid-template-columns: repeat(var(--models), minmax(15rem, 1fr)); overflow-x: auto; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .75rem 1rem; min-width: 0; }
.card h3 { margin: 0 0 .25rem; font-size: .95rem; overflow-wrap: anywhere; }
.answer { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; }
.facts { margin: 0; display: grid; grid-template-columns: auto 1fr; gap: 0 .75rem; } .facts dd { margin: 0; overflow-wrap: anywhere; }
.yes { color: var(--yes); } .no { color: var(--no); } .none { color: var(--soft); }
mark { background: var(--mark); color: var(--mark-text); border-radius: .2rem; }
@media (max-width: 44rem) { .row { grid-template-columns: minmax(0, 1fr); } }
"""


def html_page(result: dict[str, Any]) -> str:
    """The whole page."""
    models = result["models"]
    cards = "".join(_model_card(column) for column in models)
    settings = f"greedy，max_new_tokens = {result['settings']['max_new_tokens']}，{len(result['questions'])} 題"
    sections = "".join(_section(number, row, models) for number, row in enumerate(result["questions"], 1))
    return (
        '<!doctype html>\n<html lang="zh-Hant-TW">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>模型對照</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>模型對照 <small>side by side</small></h1>\n<p><small>{escape(settings)}。<mark>標色</mark>：簡體字或他地用語，指著看臺灣的寫法"
        f'。✓✗ 依關鍵詞判定。</small></p>\n<div class="row" style="--models:{len(models)}">{cards}</div>\n{sections}'
        f"<footer><p>twllm {escape(str(result['code_version']))} · {escape(result.get('created', ''))}</p></footer>\n</body>\n</html>\n"
    )


def _model_card(column: dict[str, Any]) -> str:
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts_of(column).items())
    return f'<div class="card"><h3>{escape(column["name"])}</h3><dl class="facts">{facts}</dl></div>'


def facts_of(column: dict[str, Any]) -> dict[str, str]:
    """What a reader should know of a model's column."""
    facts = {
        "模型": column["model"],
        "模型指紋": column["model_fingerprint"],
        "範本指紋": column["template_fingerprint"] or "由伺服器決定",
        "非臺灣用字": f"{column['leak_rate']:.2%}",
    }
    return facts | ({"關鍵詞": f"{column['correct']}/{column['marked']}"} if column["marked"] else {})


def _section(number: int, row: dict[str, Any], models: list[dict[str, Any]]) -> str:
    cards = "".join(_answer_card(column["name"], column["answers"][number - 1]) for column in models)
    topic = f" <small>{escape(row['topic'])}</small>" if row["topic"] else ""
    return (
        f"<section><h2>{number}. {escape(row['question'])}{topic}</h2>\n"
        f'<div class="row" style="--models:{len(models)}">{cards}</div></section>\n'
    )


def _answer_card(name: str, row: dict[str, Any]) -> str:
    sign, css, title = MARKS[row["correct"]]
    shown = f' <span class="{css}" title="{title}">{sign}</span>' if sign else ""
    if row["answer"]:
        body = f'<p class="answer">{marked(row["answer"])}</p>'
    else:
        body = f'<p class="none">{TOO_LONG if row["answer"] is None else NO_ANSWER}</p>'
    return f'<article class="card"><h3>{escape(name)}{shown}</h3>{body}</article>'


def marked(text: str) -> str:
    """The text escaped, with `<mark>` around what is not written as Taiwan writes."""
    found = check_text(text)
    parts, done = [], 0
    for span in sorted([*found.vocabulary, *found.simplified], key=lambda span: (span.start, -len(span.text))):
        if span.start < done:
            continue
        parts.append(escape(text[done : span.start]))
        parts.append(f'<mark title="{escape(span.suggest)}">{escape(span.text)}</mark>')
        done = span.start + len(span.text)
    return "".join([*parts, escape(text[done:])])


def markdown(result: dict[str, Any]) -> str:
    """A table: questions as rows, models as columns."""
    models = result["models"]
    lines = ["# 模型對照 (side by side)", ""]
    lines += [
        f"* **{cell(column['name'])}**："
        + "，".join(f"{name} {cell(value)}" for name, value in facts_of(column).items())
        for column in models
    ]
    lines += [f"* 設定：greedy，max_new_tokens = {result['settings']['max_new_tokens']}", ""]
    lines.append(f"| 問題 | {' | '.join(cell(column['name']) for column in models)} |")
    lines.append("|---" * (len(models) + 1) + "|")
    for number, row in enumerate(result["questions"]):
        cells = [_markdown_answer(column["answers"][number]) for column in models]
        lines.append(f"| {cell(row['question'])} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _markdown_answer(row: dict[str, Any]) -> str:
    sign = MARKS[row["correct"]][0]
    text = cell(row["answer"]) if row["answer"] else TOO_LONG if row["answer"] is None else NO_ANSWER
    return f"{sign} {text}".strip()


def cell(text: str) -> str:
    """Text that stays inside a table cell and means nothing to Markdown or HTML.

    >>> cell("a|b <i>*c*</i>")
    'a&#124;b &lt;i&gt;\\\\*c\\\\*&lt;/i&gt;'
    """
    plain = escape(text.strip(), quote=False).replace("|", "&#124;")
    return re.sub(r"([\\`*_\[\]~])", r"\\\1", plain).replace("\r", "").replace("\n", "<br>")
