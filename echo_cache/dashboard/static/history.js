// From reports, whose counters only say how much there was in all, to rates over the last minutes. Nothing here knows the page.

export const SPAN = 180; // seconds that are kept and drawn
const KEPT = SPAN + 20; // a little more, for the averages at the left end
// After a silence as long as this the average over it would be drawn as if it had been so all the time.
const SILENCE = 15;

const number = (n) => (typeof n === "number" && Number.isFinite(n) ? n : 0);

/** What is counted, from a report. The first six are disjoint and add up to the requests. */
function countersOf(report) {
  const hits = number(report.l1_hits) + number(report.l2_hits);
  const stale = Math.min(number(report.stale_hits), hits);
  // Stale hits are among those of the levels, and not told apart there: they are taken from both alike.
  const fresh = hits ? (hits - stale) / hits : 0;
  return {
    l1: number(report.l1_hits) * fresh,
    l2: number(report.l2_hits) * fresh,
    stale,
    shared: number(report.collapsed),
    app: number(report.misses),
    passed: number(report.passed),
    saved: number(report.saved_seconds),
    evictions: number(report.evictions),
    stored: number(report.stored),
  };
}

/** The fraction answered without a call of the app, of what a cache can answer; null when there was nothing. */
export function hitRate(counts) {
  const hits = counts.l1 + counts.l2 + counts.stale + counts.shared;
  const all = hits + counts.app;
  return all > 0 ? hits / all : null;
}

export class History {
  #points = []; // {t, sums, rates, hit}, oldest first; rates and hit are null where a new beginning is
  #last = null; // the counters as they came
  #source = null;
  #smooth;

  /** *smooth*: over how many seconds the rates are averaged. */
  constructor(smooth) {
    this.#smooth = smooth;
  }

  get points() {
    return this.#points;
  }

  /**
   * Take in *report* of time *t*, epoch seconds. *source* names whose numbers these are: when it changes, the difference
   * to what was before means nothing, and the line begins anew.
   */
  push(report, t, source) {
    const now = countersOf(report);
    const before = this.#points.at(-1);
    const broken = !before || source !== this.#source || t - before.t > SILENCE || t < before.t;
    if (before && t < before.t) this.#points = []; // the clock was set back
    if (before && t === before.t) return;
    const sums = {};
    for (const key of Object.keys(now)) {
      // A counter that fell was reset, or a worker is gone: nothing happened, rather than less than nothing.
      sums[key] = broken ? (before?.sums[key] ?? 0) : before.sums[key] + Math.max(0, now[key] - this.#last[key]);
    }
    const point = { t, sums, begins: broken, rates: null, hit: null };
    this.#points.push(point);
    this.#last = now;
    this.#source = source;
    while (this.#points[0].t < t - KEPT) this.#points.shift();
    const seen = this.over(this.#smooth);
    if (seen) {
      point.rates = seen.rates;
      point.hit = hitRate(seen.rates);
    }
  }

  /** What happened a second in the last *seconds*, since the last new beginning: {rates, seconds}, or null. */
  over(seconds) {
    const end = this.#points.at(-1);
    let start = null;
    for (let i = this.#points.length - 1; i >= 0; i -= 1) {
      start = this.#points[i];
      if (start.begins || start.t <= end.t - seconds) break;
    }
    if (!start || start === end) return null;
    const rates = {};
    for (const key of Object.keys(end.sums)) rates[key] = (end.sums[key] - start.sums[key]) / (end.t - start.t);
    return { rates, seconds: end.t - start.t };
  }
}
