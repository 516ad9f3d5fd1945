// Culture comparison: one question, two to four models named from the start, their answers side by side.

import { getJson, stream } from "../lib/api.js";
import { fit, setUpComposer } from "../lib/compose.js";
import { toast } from "../lib/dialogs.js";
import { copyButton, find, h } from "../lib/dom.js";
import { read, write } from "../lib/local.js";
import { begin } from "../lib/shell.js";
import { onLanguage, t } from "../lib/words.js";
import { render } from "../text/markdown.js";

const MOST = 4;
const box = find("question"), answers = find("answers");
let culture = { topics: [], questions: [] }, running = null, models = [];

const chosen = () => [...find("models").querySelectorAll("input:checked")].map(({ value }) => value);

function refresh() {
  const names = chosen(), enough = names.length >= 2 && names.length <= MOST;
  find("send").disabled = Boolean(running) || !enough || !box.value.trim();
  find("send").hidden = Boolean(running);
  find("stop").hidden = !running;
  find("hint").hidden = enough;
  find("hint").textContent = t(models.length < 2 ? "one_model_only" : "pick_models");
  for (const input of find("models").querySelectorAll("input:not(:checked)")) input.disabled = names.length >= MOST;
}

function showModels() {
  const before = read("compared", []) ?? [];
  const kept = before.filter((name) => models.includes(name));
  const on = kept.length >= 2 ? kept : models.slice(0, 2);
  find("models").replaceChildren(h("legend", {}, t("models")), ...models.map((name) =>
    h("label", { class: "model-choice" }, h("input", { type: "checkbox", value: name, checked: on.includes(name), onchange: () => { write("compared", chosen()); refresh(); } }), h("span", {}, name))));
}

function showQuestions() {
  const topic = find("topic").value;
  const fitting = culture.questions.filter((one) => !topic || one.topic === topic);
  find("pick").replaceChildren(h("option", { value: "" }, t("own_question")), ...fitting.map(({ id, question }) => h("option", { value: id }, question)));
  find("from-list").hidden = !culture.questions.length;
}

function showTopics() {
  const before = find("topic").value;
  find("topic").replaceChildren(h("option", { value: "" }, t("all_topics")), ...culture.topics.map(({ id, name }) => h("option", { value: id }, name)));
  find("topic").value = before;
}

const picked = () => culture.questions.find(({ id }) => id === find("pick").value);

function pick(id) {
  find("pick").value = id;
  box.value = picked()?.question ?? "";
  fit(box);
  refresh();
  if (!id) box.focus();
}

function random() {
  const options = [...find("pick").options].slice(1);
  if (options.length) pick(options[Math.floor(Math.random() * options.length)].value);
}

function addColumn(name) {
  const text = h("div", { class: "text" }), status = h("span", { class: "status", role: "status" }, t("working"));
  const part = { text, status, content: "", drawn: true, started: performance.now(), failed: false };
  part.column = h("article", { class: "side waiting", "aria-label": name }, h("div", { class: "side-name" }, h("span", { class: "model-name" }, name), h("span", { class: "grow" }), copyButton(t("copy_code"), t("copied"), () => part.content, { class: "plain" })), text, status);
  return part;
}

function finish(part, error = null) {
  part.column.classList.remove("waiting");
  render(part.text, part.content);
  const seconds = ((performance.now() - part.started) / 1000).toFixed(1);
  part.status.classList.toggle("failed", Boolean(error));
  part.status.textContent = error ? t("side_failed", { why: error }) : `${t("letters", { number: [...part.content].length })} · ${t("seconds", { seconds })}`;
  part.ended = true;
}

async function ask() {
  const names = chosen(), question = box.value.trim();
  if (running || !question || names.length < 2) return;
  const controller = running = new AbortController();
  const parts = Object.fromEntries(names.map((name) => [name, addColumn(name)]));
  const reference = picked()?.question === question && picked().answer;
  answers.replaceChildren(h("div", { class: "asked" }, question), reference ? h("details", { class: "reference" }, h("summary", {}, t("reference")), h("p", {}, reference)) : "",
    h("div", { class: `pair of-${names.length}` }, ...names.map((name) => parts[name].column)));
  refresh();
  answers.scrollIntoView({ block: "nearest" });
  let failed = null;
  try {
    await stream("api/compare", { messages: [{ role: "user", content: question }], models: names, sampling: read("sampling", {}) ?? {} }, controller.signal, (event) => {
      const part = parts[event.model];
      if (!part) return;
      if (event.delta) {
        part.content += event.delta;
        if (part.drawn) { part.drawn = false; requestAnimationFrame(() => { part.drawn = true; render(part.text, part.content); }); }
      }
      if (event.done || event.error) finish(part, event.error?.message);
    });
  } catch (error) {
    failed = error;
  }
  running = null;
  for (const part of Object.values(parts)) if (!part.ended) finish(part, failed && failed.name !== "AbortError" ? failed.message : null);
  refresh();
}

function words() {
  document.title = t("compare");
  showModels();
  showTopics();
  showQuestions();
  refresh();
}

setUpComposer(box, ask);
box.addEventListener("input", refresh);
find("composer").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
find("stop").addEventListener("click", () => running?.abort());
find("topic").addEventListener("change", () => { showQuestions(); pick(""); });
find("pick").addEventListener("change", () => pick(find("pick").value));
find("dice").addEventListener("click", random);
const { config, failed } = await begin("compare");
models = config.models.map(({ name }) => name);
culture = await getJson("api/culture").catch(() => culture); // without a list one writes one's own question
words();
onLanguage(words);
if (failed) toast(failed.message);
document.body.dataset.ready = "true";
