// The arena: one question to two hidden models, answers side by side, a vote, then the names.

import { postJson, stream } from "../lib/api.js";
import { fit, setUpComposer } from "../lib/compose.js";
import { toast } from "../lib/dialogs.js";
import { button, copyButton, find, h } from "../lib/dom.js";
import { read, userId, write } from "../lib/local.js";
import { begin, examples } from "../lib/shell.js";
import { onLanguage, t } from "../lib/words.js";
import { render } from "../text/markdown.js";

const SIDES = ["a", "b"];
const box = find("question"), board = find("battle");
let battle = null; // {id, turns: [{question, a, b}], voted}
let running = null; // AbortController

function refresh() {
  const busy = Boolean(running), voted = Boolean(battle?.voted);
  find("stop").hidden = !busy;
  find("send").hidden = busy;
  find("send").disabled = !box.value.trim();
  find("composer").hidden = voted;
  box.placeholder = t(battle ? "arena_follow" : "arena_placeholder");
  find("welcome").hidden = Boolean(battle);
  const ready = battle && !busy && !voted && battle.turns.some(({ a, b }) => a.done && b.done);
  find("vote").hidden = !battle || voted;
  for (const choice of find("vote").querySelectorAll("button")) choice.disabled = !ready;
  find("vote-hint").hidden = !busy;
}

function addTurn(question) {
  const turn = { question };
  const columns = SIDES.map((side) => {
    const text = h("div", { class: "text" });
    const column = h("article", { class: "side waiting", "aria-label": t(`side_${side}`), "data-side": side },
      h("div", { class: "side-name" }, h("span", { class: "badge" }, side.toUpperCase()), h("span", { class: "model-name" }, t(`side_${side}`)), h("span", { class: "grow" }),
        copyButton(t("copy_code"), t("copied"), () => turn[side].content, { class: "plain" })), text);
    turn[side] = { column, text, content: "", done: false, drawn: true };
    return column;
  });
  board.append(h("section", { class: "round" }, h("div", { class: "asked" }, question), h("div", { class: "pair" }, ...columns)));
  return turn;
}

function draw(part) {
  if (!part.drawn) return;
  part.drawn = false;
  requestAnimationFrame(() => { part.drawn = true; render(part.text, part.content); });
}

function take(turn, event) {
  if (event.battle) battle.id = event.battle;
  const part = turn[event.side];
  if (!part) return;
  if (event.delta) { part.content += event.delta; draw(part); }
  if (event.error) part.text.after(h("p", { class: "failed", role: "alert" }, t("side_failed", { why: event.error.message })));
  if (event.done || event.error) { part.done = !event.error; part.column.classList.remove("waiting"); }
}

async function ask(question) {
  if (running || !question.trim()) return;
  box.value = "";
  fit(box);
  battle ??= { id: null, turns: [], voted: false };
  const controller = new AbortController(), mine = battle;
  const turn = addTurn(question.trim());
  running = controller;
  refresh();
  turn.a.column.closest(".round").scrollIntoView({ block: "start" });
  let failed = null;
  try {
    const address = mine.id ? `api/arena/battle/${mine.id}/more` : "api/arena/battle";
    await stream(address, { prompt: question.trim(), user: userId() }, controller.signal, (event) => take(turn, event));
  } catch (error) {
    failed = error;
  }
  if (battle !== mine) return; // a new battle was begun meanwhile
  running = null;
  for (const side of SIDES) {
    turn[side].column.classList.remove("waiting");
    render(turn[side].text, turn[side].content);
  }
  if (failed) giveBack(turn, question, failed);
  else mine.turns.push(turn);
  refresh();
}

// Stopped or failed: the question goes back into the box; a battle that has no whole turn is none.
function giveBack(turn, question, error) {
  turn.a.column.closest(".round").remove();
  if (!battle.turns.length) battle = null;
  box.value ||= question;
  fit(box);
  if (error.name !== "AbortError") toast(error.message);
}

async function vote(choice) {
  const consent = find("consent").checked;
  let names;
  try {
    names = await postJson("api/arena/vote", { battle: battle.id, vote: choice, comment: find("comment").value.trim(), consent, user: userId() });
    if (names.stored !== true) throw new Error(t("not_stored_plain"));
  } catch (error) {
    toast(t("vote_not_stored", { why: error.message }));
    return;
  }
  battle.voted = true;
  for (const side of SIDES) {
    for (const name of board.querySelectorAll(`[data-side=${side}] .model-name`)) name.textContent = names[side].name;
    if (choice === side) for (const column of board.querySelectorAll(`[data-side=${side}]`)) column.classList.add("chosen");
  }
  const result = h("section", { id: "result", role: "status" },
    h("p", {}, h("strong", {}, t("vote_stored")), " ", t("you_chose", { choice: t(`vote_${choice}`) })),
    names.counted === false && h("p", { class: "help" }, t("vote_not_counted")),
    h("p", { class: "revealed" }, ...SIDES.flatMap((side) => [h("span", { class: "badge" }, side.toUpperCase()), h("span", {}, names[side].name)])),
    h("div", { class: "row centred" }, button("swords", t("next_battle"), restart, { class: "primary with-text", id: "next" }, t("next_battle")), h("a", { href: "leaderboard" }, t("to_board"))));
  board.append(result);
  refresh();
  result.scrollIntoView({ block: "nearest" });
  find("next").focus();
}

function restart() {
  running?.abort();
  running = null;
  battle = null;
  find("comment").value = "";
  board.replaceChildren();
  refresh();
  box.focus();
}

function words(config) {
  find("examples").replaceChildren(...examples(config).map((text) => h("button", { type: "button", onclick: () => ask(text) }, text)));
  document.title = t("arena");
}

setUpComposer(box, () => ask(box.value));
box.addEventListener("input", refresh);
find("composer").addEventListener("submit", (event) => { event.preventDefault(); ask(box.value); });
find("stop").addEventListener("click", () => running?.abort());
for (const choice of ["a", "tie", "bad", "b"]) find(`vote-${choice}`).addEventListener("click", () => vote(choice));
find("consent").checked = read("consent") === true;
find("consent").addEventListener("change", () => write("consent", find("consent").checked));
const { config, failed } = await begin("arena");
words(config);
onLanguage(() => { words(config); refresh(); });
refresh();
if (failed) toast(failed.message);
document.body.dataset.ready = "true";
