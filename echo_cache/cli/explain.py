"""
Why a response was cached or was not, from what was asked and answered. The one rule: one plain sentence, and what to
change.

What the cache did is in Cache-Status (RFC 9211), where it puts its reason into `detail`. Where it gives none, the
request itself is the reason, or what stands around the cache.

Nothing of a value that may be secret is repeated, and nothing that a terminal would obey.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias, TypeVar
from urllib.parse import unquote, urlsplit

from echo_cache import fields
from echo_cache.cli.text import shown
from echo_cache.cli.web import shown_url
from echo_cache.fields.structured import Member, Token
from echo_cache.model import Fwd, Headers, Refusal
from echo_cache.policy.explaining import WHY_FORWARDED, WHY_NOT_STORED
from echo_cache.policy.keys import CREDENTIAL_FIELDS
from echo_cache.policy.validation import CONDITIONAL_FIELDS

__all__ = ["Answer", "Explanation", "Outcome", "explain"]

_E = TypeVar("_E", bound=enum.StrEnum)

OWN_NAME: Final = "echo_cache"
"""What Cache-Status calls a cache that was given no name."""

Answer: TypeAlias = tuple[int, Headers]
"""The status and the fields of a response."""


class Outcome(enum.StrEnum):
    """What became of a request."""

    HIT = "hit"
    """Answered from the cache, fresh."""
    STALE = "stale"
    """Answered from the cache, stale: in a window that allows it, or because the app failed."""
    VALIDATED = "validated"
    """Answered from the cache, after the app had confirmed it."""
    COLLAPSED = "collapsed"
    """Answered by the call of the app that another request had begun."""
    STORED = "stored"
    """Answered by the app, and stored."""
    MISS = "miss"
    """Answered by the app, although the request before had stored its response."""
    NOT_STORED = "not_stored"
    """Answered by the app, and not stored."""
    PASSED = "passed"
    """Sent past the cache."""
    UNSATISFIABLE = "unsatisfiable"
    """Not answered: the client wanted a stored response only, and there was none."""
    NO_CACHE = "no_cache"
    """No cache of this name has seen it."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """
    One request, explained.

    sentence: what was done and why. changes: what to change, or that nothing is wrong; may be empty.
    """

    outcome: Outcome
    sentence: str
    changes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, object]:
        """Return the same as JSON has it."""
        return {"outcome": self.outcome.value, "sentence": self.sentence, "changes": list(self.changes)}


def explain(
    method: str,
    url: str,
    request_headers: Headers,
    status: int,
    response_headers: Headers,
    second: Answer | None = None,
    *,
    name: str | None = None,
) -> Explanation:
    """
    Say why the response to a request was or was not cached. Never raises, whatever the fields are.

    second: the answer to the same request, made once more right after: shows whether what was stored is found.
    name: what Cache-Status calls the cache; the last member of that name counts. None: "echo_cache"; and where one
    other cache is the only one that has spoken, that one.
    """
    answers = [response_headers] if second is None else [response_headers, second[1]]
    taken = None if name is not None else _only_name(answers)
    if taken is not None:
        found = explain(method, url, request_headers, status, response_headers, second, name=taken)
        note = f"It is {taken} that was asked about: the only cache that Cache-Status names. --name chooses another."
        return replace(found, changes=(*found.changes, note))
    name = OWN_NAME if name is None else shown(name)
    first = _explained(_Case(method.upper(), url, _lowered(request_headers), status, _lowered(response_headers)), name)
    if second is None or first.outcome not in (Outcome.STORED, Outcome.COLLAPSED, Outcome.VALIDATED):
        return first
    again = _Case(method.upper(), url, _lowered(request_headers), second[0], _lowered(second[1]))
    return _explained_again(first, again, name)


def _only_name(answers: Sequence[Headers]) -> str | None:
    """Return the one name that Cache-Status has in *answers*, where it is none of ours."""
    names = {who for headers in answers for who, _ in _members(_lowered(headers)) or ()}
    return names.pop() if len(names) == 1 and OWN_NAME not in names else None


@dataclass(frozen=True, slots=True)
class _Case:
    """A request and its answer; names of fields in lower case."""

    method: str
    url: str
    asked: Headers
    status: int
    told: Headers

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300 or self.status == 304

    def asks_for(self, names: frozenset[bytes]) -> list[str]:
        """Return which of *names* the request has, as they are written."""
        return sorted({_title(name) for name, _ in self.asked if name in names})


Said: TypeAlias = Mapping[str, Member]
"""The parameters of a member of Cache-Status."""


def _explained(case: _Case, name: str) -> Explanation:
    members = _members(case.told)
    if members is None:
        return Explanation(
            Outcome.NO_CACHE,
            "Cache-Status is malformed, so nobody can say what a cache has done.",
            ("Look for a middleware or a proxy that changes Cache-Status.",),
        )
    said = next((said for who, said in reversed(members) if who == name), None)
    if said is None:
        return _unseen(case, [who for who, _ in members], name)
    if said.get("hit") is True:
        return _hit(said)
    detail = _text(said.get("detail"))
    if detail == "only-if-cached":
        return Explanation(
            Outcome.UNSATISFIABLE,
            "The request said Cache-Control: only-if-cached, and nothing that may answer it is stored.",
            ("Leave out only-if-cached, or ask once without it, so that something is stored.",),
        )
    if detail == "stale-if-error":
        return Explanation(
            Outcome.STALE,
            "The app failed, and a stale response that was stored was served in place of the error (stale-if-error).",
            ("Look for the error in the app's log.",),
        )
    if said.get("fwd-status") == 304:
        return Explanation(
            Outcome.VALIDATED,
            "What was stored had to be confirmed, the app said 304 Not Modified, and the stored response was served.",
            (WHY_FORWARDED[Fwd.STALE][1],),
        )
    if said.get("collapsed") is True:
        return Explanation(
            Outcome.COLLAPSED,
            "Another request for the same was already waiting for the app, and its response was shared"
            f"{_lifetime(said)}.",
        )
    return _forwarded(case, said, detail)


def _forwarded(case: _Case, said: Said, detail: str | None) -> Explanation:
    """Explain a request that the app has answered."""
    fwd = _member_of(Fwd, _text(said.get("fwd")))
    why = "" if fwd is None else WHY_FORWARDED[fwd][0]
    if said.get("stored") is True:
        return Explanation(
            Outcome.STORED,
            f"{why} The app answered, and its response is stored{_lifetime(said)}.".strip(),
            () if fwd in (None, Fwd.URI_MISS, Fwd.MISS) else (WHY_FORWARDED[fwd][1],),
        )
    refusal = _member_of(Refusal, detail)
    if refusal is not None:
        sentence, change = WHY_NOT_STORED[refusal]
        more = _MORE.get(refusal)
        sentence = f"Not stored. {sentence}{more(case) if more else ''}"
        if case.is_success:
            return Explanation(Outcome.NOT_STORED, sentence, (change,))
        if more is not _status:
            sentence += _status(case)
        # What would have another status stored is no help here.
        helps = refusal not in (Refusal.NO_FRESHNESS, Refusal.ALREADY_STALE, Refusal.CREDENTIALS)
        return Explanation(Outcome.NOT_STORED, sentence, (*_of_status(case), *([change] if helps else [])))
    if fwd is not None and fwd in (Fwd.BYPASS, Fwd.METHOD):
        sentence, change = WHY_FORWARDED[fwd]
        seen = f"Path patterns see {_path(case.url)}." if fwd is Fwd.BYPASS else ""
        return Explanation(Outcome.PASSED, sentence, (change, seen) if seen else (change,))
    asked = _refused_by_request(case)
    if asked is not None:
        sentence, change = asked
        return Explanation(Outcome.NOT_STORED, f"Not stored. {sentence}", (change,))
    return Explanation(
        Outcome.NOT_STORED,
        f"Not stored, and the cache gives no reason. {why}".strip(),
        ("Look for a reason in the log of the app, logger echo_cache.",) if fwd is None else (WHY_FORWARDED[fwd][1],),
    )


def _of_status(case: _Case) -> tuple[str, ...]:
    """Return what to do about an answer that is none of 2xx."""
    if case.status >= 500:
        return (
            f"Look into the app's log for why it answers {case.status}: what it answers then is not worth keeping.",
        )
    if case.status >= 400:
        return (f"See why the app answers {case.status}: whether the URL, its query and its fields are right.",)
    to = fields.get_joined(case.told, b"location")
    if case.status >= 300 and to is not None:
        return (f"It is a redirect to {shown_url(to.decode('latin-1'))}: explain that one.",)
    return ()


def _refused_by_request(case: _Case) -> tuple[str, str] | None:
    """Return what in the request keeps its response from being stored, where the cache does not name it."""
    names = {name for name, _ in case.asked}
    if case.method == "HEAD":
        return WHY_NOT_STORED[Refusal.METHOD]
    if b"range" in names:
        return WHY_NOT_STORED[Refusal.REQUEST_RANGE]
    directives = fields.parse_request_directives(fields.get_joined(case.asked, b"cache-control"), None)
    if directives.no_store:
        return WHY_NOT_STORED[Refusal.REQUEST_NO_STORE]
    conditional = case.asks_for(CONDITIONAL_FIELDS)
    if conditional:
        return (
            f"The request was conditional ({', '.join(conditional)}), and went to the app as it was: only the app can "
            "judge it, or responses for this URL were lately not for everybody.",
            "Ask once without the condition to see why the response is not stored.",
        )
    return None


def _hit(said: Said) -> Explanation:
    ttl = _ttl(said)
    if ttl is not None and ttl < 0:
        return Explanation(
            Outcome.STALE,
            f"Answered from the cache, stale for {-ttl} s: stale-while-revalidate or the request's max-stale "
            "allows it.",
            ("Nothing is wrong: with stale-while-revalidate a new response is being fetched in the background.",),
        )
    left = "" if ttl is None else f", fresh for another {ttl} s"
    return Explanation(Outcome.HIT, f"Answered from the cache{left}.")


def _unseen(case: _Case, others: Sequence[str], name: str) -> Explanation:
    """Explain an answer that no cache of this *name* speaks of."""
    if others:
        return Explanation(
            Outcome.NO_CACHE,
            f"Cache-Status speaks of {', '.join(others)}, and not of {name}.",
            (
                "If one of them is this cache, it has another name: ask for it by that.",
                "Else a cache further out may have answered, or the middleware is not on this app.",
            ),
        )
    changes = [
        "Add HTTPCacheMiddleware to the app that answers this URL, and see that nothing outside of it removes "
        "Cache-Status.",
        "If it is there, something further out has answered in its place: a middleware that was added after it, a "
        "proxy, or a mounted app.",
    ]
    if case.method == "OPTIONS":
        changes.insert(0, "CORSMiddleware answers preflight requests itself, outside of the cache. That is right.")
    if "/_cache" in _path(case.url):
        changes = [
            "If this is the dashboard, nothing is wrong: requests for it go past the cache. Explain another URL."
        ]
    elif case.status >= 500:
        changes = [
            "The app has probably raised: such error pages are made outside of the cache. Look into its log.",
            "If other pages have no Cache-Status either, the app has no HTTPCacheMiddleware, or it is not reached.",
        ]
    return Explanation(
        Outcome.NO_CACHE,
        f"The answer ({case.status}) has no Cache-Status: no cache of ours has seen it.",
        (*changes, *(_of_status(case) if case.status < 500 else ())),
    )


def _explained_again(first: Explanation, again: _Case, name: str) -> Explanation:
    """Explain the second answer, where the *first* one is stored."""
    found = _explained(again, name)
    if found.outcome is Outcome.HIT:
        return Explanation(Outcome.HIT, f"The first request had its response stored. {found.sentence}")
    if found.outcome not in (Outcome.STORED, Outcome.NOT_STORED, Outcome.VALIDATED):
        return found
    fwd = _forward_of(again, name)
    if fwd in (Fwd.URI_MISS, Fwd.MISS):
        return Explanation(
            Outcome.MISS,
            "The first response was to be stored, and the second request did not find it.",
            (
                "With several workers and MemoryStore alone, the second request may have met another worker: use "
                "TwoLevelStore with Redis.",
                "The body may have been larger than max_body_bytes, or shorter or longer than Content-Length says: "
                "that shows only after the head was sent.",
                "It may have been invalidated or evicted in between: see the counters of the cache.",
            ),
        )
    if fwd is Fwd.VARY_MISS:
        sentence = "The first response was stored, but for other values of the fields that its Vary names."
        varied = _vary(again)
        return Explanation(Outcome.MISS, f"{sentence}{varied}", (WHY_FORWARDED[Fwd.VARY_MISS][1],))
    sentence, *changes = (found.sentence, *found.changes) if fwd is None else WHY_FORWARDED[fwd]
    sentence = f"The first response was stored, but not served again. {sentence}"
    return Explanation(Outcome.MISS, sentence, tuple(changes))


def _forward_of(case: _Case, name: str) -> Fwd | None:
    said = next((said for who, said in reversed(_members(case.told) or []) if who == name), {})
    return _member_of(Fwd, _text(said.get("fwd")))


# --- what the fields say of a reason ----------------------------------------------------------------------------------


def _cookies(case: _Case) -> str:
    values = [value.partition(b"=") for value in fields.get_all(case.told, b"set-cookie")]
    # Without "=" all of it is the value, which is nobody's business.
    return _listed(" It sets", [name.strip() if equals else b"a cookie without a name" for name, equals, _ in values])


def _vary(case: _Case) -> str:
    value = fields.get_joined(case.told, b"vary")
    return f" It says Vary: {shown(value)}." if value is not None else ""


def _credentials(case: _Case) -> str:
    found = case.asks_for(CREDENTIAL_FIELDS)
    return f" The request has {', '.join(found)}." if found else ""


def _status(case: _Case) -> str:
    return f" The status is {case.status}."


def _cache_control(case: _Case) -> str:
    said = [
        f"{_title(field)}: {shown(value)}"
        for field in (b"cache-control", b"cdn-cache-control", b"expires", b"age")
        if (value := fields.get_joined(case.told, field)) is not None
    ]
    return f" It says {'; '.join(said)}." if said else " It has no Cache-Control and no Expires."


def _length(case: _Case) -> str:
    length = fields.parse_content_length(case.told)
    return f" Content-Length is {length}." if isinstance(length, int) else ""


def _host(case: _Case) -> str:
    hosts = [value for name, value in case.asked if name == b"host"]
    return f" The host is {shown(hosts[0])}." if hosts else ""


_MORE: Final[Mapping[Refusal, Callable[[_Case], str]]] = {
    Refusal.SET_COOKIE: _cookies,
    Refusal.VARY: _vary,
    Refusal.AUTHORIZATION: _credentials,
    Refusal.CREDENTIALS: _credentials,
    Refusal.STATUS: _status,
    Refusal.NOT_UNDERSTOOD: _status,
    Refusal.NO_STORE: _cache_control,
    Refusal.PRIVATE: _cache_control,
    Refusal.NO_FRESHNESS: _cache_control,
    Refusal.ALREADY_STALE: _cache_control,
    Refusal.BODY_SIZE: _length,
    Refusal.HOST: _host,
}


# --- Cache-Status -----------------------------------------------------------------------------------------------------

# A member is an Item with parameters. RFC 9651 section 3.3: the bare items of Cache-Status are Tokens and Strings.
_QUOTED: Final = rb'"(?:[^"\\]|\\.)*+"'
_PIECE: Final = re.compile(rb'(?:%s|[^",;])*+' % _QUOTED)
# Longer than a row of caches would write, and what is longer is somebody's joke.
_MAX_BYTES: Final = 8_192
_MAX_LISTED: Final = 5


def _members(headers: Headers) -> list[tuple[str, Said]] | None:
    """Return the members of Cache-Status, the cache nearest to the app first; None where it is malformed."""
    value = fields.get_joined(headers, b"cache-status")
    if value is None:
        return []
    if len(value) > _MAX_BYTES:
        return None
    divided = _split(value)
    if divided is None:
        return None
    members: list[tuple[str, Said]] = []
    for pieces in divided:
        who = fields.parse_list(pieces[0])
        # Parameters are written as the members of a Dictionary are, but for what stands between them.
        said = fields.parse_dictionary(b", ".join(pieces[1:]))
        if not who or len(who) != 1 or said is None:
            return None
        members.append((_text(who[0]) or "?", said))
    return members


def _split(value: bytes) -> list[list[bytes]] | None:
    """
    Return the parts of each member of *value*, which ";" divides and "," ends; neither does so within quotes.

    None where a quote is not closed.
    """
    members: list[list[bytes]] = [[]]
    at = 0
    while True:
        piece = _PIECE.match(value, at)
        assert piece is not None  # it may be empty
        members[-1].append(piece[0].strip())
        at = piece.end() + 1
        if at > len(value):
            return members
        if value[at - 1 : at] == b'"':
            return None
        if value[at - 1 : at] == b",":
            members.append([])


def _text(item: object) -> str | None:
    """Return a Token or a String as text that can be shown."""
    if isinstance(item, Token):
        return shown(item.value)
    return shown(item) if isinstance(item, str) else None


def _member_of(kind: type[_E], value: str | None) -> _E | None:
    return next((member for member in kind if member.value == value), None)


def _lifetime(said: Said) -> str:
    ttl = _ttl(said)
    if ttl is None:
        return ""
    return f", fresh for {ttl} s" if ttl > 0 else ", to be confirmed by the app before it is used"


def _ttl(said: Said) -> int | None:
    ttl = said.get("ttl")
    return ttl if type(ttl) is int else None


def _path(url: str) -> str:
    """Return the decoded path of *url*, as path patterns see it."""
    try:
        return shown(unquote(urlsplit(url).path) or "/")
    except ValueError:
        return shown(url)


# --- text -------------------------------------------------------------------------------------------------------------


def _lowered(headers: Headers) -> list[tuple[bytes, bytes]]:
    return [(name.lower(), value) for name, value in headers]


def _title(name: bytes) -> str:
    return "-".join(word.capitalize() for word in shown(name).split("-"))


def _listed(words: str, names: Sequence[bytes]) -> str:
    some = [shown(name) for name in names[:_MAX_LISTED]]
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return f"{words} {', '.join(some)}{more}." if some else ""
