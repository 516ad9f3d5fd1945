// The leaderboard: a picture (rating and 95 % interval of each model) and the same numbers as a table.

import { getJson } from "../lib/api.js";
import { find, h, svg } from "../lib/dom.js";
import { begin } from "../lib/shell.js";
import { language, onLanguage, t } from "../lib/words.js";

const WIDEST = 760, ROW = 44, RIGHT = 56, TOP = 12, BOTTOM = 34; // pixels
const COLUMNS = ["rank", "name", "rating", "interval", "battles", "won", "lost", "tied"];

// Round numbers for the axis, at most about `most` of them.
function ticks(low, high, most) {
  const raw = (high - low) / most, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((one) => one >= raw);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high; at += step) found.push(at);
  return found;
}

const shorter = (name, most) => ([...name].length > most ? `${[...name].slice(0, most - 1).join("")}…` : name);

// `width`: that of the place it goes to, so that the letters are as large on a phone as on a desk.
function picture(models, width) {
  const left = Math.min(190, 0.3 * width), most = Math.floor((left - 16) / 9);
  const lows = models.map(({ low, rating }) => low ?? rating), highs = models.map(({ high, rating }) => high ?? rating);
  const pad = Math.max(10, 0.06 * (Math.max(...highs) - Math.min(...lows)));
  const low = Math.min(...lows) - pad, high = Math.max(...highs) + pad;
  const x = (value) => left + ((width - left - RIGHT) * (value - low)) / (high - low);
  const height = TOP + ROW * models.length + BOTTOM, foot = height - BOTTOM;
  const label = (attributes, text) => svg("text", attributes, text);
  const grid = ticks(low, high, width > 500 ? 6 : 3).flatMap((tick) => [svg("line", { x1: x(tick), x2: x(tick), y1: TOP, y2: foot, class: "grid" }), label({ x: x(tick), y: foot + 20, class: "tick" }, String(Math.round(tick)))]);
  const rows = models.flatMap((model, index) => {
    const y = TOP + ROW * (index + 0.5);
    return [
      label({ x: left - 14, y: y + 5, class: "model" }, shorter(model.name, most)),
      svg("rect", { x: x(lows[index]), y: y - 7, width: Math.max(1, x(highs[index]) - x(lows[index])), height: 14, rx: 7, class: "range" }),
      svg("circle", { cx: x(model.rating), cy: y, r: 6, class: "dot" }),
      label({ x: width - RIGHT + 14, y: y + 5, class: "value" }, String(Math.round(model.rating))),
    ];
  });
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": t("picture_of_board") }, ...grid, ...rows);
}

const whole = (number) => (number === null || number === undefined ? "–" : String(Math.round(number)));

function table(models) {
  const row = (model, index) => h("tr", {}, ...[index + 1, model.name, whole(model.rating), `${whole(model.low)} – ${whole(model.high)}`, whole(model.battles), whole(model.wins), whole(model.losses), whole(model.ties)]
    .map((cell, column) => h(column === 1 ? "th" : "td", column === 1 ? { scope: "row" } : {}, String(cell))));
  return h("div", { class: "table", tabindex: "0" }, h("table", {}, h("caption", { class: "sr" }, t("board_title")), h("thead", {}, h("tr", {}, ...COLUMNS.map((name) => h("th", { scope: "col" }, t(name))))), h("tbody", {}, ...models.map(row))));
}

function show(found) {
  document.title = t("board_title");
  const place = find("board");
  if (!found.models?.length) {
    place.replaceChildren(h("p", { class: "nothing" }, t("board_empty")), h("p", {}, h("a", { href: "arena" }, t("arena"))));
    return;
  }
  const when = found.updated && new Date(found.updated).toLocaleString(language() === "en" ? "en" : "zh-TW", { dateStyle: "medium", timeStyle: "short" });
  const facts = [t("board_sum", { battles: found.battles }), when && t("board_updated", { when }), found.method && t("board_method", { method: found.method })];
  place.replaceChildren(h("figure", {}, picture(found.models, Math.min(WIDEST, place.clientWidth - 28))), table(found.models), h("p", { class: "facts" }, facts.filter(Boolean).join(" · ")));
}

const { failed } = await begin("leaderboard");
try {
  if (failed) throw failed;
  const found = await getJson("api/leaderboard");
  show(found);
  onLanguage(() => show(found));
  window.addEventListener("resize", () => show(found));
} catch (error) {
  find("board").replaceChildren(h("p", { class: "failed", role: "alert" }, error.message));
}
document.body.dataset.ready = "true";
