// Light highlighting of code: comments, strings, numbers, keywords, calls. One scanner, a few families of languages.

import { h } from "../lib/dom.js";

const words = (text) => new Set(text.split(" "));
const C = "break case catch class const continue default delete do else enum export extends extern false finally for goto if import in instanceof interface namespace new null nullptr override private protected public return sizeof static struct super switch template this throw true try typedef typename undefined union using var virtual void volatile while yield async await function let of typeof package throws implements abstract final int long short char float double bool boolean string unsigned signed auto byte";
const FAMILIES = {
  python: { comment: /#.*/y, string: /[rbfuRBFU]{0,2}("""[^]*?(?:"""|$)|'''[^]*?(?:'''|$)|"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?)/y,
    keywords: words("and as assert async await break case class continue def del elif else except False finally for from global if import in is lambda match None nonlocal not or pass raise return True try while with yield self") },
  c: { comment: /\/\/.*|\/\*[^]*?(?:\*\/|$)/y, string: /`(?:\\.|[^`\\])*`?|"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?/y, keywords: words(C) },
  rust: { comment: /\/\/.*|\/\*[^]*?(?:\*\/|$)/y, string: /b?"(?:\\.|[^"\\])*"?|'(?:\\.|[^'\\\n])'/y,
    keywords: words("as async await break const continue crate dyn else enum extern false fn for if impl in let loop match mod move mut pub ref return self Self static struct super trait true type unsafe use where while") },
  go: { comment: /\/\/.*|\/\*[^]*?(?:\*\/|$)/y, string: /`[^`]*`?|"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?/y,
    keywords: words("break case chan const continue default defer else fallthrough for func go goto if import interface map nil package range return select struct switch true false type var") },
  shell: { comment: /(?<=^|\s)#.*/my, string: /"(?:\\.|[^"\\])*"?|'[^']*'?/y, name: /\$\w+|\$\{[^}]*\}|--?[\w-]+/y,
    keywords: words("if then else elif fi for in do done while until case esac function return export local echo cd sudo set source exit") },
  sql: { comment: /--.*|\/\*[^]*?(?:\*\/|$)/y, string: /'(?:''|[^'])*'?/y, fold: true,
    keywords: words("select from where and or not null insert into values update set delete create table index view drop alter add primary key foreign references join left right inner outer full on group by order having limit offset as distinct count sum avg min max union all case when then else end in is like between exists with returning default unique asc desc") },
  data: { comment: /(?<=^|\s)#.*/my, string: /"(?:\\.|[^"\\\n])*"?|'(?:[^'\n])*'?/y, name: /[\w-]+(?=\s*[:=])/y, keywords: words("true false null yes no") },
  json: { string: /"(?:\\.|[^"\\\n])*"(?!\s*:)/y, name: /"(?:\\.|[^"\\\n])*"(?=\s*:)/y, keywords: words("true false null") },
  css: { comment: /\/\*[^]*?(?:\*\/|$)/y, string: /"[^"\n]*"?|'[^'\n]*'?/y, name: /[\w-]+(?=\s*:[^:])|[.#@][\w-]+/y, keywords: words("") },
  markup: { comment: /<!--[^]*?(?:-->|$)/y, string: /"[^"]*"|'[^']*'/y, name: /[\w-]+(?==)/y, tag: /<\/?[\w:-]+|\/?>/y, keywords: words("") },
};
const NAMES = {
  py: "python", python: "python", python3: "python", rust: "rust", rs: "rust", go: "go", golang: "go", sql: "sql", json: "json", jsonc: "json",
  css: "css", scss: "css", html: "markup", xml: "markup", svg: "markup", vue: "markup", yaml: "data", yml: "data", toml: "data", ini: "data", dockerfile: "shell",
};
for (const name of "sh bash zsh shell console powershell makefile".split(" ")) NAMES[name] = "shell";
for (const name of "js javascript ts typescript jsx tsx c cpp c++ h cs csharp java kotlin kt swift php dart scala".split(" ")) NAMES[name] = "c";

const NUMBER = /(?<![\w.])(?:0x[\da-f]+|\d[\d_]*(?:\.\d+)?(?:e[+-]?\d+)?)\b/iy;
const WORD = /[\p{L}_][\p{L}\p{N}_]*/uy;
const LIMIT = 60_000; // characters: longer code is shown plain, it is data

// The pieces of one code block: text, and spans with class hl-….
export function highlight(source, language) {
  const family = Object.hasOwn(NAMES, language) ? FAMILIES[NAMES[language]] : null;
  if (!family || source.length > LIMIT) return [source];
  const rules = [["comment", family.comment], ["string", family.string], ["tag", family.tag], ["name", family.name], ["number", NUMBER]].filter(([, rule]) => rule);
  const parts = [];
  let plain = "", at = 0;
  const push = (kind, text) => {
    if (plain) parts.push(plain);
    plain = "";
    parts.push(h("span", { class: `hl-${kind}` }, text));
  };
  scan: while (at < source.length) {
    for (const [kind, rule] of rules) {
      rule.lastIndex = at;
      const match = rule.exec(source);
      if (!match || !match[0]) continue;
      push(kind === "tag" ? "keyword" : kind, match[0]);
      at += match[0].length;
      continue scan;
    }
    WORD.lastIndex = at;
    const word = WORD.exec(source)?.[0];
    if (!word) { plain += source[at]; at += 1; continue; }
    if (family.keywords.has(family.fold ? word.toLowerCase() : word)) push("keyword", word);
    else if (source[at + word.length] === "(") push("call", word);
    else plain += word;
    at += word.length;
  }
  if (plain) parts.push(plain);
  return parts;
}
