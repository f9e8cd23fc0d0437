// A moving chart of the last minutes as SVG: bands on top of each other, or one line. Colours come from the style sheet
// (`.band-KEY`), so a change of scheme needs no redraw. The legend shows the values in figures, of now or of where one points.

const NS = "http://www.w3.org/2000/svg";
const HEIGHT = 190;
const EDGE = { top: 8, right: 8, bottom: 22, left: 44 };

function svg(tag, attributes = {}) {
  const node = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

/** Return a round number at or above *value*, and the step that divides it into 2 to 5 parts. */
function scaleFor(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1e-9)));
  for (const [top, step] of [[1, 0.5], [1.5, 0.5], [2, 0.5], [3, 1], [4, 1], [5, 1], [6, 2], [8, 2], [10, 2.5]]) {
    if (value <= top * power * 1.0001) return { top: top * power, step: step * power };
  }
  return { top: 10 * power, step: 2.5 * power };
}

/**
 * Put a chart into *figure*.
 *
 * bands: [{key, label, value(point) -> number | null}], from the bottom up; more than one are stacked.
 * span: seconds shown. top, step: the fixed upper end and what divides it, or null to follow the data. format: number -> text, in the legend;
 * tick: the same beside the lines. empty: what is said while there is nothing to draw.
 * Returns draw(points): points are {t, ...}, oldest first; a value of null, or `begins`, breaks the line.
 */
export function chart(figure, { bands, span, top = null, step = null, format, tick = format, empty }) {
  const stage = svg("svg", { role: "img", tabindex: "0", height: HEIGHT, class: "plot" });
  const grid = stage.appendChild(svg("g", { class: "grid-lines" }));
  const shapes = bands.map(({ key }) => stage.appendChild(svg("path", { class: `area band-${key}` })));
  const lines = bands.map(({ key }) => stage.appendChild(svg("path", { class: `line band-${key}` })));
  const cursor = stage.appendChild(svg("line", { class: "cursor" }));
  const note = figure.appendChild(document.createElement("p"));
  note.className = "chart-note";
  const legend = document.createElement("ul");
  legend.className = "legend";
  const figures = bands.map(({ key, label }) => {
    const item = legend.appendChild(document.createElement("li"));
    const swatch = item.appendChild(document.createElement("span"));
    swatch.className = `swatch band-${key}`;
    item.append(label, " ");
    return item.appendChild(document.createElement("b"));
  });
  figure.append(stage, legend);

  let width = 0;
  let points = [];
  let pointed = null; // seconds before now
  new ResizeObserver(([{ contentRect }]) => {
    width = Math.floor(contentRect.width);
    draw(points);
  }).observe(stage);

  const x = (t, now) => EDGE.left + (1 - (now - t) / span) * (width - EDGE.left - EDGE.right);
  const y = (value, ceiling) => EDGE.top + (1 - value / ceiling) * (HEIGHT - EDGE.top - EDGE.bottom);

  function drawGrid(ceiling, gap) {
    const nodes = [];
    for (let value = 0; value <= ceiling * 1.0001; value += gap) {
      const at = y(value, ceiling);
      nodes.push(svg("line", { x1: EDGE.left, x2: width - EDGE.right, y1: at, y2: at }));
      const label = svg("text", { x: EDGE.left - 6, y: at + 4, "text-anchor": "end" });
      label.textContent = tick(value);
      nodes.push(label);
    }
    for (let before = 0; before <= span; before += 60) {
      const anchor = before === 0 ? "end" : before === span ? "start" : "middle";
      const label = svg("text", { x: x(-before, 0), y: HEIGHT - 5, "text-anchor": anchor });
      label.textContent = before === 0 ? "now" : `-${before / 60} min`;
      nodes.push(label);
    }
    grid.replaceChildren(...nodes);
  }

  /** Cut the points into runs without a gap. */
  function runs() {
    const found = [];
    let run = [];
    for (const point of points) {
      const broken = bands.some(({ value }) => value(point) === null);
      if ((point.begins || broken) && run.length) {
        found.push(run);
        run = [];
      }
      if (!broken) run.push(point);
    }
    if (run.length) found.push(run);
    return found;
  }

  function draw(given) {
    points = given;
    if (!width) return;
    const now = points.at(-1)?.t ?? 0;
    const total = (point) => bands.reduce((sum, { value }) => sum + value(point), 0);
    const whole = runs();
    const highest = Math.max(0, ...whole.flat().map(total));
    const scale = top === null ? scaleFor(Math.max(highest, 1)) : { top, step };
    drawGrid(scale.top, scale.step);
    note.textContent = whole.length ? "" : empty;

    const paths = bands.map(() => ({ area: "", line: "" }));
    for (const run of whole) {
      let below = run.map(() => 0); // replaced at each band, never changed
      bands.forEach(({ value }, i) => {
        const above = run.map((point, j) => below[j] + value(point));
        const at = (j, level) => `${x(run[j].t, now).toFixed(1)} ${y(level[j], scale.top).toFixed(1)}`;
        const upper = run.map((_, j) => at(j, above)).join("L");
        const lower = run.map((_, j) => at(run.length - 1 - j, below)).join("L");
        paths[i].area += `M${upper}L${lower}Z`;
        paths[i].line += `M${upper}`;
        below = above;
      });
    }
    paths.forEach(({ area, line }, i) => {
      shapes[i].setAttribute("d", area);
      lines[i].setAttribute("d", line);
    });
    read(now);
  }

  /** Write the values of the pointed moment, or of now, into the legend. */
  function read(now) {
    const wanted = pointed === null ? now : now - pointed;
    const known = points.filter((point) => bands.every(({ value }) => value(point) !== null));
    const nearest = known.reduce((best, point) => (!best || Math.abs(point.t - wanted) < Math.abs(best.t - wanted) ? point : best), null);
    const shown = nearest && Math.abs(nearest.t - wanted) <= 3 ? nearest : null;
    bands.forEach(({ value }, i) => (figures[i].textContent = shown ? format(value(shown)) : "\u2013"));
    const pointing = pointed !== null && shown !== null;
    cursor.setAttribute("visibility", pointing ? "visible" : "hidden");
    if (pointing) {
      for (const [name, value] of Object.entries({ x1: x(shown.t, now), x2: x(shown.t, now), y1: EDGE.top, y2: HEIGHT - EDGE.bottom }))
        cursor.setAttribute(name, value);
    }
    const when = pointing ? `${Math.round(now - shown.t)} s ago` : "now";
    figure.querySelector(".when").textContent = pointing ? when : "";
    const words = bands.map(({ label }, i) => `${label} ${figures[i].textContent}`).join(", ");
    stage.setAttribute("aria-label", `${figure.querySelector("h2").textContent}, ${when}: ${words}`);
  }

  function point(before) {
    pointed = before === null ? null : Math.min(span, Math.max(0, before));
    read(points.at(-1)?.t ?? 0);
  }
  stage.addEventListener("pointermove", (event) => {
    const part = (event.clientX - stage.getBoundingClientRect().left - EDGE.left) / (width - EDGE.left - EDGE.right);
    point((1 - part) * span);
  });
  stage.addEventListener("pointerleave", () => point(null));
  stage.addEventListener("blur", () => point(null));
  stage.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: 2, ArrowRight: -2, PageUp: 20, PageDown: -20 }[event.key];
    if (event.key === "Escape") return point(null);
    if (!move) return;
    event.preventDefault();
    point((pointed ?? 0) + move);
  });

  const when = document.createElement("span");
  when.className = "when hint";
  figure.querySelector("figcaption").append(when);
  return draw;
}
