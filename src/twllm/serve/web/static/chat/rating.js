// 👍 / 👎 under an answer, then a reason to choose and a comment. A thumb is shown as pressed only once it is stored.

import { sendRating } from "../lib/api.js";
import { button, find, h } from "../lib/dom.js";
import { userId } from "../lib/local.js";
import { t } from "../lib/words.js";
import { keep } from "./state.js";
import { plainMessages } from "./tree.js";

const REASONS = { 1: ["correct", "clear", "local", "helpful", "other"], [-1]: ["wrong", "unclear", "mainland", "refused", "unsafe", "style", "other"] };

// Two thumbs and a status line for `actions`; `turn` is where the form for the reason goes.
export function thumbs(turn, conversation, node) {
  const status = h("span", { class: "status", role: "status" });
  const made = [[1, "up", "good"], [-1, "down", "bad"]].map(([rating, picture, word]) =>
    button(picture, t(word), () => rate(rating), { class: "thumb", "aria-pressed": String(node.rating?.rating === rating) }));

  async function store(click, done) {
    for (const thumb of made) thumb.disabled = true;
    status.className = "status";
    status.textContent = t("storing");
    const consent = find("consent").checked;
    const messages = plainMessages(conversation, node);
    try {
      await sendRating({ conversation_id: node.id, chat_id: conversation.id, turn: messages.length - 1, user: userId(), model: node.model, messages, consent, ...click });
      node.rating = click;
      keep(conversation);
      status.textContent = consent ? done : done + t("not_for_training");
      return true;
    } catch (error) {
      status.className = "status failed";
      status.textContent = t("not_stored", { why: error.message });
      return false;
    } finally {
      for (const thumb of made) thumb.disabled = false;
    }
  }

  async function rate(rating) {
    if (!await store({ rating, reason: "", comment: "" }, t("stored"))) return;
    made.forEach((thumb, index) => thumb.setAttribute("aria-pressed", String((index === 0) === (rating === 1))));
    turn.querySelector(".why")?.remove();
    const form = whyForm(rating, (reason, comment) => store({ rating, reason, comment }, t("comment_stored")));
    turn.append(form);
    form.scrollIntoView({ block: "nearest" });
  }
  return [...made, status];
}

function whyForm(rating, store) {
  let reason = "";
  const chips = REASONS[rating].map((name) => h("button", { type: "button", class: "chip", "aria-pressed": "false", onclick: (event) => choose(name, event.currentTarget) }, t(`reason_${name}`)));
  const choose = (name, chip) => {
    reason = reason === name ? "" : name;
    for (const other of chips) other.setAttribute("aria-pressed", String(other === chip && reason !== ""));
  };
  const label = t(rating > 0 ? "why_good" : "why_bad");
  const box = h("textarea", { rows: 2, maxlength: 4000, placeholder: label, "aria-label": label });
  const send = h("button", { type: "submit", class: "primary" }, t("send_why"));
  const form = h("form", { class: "why", "aria-label": t("why") },
    h("div", { class: "chips", role: "group", "aria-label": t("reasons") }, ...chips), box,
    h("div", { class: "row end" }, h("button", { type: "button", onclick: () => form.remove() }, t("skip")), send));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (!reason && !box.value.trim()) { form.remove(); return; }
    send.disabled = true;
    if (await store(reason, box.value.trim())) form.remove();
    send.disabled = false;
  });
  return form;
}
