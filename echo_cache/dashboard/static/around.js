// What all parts of the page know of the server, and in which words they tell whose memory something is about.

/** stats: the last event, {shared, worker, total, workers, workers_known}; changed: to be called after a change. app.js sets both. */
export const around = { stats: null, changed: () => {} };

/** The class of the store; null while nothing is known. */
export const storeName = () => around.stats?.worker.store ?? null;

/** Which level the store has not; null for one with both, and for one that is not known. */
export const lacking = () => ({ MemoryStore: "l2", RedisStore: "l1" })[storeName()] ?? null;

/** Whether workers know of each other. */
export const isShared = () => around.stats?.shared !== false;

/** What one of those is that count and keep for themselves. */
export const aWorker = () => (isShared() ? "worker" : "process");

/**
 * Name the worker that has answered. Requests go to any of those behind one address: where it is another one than
 * the stream is from, that is said, too.
 */
export function whose(id) {
  const own = around.stats?.worker.id;
  if (!id) return `this ${aWorker()}`;
  return `${aWorker()} ${id}${own && own !== id ? ` (the overview shows ${own})` : ""}`;
}
