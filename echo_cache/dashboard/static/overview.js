// The view of what happens now: figures, charts, health, reasons, routes, top keys.

import { aWorker, whose } from "./around.js";
import { chart } from "./chart.js";
import { $, fillRows, h, rowOf, say, showUrl, urlButton, visible } from "./dom.js";
import { bytes, clock, count, counted, duration, iso, percent, rate, short } from "./format.js";
import { hitRate, SPAN } from "./history.js";

const BANDS = [
  ["l1", "Memory (L1)"],
  ["l2", "Redis (L2)"],
  ["stale", "Stale"],
  ["shared", "Shared a call"],
  ["app", "App (miss)"],
  ["passed", "Passed by"],
];

const FORWARDS = {
  "uri-miss": "nothing was stored for the URL",
  "vary-miss": "only other variants were stored",
  miss: "nothing that fits was stored",
  request: "the request asked for a new answer",
  stale: "what was stored was no longer fresh",
  partial: "only a part was stored",
  bypass: "a rule keeps it out of the cache",
  method: "the method is not cached",
};

// The server says in words why something was not stored with each of them; those words serve the counts, too.
const explained = Object.create(null);

const EMPTY = "The line begins after two reports.";
const drawRates = chart($("chart-rate"), {
  bands: BANDS.map(([key, label]) => ({ key, label, value: (point) => point.rates && point.rates[key] })),
  span: SPAN,
  format: rate,
  tick: (value) => (value < 1e4 ? String(Number(value.toPrecision(3))) : short(value)),
  empty: EMPTY,
});
const drawHits = chart($("chart-hit"), {
  bands: [{ key: "hit", label: "Answered without the app", value: (point) => point.hit }],
  span: SPAN,
  top: 1,
  step: 0.25,
  format: percent,
  tick: (fraction) => `${fraction * 100} %`,
  empty: "No request that a cache can answer.",
});

const total = (rates) => BANDS.reduce((sum, [key]) => sum + rates[key], 0);
const joined = (...parts) => parts.filter(Boolean).join(" \u00b7 ");

/** Show *report* with the *history* of the same scope. *own* is this worker's: what has no sum is taken from there. */
export function showReport(report, own, history) {
  showTiles(report, history);
  drawRates(history.points);
  drawHits(history.points);
  showHealth(report, own, history.over(10));
  showReasons($("forwards"), report.forwards, FORWARDS);
  showReasons($("reasons"), report.refusals, explained);
  showRoutes(report.routes ?? []);
  say($("cache-name"), own.name || "echo_cache");
  say($("foot"), `This ${aWorker()}: ${joined(own.id, Number.isFinite(own.uptime) && `up for ${duration(own.uptime)}`)}`);
}

function showTiles(report, history) {
  const minute = history.over(60);
  const recent = history.over(10);
  const lately = minute && hitRate(minute.rates);
  say($("tile-hit"), percent(lately ?? report.hit_rate));
  say($("tile-hit-sub"), lately === null ? "since reset" : joined("last minute", `${percent(report.hit_rate)} since reset`));

  say($("tile-rate"), recent ? `${rate(total(recent.rates))} /s` : "\u2013");
  const passed = report.passed;
  say($("tile-rate-sub"), joined(`${short(report.requests)} since reset`, passed && report.requests > 0 && `${percent(passed / report.requests)} passed by`));

  say($("tile-saved"), duration(report.saved_seconds));
  say($("tile-saved-sub"), recent ? `${duration(recent.rates.saved)} each second` : "of waiting for the app");

  const limit = report.l1_max_bytes;
  say($("tile-l1"), bytes(report.l1_bytes));
  say(
    $("tile-l1-sub"),
    report.l1_bytes === null || report.l1_bytes === undefined
      ? "no memory level"
      : joined(limit && `of ${bytes(limit)}`, Number.isFinite(report.l1_entries) && counted(report.l1_entries, "entry", "entries")),
  );
  const bar = $("tile-l1-bar");
  bar.hidden = !limit;
  if (limit) bar.firstElementChild.style.width = `${Math.min(100, (100 * (report.l1_bytes ?? 0)) / limit)}%`;

  say($("tile-flights"), count(report.flights));
  say($("tile-flights-sub"), joined(`${short(report.collapsed)} shared a call`, Number.isFinite(report.tasks) && counted(report.tasks, "task")));
}

/** What is well and what is not: [name, state, word, explanation]; state is "good", "warn", "bad" or "". */
function healthOf(report, own, recent) {
  const facts = [];
  const store = report.store ?? own.store;
  const strategy = report.strategy ?? own.strategy;
  facts.push(["Store", "", store ?? "\u2013", strategy ? strategy.replaceAll("_", "-") : ""]);

  const breaker = report.breaker ?? own.breaker;
  const reads = Number.isFinite(report.l2_read_seconds) && `reads take ${duration(report.l2_read_seconds)}`;
  const troubles = joined(reads, counted(report.l2_errors ?? 0, "error"), counted(report.l2_timeouts ?? 0, "time-out"));
  if (breaker === "open") facts.push(["Redis", "bad", "Not asked", joined("it failed and is tried again soon", troubles)]);
  else if (breaker === "half_open") facts.push(["Redis", "warn", "Tried again", troubles]);
  else if (breaker === "closed") facts.push(["Redis", "good", "Answers", troubles]);
  else if (store === "MemoryStore") facts.push(["Redis", "", "None", "memory only; processes know nothing of each other"]);
  else facts.push(["Redis", "", "\u2013", troubles]);

  const log = report.log ?? own.log;
  if (log && store !== "MemoryStore") facts.push(["Invalidation log", ...logState(log)]);

  const queue = report.write_back_queue ?? 0;
  const dropped = report.dropped ?? 0;
  if (strategy === "write_back" || queue || dropped) {
    const waiting = queue ? `${counted(queue, "write")}, ${bytes(report.write_back_bytes)}` : "Empty";
    facts.push(["Write-back queue", dropped ? "warn" : "", waiting, dropped ? `${count(dropped)} dropped: Redis never got them` : ""]);
  }
  facts.push(["Evictions", "", count(report.evictions), recent ? `${rate(recent.rates.evictions)} /s, for room in memory` : ""]);
  facts.push(["Stored", "", count(report.stored), joined(recent && `${rate(recent.rates.stored)} /s`, `${count(report.refused)} not stored`)]);
  facts.push(["Invalidations", "", count(report.invalidations), ""]);
  if (report.rescued) facts.push(["Rescued", "warn", count(report.rescued), "stale answers in place of an app that failed"]);
  const failures = report.failures ?? 0;
  facts.push(["Own failures", failures ? "warn" : "", count(failures), failures ? "requests did not feel them; the app's log says more" : ""]);
  return facts;
}

const NEVER = 1e9; // seconds that stand for "not yet"

function logState({ heard, unheard_for: silence, synced, pending, reason }) {
  const waiting = pending ? `${counted(pending, "invalidation")} not told to the others yet` : "";
  const since = silence < NEVER ? `for ${duration(silence)}` : "";
  if (!heard) return ["bad", "Not heard", joined(since, reason, waiting)];
  if (!synced) return ["warn", "Too old", joined("no news", since, reason, waiting)];
  if (pending) return ["warn", "Heard", waiting];
  return ["good", "Heard", silence < NEVER ? `last ${duration(silence)} ago` : ""];
}

function showHealth(report, own, recent) {
  const list = $("health");
  const facts = healthOf(report, own, recent);
  while (list.children.length > facts.length * 2) list.lastElementChild.remove();
  while (list.children.length < facts.length * 2) list.append(h("dt"), h("dd", {}, h("span", { class: "word" }), " ", h("span", { class: "hint" })));
  facts.forEach(([name, state, word, more], i) => {
    say(list.children[2 * i], name);
    const [value, hint] = list.children[2 * i + 1].children;
    const look = `word ${state}`.trim();
    if (value.className !== look) value.className = look;
    say(value, word);
    say(hint, more);
  });
}

/** The sentences for what an operator must not miss. */
export function alarmsOf(report, own) {
  const alarms = [];
  if (report.disabled ?? own.disabled) alarms.push(["warn", "The cache is switched off: every request goes to the app."]);
  if ((report.breaker ?? own.breaker) === "open") alarms.push(["bad", "Redis does not answer. The app is asked for what is not in memory."]);
  const log = report.log ?? own.log;
  if (log && log.heard === false) alarms.push(["bad", "Invalidations of other workers cannot be heard. Stored answers are used for a short time only."]);
  else if (log && log.synced === false && !(log.unheard_for >= NEVER && own.uptime < 10))
    alarms.push(["warn", "A worker has not heard for too long (max_unsynced) what the others invalidate. It does not trust what is older than that: every page is fetched again every few seconds."]);
  return alarms;
}

const bar = () => {
  const row = document.createElement("tr");
  row.append(
    h("th", { scope: "row" }, h("span", { class: "share", "aria-hidden": "true" }), h("span", { class: "name" }), h("span", { class: "why" })),
    h("td"),
  );
  return row;
};

function setShare(row, fraction) {
  const width = `${Math.round(1000 * Math.min(1, fraction)) / 10}%`;
  const share = row.querySelector(".share");
  if (share.style.width !== width) share.style.width = width;
}

function showReasons(table, counts, words) {
  const rows = Object.entries(counts ?? {}).filter(([, n]) => n > 0);
  rows.sort((a, b) => b[1] - a[1] || a[0].localeCompare(b[0]));
  const most = rows[0]?.[1] ?? 1;
  fillRows(table.tBodies[0], rows.slice(0, 12), bar, (row, [reason, n]) => {
    setShare(row, n / most);
    say(row.querySelector(".name"), reason);
    say(row.querySelector(".why"), Object.hasOwn(words, reason) ? words[reason] : ""); // reasons may have any name
    say(row.cells[1], count(n));
  });
}

const routeRow = () => {
  const row = rowOf("", "", "", "", "", "", "", "", "", "", "", "")();
  row.cells[0].append(h("span", { class: "cut mono" }));
  return row;
};

function showRoutes(routes) {
  fillRows($("routes").tBodies[0], routes, routeRow, (row, r) => {
    const hits = (r.l1_hits ?? 0) + (r.l2_hits ?? 0) + (r.collapsed ?? 0);
    const all = hits + (r.misses ?? 0);
    const name = r.route || "(no route)";
    const label = row.cells[0].firstChild;
    say(label, name);
    if (label.title !== visible(name)) label.title = visible(name);
    const cells = [
      short(all), percent(all ? hits / all : null), short(r.l1_hits), short(r.l2_hits), short(r.stale_hits), short(r.collapsed),
      short(r.misses), short(r.stored), short(r.refused), r.fill_seconds_mean ? duration(r.fill_seconds_mean) : "\u2013", duration(r.saved_seconds),
    ];
    cells.forEach((text, i) => say(row.cells[i + 1], text));
  });
}

const urlBar = () => {
  const row = bar();
  row.querySelector(".name").replaceWith(urlButton());
  row.querySelector(".why").remove();
  return row;
};

/** Show the keys with the most hits and the largest ones. */
export function showTop(top) {
  const show = (id, list, key, format) => {
    const rows = (list ?? []).filter((item) => item[key] > 0);
    const most = Math.max(1, ...rows.map((item) => item[key]));
    fillRows($(id).tBodies[0], rows, urlBar, (row, item) => {
      setShare(row, item[key] / most);
      showUrl(row.querySelector("button"), item.url);
      say(row.cells[1], format(item[key]));
    });
  };
  for (const id of ["hot-whose", "large-whose", "refused-whose"]) say($(id), whose(top?.worker));
  show("top-hits", top?.by_hits, "hits", count);
  show("top-bytes", top?.by_bytes, "bytes", bytes);
}

const refusalRow = () => {
  const row = document.createElement("tr");
  row.append(
    h("td", {}, h("time")),
    h("td", {}, h("b"), " ", h("span", { class: "hint" }), h("span", { class: "why" })),
    h("td", { class: "url-cell" }, urlButton()),
  );
  return row;
};

/** Join what is the same but for its time: one page may be refused fifty times a second. */
function grouped(list) {
  const groups = new Map();
  for (const item of list) {
    const key = JSON.stringify([item.url, item.reason]);
    const group = groups.get(key);
    if (group) group.times += 1;
    else groups.set(key, { ...item, times: 1 });
  }
  return [...groups.values()];
}

/** Show what was not stored lately, newest first. */
export function showRefusals(list) {
  for (const { reason, explanation } of list) if (explanation) explained[reason] = explanation;
  fillRows($("refusals").tBodies[0], grouped(list), refusalRow, (row, item) => {
    const time = row.querySelector("time");
    say(time, clock(item.time));
    time.dateTime = iso(item.time);
    say(row.querySelector("b"), item.reason);
    say(row.querySelector(".hint"), item.times > 1 ? `${item.times} times` : "");
    say(row.querySelector(".why"), [item.explanation, item.remedy].filter(Boolean).join(" "));
    showUrl(row.querySelector("button"), String(item.url ?? ""));
  });
}
