// TeX maths as MathML, which every current browser draws itself. The common subset; a formula with anything unknown in
// it is shown as its source, because half a formula says something else.
//
// Covered: fractions, roots, scripts, Greek, relations, big operators with limits, \left \right, matrices, cases,
// aligned lines, accents, \text, alphabets, spaces. Not covered: macros, colours, chemistry, diagrams.

import { h } from "../lib/dom.js";
import { ACCENTS, bare, BELOW, BIG, INTEGRALS, isAlphabet, LETTERS, LIMITS, NAMES, OPERATORS, SPACES, styled } from "./symbols.js";

const MATHML = "http://www.w3.org/1998/Math/MathML";
const TOKEN = /\\([a-zA-Z]+\*?|[^])|[{}^_&']|\d+(?:[.,]\d+)*|\s+|[^]/gu;
const FENCES = bare({ matrix: ["", ""], pmatrix: ["(", ")"], bmatrix: ["[", "]"], Bmatrix: ["{", "}"], vmatrix: ["|", "|"], Vmatrix: ["‖", "‖"], cases: ["{", ""], smallmatrix: ["", ""] });
const ALIGNED = new Set(["aligned", "align", "align*", "split", "gathered", "gather", "gather*", "eqnarray", "equation", "equation*", "array"]);
const TEXT = new Set(["text", "textrm", "textbf", "textit", "mbox", "mathrm", "operatorname", "operatorname*", "mathit", "textsf", "texttt"]);
const IGNORED = new Set(["displaystyle", "textstyle", "limits", "nolimits", "nonumber", "notag", "hline"]);
const SIZES = /^(big|Big|bigg|Bigg)[lrm]?$/;

class Unknown extends Error {}

function m(name, attributes, ...children) {
  const made = document.createElementNS(MATHML, name);
  for (const [key, value] of Object.entries(attributes ?? {})) made.setAttribute(key, value);
  made.append(...children);
  return made;
}
const row = (children) => (children.length === 1 ? children[0] : m("mrow", {}, ...children));
const operator = (text, attributes) => m("mo", attributes, text);

class Parser {
  constructor(source) {
    this.tokens = source.replace(/(?<!\\)%.*$/gm, "").match(TOKEN) ?? [];
    this.at = 0;
    this.depth = 0;
  }
  peek() {
    while (/^\s+$/.test(this.tokens[this.at] ?? "")) this.at += 1;
    return this.tokens[this.at];
  }
  next() {
    const token = this.peek();
    this.at += 1;
    return token;
  }
  expect(token) {
    if (this.next() !== token) throw new Unknown(token);
  }

  // Elements up to one of the end tokens, which stays.
  list(ends = []) {
    if (++this.depth > 40) throw new Unknown("depth");
    const found = [];
    for (let token = this.peek(); token !== undefined && !ends.includes(token); token = this.peek()) {
      if (["}", "&", "\\\\", "\\right", "\\end"].includes(token)) throw new Unknown(token);
      const one = this.scripted();
      if (one) found.push(one);
    }
    this.depth -= 1;
    return found;
  }
  group() { // an argument: {…} or one token
    if (this.peek() !== "{") {
      const number = this.tokens[this.at];
      if (/^\d./.test(number)) { // \frac12: an argument without braces is one digit
        this.tokens.splice(this.at, 1, number[0], number.slice(1));
      }
      const one = this.atom();
      if (!one) throw new Unknown("argument");
      return one.element;
    }
    this.next();
    const inner = this.list(["}"]);
    this.expect("}");
    return m("mrow", {}, ...inner);
  }
  raw() { // the characters of {…}, for \text and names of environments
    this.expect("{");
    let text = "", open = 1;
    for (; this.at < this.tokens.length; this.at += 1) {
      const token = this.tokens[this.at];
      if (token === "{") open += 1;
      if (token === "}" && --open === 0) { this.at += 1; return text; }
      text += token.replace(/^\\([^a-zA-Z])$/, "$1");
    }
    throw new Unknown("{");
  }

  scripted() {
    const base = this.atom();
    if (!base) return null;
    let below = null, above = null;
    for (let token = this.peek(); token === "_" || token === "^" || token === "'"; token = this.peek()) {
      this.next();
      if (token === "'") {
        let primes = "′";
        while (this.peek() === "'") { this.next(); primes += "′"; }
        above = above ? m("mrow", {}, above, operator(primes)) : operator(primes);
      } else if (token === "_") {
        if (below) throw new Unknown("_");
        below = this.group();
      } else {
        const found = this.group();
        above = above ? m("mrow", {}, above, found) : found;
      }
    }
    if (!below && !above) return base.element;
    const [both, under, over] = base.limits ? ["munderover", "munder", "mover"] : ["msubsup", "msub", "msup"];
    if (below && above) return m(both, {}, base.element, below, above);
    return below ? m(under, {}, base.element, below) : m(over, {}, base.element, above);
  }

  atom() {
    const token = this.next();
    if (token === undefined) throw new Unknown("end");
    if (token === "{") {
      const inner = this.list(["}"]);
      this.expect("}");
      return { element: m("mrow", {}, ...inner) };
    }
    if (token === "^" || token === "_") { // nothing stands before it: {}^{14}C
      this.at -= 1;
      return { element: m("mrow", {}) };
    }
    if (token.startsWith("\\") && token.length > 1) return this.command(token.slice(1));
    if (/^\d/.test(token)) return { element: m("mn", {}, token) };
    if (/^\p{L}$/u.test(token)) return { element: m("mi", {}, token) };
    if (token === "~") return { element: space(0.25) };
    if (["&", "}", "#", "$", "\\"].includes(token)) throw new Unknown(token);
    return { element: operator(token === "-" ? "−" : token === "*" ? "∗" : token, /^[|/]$/.test(token) ? { stretchy: "false" } : {}) };
  }

  command(name) {
    if (IGNORED.has(name)) return null;
    if (name in SPACES) return { element: space(SPACES[name]) };
    if (name in LETTERS) return { element: m("mi", /^[A-Z]/.test(name) ? { mathvariant: "normal" } : {}, LETTERS[name]) };
    if (name in OPERATORS) return { element: operator(OPERATORS[name], /^[|‖⟨⟩⌊⌋⌈⌉{}[\]]$/.test(OPERATORS[name]) ? { stretchy: "false" } : {}) };
    if (/^[{}%$#&_|]$/.test(name)) return { element: operator(name === "|" ? "‖" : name, { stretchy: "false" }) };
    if (name in BIG) return { element: operator(BIG[name], { largeop: "true", movablelimits: "true" }), limits: true };
    if (name in INTEGRALS) return { element: operator(INTEGRALS[name], { largeop: "true" }) };
    if (LIMITS.has(name)) return { element: operator(name.replace(/^(arg|lim)(?=[a-z])/, "$1 "), { movablelimits: "true", form: "prefix" }), limits: true };
    if (NAMES.has(name)) return { element: m("mrow", {}, m("mi", {}, name), space(0.1)) };
    if (TEXT.has(name)) return { element: m(/^(operatorname|mathrm|mathit)/.test(name) ? "mi" : "mtext", name === "mathrm" ? { mathvariant: "normal" } : {}, this.raw()) };
    if (isAlphabet(name)) return { element: restyle(this.group(), name) };
    if (name in ACCENTS) return { element: m("mover", { accent: "true" }, this.group(), operator(ACCENTS[name], { stretchy: String(/^(over|wide)/.test(name)) })), limits: name === "overbrace" };
    if (name in BELOW) return { element: m("munder", { accentunder: "true" }, this.group(), operator(BELOW[name], { stretchy: "true" })), limits: name === "underbrace" };
    if (SIZES.test(name)) return { element: this.fence({ minsize: "1.2em" }) };
    return this.structure(name);
  }

  structure(name) {
    switch (name) {
      case "frac": case "dfrac": case "tfrac": case "cfrac": return { element: m("mfrac", {}, this.group(), this.group()) };
      case "binom": case "dbinom": case "tbinom":
        return { element: m("mrow", {}, operator("("), m("mfrac", { linethickness: "0" }, this.group(), this.group()), operator(")")) };
      case "sqrt": return { element: this.root() };
      case "left": return { element: this.fenced() };
      case "overset": case "stackrel": { const top = this.group(); return { element: m("mover", {}, this.group(), top) }; }
      case "underset": { const low = this.group(); return { element: m("munder", {}, this.group(), low) }; }
      case "boxed": case "fbox": { const made = m("mrow", { class: "boxed" }, this.group()); return { element: made }; }
      case "pmod": return { element: m("mrow", {}, space(0.5), operator("("), m("mi", {}, "mod"), space(0.3), this.group(), operator(")")) };
      case "bmod": case "mod": return { element: m("mrow", {}, space(0.25), m("mi", {}, "mod"), space(0.25)) };
      case "not": return { element: operator(`${this.atom().element.textContent}\u0338`) };
      case "tag": return { element: m("mtext", {}, `\u2003(${this.raw()})`) };
      case "begin": return { element: this.environment() };
      default: throw new Unknown(name);
    }
  }

  root() {
    if (this.peek() !== "[") return m("msqrt", {}, this.group());
    this.next();
    const index = row(this.list(["]"]));
    this.expect("]");
    return m("mroot", {}, this.group(), index);
  }
  fence(attributes = {}) {
    const token = this.next() ?? "";
    const name = token.slice(1);
    const text = token === "." ? "" : /^[()[\]|/<>]$/.test(token) ? { "<": "⟨", ">": "⟩" }[token] ?? token
      : token === "\\|" ? "‖" : /^\\[{}]$/.test(token) ? name : token.startsWith("\\") ? OPERATORS[name] : undefined;
    if (text === undefined) throw new Unknown(token);
    return operator(text, { stretchy: "true", fence: "true", ...attributes });
  }
  fenced() {
    const open = this.fence(), inner = [];
    for (;;) {
      inner.push(...this.list(["\\right", "\\middle"]));
      if (this.next() !== "\\middle") break;
      inner.push(this.fence());
    }
    if (this.tokens[this.at - 1] !== "\\right") throw new Unknown("\\right");
    return m("mrow", {}, open, ...inner, this.fence());
  }

  environment() {
    const name = this.raw();
    if (!(name in FENCES) && !ALIGNED.has(name)) throw new Unknown(name);
    if (name === "array") this.raw();
    const rows = [[]];
    for (;;) {
      rows.at(-1).push(m("mtd", {}, ...this.list(["&", "\\\\", "\\end"])));
      const end = this.next();
      if (end === "\\\\") rows.push([]);
      else if (end !== "&") break;
    }
    if (this.tokens[this.at - 1] !== "\\end" || this.raw() !== name) throw new Unknown("\\end");
    if (rows.length > 1 && rows.at(-1).length === 1 && !rows.at(-1)[0].hasChildNodes()) rows.pop(); // after a last \\
    const made = m("mtable", ALIGNED.has(name) ? { displaystyle: "true", class: name === "array" ? "" : "aligned" } : { class: name === "cases" ? "cases" : "" },
      ...rows.map((cells) => m("mtr", {}, ...cells)));
    const [open, close] = FENCES[name] ?? ["", ""];
    if (!open && !close) return made;
    return m("mrow", {}, operator(open, { stretchy: "true", fence: "true" }), made, ...(close ? [operator(close, { stretchy: "true", fence: "true" })] : []));
  }
}

const space = (em) => m("mspace", { width: `${em}em` });

function restyle(element, alphabet) {
  for (const leaf of element.childElementCount ? element.querySelectorAll("mi, mn") : [element]) {
    leaf.textContent = [...leaf.textContent].map((letter) => styled(letter, alphabet)).join("");
  }
  return element;
}

// The <math> of a formula, or its source as code. `source` is what is copied and read aloud where MathML is not.
export function maths(tex, display, source) {
  try {
    const lines = tex.includes("\\\\") && !tex.includes("\\begin"); // several lines without an environment
    const children = new Parser(lines ? `\\begin{aligned}${tex}\\end{aligned}` : tex).list();
    if (!children.length) throw new Unknown("empty");
    const annotation = m("annotation", { encoding: "application/x-tex" }, tex);
    return m("math", display ? { display: "block" } : {}, m("semantics", {}, m("mrow", {}, ...children), annotation));
  } catch (error) {
    if (!(error instanceof Unknown)) throw error;
    return h("code", { class: "tex" }, source);
  }
}
