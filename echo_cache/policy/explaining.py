"""
Why a response was not stored, and why a request went forward, in plain words: for whoever looks at a cache.

The one rule: each reason has one sentence that says what is so, and one that says what to change, or that nothing is
wrong. Both stand alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from echo_cache.model import Fwd, Refusal

__all__ = ["WHY_FORWARDED", "WHY_NOT_STORED"]

WHY_NOT_STORED: Final[Mapping[Refusal, tuple[str, str]]] = MappingProxyType(
    {
        Refusal.METHOD: (
            "Only responses to GET are stored.",
            "Ask by GET. HEAD is answered from what a GET has stored; other methods always reach the app.",
        ),
        Refusal.REQUEST_NO_STORE: (
            "The request said Cache-Control: no-store, so nothing of its response may be stored.",
            "Send the request without no-store, or set request_directives='ignore' in PolicyOptions.",
        ),
        Refusal.REQUEST_BODY: (
            "The request had a body, which is not in the key: another body might get another response.",
            "Send the GET without a body, and put what selects the response into the URL.",
        ),
        Refusal.REQUEST_RANGE: (
            "The request asked for a range, and a part never stands in for the whole.",
            "Nothing is wrong: once a request for the whole was stored, ranges are served from it.",
        ),
        Refusal.HOST: (
            "The host of the request is none of allowed_hosts.",
            "Add the host to allowed_hosts in PolicyOptions, if it is one of yours.",
        ),
        Refusal.ROUTE: (
            "The route says that it is never cached.",
            "Remove @never_cached from the endpoint, if it may be cached.",
        ),
        Refusal.STATUS: (
            "Responses with this status are never stored: they answer one request, or describe another response.",
            "Nothing is wrong if the status is meant. Else find out why the app answers with it.",
        ),
        Refusal.PARTIAL: (
            "The response is a part (206, or it has Content-Range), and parts are not stored.",
            "Let the app answer a request without Range with the whole; ranges are then cut from what is stored.",
        ),
        Refusal.NOT_UNDERSTOOD: (
            "The response says must-understand, and its status is none whose rules this cache knows.",
            "Answer with a common status, or leave out must-understand.",
        ),
        Refusal.NO_STORE: (
            "The response says Cache-Control: no-store.",
            "Remove no-store from the response. A decorator does not overrule it.",
        ),
        Refusal.PRIVATE: (
            "The response says Cache-Control: private: it is for one user, and this cache is shared by all.",
            "Remove private if the response is the same for everybody; say max-age or s-maxage instead.",
        ),
        Refusal.AUTHORIZATION: (
            "The request had Authorization, and the response does not say that others may have it.",
            "If it is the same for all who may ask, say Cache-Control: public or s-maxage, or "
            "@cached(share_authorized=True).",
        ),
        Refusal.CREDENTIALS: (
            "The request had credentials (Cookie, Authorization or an API key), and the response says nothing about "
            "caching: it may be the answer to this user alone.",
            "If it is for everybody, give the route @cached(ttl=60), or say Cache-Control: public, max-age=60.",
        ),
        Refusal.SET_COOKIE: (
            "The response sets a cookie, which would be handed to everybody.",
            "Do not set cookies on responses that are the same for all. If the cookie belongs to nobody in particular, "
            "say @cached(store_set_cookie=True).",
        ),
        Refusal.VARY: (
            "The response says Vary: *, or varies on more request fields than max_vary_fields allows (8 by default).",
            "Name in Vary only the few request fields that really select the response.",
        ),
        Refusal.EVENT_STREAM: (
            "The response is an event stream, which has no end that could be stored.",
            "Nothing is wrong: event streams pass through.",
        ),
        Refusal.NO_FRESHNESS: (
            "Nothing says how long the response is fresh, and nothing is assumed: default_ttl is None, or not for this "
            "status.",
            "Say Cache-Control: max-age=60 in the response, or @cached(ttl=60) on the route.",
        ),
        Refusal.ALREADY_STALE: (
            "The response was stale when it came: its lifetime is 0, or Expires or its Age say that it is over.",
            "Give it a lifetime above 0, or an ETag, so that it can be stored and confirmed.",
        ),
        Refusal.SUSPECT_REQUEST: (
            "The request had a method override, or the response is an error to an odd or very large request: others "
            "would get what they did not provoke.",
            "Nothing is wrong: the same URL, asked for by an ordinary request, is stored.",
        ),
        Refusal.INVALID_FIELD: (
            "A field of the response is malformed: a name that is no token in lower case, a line break, or "
            "contradictory lengths.",
            "Mend the field that the app or a middleware inside of the cache adds.",
        ),
        Refusal.HEADER_SIZE: (
            "The fields of the response are larger than max_header_bytes (32 KiB by default).",
            "Send fewer fields, or raise max_header_bytes in PolicyOptions.",
        ),
        Refusal.BODY_SIZE: (
            "The body is larger than max_body_bytes (8 MiB by default), or too much was being stored at that moment.",
            "Raise max_body_bytes in PolicyOptions and in the store, or let such files pass.",
        ),
        Refusal.INCOMPLETE: (
            "The response ended before it was complete: the app failed, or its body is not as long as Content-Length "
            "says.",
            "Look for the error in the app's log, and whether a middleware changes the body but not Content-Length.",
        ),
        Refusal.TRAILERS: (
            "The response has trailers, which are not stored.",
            "Send it without trailers if it is to be stored.",
        ),
        Refusal.OVERTAKEN: (
            "It was invalidated while the app was making it, so it may show what was there before.",
            "Nothing is wrong: the next response is stored. If it happens all the time, invalidate narrower tags.",
        ),
    }
)
"""What is so, and what to change, for each reason for which a response is not stored."""

WHY_FORWARDED: Final[Mapping[Fwd, tuple[str, str]]] = MappingProxyType(
    {
        Fwd.BYPASS: (
            "The request went past the cache.",
            "Look at include=, exclude= and skip= of the middleware, at cache.disabled(), and whether the GET has a "
            "body; if the cache itself failed, its log says so.",
        ),
        Fwd.METHOD: (
            "The method always reaches the app: only GET and HEAD are answered from the cache.",
            "Nothing is wrong.",
        ),
        Fwd.URI_MISS: (
            "Nothing was stored for this URL.",
            "Nothing is wrong for a first request.",
        ),
        Fwd.VARY_MISS: (
            "Responses are stored for this URL, but for other values of the request fields that Vary names.",
            "Name fewer fields in Vary; a field with many values, as User-Agent or Cookie, gives each its own copy.",
        ),
        Fwd.MISS: (
            "Nothing was stored for this request.",
            "Nothing is wrong for a first request.",
        ),
        Fwd.REQUEST: (
            "A response is stored, but this request may not have it: it asks for a newer one, sets a condition that "
            "only the app can judge, or carries credentials where freshness was only assumed.",
            "Send it without no-cache, max-age=0, If-Match and credentials, or give the route @cached(ttl=...); "
            "request_directives='ignore' in PolicyOptions keeps clients from forcing misses.",
        ),
        Fwd.STALE: (
            "A response is stored, but it was stale, was invalidated, or has to be confirmed each time (no-cache).",
            "Give it a longer lifetime, or stale_while_revalidate, so that nobody waits for a new one.",
        ),
        Fwd.PARTIAL: (
            "Only a part of what was asked for was stored.",
            "Nothing is wrong: the whole is asked for.",
        ),
    }
)
"""What is so, and what to change, for each reason for which a request goes forward to the app; RFC 9211 section 2.2."""
