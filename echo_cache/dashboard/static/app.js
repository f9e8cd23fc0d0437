// The page: which view is shown, what the server tells, and whether it can be heard.

import { fitActions } from "./actions.js";
import { api, recall } from "./api.js";
import { around, isShared, lacking, storeName, whose } from "./around.js";
import { $, h, say } from "./dom.js";
import { refresh } from "./entries.js";
import { clock, count } from "./format.js";
import { History } from "./history.js";
import { alarmsOf, showRefusals, showReport, showTop } from "./overview.js";

// Seconds without news after which the connection counts as lost; news come once a second. The server ends each stream
// now and then, so one that is being made again has a little time, too.
const SILENT = 6;
const BETWEEN = 3.5;
const DEAD = 15; // and after which it is made anew

// Everything that changes, named once; around.stats is what was told last.
const state = {
  summedAt: undefined, // the time of the last sum over all workers
  top: null,
  refusals: [],
  alarms: [],
  scope: recall("echo-cache-scope") === "worker" ? "worker" : "total",
  paused: false,
};
// Other workers report every 2 s, and not at the same moment: over 10 s their steps even out.
const histories = { worker: new History(4), total: new History(10) };
// heard, opened: by the clock that nobody sets; heardAt: epoch seconds, to be shown. polled: there is no stream, but answers.
// Nobody sees a hidden page, so it has no stream: over HTTP/1.1 six of them leave a browser no connection for a seventh.
const stream = { source: null, heard: 0, heardAt: 0, opened: 0, tries: 0, timer: null, polled: false };

// Views

const VIEWS = ["overview", "entries", "actions"];

function route() {
  const wanted = location.hash.slice(1);
  if (!VIEWS.includes(wanted) && wanted !== "") return; // the skip link
  const view = wanted || VIEWS[0];
  for (const name of VIEWS) $(`view-${name}`).hidden = name !== view;
  for (const link of document.querySelectorAll(".bar nav a")) {
    if (link.hash === `#${view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (view === "overview") render();
}
window.addEventListener("hashchange", () => {
  route();
  if (VIEWS.includes(location.hash.slice(1))) window.scrollTo(0, 0);
});

// What is shown

function render() {
  showLink();
  if (!around.stats || state.paused) return;
  const { worker, workers, workers_known: known } = around.stats;
  fitStore();
  const report = chosenReport();
  $("scope").hidden = !isShared();
  say($("scope-total"), known ? `All workers (${count(workers)})` : "All workers");
  say($("scope-note"), known ? "" : whyUnknown());
  if (!$("view-overview").hidden) {
    showReport(report, worker, histories[state.scope]);
    showTop(state.top);
    showRefusals(state.refusals);
  }
}

/** The report that the numbers are from. */
function chosenReport() {
  const { worker, total } = around.stats;
  return (state.scope === "worker" ? worker : total) ?? worker;
}

/** Why there are no numbers of all workers. */
function whyUnknown() {
  const own = `These are the numbers of ${whose(around.stats.worker.id)}.`;
  if (isShared()) return `The other workers are not known now: Redis cannot be asked. ${own}`;
  const why = storeName() === "MemoryStore" ? "There is no Redis" : "Workers do not report (report_every)";
  return `${why}: each process counts alone. ${own}`;
}

/** Switch off what the store has no level for. Of a store of the app's own nothing is known. */
function fitStore() {
  const level = lacking();
  if (!level || document.body.dataset.lacks === level) return;
  document.body.dataset.lacks = level;
  for (const option of $("search-level").options) option.disabled = option.value === level;
  $("search-level").value = level === "l1" ? "l2" : "l1";
  fitActions();
}

/** Banners are made anew only when they differ: a screen reader says them once. */
function showBanners(alarms) {
  const box = $("banners");
  const key = JSON.stringify(alarms);
  if (box.dataset.key === key) return;
  box.dataset.key = key;
  box.replaceChildren(...alarms.map(([look, text]) => h("p", { class: `banner ${look}`, text })));
}

function showLink() {
  const silence = (performance.now() - stream.heard) / 1000;
  const open = stream.source?.readyState === EventSource.OPEN;
  const live = around.stats !== null && silence < (open ? SILENT : BETWEEN);
  const link = $("link");
  const looks = live ? "live" : stream.heard || stream.tries ? "lost" : "connecting";
  link.dataset.state = looks;
  document.body.dataset.link = looks;
  const words = { live: state.paused ? "Paused" : "Live", lost: "Lost, reconnecting", connecting: "Connecting" };
  say($("link-text"), words[looks]);
  const alarms = [];
  if (looks === "lost") {
    const since = stream.heardAt && !stream.polled ? ` What is shown is of ${clock(stream.heardAt)}.` : "";
    if (stream.polled) alarms.push(["warn", "The server sends no live news, maybe because many look on. The page asks every few seconds."]);
    else alarms.push(["bad", `The server cannot be heard.${since} The page tries again by itself.`]);
  }
  if (around.stats && !state.paused) state.alarms = alarmsOf(chosenReport(), around.stats.worker);
  showBanners([...alarms, ...state.alarms]);
}

// What the server tells

function connect() {
  disconnect();
  if (document.hidden) return;
  const source = new EventSource("api/events");
  stream.source = source;
  stream.opened = performance.now();
  const on = (name, take) =>
    source.addEventListener(name, (event) => {
      let data;
      try {
        data = JSON.parse(event.data);
      } catch {
        return; // half a message of a proxy; the next one is a second away
      }
      stream.heard = performance.now();
      stream.heardAt = Date.now() / 1000;
      stream.tries = 0;
      stream.polled = false;
      take(data);
      render();
    });
  on("stats", takeStats);
  on("top", (top) => (state.top = top));
  on("refusals", (refusals) => (state.refusals = refusals));
  source.addEventListener("error", () => {
    showLink();
    // Where the connection broke, the browser tries again by itself. Where the server refused, it has given up.
    if (source.readyState === EventSource.CLOSED) retry();
  });
}

function disconnect() {
  stream.source?.close();
  clearTimeout(stream.timer);
}

function retry() {
  stream.tries += 1;
  clearTimeout(stream.timer);
  const { source } = stream;
  stream.timer = setTimeout(async () => {
    try {
      const stats = await api("GET", "api/stats"); // 401 leads to the login page
      const [top, refusals] = await Promise.all([api("GET", "api/top"), api("GET", "api/refusals")]);
      if (stream.source !== source) return; // it was hidden and is seen again
      Object.assign(state, { top, refusals });
      takeStats({ ...stats, workers: stats.workers.length });
      stream.polled = true;
      stream.heardAt = Date.now() / 1000;
      stream.tries = Math.min(stream.tries, 3);
      render();
    } catch {
      stream.polled = false;
      if (stream.source === source && !document.hidden) retry();
      return;
    }
    connect();
  }, Math.min(30, 2 ** Math.min(stream.tries - 1, 5)) * 1000);
}

function takeStats(stats) {
  if (!stats?.worker) return;
  around.stats = stats;
  const { worker, total, workers, workers_known: known } = stats;
  const t = Number.isFinite(worker.time) ? worker.time : Date.now() / 1000;
  histories.worker.push(worker, t, worker.id);
  // With one worker more, all that it ever counted would look like the work of a second.
  // The others are asked less often: what has not changed is no news.
  if (total?.time !== undefined && total.time === state.summedAt) return;
  state.summedAt = total?.time;
  histories.total.push(total ?? worker, t, `${workers} ${known} ${known ? "" : worker.id}`);
}

setInterval(() => {
  const since = (performance.now() - Math.max(stream.heard, stream.opened)) / 1000;
  // A connection that is open and silent (a suspended machine, a proxy that holds back) is no connection.
  if (since > DEAD && stream.source && stream.source.readyState !== EventSource.CLOSED) connect();
  showLink();
}, 1000);
document.addEventListener("visibilitychange", () => {
  if (document.hidden) return disconnect();
  stream.heard = stream.tries = 0; // it is no loss that was not heard while nobody looked
  connect();
  showLink();
});
window.addEventListener("pagehide", disconnect);
window.addEventListener("pageshow", (event) => event.persisted && connect());

// Controls

for (const choice of document.querySelectorAll('input[name="scope"]')) {
  choice.checked = choice.value === state.scope;
  choice.addEventListener("change", () => {
    state.scope = choice.value;
    recall("echo-cache-scope", state.scope);
    const paused = state.paused;
    state.paused = false; // a choice is shown also where news are not
    render();
    state.paused = paused;
    showLink();
  });
}

$("pause").addEventListener("click", () => {
  state.paused = !state.paused;
  $("pause").setAttribute("aria-pressed", String(state.paused));
  render();
});

$("sign-out").hidden = recall("echo-cache-signed-in") === null;
$("sign-out").addEventListener("click", async () => {
  await api("POST", "logout").catch(() => {});
  recall("echo-cache-signed-in", null);
  location.replace("./");
});

around.changed = refresh;

route();
connect();
