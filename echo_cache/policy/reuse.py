"""
What a request gets, given what is stored: RFC 9111 section 4.

The one rule: `decide` chooses, the caller acts. A stored response is served when it is fresh enough for this request,
or stale and explicitly allowed; otherwise the app is asked, with a condition where there is something to validate.
"""

from __future__ import annotations

import math

from echo_cache import fields
from echo_cache.fields import RequestDirectives
from echo_cache.model import Decision, Entry, Forward, Fwd, Request, Serve, Unsatisfiable, Validate
from echo_cache.options import PolicyOptions, RequestDirectiveMode
from echo_cache.policy.fieldmap import JoinedFields, joined_fields
from echo_cache.policy.keys import CREDENTIAL_FIELDS
from echo_cache.policy.validation import conditions

__all__ = ["decide", "may_serve_on_error", "refresh_from", "request_directives"]

_READ_METHODS = frozenset({"GET", "HEAD"})
# RFC 9111 section 4.3.2: these are the app's to evaluate, and a stored response cannot stand in for it.
_APP_CONDITIONS = frozenset({b"if-match", b"if-unmodified-since"})


def request_directives(asked: JoinedFields, options: PolicyOptions) -> RequestDirectives:
    """Return what the request's Cache-Control and Pragma ask for, or nothing where they are ignored by option."""
    if options.request_directives is RequestDirectiveMode.IGNORE:
        return fields.parse_request_directives(None, None)
    return fields.parse_request_directives(asked.get(b"cache-control"), asked.get(b"pragma"))


def decide(
    request: Request,
    stored: Entry | None,
    now: float,
    options: PolicyOptions,
    *,
    other_variants: bool = False,
) -> Decision:
    """
    Return what is to be done for *request*, of which *stored* is the variant that it selects, if any.

    *other_variants*: the key has entries, but for other request fields. RFC 9111 sections 4 and 5.2.1.
    """
    if request.method not in _READ_METHODS:
        return Forward(Fwd.METHOD, collapse=False, store=False)
    if request.has_body:
        return Forward(Fwd.BYPASS, collapse=False, store=False)
    asked = joined_fields(request.headers)
    directives = request_directives(asked, options)
    for_app = not _APP_CONDITIONS.isdisjoint(asked)
    usable = stored is not None and not for_app and _is_for_asker(stored, asked)
    if stored is not None and usable:
        served = _serve(stored, directives, now, options)
        if served is not None:
            return served
    if directives.only_if_cached:
        return Unsatisfiable()
    if for_app:
        return Forward(Fwd.REQUEST, collapse=False, store=False)
    whole = request.method == "GET" and not directives.no_store
    fill = whole and b"range" not in asked
    if stored is None:
        return Forward(Fwd.VARY_MISS if other_variants else Fwd.URI_MISS, collapse=fill, store=fill)
    if not usable:
        return Forward(Fwd.REQUEST, collapse=fill, store=fill)
    fwd = Fwd.STALE if now >= stored.fresh_until or stored.always_validate else Fwd.REQUEST
    found = conditions(stored) if whole else ()
    if found:
        return Validate(stored, found, fwd)
    return Forward(fwd, stale=stored, collapse=fill, store=fill)


def _is_for_asker(stored: Entry, asked: JoinedFields) -> bool:
    """Say whether *stored* may answer a request with the fields *asked*: without the app's word, for strangers only."""
    return not stored.anonymous_only or CREDENTIAL_FIELDS.isdisjoint(asked)


def refresh_from(entry: Entry, options: PolicyOptions) -> float:
    """
    Return from when on a fresh *entry* that is served is also refreshed in the background, as epoch seconds.

    That is early_refresh of its lifetime, from being stored to becoming stale; infinity where it is off, and where
    memory has cut the lifetime short: the level below knows it, and is asked before long. Says nothing of an entry that
    is stale.
    """
    if options.early_refresh is None or entry.is_capped:
        return math.inf
    return entry.stored_at + options.early_refresh * (entry.fresh_until - entry.stored_at)


def _serve(stored: Entry, directives: RequestDirectives, now: float, options: PolicyOptions) -> Serve | None:
    """Return how *stored* answers a request with these *directives*; None when it must not. RFC 9111 section 4.2.4."""
    if stored.always_validate or not _client_accepts(directives, stored, now):
        return None
    staleness = now - stored.fresh_until
    if staleness < 0:
        # Who asks with only-if-cached wants nothing forwarded.
        early = now >= refresh_from(stored, options) and not directives.only_if_cached
        return Serve(stored, refresh=early)
    if staleness > _accepted_staleness(directives):
        return None
    # A window is 0 where a directive of the response forbids stale answers.
    if staleness < stored.stale_while_revalidate:
        return Serve(stored, stale=True, refresh=True)
    if directives.max_stale is not None and not stored.never_stale:
        return Serve(stored, stale=True)
    return None


def _client_accepts(directives: RequestDirectives, stored: Entry, now: float) -> bool:
    """Say whether the request's own directives allow the stored response without validation. RFC 9111 section 5.2.1."""
    if directives.no_cache:
        return False
    too_old = directives.max_age is not None and now - stored.generated_at > directives.max_age
    if too_old and not (now < stored.fresh_until and _is_immutable(stored)):
        # RFC 8246 excepted: a reload asks for what an immutable response has promised not to need.
        return False
    return directives.min_fresh is None or stored.fresh_until - now >= directives.min_fresh


def _accepted_staleness(directives: RequestDirectives) -> float:
    """Return how stale an answer the client accepts, in seconds. RFC 9111 sections 5.2.1.1 and 5.2.1.2."""
    if directives.max_stale is not None:
        return directives.max_stale
    return math.inf if directives.max_age is None else -1.0


def _is_immutable(stored: Entry) -> bool:
    value = fields.get_joined(stored.response.headers, b"cache-control")
    return fields.parse_response_directives(value).immutable


def may_serve_on_error(request: Request, stored: Entry, now: float, options: PolicyOptions) -> bool:
    """
    Say whether *stored* may answer *request* because the app failed: raised, hung up or answered 5xx.

    The window is the stored response's stale-if-error or the request's, whichever is longer. RFC 5861 section 4;
    RFC 9111 section 4.2.4 names what forbids it.
    """
    asked = joined_fields(request.headers)
    if stored.always_validate or not _is_for_asker(stored, asked):
        return False
    window = stored.stale_if_error
    if not stored.never_stale:
        window = max(window, float(request_directives(asked, options).stale_if_error or 0))
    return window > 0 and now <= stored.fresh_until + window
