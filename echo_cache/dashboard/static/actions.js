// What changes something: each is asked for first, and what came of it is said.

import { api, wholeUrl } from "./api.js";
import { around, aWorker, isShared, lacking, storeName, whose } from "./around.js";
import { $, h, say } from "./dom.js";
import { clock, count, counted } from "./format.js";

/** Show a message. Errors stay until they are closed, others go by themselves. Returns a function that closes it. */
function toast(message, state = "good") {
  const close = h("button", { type: "button", class: "icon", "aria-label": "Close the message", text: "\u00d7" });
  const box = h("div", { class: `toast ${state}`, role: state === "bad" ? "alert" : null }, h("p", { text: message }), close);
  const remove = () => box.remove();
  close.addEventListener("click", remove);
  // What stands outside of an open drawer can neither be seen well nor reached.
  const host = $("drawer").open ? $("drawer") : document.body;
  if ($("toasts").parentElement !== host) host.append($("toasts"));
  $("toasts").append(box);
  while ($("toasts").children.length > 4) $("toasts").firstElementChild.remove();
  if (state === "good") setTimeout(remove, 8000);
  return remove;
}

$("drawer").addEventListener("close", () => document.body.append($("toasts")));

/** Ask for a yes. *subject* is what it is about; *soft* adds the choice of a soft purge. Returns {soft}, or null for no. */
function ask({ title, subject = "", text, yes, sample = [], soft = false }) {
  const dialog = $("ask");
  say($("ask-title"), title);
  say($("ask-subject"), subject);
  $("ask-subject").hidden = !subject;
  say($("ask-text"), text);
  say($("ask-yes"), yes);
  $("ask-sample").replaceChildren(...sample.map((item) => h("li", { text: item })));
  $("ask-sample").hidden = sample.length === 0;
  $("ask-soft").hidden = !soft;
  $("ask-soft").querySelector("input").checked = false;
  return new Promise((resolve) => {
    const end = (answer) => () => {
      resolve(answer && { soft: soft && $("ask-soft").querySelector("input").checked });
      dialog.close();
    };
    $("ask-yes").onclick = end(true);
    $("ask-no").onclick = end(null);
    dialog.onclose = () => resolve(null); // Escape; after a yes this resolves nothing more
    dialog.showModal();
    $("ask-no").focus();
  });
}

/** Note in the list of this page what was done. */
function note(message) {
  $("done-empty").hidden = true;
  $("done").prepend(h("li", {}, h("time", { text: clock(Date.now() / 1000) }), message));
  while ($("done").children.length > 50) $("done").lastElementChild.remove();
}

/**
 * Do *work* with *button* busy meanwhile; say what came of it, or what went wrong. *work* returns a sentence, or null
 * where nothing was done; with *failed* in it, not all went well. Returns whether it was done.
 */
async function act(button, busy, work) {
  if (button) {
    button.disabled = true;
    button.setAttribute("aria-busy", "true");
  }
  const done = busy ? toast(busy, "busy") : () => {};
  try {
    const result = await work();
    if (!result) return false;
    const message = result.failed ?? result;
    note(message);
    toast(message, result.failed ? "bad" : "good");
    around.changed();
    return true;
  } catch (error) {
    note(`Failed: ${error.message}`);
    toast(error.message, "bad");
    return false;
  } finally {
    done();
    if (button) {
      button.disabled = false;
      button.removeAttribute("aria-busy");
    }
  }
}

const NAMED = { url: "the URL", tag: "the tag", prefix: "all that begins with" };

/** How far a purge reached. */
function reach(result) {
  if (storeName() === "MemoryStore") return `That is so in ${whose(result.worker)}. Other processes, if there are any, are not told.`;
  if (result.propagated) return "Every worker knows.";
  return "Other workers could not be told yet. They will be when Redis answers.";
}

/** Ask what a purge would be. Where Redis cannot say what it has, that is not known, and no reason not to purge. */
async function tryOut(kind, value) {
  try {
    return await api("POST", "api/purge", { [kind]: value, dry_run: true });
  } catch (error) {
    if (error.status === 503) return {};
    throw error;
  }
}

/** Purge by *kind* ("url", "tag", "prefix"): say first what matches, then ask, then do it. Returns whether it was done. */
export function purge(kind, value, button) {
  return act(button, "", async () => {
    const trial = await tryOut(kind, value);
    const known = typeof trial.matched === "number";
    const text = !known
      ? "How many match is not known: Redis cannot be asked now. A purge works all the same: here at once, elsewhere when Redis answers."
      : trial.matched === 0
        ? "Nothing that matches is stored now. A purge also reaches what is being filled, and the other workers."
        : `${trial.is_complete === false ? "At least " : ""}${counted(trial.matched, "entry matches", "entries match")}.`;
    const sample = Array.isArray(trial.sample) ? trial.sample.slice(0, 20) : [];
    const answer = await ask({
      title: `Purge ${NAMED[kind]}?`,
      subject: value,
      text,
      yes: known && trial.matched > 0 && trial.is_complete !== false ? `Purge ${counted(trial.matched, "entry", "entries")}` : "Purge",
      sample: kind === "url" ? [] : sample,
      soft: true,
    });
    if (!answer) return null;
    const result = await api("POST", "api/purge", { [kind]: value, soft: answer.soft });
    return `${answer.soft ? "Purged softly" : "Purged"} ${NAMED[kind]} ${value}. ${reach(result)}`;
  });
}

const LEVELS = { l1: "memory (L1)", l2: "Redis (L2)" };
const named = (level) => LEVELS[level] ?? { l1: "Redis", l2: "memory" }[lacking()] ?? "both levels";

/** What it means to clear *level*: "all" is of one level alone, where the store has no other. */
function consequence(level) {
  const after = "Until it is filled again, every request goes to the app.";
  if (level === "all" && lacking() === "l1") return `Everything of this cache in Redis is removed, for all workers. ${after}`;
  if (level !== "l2" && lacking() === "l2")
    return `Everything is removed from the memory of the process that answers; you see then which that was. Others keep what they have. ${after}`;
  return {
    l1: "The worker that answers forgets what it holds in memory; you see then which that was. Redis keeps what it has.",
    l2: "Everything of this cache in Redis is removed, for all workers. Memory keeps what it has.",
    all: `Everything is removed from the memory of all workers, and from Redis. ${after}`,
  }[level];
}

function clear(level, button) {
  return act(button, "", async () => {
    if (!(await ask({ title: `Clear ${named(level)}?`, text: consequence(level), yes: `Clear ${named(level)}` }))) return null;
    const result = await api("DELETE", level);
    const where = level === "l1" || lacking() === "l2" ? ` of ${whose(result.worker)}` : "";
    const many = typeof result.entries === "number" ? `: ${counted(result.entries, "entry", "entries")} removed` : "";
    const told = result.propagated === false && !where ? ` ${reach(result)}` : "";
    return `Cleared ${named(level)}${where}${many}.${told}`;
  });
}

function reset(button) {
  return act(button, "", async () => {
    const begin = isShared() ? "All workers begin to count at zero." : "The process that answers begins to count at zero; others go on.";
    const text = `${begin} What is stored stays, and the metrics for Prometheus go on.`;
    if (!(await ask({ title: "Reset the statistics?", text, yes: "Reset" }))) return null;
    const { told, worker } = await api("POST", "stats/reset");
    const who = whose(worker);
    const here = `${who[0].toUpperCase()}${who.slice(1)} counts from zero.`;
    if (told === true) return `${here} The others follow within seconds.`;
    if (told === false) return { failed: `${here} The others could not be told: Redis cannot be asked now. Reset again when it answers.` };
    return here;
  });
}

function sync(level, button) {
  return act(button, `Copying to ${LEVELS[level]}\u2026 This can take a while.`, async () => {
    const r = await api("POST", "api/sync", { to: level });
    const [from, to] = level === "l1" ? ["Redis (L2)", `the memory of ${whose(r.worker)}`] : [`the memory of ${whose(r.worker)}`, "Redis (L2)"];
    const message = `Copied from ${from} to ${to}: ${count(r.copied)} of ${count(r.seen)}, ${count(r.skipped)} were there, ${count(r.failed)} failed.`;
    return r.failed ? { failed: message } : message;
  });
}

function warm(urls, button) {
  return act(button, `Asking the app for ${counted(urls.length, "URL")}\u2026`, async () => {
    const r = await api("POST", "api/warm", { urls });
    const message = `Warmed ${counted(urls.length, "URL")}: ${count(r.stored)} stored, ${count(r.hits)} were there, ${count(r.uncached)} may not be stored, ${count(r.failed)} failed.`;
    return r.failed ? { failed: message } : message;
  });
}

const FIELDS = {
  url: ["URL", "https://shop.example/products/7"],
  tag: ["Tag", "product:7"],
  prefix: ["URL prefix", "https://shop.example/products/"],
};

const form = $("purge");
for (const choice of form.elements.by) {
  choice.addEventListener("change", () => {
    const [label, example] = FIELDS[choice.value];
    say($("purge-label"), label);
    $("purge-value").placeholder = example;
    say($("purge-error"), "");
  });
}
$("purge-value").placeholder = FIELDS.url[1];

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const value = $("purge-value").value.trim();
  const kind = form.elements.by.value;
  say($("purge-error"), value ? "" : `Enter the ${FIELDS[kind][0]} first.`);
  if (!value) return $("purge-value").focus();
  if (await purge(kind, value, event.submitter)) $("purge-value").value = "";
});

$("warm").addEventListener("submit", async (event) => {
  event.preventDefault();
  const urls = $("warm-urls").value.split("\n").map((line) => line.trim()).filter(Boolean);
  const wrong = urls.find((url) => wholeUrl(url) === null);
  say($("warm-error"), !urls.length ? "Enter at least one URL." : wrong ? `Enter whole URLs, or paths that begin with a slash; not ${wrong.slice(0, 100)}` : "");
  if (!urls.length || wrong) return $("warm-urls").focus();
  if (await warm(urls.map(wholeUrl), event.submitter)) $("warm-urls").value = "";
});

/** Switch off what the store has no level for, and say why. */
export function fitActions() {
  const level = lacking();
  const why = level ? `There is no ${LEVELS[level]} here: the store is a ${storeName()}.` : "";
  for (const hint of document.querySelectorAll("[data-why]")) {
    say(hint, why);
    hint.hidden = !why;
  }
  for (const button of document.querySelectorAll("[data-clear], [data-sync]")) {
    const off = level !== null && (button.dataset.clear === level || button.dataset.sync !== undefined);
    if (off === button.hasAttribute("data-off")) continue; // one that is busy stays so
    button.toggleAttribute("data-off", off);
    button.disabled = off;
    button.title = off ? why : "";
  }
  if (level) say(document.querySelector("[data-clear=all]"), "Everything\u2026");
}

for (const button of document.querySelectorAll("[data-clear]")) button.addEventListener("click", () => clear(button.dataset.clear, button));
for (const button of document.querySelectorAll("[data-sync]")) button.addEventListener("click", () => sync(button.dataset.sync, button));
$("reset").addEventListener("click", () => reset($("reset")));
