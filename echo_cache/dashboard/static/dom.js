// The one way in which text reaches the page: as text. URLs, tags and headers are written by strangers.

export const $ = (id) => document.getElementById(id);

// Characters that would change what a reader sees around them: controls, and those that turn the direction of writing.
const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;

/** Return *value* as text in which nothing is hidden. */
export function visible(value) {
  return String(value ?? "").replace(UNSEEN, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

/**
 * Make an element. Of *props*, `class`, `text`, `title` and `on` (handlers by event) are known; the rest are attributes.
 * Children are nodes or text.
 */
export function h(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "class") node.className = value;
    else if (name === "text") node.textContent = visible(value);
    else if (name === "on") for (const [event, act] of Object.entries(value)) node.addEventListener(event, act);
    else node.setAttribute(name, value === true ? "" : name === "title" ? visible(value) : String(value));
  }
  for (const child of children.flat()) {
    if (child === null || child === undefined) continue;
    node.append(child instanceof Node ? child : visible(child));
  }
  return node;
}

/** Set text only where it changed: what a reader has selected stays selected. */
export function say(node, value) {
  const text = visible(value);
  if (node.textContent !== text) node.textContent = text;
}

/**
 * Make *body* show *rows*. `make()` returns a new row, `fill(row, item)` writes into it; rows are used again, so nothing
 * flickers. The sentence for "nothing" is the next `.empty` of the same panel.
 */
export function fillRows(body, rows, make, fill) {
  while (body.rows.length > rows.length) body.lastElementChild.remove();
  while (body.rows.length < rows.length) body.append(make());
  rows.forEach((item, i) => fill(body.rows[i], item));
  const table = body.closest("table");
  const outer = table.closest(".scroll") ?? table;
  const empty = outer.parentElement.querySelector(":scope > .empty");
  outer.hidden = rows.length === 0;
  if (empty) empty.hidden = rows.length !== 0;
}

/** Return a function that makes rows of one header cell and *cells* classes of data cells. */
export function rowOf(...classes) {
  return () => {
    const row = document.createElement("tr");
    classes.forEach((name, i) => row.append(h(i === 0 ? "th" : "td", i === 0 ? { scope: "row", class: name } : { class: name })));
    return row;
  };
}

/**
 * A button that looks like the URL which it inspects. Long URLs are cut by the style sheet, which also leaves out the
 * origin where room is short; the whole is in the title.
 */
export function urlButton() {
  return h("button", { type: "button", class: "url" }, h("span", { class: "origin" }), h("span"));
}

export function showUrl(button, url) {
  if (button.dataset.url === url) return;
  button.dataset.url = url;
  const [, origin, rest] = /^(?:([a-z][a-z0-9+.-]*:\/\/[^/?#]*)(?=[/?#]))?([^]*)$/i.exec(url);
  say(button.firstChild, origin ?? "");
  say(button.lastChild, rest);
  button.title = visible(url);
}
