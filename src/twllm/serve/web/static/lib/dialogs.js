// Small windows that all pages share: the key, a message that goes away, a sheet of Markdown (the model's card).

import { render } from "../text/markdown.js";
import { getJson, getKey, setKey } from "./api.js";
import { button, find, h } from "./dom.js";
import { t } from "./words.js";

const TOAST_MS = 6000;

export function toast(text, action = null) {
  find("toast")?.remove();
  const made = h("div", { id: "toast", role: "status" }, h("span", {}, text));
  if (action) made.append(h("button", { type: "button", onclick: () => { made.remove(); action.run(); } }, action.label));
  document.body.append(made);
  setTimeout(() => made.remove(), TOAST_MS);
}

// A <dialog> with a title and a close button; removed when it closes. Esc and a click beside it close it.
export function sheet(title, className, ...content) {
  const heading = h("h2", {}, title);
  const made = h("dialog", { class: `sheet ${className}`, "aria-label": title, onclose: () => made.remove() },
    h("div", { class: "sheet-head" }, heading, button("close", t("close"), () => made.close())), h("div", { class: "sheet-body" }, ...content));
  made.addEventListener("mousedown", (event) => { if (event.target === made) made.close(); });
  document.body.append(made);
  made.showModal();
  return made;
}

let asking = null; // one window, however many requests wait for the key

// Resolves to a key, or null when the person gives up. `wrong`: what the server said about the key it was given.
export function askKey(wrong = "") {
  asking ??= new Promise((resolve) => {
    const box = h("input", { type: "password", id: "key", autocomplete: "current-password", required: true, spellcheck: "false" });
    const form = h("form", { class: "key-form" },
      h("p", {}, t("key_why")), wrong && h("p", { class: "failed", role: "alert" }, wrong),
      h("label", { for: "key" }, t("key_label")), box, h("p", { class: "help" }, t("key_kept")),
      h("button", { type: "submit", class: "primary" }, t("key_use")));
    let given = null;
    const dialog = sheet(t("key_title"), "small", form);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      given = box.value.trim() || null;
      dialog.close();
    });
    dialog.addEventListener("close", () => { asking = null; resolve(given); });
    box.focus();
  });
  return asking;
}

export function forgetKey() {
  if (!getKey()) return false;
  setKey(null);
  toast(t("key_forgotten"));
  return true;
}

export async function showCard(model) {
  const text = h("div", { class: "text" });
  const dialog = sheet(t("card_of", { model }), "wide", text);
  try {
    const { markdown } = await getJson(`api/card?model=${encodeURIComponent(model)}`);
    render(text, markdown.replace(/^---\n[^]*?\n---\n/, "")); // a card's machine-readable head is not for people
  } catch (error) {
    text.append(h("p", { class: "failed" }, error.status === 404 ? t("no_card") : error.message));
  }
  return dialog;
}
