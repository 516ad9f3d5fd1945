// Markdown inside a paragraph: code, bold, italic, strike, links, maths, escapes. Pictures become links: nothing is loaded.
//
// Emphasis next to Chinese punctuation works (**「重點」**是), where CommonMark's rules would leave the stars standing.

import { h } from "../lib/dom.js";
import { maths } from "./maths.js";

const SAFE_LINK = /^(https?:|mailto:)/i;
const PATTERNS = [
  ["code", /(`+)(?!`)([^]*?[^`])\1(?!`)/y],
  ["display", /\$\$([^]+?)\$\$|\\\[([^]+?)\\\]/y],
  ["maths", /\\\(([^]+?)\\\)|\$(?![\s$])((?:\\.|[^$\\\n])*?[^\s$\\]|(?:\\.|[^$\\\n])*?\\.)\$(?!\d)/y],
  ["escape", /\\([\\`*_{}[\]()#+\-.!|~$<>])/y],
  ["picture", /!\[([^\]\n]*)\]\(\s*<?([^)\s>]+)>?(?:\s+"[^"]*")?\s*\)/y],
  ["link", /\[((?:[^[\]\n]|\[[^[\]\n]*\])+)\]\(\s*<?((?:[^()\s<>]|\([^()\s]*\))+)>?(?:\s+"[^"]*")?\s*\)/y],
  ["both", /\*\*\*(?=\S)([^]+?)(?<=\S)\*\*\*/y],
  ["strong", /\*\*(?=\S)((?:[^*]|\*(?!\*))+?)(?<=\S)\*\*/y],
  ["strong", /(?<![\p{L}\p{N}_])__(?=\S)([^]+?)(?<=\S)__(?![\p{L}\p{N}_])/uy],
  ["em", /\*(?=[^\s*])((?:[^*\n]|\*\*[^*\n]+\*\*)+?)(?<=[^\s*])\*(?!\*)/y],
  ["em", /(?<![\p{L}\p{N}_])_(?=[^\s_])([^_\n]+?)(?<=[^\s_])_(?![\p{L}\p{N}_])/uy],
  ["del", /~~(?=\S)([^]+?)(?<=\S)~~/y],
  ["break", /<br\s*\/?>/iy],
  ["address", /<(https?:\/\/[^\s<>]+)>/iy],
  ["address", /(?<![\p{L}\p{N}/])https?:\/\/[^\s<>"'`*，。、；：！？「」『』（）《》〈〉【】…]+/uiy],
];
const STARTS = /[\\`$![*_~<h]/gi; // a character at which one of the patterns can begin
const HAN = /[\p{Script=Han}，。！？；：]/u;

// Han characters between two dollars mean money, unless they stand in \text{…}.
const isMoney = (source) => HAN.test(source.replace(/\\(text|mbox|textbf|mathrm)\s*\{[^{}]*\}/g, ""));

export function link(address, children) {
  if (!SAFE_LINK.test(address)) return null;
  return h("a", { href: address, target: "_blank", rel: "noopener noreferrer nofollow" }, ...children);
}

function made(kind, match, depth) {
  const inner = (source) => inline(source, depth + 1);
  switch (kind) {
    case "escape": return match[1];
    case "code": return h("code", {}, match[2].replace(/^ ([^]*\S[^]*) $/, "$1").replaceAll("\n", " "));
    case "display": return maths((match[1] ?? match[2]).trim(), true, match[0]);
    case "maths":
      if (match[2] !== undefined && isMoney(match[2])) return null;
      return maths((match[1] ?? match[2]).trim(), false, match[0]);
    case "picture": return link(match[2], [`🖼 ${match[1] || match[2]}`]);
    case "link": return link(match[2], inner(match[1]));
    case "both": return h("strong", {}, h("em", {}, ...inner(match[1])));
    case "break": return h("br");
    case "address": return bareLink(match);
    default: return h(kind, {}, ...inner(match[1]));
  }
}

function bareLink(match) {
  let address = match[1] ?? match[0];
  if (match[1] === undefined) {
    address = address.replace(/[.,;:!?]+$/, "");
    const open = (address.match(/\(/g) ?? []).length, close = (address.match(/\)/g) ?? []).length;
    if (close > open) address = address.replace(/\)+$/, "");
    match[0] = address; // what is left over is text again
  }
  return link(address, [address]);
}

// Text and elements for a piece of Markdown source.
export function inline(source, depth = 0) {
  const parts = [];
  let text = "", at = 0;
  if (depth > 8) return [source];
  const keep = () => { if (text) parts.push(text); text = ""; };
  while (at < source.length) {
    STARTS.lastIndex = at;
    const next = STARTS.exec(source)?.index ?? source.length;
    text += source.slice(at, next);
    at = next;
    if (at >= source.length) break;
    let found = null;
    for (const [kind, pattern] of PATTERNS) {
      pattern.lastIndex = at;
      const match = pattern.exec(source);
      if (!match) continue;
      const element = made(kind, match, depth);
      if (element === null) continue;
      found = [element, match[0].length];
      break;
    }
    if (!found) { text += source[at]; at += 1; continue; }
    if (typeof found[0] === "string") text += found[0];
    else { keep(); parts.push(found[0]); }
    at += found[1];
  }
  keep();
  return parts;
}
