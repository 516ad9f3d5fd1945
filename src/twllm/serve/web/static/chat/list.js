// The list at the side: search, open, rename, delete (with undo), export and import of this browser's conversations.

import { button, find, h } from "../lib/dom.js";
import { toast } from "../lib/dialogs.js";
import { t } from "../lib/words.js";
import { bringBack, changed, forget, fresh, keep, onChange, openConversation, state } from "./state.js";
import { cleaned } from "./tree.js";

const DAY = 24 * 60 * 60 * 1000;

function age(updated) {
  const today = new Date().setHours(0, 0, 0, 0);
  if (updated >= today) return "today";
  if (updated >= today - DAY) return "yesterday";
  return updated >= today - 7 * DAY ? "week" : "earlier";
}

function matches(conversation, words) {
  const text = [conversation.title, ...Object.values(conversation.nodes).map(({ content }) => content)].join("\n").toLowerCase();
  return words.every((word) => text.includes(word));
}

let renaming = null; // id of the conversation whose title is being written

function entry(conversation) {
  const title = conversation.title || t("untitled");
  if (renaming === conversation.id) return h("li", {}, renameForm(conversation));
  const current = conversation === state.open;
  const open = h("button", { type: "button", class: "open", title, "aria-current": current ? "true" : null, onclick: () => { closeDrawer(); openConversation(conversation); } },
    state.runs.has(conversation.id) && h("span", { class: "busy", "aria-label": t("writing") }), h("span", { class: "title" }, title));
  return h("li", { class: current ? "current" : null }, open, h("span", { class: "tools" },
    button("edit", t("rename", { title }), () => { renaming = conversation.id; draw(); }, { class: "rename" }),
    button("trash", t("delete", { title }), () => {
      forget(conversation);
      toast(t("deleted"), { label: t("undo"), run: () => bringBack(conversation).then(() => openConversation(conversation)) });
    }, { class: "delete" })));
}

function renameForm(conversation) {
  const box = h("input", { value: conversation.title, "aria-label": t("new_title"), maxlength: 200 });
  let done = false;
  const end = (save) => {
    if (done) return;
    done = true;
    renaming = null;
    if (save && box.value.trim()) conversation.title = box.value.trim();
    keep(conversation);
  };
  const form = h("form", { class: "renaming" }, box);
  form.addEventListener("submit", (event) => { event.preventDefault(); end(true); });
  box.addEventListener("blur", () => end(true));
  box.addEventListener("keydown", (event) => { if (event.key === "Escape" && !event.isComposing) { event.stopPropagation(); end(false); } });
  requestAnimationFrame(() => box.select());
  return form;
}

function draw() {
  if (renaming && find("conversations").querySelector(".renaming")) return; // do not take the box away from under the typist
  const words = find("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = state.conversations.filter((conversation) => matches(conversation, words));
  const parts = [];
  for (const name of ["today", "yesterday", "week", "earlier"]) {
    const entries = found.filter(({ updated }) => age(updated) === name).map(entry);
    if (entries.length) parts.push(h("h2", {}, t(name)), h("ul", {}, ...entries));
  }
  if (!parts.length) parts.push(h("p", { class: "nothing" }, t(words.length ? "nothing_found" : "no_conversations")));
  find("conversations").replaceChildren(...parts);
}

function exportAll() {
  const file = new Blob([JSON.stringify({ format: "twllm-conversations", version: 1, conversations: state.conversations }, null, 1)], { type: "application/json" });
  const link = h("a", { href: URL.createObjectURL(file), download: `twllm-${new Date().toISOString().slice(0, 10)}.json` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// Conversations from an exported file; one that is here already is replaced only by a newer one.
async function importFile(file) {
  let given;
  try {
    const read = JSON.parse(await file.text());
    if (read.format !== "twllm-conversations" || read.version !== 1) throw new TypeError("format");
    given = read.conversations.map(cleaned);
  } catch {
    toast(t("bad_file"));
    return;
  }
  let taken = 0;
  for (const conversation of given) {
    const old = state.conversations.find(({ id }) => id === conversation.id);
    if (old && old.updated >= conversation.updated) continue;
    if (old) state.conversations = state.conversations.filter((other) => other !== old);
    if (old && state.open === old) state.open = conversation;
    await bringBack(conversation);
    taken += 1;
  }
  changed();
  toast(t("imported", { number: taken, all: given.length }));
}

const narrow = window.matchMedia("(max-width: 52rem)");

function closeDrawer() {
  if (narrow.matches) setSide(false);
}

function setSide(open) {
  document.body.classList.toggle("side-open", open);
  document.body.classList.toggle("side-closed", !open);
  find("menu").setAttribute("aria-expanded", String(open));
  find("side").inert = !open;
  if (narrow.matches && open) find("new-chat").focus();
}

export function setUpList() {
  setSide(!narrow.matches);
  narrow.addEventListener("change", () => setSide(!narrow.matches));
  find("menu").addEventListener("click", () => setSide(!document.body.classList.contains("side-open")));
  find("shade").addEventListener("click", () => setSide(false));
  find("side").addEventListener("keydown", (event) => { if (event.key === "Escape" && narrow.matches) { setSide(false); find("menu").focus(); } });
  find("search").addEventListener("input", draw);
  const start = () => { closeDrawer(); openConversation(fresh()); find("question").focus(); };
  find("new-chat").addEventListener("click", start);
  find("new-chat-top").addEventListener("click", start);
  find("export").addEventListener("click", exportAll);
  find("import").addEventListener("click", () => find("import-file").click());
  find("import-file").addEventListener("change", (event) => { if (event.target.files[0]) importFile(event.target.files[0]); event.target.value = ""; });
  onChange(draw);
}
