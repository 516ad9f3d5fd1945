// The chat page: puts the parts together and owns what is around the conversation (box, header, meter, shortcuts).

import { deleteJson } from "../lib/api.js";
import { fit, setUpComposer } from "../lib/compose.js";
import { showCard, toast } from "../lib/dialogs.js";
import { find, h } from "../lib/dom.js";
import { read, userId, write } from "../lib/local.js";
import { begin, examples } from "../lib/shell.js";
import { onLanguage, t } from "../lib/words.js";
import { render } from "../text/markdown.js";
import { hasPictures, setPictures, setUpPictures, takePictures } from "./images.js";
import { setUpList } from "./list.js";
import { ask, onAnswer, stop } from "./run.js";
import { openSettings, openShortcuts } from "./settings.js";
import { keep, keepRunning, loadConversations, modelOf, onChange, openConversation, state } from "./state.js";
import { path } from "./tree.js";
import { articleOf, draw, startEdit } from "./turns.js";

const main = document.querySelector("main"), box = find("question"), live = find("live");
const running = () => state.runs.has(state.open.id);
const nearBottom = () => main.scrollHeight - main.scrollTop - main.clientHeight < 90;
const toBottom = () => { main.scrollTop = main.scrollHeight; };
const sees = () => Boolean(modelOf(state.open?.model)?.vision);

// ---- around the conversation

function refresh() {
  const busy = running();
  find("stop").hidden = !busy;
  find("send").hidden = busy;
  find("send").disabled = !box.value.trim() && !hasPictures();
  find("log").setAttribute("aria-busy", String(busy));
  find("down").hidden = nearBottom();
}

function showModel() {
  const model = modelOf(state.open.model), names = state.config.models.map(({ name }) => name);
  const picker = find("model-picker");
  picker.hidden = names.length < 2;
  if (picker.options.length !== names.length) picker.replaceChildren(...names.map((name) => h("option", { value: name }, name)));
  picker.value = model?.name ?? "";
  find("model").hidden = names.length > 1;
  find("model").textContent = model?.name || t("chat");
  find("card").hidden = !model?.card;
  find("attach").hidden = !sees();
  document.title = state.open.title ? `${state.open.title} · ${model?.name}` : model?.name || t("chat");
  showMeter(model);
}

function showMeter(model) {
  const used = path(state.open).findLast(({ usage }) => usage)?.usage?.total_tokens;
  const meter = find("meter");
  meter.hidden = !used || !model?.context;
  if (meter.hidden) return;
  const share = Math.min(1, used / model.context);
  meter.querySelector("progress").value = share;
  meter.classList.toggle("full", share > 0.85);
  meter.querySelector("span").textContent = t("used", { used: used.toLocaleString(), all: model.context.toLocaleString() });
  meter.title = share > 0.85 ? t("nearly_full") : t("context");
}

function showExamples() {
  find("examples").replaceChildren(...examples(state.config).map((text) => h("button", { type: "button", onclick: () => send(text) }, text)));
  find("consent-text").textContent = t("consent_text");
}

// ---- asking

function send(text = box.value) {
  if (running() || !(text.trim() || hasPictures())) return;
  if (text === box.value) { box.value = ""; fit(box); }
  ask(state.open, text.trim(), takePictures());
  draw();
  refresh();
  toBottom();
}

let waiting = false, said = 0;

function whileWriting(conversation, node) {
  if (conversation !== state.open || waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    const text = articleOf(node)?.querySelector(".text");
    if (!text || conversation !== state.open || node.finish) return;
    const follow = nearBottom();
    say(text, render(text, node.content));
    if (follow) toBottom();
    find("down").hidden = nearBottom();
  });
}

// Finished blocks of a growing answer are read out once; the log itself would be read again at every piece.
function say(text, finished) {
  for (; said < finished; said += 1) live.append(h("p", {}, text.children[said]?.textContent ?? ""));
}

function atEnd(conversation, node) {
  if (conversation !== state.open) return;
  const follow = nearBottom();
  redraw();
  const text = articleOf(node)?.querySelector(".text");
  if (text) say(text, text.children.length);
  said = 0;
  if (node.content) live.append(h("p", {}, t("answer_done")));
  if (follow || node.finish === "error") toBottom();
}

function takenBack(conversation, question) {
  if (conversation !== state.open) return;
  box.value ||= question.content;
  if (!hasPictures()) setPictures(question.images);
  fit(box);
}

let shown = null, drawn = ""; // the conversation on the page, and in which state

// What the turns on the page depend on; an open form for an edit or a reason stays while this is the same.
const turnsOf = ({ id, nodes }) => [id, running(), Object.keys(nodes).length, ...path(state.open).map((node) => node.id + node.finish)].join(" ");

function redraw() {
  const follow = nearBottom(), other = shown?.id !== state.open.id;
  drawn = turnsOf(state.open);
  draw();
  showModel();
  refresh();
  if (other || follow) toBottom();
  if (other) { live.replaceChildren(); said = 0; }
  shown = state.open;
}

function onStateChange() {
  if (shown !== state.open || drawn !== turnsOf(state.open)) redraw(); // another tab's copy is another object
  else { showModel(); refresh(); }
}

function lastQuestion() {
  const question = path(state.open).findLast(({ role }) => role === "user");
  if (question && !running()) startEdit(articleOf(question), state.open, question);
}

function setUpKeys() {
  document.addEventListener("keydown", (event) => {
    if (event.isComposing || event.keyCode === 229 || document.querySelector("dialog[open]")) return;
    const typing = event.target.closest("input, textarea, select");
    const command = event.ctrlKey || event.metaKey;
    const run = (action) => { event.preventDefault(); action(); };
    if (event.key === "Escape" && running()) run(() => stop(state.open));
    else if (command && event.shiftKey && event.key.toLowerCase() === "o") run(() => find("new-chat").click());
    else if (command && event.key.toLowerCase() === "k") run(() => { if (find("side").inert) find("menu").click(); find("search").focus(); });
    else if (event.key === "/" && !typing) run(() => box.focus());
    else if (event.key === "?" && !typing) run(openShortcuts);
    else if (event.key === "ArrowUp" && event.target === box && !box.value) run(lastQuestion);
  });
}

function setUpConsent() {
  const consent = find("consent");
  consent.checked = read("consent") === true;
  consent.addEventListener("change", () => write("consent", consent.checked));
  find("delete-ratings").addEventListener("click", async () => {
    if (!window.confirm(t("delete_ratings_sure"))) return;
    try {
      const { deleted } = await deleteJson("api/ratings", { user: userId() });
      for (const conversation of state.conversations) {
        const rated = Object.values(conversation.nodes).filter(({ rating }) => rating);
        for (const node of rated) node.rating = null;
        if (rated.length) await keep(conversation);
      }
      redraw();
      toast(t("ratings_deleted", { number: deleted }));
    } catch (error) {
      toast(t("ratings_not_deleted", { why: error.message }));
    }
  });
}

setUpComposer(box, () => send());
box.addEventListener("input", refresh);
let following = true; // the end is in view; stays so when a keyboard or a note takes room away
main.addEventListener("scroll", () => { following = nearBottom(); find("down").hidden = following; }, { passive: true });
new ResizeObserver(() => { if (following) toBottom(); }).observe(main);
find("down").addEventListener("click", () => { toBottom(); box.focus(); });
find("composer").addEventListener("submit", (event) => { event.preventDefault(); send(); });
find("stop").addEventListener("click", () => { stop(state.open); box.focus(); });
find("settings").addEventListener("click", openSettings);
find("shortcuts").addEventListener("click", openShortcuts);
find("card").addEventListener("click", () => showCard(modelOf(state.open.model).name));
find("model-picker").addEventListener("change", (event) => {
  state.open.model = event.target.value;
  write("model", event.target.value);
  if (state.conversations.includes(state.open)) keep(state.open);
  showModel();
  refresh();
});
onAnswer(whileWriting, atEnd, takenBack);
setUpKeys();
setUpConsent();
const { config, failed } = await begin("");
state.config = config;
find("feedback").hidden = config.feedback === false;
setUpPictures(sees, refresh);
onChange(onStateChange);
setUpList();
await loadConversations();
showExamples();
onLanguage(() => { showExamples(); openConversation(state.open); redraw(); });
window.addEventListener("hashchange", () => {
  const wanted = state.conversations.find(({ id }) => location.hash === `#c=${id}`);
  if (wanted) openConversation(wanted);
});
window.addEventListener("pagehide", keepRunning);
if (failed) toast(failed.message);
document.body.dataset.ready = "true";
