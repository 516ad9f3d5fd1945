// Conversations in this browser's IndexedDB; nothing of them is on the server. Without it (private windows), in memory.

const NAME = "twllm", STORE = "conversations";
let opened = null;

function open() {
  opened ??= new Promise((resolve) => {
    try {
      const request = indexedDB.open(NAME, 1);
      request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id" });
      request.onsuccess = () => resolve(request.result);
      request.onerror = () => resolve(null);
    } catch { resolve(null); }
  });
  return opened;
}

async function run(mode, work) {
  const database = await open();
  if (!database) return undefined;
  return new Promise((resolve, reject) => {
    const transaction = database.transaction(STORE, mode);
    const request = work(transaction.objectStore(STORE));
    transaction.oncomplete = () => resolve(request.result);
    transaction.onabort = () => reject(transaction.error); // the disk is full
  });
}

export const loadAll = async () => (await run("readonly", (store) => store.getAll())) ?? [];
const load = (id) => run("readonly", (store) => store.get(id));

// Other tabs are told which conversation changed; they read it again, so that no tab writes an old one over a new one.
const channel = "BroadcastChannel" in window ? new BroadcastChannel("twllm.conversations") : null;
const tell = (id) => channel?.postMessage(id);

export async function save(conversation) {
  await run("readwrite", (store) => store.put(conversation));
  tell(conversation.id);
}

export async function drop(id) {
  await run("readwrite", (store) => store.delete(id));
  tell(id);
}

// Calls `take(id, conversation)` when another tab wrote or (undefined) deleted one.
export function onOtherTab(take) {
  channel?.addEventListener("message", async ({ data }) => take(data, await load(data).catch(() => undefined)));
}
