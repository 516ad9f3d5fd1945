// A model's answer as page elements: headings, lists (nested, tasks), tables, quotes, code, rules, display maths.
//
// `render` is called for every piece of a stream: a block whose source did not change keeps its element, so that only
// the growing end is drawn again, and a selection or a copy button further up stays alive. HTML is shown as text.
// Not covered: HTML blocks, footnotes, reference links, code by indentation (models indent without meaning code).

import { copyButton, h } from "../lib/dom.js";
import { t } from "../lib/words.js";
import { highlight } from "./highlight.js";
import { inline } from "./inline.js";
import { maths } from "./maths.js";

const FENCE = /^( {0,3})(`{3,}|~{3,})\s*([^`\s]*)[^`]*$/;
const ITEM = /^(\s*)([-*+•]|\d{1,9}[.)、])(\s+|(?<=、))(.*)$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*$/;
const RULE = /^ {0,3}([-*_])(\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}>\s?/;
const DIVIDER = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;
const DISPLAY = [[/^\s*\$\$/, /\$\$\s*$/, "$$"], [/^\s*\\\[/, /\\\]\s*$/, "\\]"]];
const MAX_FORMULA = 60; // lines
const indent = (line) => line.match(/^\s*/)[0].replaceAll("\t", "    ").length;
const isTable = (lines, at) => lines[at].includes("|") && (lines[at + 1] ?? "").includes("-") && (lines[at + 1] ?? "").includes("|") && DIVIDER.test(lines[at + 1]);

function starts(lines, at) {
  const line = lines[at];
  return FENCE.test(line) || HEADING.test(line) || QUOTE.test(line) || RULE.test(line) || ITEM.test(line) || isTable(lines, at)
    || DISPLAY.some(([open]) => open.test(line));
}

// Where the block that begins at line `at` ends, and what makes its element.
function block(lines, at) {
  const line = lines[at];
  const fence = line.match(FENCE);
  if (fence) return code(lines, at, fence);
  const display = DISPLAY.find(([open]) => open.test(line));
  if (display) {
    const found = displayMaths(lines, at, display);
    if (found) return found;
  }
  const heading = line.match(HEADING);
  if (heading) return [at + 1, () => h(`h${Math.min(6, heading[1].length + 2)}`, {}, ...inline(heading[2]))];
  if (RULE.test(line)) return [at + 1, () => h("hr")];
  if (QUOTE.test(line)) return quote(lines, at);
  if (isTable(lines, at)) return table(lines, at);
  if (ITEM.test(line)) return list(lines, at);
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && !starts(lines, end)) end += 1;
  return [end, () => h("p", {}, ...inline(lines.slice(at, end).map((part) => part.trim()).join("\n")))];
}

function code(lines, at, [, space, mark, language]) {
  const close = new RegExp(`^\\s*${mark[0]}{${mark.length},}\\s*$`);
  let end = at + 1;
  while (end < lines.length && !close.test(lines[end])) end += 1;
  const unindent = new RegExp(`^ {0,${space.length}}`);
  const source = lines.slice(at + 1, end).map((line) => line.replace(unindent, "")).join("\n");
  return [Math.min(end + 1, lines.length), () => h("div", { class: "code" },
    h("div", { class: "code-head" }, h("span", {}, language || t("code")), copyButton(t("copy_code"), t("copied"), () => source)),
    h("pre", { tabindex: "0" }, h("code", {}, ...highlight(source, language.toLowerCase()))))];
}

function displayMaths(lines, at, [open, close, mark]) {
  for (let end = at; end < Math.min(lines.length, at + MAX_FORMULA); end += 1) {
    const body = end === at ? lines[at].replace(open, "") : lines[end];
    if (!close.test(body)) {
      if (body.includes(mark)) return null; // text goes on behind the formula: it stands in a paragraph
      continue;
    }
    const source = lines.slice(at, end + 1).join("\n");
    return [end + 1, () => h("div", { class: "display" }, maths(source.replace(open, "").replace(close, "").trim(), true, source))];
  }
  return null; // not closed (yet): shown as text
}

function quote(lines, at) {
  let end = at;
  while (end < lines.length && (QUOTE.test(lines[end]) || (lines[end].trim() && !starts(lines, end)))) end += 1;
  const inner = lines.slice(at, end).map((line) => line.replace(QUOTE, ""));
  return [end, () => h("blockquote", {}, ...blocks(inner).map(({ make }) => make()))];
}

function cells(line) {
  const row = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  return row.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function table(lines, at) {
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|")) end += 1;
  return [end, () => {
    const sides = cells(lines[at + 1]).map((cell) => (/^:-+:$/.test(cell) ? "center" : /-:$/.test(cell) ? "end" : null));
    const heads = cells(lines[at]);
    const row = (line, name) => {
      const found = cells(line);
      return h("tr", {}, ...heads.map((_, column) => h(name, { class: sides[column], scope: name === "th" ? "col" : null }, ...inline(found[column] ?? ""))));
    };
    const body = lines.slice(at + 2, end).map((line) => row(line, "td"));
    return h("div", { class: "table", tabindex: "0" }, h("table", {}, h("thead", {}, row(lines[at], "th")), h("tbody", {}, ...body)));
  }];
}

// A list ends at a line that is neither an item, nor indented below one, nor the lazy rest of a paragraph.
function list(lines, at) {
  const first = lines[at].match(ITEM);
  const ordered = /\d/.test(first[2]), margin = indent(lines[at]);
  const items = [];
  let end = at;
  while (end < lines.length) {
    const line = lines[end], found = line.match(ITEM);
    const blank = !line.trim();
    if (blank) {
      const next = lines.slice(end + 1).find((later) => later.trim());
      if (!next || (indent(next) <= margin && !(ITEM.test(next) && indent(next) === margin && /\d/.test(next.match(ITEM)[2]) === ordered))) break;
      items.at(-1).push("");
    } else if (found && indent(line) <= margin + 1 && /\d/.test(found[2]) === ordered && !RULE.test(line)) {
      items.push([found[4]]);
    } else if (indent(line) > margin) {
      items.at(-1).push(line);
    } else if (items.at(-1).at(-1) === "" || starts(lines, end)) break;
    else items.at(-1).push(line);
    end += 1;
  }
  return [end, () => h(ordered ? "ol" : "ul", { start: ordered ? parseInt(first[2], 10) : null }, ...items.map(item))];
}

function item([head, ...rest]) {
  const task = head.match(/^\[([ xX])\]\s+(.*)$/);
  const depths = rest.filter((line) => line.trim()).map(indent);
  const cut = Math.min(...depths, 8);
  const body = [task ? task[2] : head, ...rest.map((line) => line.replaceAll("\t", "    ").slice(Math.min(cut, indent(line))))];
  const loose = rest.includes("");
  const children = blocks(body).flatMap(({ make }) => {
    const child = make();
    return !loose && child.tagName === "P" ? [...child.childNodes] : [child];
  });
  const box = task && h("input", { type: "checkbox", disabled: true, checked: task[1] !== " ", "aria-label": t("task") });
  return h("li", { class: task ? "task" : null }, box, ...children);
}

function blocks(lines) {
  const found = [];
  for (let at = 0; at < lines.length;) {
    if (!lines[at].trim()) { at += 1; continue; }
    const [end, make] = block(lines, at);
    found.push({ source: lines.slice(at, end).join("\n"), make });
    at = end;
  }
  return found;
}

// Draws `text` into `target`; returns how many leading blocks cannot change any more while the text only grows.
export function render(target, text) {
  const wanted = blocks(text.replaceAll("\r\n", "\n").split("\n"));
  const old = target.sources ?? [];
  let same = 0;
  while (same < old.length && same < wanted.length && old[same] === wanted[same].source) same += 1;
  while (target.childNodes.length > same) target.lastChild.remove();
  target.append(...wanted.slice(same).map(({ make }) => make()));
  target.sources = wanted.map(({ source }) => source);
  return Math.max(0, wanted.length - 1);
}
