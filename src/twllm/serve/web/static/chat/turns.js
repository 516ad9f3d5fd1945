// The turns on the page: one article each, with what can be done to it. The tree is the truth, this only shows it.

import { button, copyButton, find, h, icon } from "../lib/dom.js";
import { fit, setUpComposer } from "../lib/compose.js";
import { t } from "../lib/words.js";
import { render } from "../text/markdown.js";
import { thumbs } from "./rating.js";
import { again, edit } from "./run.js";
import { keep, openConversation, state } from "./state.js";
import { path, siblings } from "./tree.js";

export const articleOf = (node) => find("log").querySelector(`[data-id="${node.id}"]`);

// ‹ 2 / 3 › where there are several versions.
function versions(conversation, node) {
  const all = siblings(conversation, node), at = all.indexOf(node);
  if (all.length < 2) return null;
  const choose = (other) => {
    conversation.chosen[node.parent] = other.id;
    keep(conversation);
    openConversation(conversation);
    articleOf(other)?.querySelector(".versions button:not(:disabled)")?.focus();
  };
  return h("span", { class: "versions", role: "group", "aria-label": t("versions") },
    button("left", t("version_before"), () => choose(all[at - 1]), { disabled: at === 0 }),
    h("span", { "aria-label": t("version_of", { at: at + 1, all: all.length }) }, `${at + 1} / ${all.length}`),
    button("right", t("version_after"), () => choose(all[at + 1]), { disabled: at === all.length - 1 }));
}

function turnOf(conversation, node) {
  const mine = node.role === "user", several = state.config.models.length > 1;
  const turn = h("article", { class: `turn ${node.role}`, "data-id": node.id, "aria-label": mine ? t("you") : t("model") });
  if (!mine && several && node.model) turn.append(h("div", { class: "who" }, node.model));
  if (node.images.length) turn.append(h("div", { class: "pictures" }, ...node.images.map((url) => h("img", { src: url, alt: t("your_picture") }))));
  const text = h("div", { class: "text" });
  if (mine) text.textContent = node.content;
  else render(text, node.content);
  if (node.content || !mine) turn.append(text);
  if (mine) turn.append(mineActions(turn, conversation, node));
  else if (node.finish) ending(turn, conversation, node);
  else turn.classList.add("waiting");
  return turn;
}

function mineActions(turn, conversation, node) {
  const running = state.runs.has(conversation.id);
  return h("div", { class: "actions quiet" }, versions(conversation, node),
    copyButton(t("copy_question"), t("copied"), () => node.content),
    button("edit", t("edit"), () => startEdit(turn, conversation, node), { class: "edit", disabled: running }));
}

export function startEdit(turn, conversation, node) {
  const box = h("textarea", { "aria-label": t("edit"), rows: 1, value: node.content });
  const cancel = () => { turn.replaceWith(turnOf(conversation, node)); articleOf(node).querySelector(".edit").focus(); };
  const send = () => { if (box.value.trim() && !state.runs.has(conversation.id)) edit(conversation, node, box.value.trim()); };
  const form = h("form", { class: "editing" }, box,
    h("div", { class: "row end" }, h("button", { type: "button", onclick: cancel }, t("cancel")), h("button", { type: "submit", class: "primary" }, t("send"))));
  form.addEventListener("submit", (event) => { event.preventDefault(); send(); });
  box.addEventListener("keydown", (event) => { if (event.key === "Escape" && !event.isComposing) { event.stopPropagation(); cancel(); } });
  setUpComposer(box, send);
  turn.querySelector(".text")?.remove();
  turn.querySelector(".actions").replaceWith(form);
  fit(box);
  box.focus();
}

function ending(turn, conversation, node) {
  const note = { length: "cut_by_length", stopped: "was_stopped", cut: "was_cut" }[node.finish];
  if (note) turn.append(h("p", { class: "note" }, t(note)));
  if (node.finish === "error") turn.append(errorBox(conversation, node));
  const actions = h("div", { class: "actions" }, versions(conversation, node));
  if (node.content.trim()) {
    actions.append(copyButton(t("copy_answer"), t("copied"), () => node.content, { class: "copy" }));
    if (state.config.feedback !== false && node.finish !== "error") actions.append(...thumbs(turn, conversation, node));
    const redo = button("redo", t("again"), () => again(conversation, node), { class: "redo" });
    actions.insertBefore(redo, actions.querySelector(".thumb, .status"));
  } else if (node.finish !== "error") actions.append(button("redo", t("again"), () => again(conversation, node), { class: "redo" }, t("again_short")));
  if (actions.hasChildNodes()) turn.append(actions);
}

// What went wrong, and a retry; where the server named a time (429), the button counts down to it.
function errorBox(conversation, node) {
  const { kind, message, status, until } = node.error ?? {};
  const words = kind === "empty" ? t("empty_answer") : message ?? t("cut");
  const lead = { 401: "error_401", 413: "error_413", 429: "error_429", 503: "error_503" }[status];
  const retry = h("button", { type: "button", class: "retry", onclick: () => again(conversation, node) }, icon("redo"), h("span", {}, t("retry")));
  const count = () => {
    const left = Math.ceil(((until ?? 0) - Date.now()) / 1000);
    retry.disabled = left > 0;
    retry.lastChild.textContent = left > 0 ? t("retry_in", { seconds: left }) : t("retry");
    if (left > 0) setTimeout(count, 250);
  };
  count();
  return h("div", { class: "error", role: "alert" }, h("div", {}, lead && h("strong", {}, t(lead)), h("span", {}, words)), retry);
}

export function draw() {
  const shown = path(state.open);
  find("log").replaceChildren(...shown.map((node) => turnOf(state.open, node)));
  find("welcome").hidden = shown.length > 0;
  document.body.classList.toggle("empty", shown.length === 0);
}
