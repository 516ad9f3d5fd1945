// What the pages say, in 正體中文 and English. t("key", {…}) fills {…}; [data-t], [data-label], [data-placeholder] are filled in HTML.

import { ARENA_WORDS } from "./words-arena.js";
import { CHAT_WORDS } from "./words-chat.js";
import { read, write } from "./local.js";

const SHARED = {
  chat: ["聊天", "Chat"], arena: ["競技場", "Arena"], leaderboard: ["排行榜", "Leaderboard"], compare: ["文化比較", "Culture comparison"],
  theme: ["配色：", "Colours: "], theme_auto: ["跟隨系統", "as the system"], theme_light: ["淺色", "light"], theme_dark: ["深色", "dark"],
  other_language: ["EN", "中文"], switch_language: ["Switch to English", "切換成中文"],
  status: ["伺服器回應 {status}", "The server answered {status}"],
  unreachable: ["連不上伺服器，請檢查網路或伺服器是否還在執行。", "The server cannot be reached. Check the network, or whether it is still running."],
  cut: ["連線中斷了，回答可能不完整。", "The connection broke off; the answer may be incomplete."],
  not_stored_plain: ["沒有存下來", "it was not stored"],
  close: ["關閉", "Close"], cancel: ["取消", "Cancel"], send: ["送出", "Send"], stop: ["停止", "Stop"], retry: ["重試", "Retry"],
  retry_in: ["{seconds} 秒後可重試", "Retry in {seconds} s"], code: ["程式碼", "code"], copy_code: ["複製程式碼", "Copy code"], copied: ["已複製", "Copied"], task: ["待辦", "Task"],
  key_title: ["需要金鑰", "A key is needed"], key_why: ["這台伺服器要有 API 金鑰才能使用。金鑰請向管理的人索取。", "This server asks for an API key. The people who run it give them out."],
  key_label: ["API 金鑰", "API key"], key_kept: ["只存在這個瀏覽器裡，之後不會再問。", "It is kept in this browser only, and not asked for again."], key_use: ["使用", "Use it"],
  key_forget: ["忘記金鑰", "Forget the key"], key_forgotten: ["金鑰已從這個瀏覽器刪除。", "The key was removed from this browser."],
  card: ["模型卡", "Model card"], card_of: ["{model} 的模型卡", "Card of {model}"], no_card: ["這個模型沒有附上模型卡。", "This model comes without a card."],
  consent: ["同意用我評分的對話改進模型", "My rated conversations may improve the model"],
  may_be_wrong: ["模型可能答錯，請自行查證。", "Models make mistakes; please check."],
};
const WORDS = { ...SHARED, ...CHAT_WORDS, ...ARENA_WORDS };

let current = read("language") === "en" ? "en" : "zh"; // 正體中文 unless the person chose English
const listeners = new Set();
export const language = () => current;
export const onLanguage = (listener) => listeners.add(listener);

export function t(key, values = {}) {
  const found = WORDS[key];
  if (!found) throw new Error(`no words for ${key}`);
  return found[current === "en" ? 1 : 0].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

export function applyWords(root = document) {
  document.documentElement.lang = current === "en" ? "en" : "zh-Hant-TW";
  for (const element of root.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
  for (const element of root.querySelectorAll("[data-placeholder]")) element.placeholder = t(element.dataset.placeholder);
  for (const element of root.querySelectorAll("[data-label]")) {
    const label = t(element.dataset.label);
    element.setAttribute("aria-label", label);
    if (element.tagName === "BUTTON") element.title = label;
  }
}

export function setLanguage(wanted) {
  current = wanted;
  write("language", wanted);
  applyWords();
  for (const listener of listeners) listener();
}
