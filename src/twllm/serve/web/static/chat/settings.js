// The sheet with the system prompt and the sampling settings. Empty means: what the model's makers chose.

import { h } from "../lib/dom.js";
import { forgetKey, sheet, toast } from "../lib/dialogs.js";
import { getKey } from "../lib/api.js";
import { write } from "../lib/local.js";
import { t } from "../lib/words.js";
import { keep, modelOf, sampling, setSampling, state } from "./state.js";

const FIELDS = [ // name, smallest, largest, step, with a slider
  ["temperature", 0, 2, 0.05, true], ["top_p", 0.01, 1, 0.01, true], ["top_k", 0, 1000, 1, false], ["min_p", 0, 1, 0.01, true],
  ["repetition_penalty", 0.5, 2, 0.01, false], ["frequency_penalty", -2, 2, 0.1, false], ["presence_penalty", -2, 2, 0.1, false],
  ["max_tokens", 1, 1_000_000, 1, false], ["seed", 0, 2 ** 31 - 1, 1, false],
];
const NEUTRAL = { temperature: 1, top_p: 1, min_p: 0, top_k: 0, repetition_penalty: 1, frequency_penalty: 0, presence_penalty: 0 }; // what the API takes for "not given"
const MAX_STOPS = 4; // what the API takes

function set(name, value) {
  const values = { ...sampling() };
  if (value === null) delete values[name];
  else values[name] = value;
  setSampling(values);
}

function field([name, min, max, step, sliding], defaults) {
  const usual = defaults[name] ?? NEUTRAL[name];
  const value = sampling()[name];
  const help = h("p", { class: "help", id: `help-${name}` }, t(`help_${name}`));
  const box = h("input", { id: `set-${name}`, type: "number", min, max, step: "any", inputmode: step < 1 || min < 0 ? "decimal" : "numeric", placeholder: usual ?? t("automatic"), value: value ?? "", "aria-describedby": help.id });
  const slider = sliding && h("input", { type: "range", min, max, step, value: value ?? usual ?? min, "aria-label": t(`set_${name}`) });
  const take = (text) => {
    if (text === "") { set(name, null); box.setCustomValidity(""); return; }
    let number = Number(text);
    if (step >= 1) number = Math.round(number);
    const fine = Number.isFinite(number) && number >= min && number <= max;
    box.setCustomValidity(fine ? "" : t("between", { min, max }));
    if (fine) set(name, number);
    else box.reportValidity();
  };
  box.addEventListener("change", () => { take(box.value); if (slider) slider.value = box.value === "" ? usual ?? min : box.value; });
  slider && slider.addEventListener("input", () => { box.value = slider.value; take(slider.value); });
  return h("div", { class: "field" }, h("div", { class: "row" }, h("label", { for: box.id }, t(`set_${name}`)), box), slider, help);
}

function systemField() {
  const conversation = state.open;
  const box = h("textarea", { id: "set-system", rows: 4, placeholder: state.config.system || t("system_example"), value: conversation.system, "aria-describedby": "help-system" });
  box.addEventListener("input", () => {
    conversation.system = box.value;
    write("system", box.value);
  });
  box.addEventListener("change", () => { if (state.conversations.includes(conversation)) keep(conversation); });
  return h("div", { class: "field" }, h("label", { for: "set-system" }, t("system")), box, h("p", { class: "help", id: "help-system" }, t("help_system")));
}

function stopField() {
  const box = h("textarea", { id: "set-stop", rows: 2, value: (sampling().stop ?? []).join("\n"), "aria-describedby": "help-stop" });
  box.addEventListener("change", () => {
    const stops = box.value.split("\n").filter(Boolean).slice(0, MAX_STOPS);
    set("stop", stops.length ? stops : null);
  });
  return h("div", { class: "field" }, h("label", { for: "set-stop" }, t("set_stop")), box, h("p", { class: "help", id: "help-stop" }, t("help_stop")));
}

export function openSettings() {
  const defaults = { ...state.config.defaults, ...modelOf(state.open.model)?.defaults };
  const dialog = sheet(t("settings"), "settings");
  const fill = () => {
    const reset = h("button", { type: "button", id: "reset", onclick: () => { setSampling({}); fill(); toast(t("was_reset")); } }, t("reset"));
    const signOut = getKey() && h("button", { type: "button", onclick: (event) => { forgetKey(); event.target.remove(); } }, t("key_forget"));
    dialog.querySelector(".sheet-body").replaceChildren(systemField(), h("h3", {}, t("sampling")), ...FIELDS.map((one) => field(one, defaults)), stopField(),
      h("div", { class: "row end" }, ...[signOut, reset].filter(Boolean)));
  };
  fill();
}

const SHORTCUTS = [["Enter", "key_send"], ["Shift + Enter", "key_line"], ["Esc", "key_stop"], ["/", "key_focus"], ["↑", "key_edit"], ["Ctrl + Shift + O", "key_new"], ["Ctrl + K", "key_search"], ["?", "key_help"]];

export function openShortcuts() {
  sheet(t("shortcuts"), "small", h("dl", { class: "shortcuts" }, ...SHORTCUTS.flatMap(([keys, word]) => [h("dt", {}, ...keys.split(" + ").map((key) => h("kbd", {}, key))), h("dd", {}, t(word))])));
}
