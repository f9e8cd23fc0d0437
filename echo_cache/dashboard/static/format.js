// Numbers as an operator reads them, with their units. Pure functions; what is not known is an en dash.

const NONE = "\u2013";
const known = (n) => typeof n === "number" && Number.isFinite(n);
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const one = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });

export const count = (n) => (known(n) ? whole.format(n) : NONE);

/** "1 entry", "2 entries". */
export const counted = (n, singular, plural = `${singular}s`) => `${count(n)} ${n === 1 ? singular : plural}`;

/** Large numbers where room is short: 12.3 k, 4.5 M. */
export function short(n) {
  if (!known(n)) return NONE;
  for (const [limit, unit] of [[1e9, "G"], [1e6, "M"], [1e4, "k"]]) {
    if (Math.abs(n) >= limit) return `${one.format(n / (unit === "k" ? 1e3 : limit))} ${unit}`;
  }
  return whole.format(n);
}

export function rate(n) {
  if (!known(n)) return NONE;
  return n >= 10000 ? short(n) : n >= 100 || n === 0 ? whole.format(n) : n < 0.05 ? "<0.1" : one.format(n);
}

/** A fraction as per cent. What is not all is never shown as 100 %. */
export function percent(fraction) {
  if (!known(fraction)) return NONE;
  const p = fraction * 100;
  return p === 100 || p === 0 ? `${p} %` : `${one.format(Math.min(99.9, Math.max(0.1, p)))} %`;
}

export function bytes(n) {
  if (!known(n)) return NONE;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let i = 0;
  while (Math.abs(n) >= 1024 && i < units.length - 1) {
    n /= 1024;
    i += 1;
  }
  return `${i === 0 || n >= 100 ? whole.format(n) : one.format(n)} ${units[i]}`;
}

/** Seconds, in the two units that matter. */
export function duration(s) {
  if (!known(s)) return NONE;
  if (s < 0) return `-${duration(-s)}`;
  if (s === 0) return "0 s";
  if (s < 0.00005) return "<0.1 ms";
  if (s < 0.01) return `${one.format(s * 1000)} ms`;
  if (s < 0.9995) return `${whole.format(s * 1000)} ms`;
  if (s < 9.95) return `${one.format(s)} s`;
  if (s < 59.5) return `${whole.format(s)} s`;
  s = Math.round(s);
  const steps = [[86400 * 365, "y", 86400, "d"], [86400, "d", 3600, "h"], [3600, "h", 60, "min"], [60, "min", 1, "s"]];
  for (const [large, unit, small, lesser] of steps) {
    if (s >= large) {
      const rest = Math.floor((s % large) / small);
      return `${whole.format(Math.floor(s / large))} ${unit}${rest ? ` ${rest} ${lesser}` : ""}`;
    }
  }
  return `${s} s`;
}

/** How long an entry is fresh yet, or since when it is not. */
export function freshness(ttl) {
  if (!known(ttl)) return NONE;
  return ttl > 0 ? duration(ttl) : `stale for ${duration(-ttl)}`;
}

/** Epoch seconds as local time of day; with the date when it was not today. */
export function clock(epoch) {
  if (!known(epoch)) return NONE;
  const at = new Date(epoch * 1000);
  if (Number.isNaN(at.getTime())) return NONE;
  const time = at.toLocaleTimeString("en-GB");
  return at.toDateString() === new Date().toDateString() ? time : `${at.toLocaleDateString("en-CA")} ${time}`;
}

/** Epoch seconds for the `datetime` attribute; empty where there is no such time. */
export function iso(epoch) {
  const at = new Date(epoch * 1000);
  return Number.isNaN(at.getTime()) ? "" : at.toISOString();
}
