// Searching what is stored, and looking into one entry.

import { purge } from "./actions.js";
import { api, wholeUrl, withQuery } from "./api.js";
import { whose } from "./around.js";
import { $, fillRows, h, say, showUrl, urlButton } from "./dom.js";
import { bytes, clock, count, counted, duration, freshness } from "./format.js";

const PAGE = 50;
// A page of Redis may come back empty although there is more: it looks through a part of the keys each time.
const EMPTY_PAGES = 20;

// How an entry stands, and how that looks. "gone" was invalidated; what is doubtful is validated before it is used.
const STANDS = { fresh: "good", stale: "warn", doubtful: "warn", gone: "bad" };
const standing = (entry) => (entry.stands === "gone" || entry.stands === "doubtful" ? entry.stands : freshness(entry.ttl));

let found = []; // the summaries shown
let cursor = null;
let asked = null; // {match, tag, level} of what is shown
let source = null; // {level, worker}: whose memory it is from
let turn = 0; // the number of the last search; answers to older ones are dropped

/** Without a star the text is found anywhere in the URL. */
const glob = (text) => (text && !text.includes("*") ? `*${text}*` : text);

async function load({ more = false } = {}) {
  const mine = ++turn;
  say($("results-note"), "Searching\u2026");
  $("more").disabled = true;
  let next = more ? cursor : null;
  let from = more ? source : null;
  let page = [];
  try {
    for (let i = 0; i < EMPTY_PAGES; i += 1) {
      const query = [["match", glob(asked.match)], ["tag", asked.tag], ["level", asked.level], ["limit", PAGE], ["cursor", next]];
      const answer = await api("GET", withQuery("api/entries", query));
      if (mine !== turn) return;
      if (next !== null && answer.level === "l1" && answer.worker !== from.worker)
        throw new Error(`Another worker has answered than before, ${answer.worker}, and its memory is another. Search again.`);
      from = { level: answer.level, worker: answer.worker };
      page = answer.entries;
      next = answer.cursor ?? null;
      if (page.length || next === null) break;
    }
  } catch (error) {
    if (mine !== turn) return;
    say($("results-note"), error.message);
    $("more").disabled = false;
    return;
  }
  found = more ? [...found, ...page] : page;
  cursor = next;
  source = from;
  show();
}

const make = () => {
  const row = document.createElement("tr");
  row.append(h("th", { scope: "row" }, urlButton()));
  for (const name of ["", "roomy", "", "roomy", "roomy"]) row.append(h("td", { class: name }));
  row.append(h("td", { class: "roomy left" }, h("span", { class: "tags" })));
  return row;
};

function show() {
  fillRows($("results").tBodies[0], found, make, (row, entry) => {
    showUrl(row.querySelector("button"), String(entry.url));
    const cells = [standing(entry), duration(entry.age), bytes(entry.bytes), count(entry.variants), String(entry.status ?? "")];
    cells.forEach((text, i) => say(row.cells[i + 1], text));
    showTags(row.querySelector(".tags"), entry.tags ?? [], 4);
  });
  const where = source.level === "l1" ? `in the memory of ${whose(source.worker)}` : "in Redis";
  const many = cursor ? `${count(found.length)} so far, there may be more` : counted(found.length, "entry", "entries");
  say($("results-note"), `${many}, ${where}`);
  say($("results-empty"), cursor ? "Nothing so far. There is more to look through." : "Nothing that matches is stored here.");
  $("more").hidden = !cursor;
  $("more").disabled = false;
  const target = purgeTarget();
  $("purge-found").hidden = !target || !found.length;
  if (target) say($("purge-found"), `Purge ${target[0] === "tag" ? "tag" : "prefix"} ${target[1].slice(0, 60)}\u2026`);
}

/** What the whole of the search can be purged by: a tag, or a prefix where the only star is the last character. */
function purgeTarget() {
  const { match, tag } = asked;
  if (tag && !match) return ["tag", tag];
  if (match && !tag && /^(https?:\/\/|\/)[^*]+\*$/i.test(match)) return ["prefix", match.slice(0, -1)];
  return null;
}

function showTags(box, tags, most = Infinity) {
  const shown = tags.slice(0, most);
  if (box.dataset.tags === JSON.stringify(tags)) return;
  box.dataset.tags = JSON.stringify(tags);
  box.replaceChildren(
    ...shown.map((tag) => h("button", { type: "button", class: "tag", text: tag.length > 60 ? `${tag.slice(0, 59)}\u2026` : tag, title: `Search for the tag ${tag}`, on: { click: () => searchFor({ tag }) } })),
  );
  if (tags.length > shown.length) box.append(h("span", { class: "hint", text: `+${tags.length - shown.length}` }));
}

/** Fill the form, go to it, and search. */
function searchFor({ match = "", tag = "" }) {
  $("drawer").close();
  $("search-match").value = match;
  $("search-tag").value = tag;
  location.hash = "entries";
  $("search").requestSubmit();
}

/** Search again for what is shown, if something is. */
export function refresh() {
  if (asked) load();
}

$("search").addEventListener("submit", (event) => {
  event.preventDefault();
  asked = { match: $("search-match").value.trim(), tag: $("search-tag").value.trim(), level: $("search-level").value };
  load();
});
$("search-exact").addEventListener("click", () => {
  const text = $("search-match").value.trim();
  const url = text.includes("*") ? null : wholeUrl(text);
  if (url) return inspect(url);
  say($("results-note"), "To inspect one, enter its whole URL, or its path, which begins with a slash.");
  $("search-match").focus();
});
$("more").addEventListener("click", () => load({ more: true }));
$("purge-found").addEventListener("click", () => {
  const target = purgeTarget();
  if (target) purge(...target, $("purge-found"));
});

// One entry, in the drawer.

let inspected = null; // the URL
let look = 0;

async function inspect(url) {
  inspected = url;
  say($("drawer-url"), url);
  $("drawer-headers").value = "";
  if (!$("drawer").open) $("drawer").showModal();
  await lookUp();
}

async function lookUp() {
  const mine = ++look;
  $("drawer-body").replaceChildren();
  say($("drawer-verdict"), "Looking\u2026");
  const headers = $("drawer-headers").value.split("\n").map((line) => line.trim()).filter(Boolean);
  try {
    const answer = await api("GET", withQuery("api/entry", [["url", inspected], ...headers.map((line) => ["header", line])]));
    if (mine === look) showEntry(answer);
  } catch (error) {
    if (mine === look) say($("drawer-verdict"), error.message);
  }
}

function showEntry(answer) {
  say($("drawer-verdict"), answer.verdict ?? "");
  const levels = answer.levels ?? {};
  const parts = [];
  if (answer.key_digest) parts.push(h("dl", { class: "facts" }, h("dt", { text: "Key" }), h("dd", { class: "mono", text: answer.key_digest })));
  for (const [level, title] of [["l1", `Memory (L1) of ${whose(answer.worker)}`], ["l2", "Redis (L2)"]]) {
    if (answer.unknown?.includes(level)) parts.push(h("h3", { class: "level" }, `${title}: not known now, it cannot be asked`));
    const variants = levels[level];
    if (!variants) continue; // the store has no such level
    parts.push(h("h3", { class: "level" }, `${title}: ${variants.length ? counted(variants.length, "variant") : "nothing"}`));
    const chosen = answer.selected?.level === level ? answer.selected.index : -1;
    variants.forEach((variant, i) => parts.push(variantBox(variant, i === chosen)));
  }
  $("drawer-body").replaceChildren(...parts);
}

function variantBox(v, selected) {
  const head = h(
    "div",
    { class: "variant-head" },
    h("span", { class: `badge ${Object.hasOwn(STANDS, v.stands) ? STANDS[v.stands] : "plain"}`, text: v.stands }),
    selected ? h("span", { class: "badge plain", text: "chosen for this request" }) : null,
    h("span", { text: `${v.status} \u00b7 ${bytes(v.body_bytes)}${v.content_type ? ` \u00b7 ${v.content_type}` : ""}` }),
  );
  const facts = h("dl", { class: "facts" });
  const fact = (name, value) => {
    if (value !== null && value !== undefined && value !== "") facts.append(h("dt", { text: name }), h("dd", {}, value instanceof Node ? value : h("span", { class: "clip", text: value })));
  };
  fact("Why stored", v.why);
  fact("Age", duration(v.age));
  fact(v.ttl > 0 ? "Fresh for" : "Stale for", duration(Math.abs(v.ttl)));
  fact("Kept for", duration(v.retained_for));
  fact("Stored at", v.stored_at ? clock(v.stored_at) : "");
  if (v.generated_at && Math.abs(v.generated_at - v.stored_at) >= 1) fact("Generated at", clock(v.generated_at));
  fact("While refreshed", v.stale_while_revalidate ? `stale for up to ${duration(v.stale_while_revalidate)}` : "");
  fact("If the app fails", v.stale_if_error ? `stale for up to ${duration(v.stale_if_error)}` : "");
  const limits = [v.always_validate && "validated before each use", v.anonymous_only && "for requests without credentials only"].filter(Boolean);
  fact("Limits", limits.join(", "));
  fact("ETag", v.etag);
  fact("Route", v.route);
  if (v.tags?.length) {
    const box = h("span", { class: "tags" });
    showTags(box, v.tags);
    fact("Tags", box);
  }
  const vary = Object.entries(v.vary ?? {});
  if (vary.length) fact("Chosen by", vary.map(([name, value]) => `${name}: ${value ?? "(not sent)"}`).join("\n"));
  const headers = Array.isArray(v.headers) ? v.headers : [];
  const table = h(
    "details",
    {},
    h("summary", { text: counted(headers.length, "header field") }),
    h("table", {}, h("tbody", {}, headers.map(([name, value]) => h("tr", {}, h("th", { scope: "row", text: name }), h("td", {}, h("span", { class: "clip mono", text: value })))))),
  );
  return h("section", { class: selected ? "variant selected" : "variant" }, head, facts, headers.length ? table : null);
}

$("drawer-close").addEventListener("click", () => $("drawer").close());
$("drawer").addEventListener("click", (event) => {
  if (event.target === $("drawer") && event.clientX < $("drawer").getBoundingClientRect().left) $("drawer").close(); // beside it
});
$("drawer-form").addEventListener("submit", (event) => {
  event.preventDefault();
  lookUp();
});
$("drawer-purge").addEventListener("click", async () => {
  if (await purge("url", inspected, $("drawer-purge"))) $("drawer").close();
});

// Every URL on the page is a button that looks into it.
document.addEventListener("click", (event) => {
  const button = event.target.closest?.("button.url");
  if (button) inspect(button.dataset.url);
});
