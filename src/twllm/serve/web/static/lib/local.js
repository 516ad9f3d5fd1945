// Small things this browser remembers (localStorage): who rates, the key, settings. Without storage, for this visit only.

const memory = new Map();

export function read(key, fallback = null) {
  try {
    const found = localStorage.getItem(`twllm.${key}`);
    return found === null ? fallback : JSON.parse(found);
  } catch { // storage is off, or someone else's value
    return memory.has(key) ? memory.get(key) : fallback;
  }
}

export function write(key, value) {
  memory.set(key, value);
  try {
    if (value === null) localStorage.removeItem(`twllm.${key}`);
    else localStorage.setItem(`twllm.${key}`, JSON.stringify(value));
  } catch { /* storage is off or full */ }
}

// Random ids without crypto.randomUUID, which plain-http pages on a LAN do not have.
export function randomId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// The random number under which this browser's ratings are stored (as a hash), so that they can be deleted on request.
export function userId() {
  const found = read("user");
  if (typeof found === "string" && found) return found;
  const made = randomId();
  write("user", made);
  return made;
}
