"""Sentences about an entry: why it is stored, and what a request would get of it. Pure; `now` is an argument."""

from __future__ import annotations

from typing import Final

from echo_cache.coordination.marks import Verdict
from echo_cache.fields import ResponseDirectives
from echo_cache.model import Decision, Entry, Forward, Serve, Unsatisfiable, Validate
from echo_cache.options import PolicyOptions
from echo_cache.policy.explaining import WHY_FORWARDED
from echo_cache.policy.fieldmap import FieldMap, field_map
from echo_cache.policy.freshness import Source, directives_of, freshness_lifetime
from echo_cache.policy.storing import NO_ROUTE

__all__ = ["stored_because", "told"]

# What a lifetime may differ by from what the fields say, for jitter and rounding to be the only reasons.
_ROUNDING: Final = 1.0


def stored_because(entry: Entry, options: PolicyOptions) -> str:
    """Return why *entry* is stored, and for how long, in a sentence."""
    lines = field_map(entry.response.headers)
    directives, targeted = directives_of(lines, options)
    seconds, source = freshness_lifetime(
        entry.response.status,
        lines,
        directives,
        targeted=targeted,
        anonymous=True,
        generated_at=entry.generated_at,
        response_time=entry.stored_at,
        options=options,
        route=NO_ROUTE,
    )
    lifetime = entry.fresh_until - entry.generated_at
    if directives.no_cache or entry.always_validate:
        return "stored to be validated: no-cache asks for that at each use"
    if lifetime <= 0:
        return "stored to be validated, or for when the app fails: it was never fresh"
    fresh = f"fresh for {_duration(lifetime)}"
    least = seconds * (1 - options.expiry_jitter) - _ROUNDING
    if source is Source.NONE or not least <= lifetime <= seconds + _ROUNDING:
        # What the response says, or leaves to be guessed, is not what counted.
        if entry.is_capped:
            return f"{fresh}: as long as this level may call anything fresh"
        if source is Source.EXPLICIT and lifetime < seconds:
            own = _explicit(targeted, directives, lines, options)
            return f"{fresh} by the ttl of its route, l2_ttl or an invalidation; it says {own}"
        return f"{fresh} by the ttl of its route or path pattern"
    if source is Source.EXPLICIT:
        return f"{fresh} by {_explicit(targeted, directives, lines, options)}"
    if source is Source.HEURISTIC:
        return f"{fresh} by a guess from Last-Modified: it says nothing of how long it is fresh"
    return f"{fresh} by default_ttl: it says nothing of how long it is fresh"


def _explicit(targeted: bool, directives: ResponseDirectives, lines: FieldMap, options: PolicyOptions) -> str:
    field = "Cache-Control"
    if targeted:
        field = next((name for name in options.targeted_fields if name.encode() in lines), field).title()
    if directives.s_maxage is not None:
        return f"{field}: s-maxage={directives.s_maxage}"
    if directives.max_age is not None:
        return f"{field}: max-age={directives.max_age}"
    return "Expires"


def told(decision: Decision, verdict: Verdict | None, now: float) -> str:
    """Return what a request gets by *decision*, with the log's *verdict* on what was found, in a sentence."""
    match decision:
        case Serve(entry, stale, refresh):
            if stale:
                also = ", while it is refreshed in the background" if refresh else ""
                return f"a hit: the stored response, stale for {_duration(now - entry.fresh_until)}{also}"
            return f"a hit: the stored response, fresh for {_duration(entry.fresh_until - now)} more"
        case Validate():
            return "the app is asked whether the stored response still holds"
        case Forward(fwd):
            if verdict is Verdict.GONE:
                return f"the app is called ({fwd}): what is stored has been invalidated"
            return f"the app is called ({fwd}): {WHY_FORWARDED[fwd][0]}"
        case Unsatisfiable():
            return "504: the request asks for a stored response only, and there is none"
    raise AssertionError(decision)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{max(seconds, 0):.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    if seconds < 2 * 86_400:
        return f"{seconds / 3600:.0f} h"
    return f"{seconds / 86_400:.0f} days"
