// The JSON interface. All addresses are relative to the page: the dashboard may be mounted anywhere.

/** What went wrong, in words for the operator. */
export class Failed extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

// Where the page is shown but its interface says 401, going on and on would be worse than saying so.
const SOONEST = 5000;

/** Load the page anew: who is not signed in gets the login there. */
function toLogin() {
  recall("echo-cache-signed-in", null);
  const last = Number(recall("echo-cache-left"));
  if (Date.now() - last < SOONEST) return;
  recall("echo-cache-left", String(Date.now()));
  location.replace("./");
}

/** Read what is kept in this browser, or write it (null removes it). Where storage is forbidden, nothing is kept. */
export function recall(key, value) {
  try {
    if (value === undefined) return localStorage.getItem(key);
    if (value === null) localStorage.removeItem(key);
    else localStorage.setItem(key, value);
  } catch {
    // nothing is kept
  }
  return null;
}

/** Add *params* to *path*: pairs of name and value, without the empty ones. */
export function withQuery(path, params) {
  const query = new URLSearchParams(params.filter(([, value]) => value !== null && value !== undefined && value !== ""));
  return query.size ? `${path}?${query}` : path;
}

/** Return *text* as an absolute URL: what begins with a slash is a path of this page's own origin. Null for what is neither. */
export function wholeUrl(text) {
  if (/^https?:\/\/[^/]/i.test(text)) return text;
  return /^\/(?!\/)/.test(text) ? location.origin + text : null;
}

/** Ask, and return the JSON of the answer. Raises Failed; a missing or old login leads to the login page. */
export async function api(method, path, body) {
  let response;
  try {
    response = await fetch(path, {
      method,
      headers: method === "POST" ? { "Content-Type": "application/json" } : {},
      body: method === "POST" ? JSON.stringify(body ?? {}) : undefined,
      cache: "no-store",
    });
  } catch {
    throw new Failed(0, "The server did not answer.");
  }
  if (response.status === 401) {
    toLogin();
    throw new Failed(401, "You are signed out. Load the page again to sign in.");
  }
  const text = await response.text().catch(() => "");
  let data = null;
  try {
    data = text ? JSON.parse(text) : null;
  } catch {
    // said below
  }
  if (!response.ok) throw new Failed(response.status, data?.error ?? `The server answered ${response.status}.`);
  if (text && data === null) throw new Failed(response.status, "The server sent what is not JSON.");
  return data;
}
