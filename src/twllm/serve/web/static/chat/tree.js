// A conversation as a tree: asking again and editing make siblings, and `chosen` says which one is on the page.
//
// {id, title, created, updated, system, model, nodes: {id: node}, chosen: {parent id or "": child id}}
// node: {id, parent, role, content, images?, created} and, for answers, {model, system, finish, error?, usage?, rating?};
// finish: null while it is written, then "stop" | "length" | "stopped" (by the person) | "error" | "cut".

import { randomId } from "../lib/local.js";

const MAX_TITLE = 30;

export function newConversation(system, model) {
  const now = Date.now();
  return { id: randomId(), title: "", created: now, updated: now, system, model, nodes: {}, chosen: {} };
}

export function add(conversation, parent, fields) {
  const node = { id: randomId(), parent, images: [], created: Date.now(), ...fields };
  conversation.nodes[node.id] = node;
  conversation.chosen[parent] = node.id;
  conversation.updated = node.created;
  if (!conversation.title && node.role === "user") conversation.title = titleOf(node.content);
  return node;
}

const titleOf = (text) => {
  const line = text.trim().split("\n")[0].trim();
  const letters = [...line];
  return letters.length > MAX_TITLE ? `${letters.slice(0, MAX_TITLE).join("")}…` : line;
};

export const siblings = (conversation, node) => Object.values(conversation.nodes)
  .filter((other) => other.parent === node.parent).sort((one, other) => one.created - other.created || (one.id < other.id ? -1 : 1));

// The nodes on the page, first to last.
export function path(conversation) {
  const found = [];
  for (let id = conversation.chosen[""]; id; id = conversation.chosen[id]) found.push(conversation.nodes[id]);
  return found;
}

export function remove(conversation, node) {
  for (const child of Object.values(conversation.nodes)) if (child.parent === node.id) remove(conversation, child);
  const others = siblings(conversation, node).filter((other) => other !== node);
  delete conversation.nodes[node.id];
  delete conversation.chosen[node.id];
  if (conversation.chosen[node.parent] !== node.id) return;
  if (others.length) conversation.chosen[node.parent] = others.at(-1).id;
  else delete conversation.chosen[node.parent];
}

// What is sent for the answer to `node` (a question): everything above it, without answers that failed before a word.
export function messages(conversation, node, system) {
  const found = [];
  for (let at = node; at; at = conversation.nodes[at.parent]) if (at.role === "user" || at.content.trim()) found.unshift(at);
  const sent = found.map(({ role, content, images }) => ({ role, content: images.length ? parts(content, images) : content }));
  return system ? [{ role: "system", content: system }, ...sent] : sent;
}

function parts(text, images) {
  const pictures = images.map((url) => ({ type: "image_url", image_url: { url } }));
  return text ? [...pictures, { type: "text", text }] : pictures;
}

// The conversation up to an answer as text, for ratings; a picture is only mentioned.
export function plainMessages(conversation, answer) {
  const found = [];
  for (let at = answer; at; at = conversation.nodes[at.parent]) if (at.role === "user" || at.content.trim()) found.unshift(at);
  const plain = found.map(({ role, content, images }) => ({ role, content: images.map(() => "[圖片]").join("") + content }));
  return answer.system ? [{ role: "system", content: answer.system }, ...plain] : plain;
}

const text = (value, fallback = "") => (typeof value === "string" ? value : fallback);
const FINISHES = ["stop", "length", "stopped", "error", "cut"];

// A conversation from a file someone gave us: known fields of known types only; throws where it cannot be one.
export function cleaned(given) {
  const made = newConversation(text(given.system), text(given.model));
  if (!/^[0-9a-f]{32}$/.test(given.id)) throw new TypeError("id");
  Object.assign(made, { id: given.id, title: text(given.title).slice(0, 200), created: Number(given.created) || made.created, updated: Number(given.updated) || made.updated });
  for (const node of Object.values(given.nodes)) {
    if (!/^[0-9a-f]{32}$/.test(node.id) || !["user", "assistant"].includes(node.role) || typeof node.content !== "string") throw new TypeError("node");
    const images = (Array.isArray(node.images) ? node.images : []).filter((url) => /^data:image\/(png|jpeg|webp|gif);base64,/.test(url));
    made.nodes[node.id] = { id: node.id, parent: text(node.parent), role: node.role, content: node.content, images, created: Number(node.created) || 0 };
    if (node.role === "assistant") {
      const finish = FINISHES.includes(node.finish) ? node.finish : "cut";
      const rated = [1, -1].includes(node.rating?.rating) ? { rating: node.rating.rating, reason: text(node.rating.reason), comment: text(node.rating.comment) } : null;
      Object.assign(made.nodes[node.id], { model: text(node.model), system: text(node.system), finish, error: text(node.error?.message) ? { message: node.error.message } : null, rating: rated });
    }
  }
  for (const node of Object.values(made.nodes)) {
    const seen = new Set();
    for (let at = node; at; at = made.nodes[at.parent]) {
      if (seen.has(at.id)) throw new TypeError("circle");
      seen.add(at.id);
      if (at.parent && !made.nodes[at.parent]) throw new TypeError("parent");
    }
    made.chosen[node.parent] = node.id;
  }
  for (const [parent, child] of Object.entries(given.chosen ?? {})) if (made.nodes[child]?.parent === parent) made.chosen[parent] = child;
  return made;
}
