/** The HTTP API: one function for each method, errors as `Problem`, the key of the session, retries of a busy server. */

const ROOT = new URL("../v1/", import.meta.url);  // relative, so that the page works below a path of a proxy too
const KEY = "docmetric.key", COLLECTION = "docmetric.collection";
const TRIES = 4, LONGEST_WAIT = 5;  // seconds
const memory = {};

function recall(storage, name) {
  try {
    return storage().getItem(name);
  } catch {
    return memory[name] ?? null;
  }
}

function keep(storage, name, value) {
  memory[name] = value;
  try {
    if (value === null) storage().removeItem(name);
    else storage().setItem(name, value);
  } catch { /* the browser allows no storage: it holds for this visit */ }
}

const tab = () => sessionStorage, browser = () => localStorage;

/** What the requests of this tab use. The key is forgotten with the tab; the collection is remembered. */
export const session = {
  get key() { return recall(tab, KEY); },
  set key(value) { keep(tab, KEY, value || null); },
  get collection() { return recall(tab, COLLECTION) ?? recall(browser, COLLECTION) ?? "default"; },
  set collection(value) { keep(tab, COLLECTION, value); keep(browser, COLLECTION, value); },
  askKey: null,  // async (wrong: boolean) -> a key, or null; set by app.js
};

/** An error of the API, or of the way there (status 0). `code` is a word, `details` the problem's own members. */
export class Problem extends Error {
  constructor(status, code, detail, details = {}) {
    super(detail);
    Object.assign(this, {status, code, details});
  }
}

const pause = seconds => new Promise(resolve => setTimeout(resolve, 1000 * seconds));

/** 16 random bytes. (crypto.randomUUID exists only on HTTPS and localhost.) */
const token = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), byte => byte.toString(16).padStart(2, "0")).join("");

/**
 * One request; the answer as `fetch` gives it. `path` lies in the collection ("": the collection itself); with a leading slash, below /v1.
 * A mutation has an idempotency key, so that a try whose answer was lost can be repeated and is done once.
 */
async function send(...request) {
  running(1);
  try {
    return await attempt(...request);
  } finally {
    running(-1);
  }
}

let requests = 0;
/** The style sheet and tests see whether the page waits for an answer. */
function running(change) {
  requests += change;
  document.documentElement.dataset.requests = requests;
}

async function attempt(method, path, {query = {}, body, json, signal} = {}) {
  const own = `collections/${encodeURIComponent(session.collection)}`;
  const url = new URL(path.startsWith("/") ? path.slice(1) : path ? `${own}/${path}` : own, ROOT);
  for (const [name, value] of Object.entries(query)) {
    if (value !== null && value !== undefined && value !== "") url.searchParams.set(name, value);
  }
  const headers = {Accept: "application/json"};
  if (method !== "GET") headers["Idempotency-Key"] = token();
  if (json !== undefined) headers["Content-Type"] = "application/json";
  else if (body) headers["Content-Type"] = body.type || "application/octet-stream";
  for (let tries = 1; ; tries++) {
    const {key} = session;
    if (key) headers.Authorization = `Bearer ${key}`;
    let answer;
    try {
      answer = await fetch(url, {method, headers, body: json !== undefined ? JSON.stringify(json) : body, signal});
    } catch (error) {
      if (error.name === "AbortError") throw error;
      if (tries >= 2) throw new Problem(0, "no-answer", error.message);
      await pause(0.5);
      continue;
    }
    if (answer.ok) return answer;
    if (answer.status === 503 && tries < TRIES) {
      await pause(Math.min(LONGEST_WAIT, Number(answer.headers.get("Retry-After")) || 1));
      continue;
    }
    // Another request may have got a new key meanwhile.
    if (answer.status === 401 && (session.key !== key || await session.askKey?.(Boolean(key)))) {
      tries = 0;
      continue;
    }
    throw await problem(answer);
  }
}

async function problem(answer) {
  try {
    const {code, detail, title, status, type, ...details} = await answer.json();
    return new Problem(answer.status, code ?? "", detail ?? title ?? answer.statusText, details);
  } catch {
    return new Problem(answer.status, "", answer.statusText);  // a proxy's page, for one
  }
}

const parsed = async answer => answer.status === 204 ? null : answer.json();

export const api = {
  get: async (path, query, signal) => parsed(await send("GET", path, {query, signal})),
  post: async (path, json = {}, query) => parsed(await send("POST", path, {json, query})),
  /** The body is a file's bytes. */
  upload: async (path, body, query, signal) => parsed(await send("POST", path, {body, query, signal})),
  put: async (path, json) => parsed(await send("PUT", path, {json})),
  patch: async (path, json) => parsed(await send("PATCH", path, {json})),
  remove: async path => parsed(await send("DELETE", path)),
  blob: async (path, query) => (await send("GET", path, {query})).blob(),
};
