// Asking: sends the conversation, writes the stream into the answer's node, keeps it, and says how it ended.

import { streamAnswer } from "../lib/api.js";
import { keep, modelOf, sampling, state, unlist } from "./state.js";
import { add, messages, path, remove } from "./tree.js";

const AGAIN_TEMPERATURE = 0.7; // asking again at temperature 0 would give the same words
const SAVE_MS = 1500; // how often a growing answer is written to the browser's database

// A new question below the last good answer; one whose answer failed becomes another version of it.
export function ask(conversation, content, images = []) {
  if (state.runs.has(conversation.id)) return null;
  const last = path(conversation).at(-1);
  const failed = last?.role === "assistant" && last.finish === "error" && !last.content.trim();
  const parent = failed ? conversation.nodes[last.parent].parent : last?.role === "user" ? last.parent : last?.id ?? "";
  return answer(conversation, add(conversation, parent, { role: "user", content, images }));
}

export function edit(conversation, node, content) {
  if (state.runs.has(conversation.id)) return null;
  return answer(conversation, add(conversation, node.parent, { role: "user", content, images: node.images }));
}

// Another answer to the same question; the earlier one stays, unless it failed without a word.
export function again(conversation, node) {
  if (state.runs.has(conversation.id)) return null;
  const question = conversation.nodes[node.parent];
  const failed = node.finish === "error" && !node.content.trim();
  if (failed) remove(conversation, node);
  return answer(conversation, question, !failed);
}

function settings(conversation, another) {
  const chosen = { ...sampling() };
  if (another) {
    const usual = chosen.temperature ?? modelOf(conversation.model)?.defaults?.temperature ?? state.config.defaults.temperature ?? 0;
    chosen.temperature = Math.max(AGAIN_TEMPERATURE, usual);
    delete chosen.seed;
  }
  return chosen;
}

async function answer(conversation, question, another = false) {
  const controller = new AbortController();
  const system = conversation.system.trim() || state.config.system?.trim() || ""; // the person's, else the server's
  const fields = { role: "assistant", content: "", model: conversation.model, system, finish: null, error: null, rating: null };
  const node = add(conversation, question.id, fields);
  state.runs.set(conversation.id, controller);
  let saved = performance.now();
  keep(conversation);
  try {
    const body = { ...(conversation.model ? { model: conversation.model } : {}), messages: messages(conversation, question, system), ...settings(conversation, another) };
    const { finish, usage } = await streamAnswer(body, controller.signal, (piece) => {
      node.content += piece;
      grown(conversation, node);
      if (performance.now() - saved < SAVE_MS) return;
      saved = performance.now();
      keep(conversation);
    });
    node.finish = finish === "length" ? "length" : "stop";
    node.usage = usage;
    if (!node.content.trim()) Object.assign(node, { finish: "error", error: { kind: "empty" } });
  } catch (error) {
    if (error.name === "AbortError") node.finish = "stopped";
    else Object.assign(node, { finish: "error", error: { message: error.message, status: error.status, until: error.retryAfter ? Date.now() + 1000 * error.retryAfter : 0 } });
  }
  state.runs.delete(conversation.id);
  if (node.finish === "stopped" && !node.content.trim()) takeBack(conversation, question, node);
  if (Object.keys(conversation.nodes).length) await keep(conversation);
  else await unlist(conversation);
  ended(conversation, node);
}

let grown = () => {}, ended = () => {}, takenBack = () => {};
export const onAnswer = (whileWriting, atEnd, backToBox) => { grown = whileWriting; ended = atEnd; takenBack = backToBox; };

// Stopped before the first word: as if it had not been asked. A question of its own goes back into the box.
function takeBack(conversation, question, node) {
  remove(conversation, node);
  if (Object.values(conversation.nodes).some((other) => other.parent === question.id)) return;
  remove(conversation, question);
  takenBack(conversation, question);
}

export const stop = (conversation) => state.runs.get(conversation.id)?.abort();
