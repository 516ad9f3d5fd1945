// What the parts of the chat page share: the configuration, the conversations, the open one, and who wants to know.

import { read, write } from "../lib/local.js";
import { toast } from "../lib/dialogs.js";
import { t } from "../lib/words.js";
import { drop, loadAll, onOtherTab, save } from "./store.js";
import { newConversation } from "./tree.js";

export const state = {
  config: { model: "", models: [], defaults: {} },
  conversations: [], // newest first
  open: null, // the conversation on the page; not in the list before its first message
  runs: new Map(), // conversation id -> AbortController of the answer being written
};

const listeners = new Set();
export const onChange = (listener) => listeners.add(listener);
export const changed = () => { for (const listener of listeners) listener(); };

const ADDRESS = /^#c=([0-9a-f]{32})$/;

export async function loadConversations() {
  state.conversations = (await loadAll().catch(() => [])).sort((one, other) => other.updated - one.updated);
  takeUnfinished();
  for (const conversation of state.conversations) {
    for (const node of Object.values(conversation.nodes)) if (node.role === "assistant" && !node.finish) node.finish = "cut"; // the page was closed
  }
  onOtherTab(takeFromOtherTab);
  const wanted = location.hash.match(ADDRESS)?.[1];
  openConversation(state.conversations.find(({ id }) => id === wanted) ?? fresh());
}

export const modelOf = (name) => state.config.models.find((model) => model.name === name) ?? state.config.models[0];
export const fresh = () => newConversation(read("system", ""), modelOf(read("model"))?.name ?? "");

export function openConversation(conversation) {
  state.open = conversation;
  const known = state.conversations.includes(conversation);
  history.replaceState(null, "", known ? `#c=${conversation.id}` : location.pathname);
  changed();
}

export async function keep(conversation) {
  if (!state.conversations.includes(conversation)) {
    if (deleted.has(conversation.id)) return; // deleted while its answer was being written
    state.conversations.unshift(conversation);
    if (state.open === conversation) history.replaceState(null, "", `#c=${conversation.id}`);
  }
  state.conversations.sort((one, other) => other.updated - one.updated);
  changed();
  await save(conversation).catch(() => toast(t("storage_full")));
}

// The page goes away: what was written of running answers. A database would not finish now, localStorage writes at once.
export function keepRunning() {
  const found = [];
  for (const { id, nodes } of state.conversations) {
    const node = state.runs.has(id) && Object.values(nodes).find((other) => other.role === "assistant" && !other.finish);
    if (node) found.push({ conversation: id, node: node.id, content: node.content });
  }
  if (found.length) write("unfinished", [...(read("unfinished") ?? []), ...found]);
}

function takeUnfinished() {
  for (const { conversation, node, content } of read("unfinished") ?? []) {
    const found = state.conversations.find(({ id }) => id === conversation)?.nodes[node];
    if (found && !found.finish && content.length > found.content.length) found.content = content;
  }
  write("unfinished", null);
}

const deleted = new Set();

export async function forget(conversation) {
  deleted.add(conversation.id);
  state.runs.get(conversation.id)?.abort();
  state.conversations = state.conversations.filter((other) => other !== conversation);
  if (state.open === conversation) openConversation(fresh());
  else changed();
  await drop(conversation.id).catch(() => {});
}

function takeFromOtherTab(id, conversation) {
  if (state.runs.has(id)) return; // being written here
  const others = state.conversations.filter((other) => other.id !== id);
  const open = state.open.id === id;
  state.conversations = conversation ? [conversation, ...others].sort((one, other) => other.updated - one.updated) : others;
  if (open) openConversation(conversation ?? fresh());
  else changed();
}

// A conversation with nothing left in it leaves the list but stays on the page.
export async function unlist(conversation) {
  state.conversations = state.conversations.filter((other) => other !== conversation);
  conversation.title = "";
  if (state.open === conversation) history.replaceState(null, "", location.pathname);
  changed();
  await drop(conversation.id).catch(() => {});
}

export async function bringBack(conversation) {
  deleted.delete(conversation.id);
  await keep(conversation);
}

// Settings of this browser: only what the person changed. The model's own defaults stand for the rest.
export const sampling = () => read("sampling", {}) ?? {};
export const setSampling = (values) => write("sampling", values);
