// What the pages ask of the server. Addresses are relative, so the pages also work below a prefix of a proxy.

import { read, write } from "./local.js";
import { t } from "./words.js";

export class ServerError extends Error {
  constructor(message, status = 0, retryAfter = 0) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter; // seconds, 0: the server did not say
  }
}

let askKey = async () => null; // set by the page: shows the dialog, resolves to a key or null
export const onKeyNeeded = (ask) => { askKey = ask; };
export const getKey = () => read("key");
export const setKey = (key) => write("key", key || null);

async function failure(response) {
  let message = "";
  try {
    message = (await response.json()).error.message;
  } catch { /* not our server's words */ }
  const retryAfter = Math.ceil(Number(response.headers.get("Retry-After"))) || 0;
  return new ServerError(message || t("status", { status: response.status }), response.status, retryAfter);
}

async function request(address, options = {}, again = true) {
  const key = getKey();
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(address, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(t("unreachable"));
  }
  if (response.ok) return response;
  const error = await failure(response);
  if (error.status === 401 && again) {
    const given = await askKey(key ? error.message : "");
    if (given) {
      setKey(given);
      return request(address, options, true);
    }
  }
  throw error;
}

const body = (method, value, signal) => ({ method, headers: { "Content-Type": "application/json" }, body: JSON.stringify(value), signal });

export const getJson = async (address) => (await request(address)).json();
export const postJson = async (address, value) => (await request(address, body("POST", value))).json();
export const deleteJson = async (address, value) => (await request(address, body("DELETE", value))).json();

// Calls onEvent with each event of a stream; resolves once the server said that it is complete.
export async function stream(address, value, signal, onEvent) {
  const response = await request(address, body("POST", value, signal));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value: piece } = await reader.read().catch((error) => {
      if (error.name === "AbortError") throw error;
      throw new ServerError(t("cut"));
    });
    const lines = (rest + (piece ?? "")).split("\n");
    rest = done ? "" : lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error && !event.side && !event.model) throw new ServerError(event.error.message, 500);
      onEvent(event);
    }
    if (done) throw new ServerError(t("cut"));
  }
}

// One chat answer: onText gets each piece; resolves to {finish, usage}.
export async function streamAnswer(request_, signal, onText) {
  const result = { finish: null, usage: null };
  await stream("v1/chat/completions", { ...request_, stream: true, stream_options: { include_usage: true } }, signal, (event) => {
    const choice = event.choices?.[0];
    if (choice?.delta?.content) onText(choice.delta.content);
    result.finish = choice?.finish_reason ?? result.finish;
    result.usage = event.usage ?? result.usage;
  });
  return result;
}

export async function sendRating(rating) {
  const answer = await postJson("api/rating", rating);
  if (answer.stored !== true) throw new ServerError(t("not_stored_plain"));
  return answer;
}
