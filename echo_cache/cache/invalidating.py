"""What an application's call of `invalidate` names, and what it is told."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from echo_cache import fields, policy
from echo_cache.coordination.log import log_id
from echo_cache.coordination.marks import Invalidation, Kind
from echo_cache.errors import ConfigurationError
from echo_cache.model import CacheKey
from echo_cache.options import PolicyOptions

__all__ = ["InvalidationResult", "named_keys", "named_marks", "require_tag"]


@dataclass(frozen=True, slots=True)
class InvalidationResult:
    """
    position: where the invalidation stands in the log; 0 as long as it could not be appended.

    propagated: whether it is in the log that all workers follow: those that are connected act on it within
    milliseconds, others within `max_unsynced`. False: it counts in this worker, and is told to the others when Redis is
    back.
    """

    position: int
    propagated: bool

    @property
    def log_id(self) -> str | None:
        """The position as the ID of a Redis stream; None as long as there is none."""
        return log_id(self.position) if self.position else None


def named_marks(
    *,
    url: str | None,
    tags: Iterable[str],
    prefix: str | None,
    soft: bool,
    options: PolicyOptions,
    base: CacheKey | None,
) -> list[Invalidation]:
    """
    Return the marks of what is named. *base* is the key of the request at hand, whose origin a path is taken on.

    Raises ConfigurationError for what names nothing.
    """
    if isinstance(tags, str | bytes) or not isinstance(tags, Iterable):
        raise ConfigurationError(f"tags must be a list of strings, not {tags!r}")
    if not isinstance(soft, bool):
        raise ConfigurationError(f"soft must be True or False, not {soft!r}")
    for name, value in (("url", url), ("prefix", prefix)):
        if value is not None and not isinstance(value, str):
            raise ConfigurationError(f"{name} must be a string, not {value!r}")
    marks = []
    for tag in tags:
        require_tag(tag)
        marks.append(Invalidation(Kind.GROUP, tag[: fields.MAX_GROUP_CHARS], soft))
    if url is not None:
        marks += _url_marks(url, soft, options, base)
    if prefix is not None:
        marks += _prefix_marks(prefix, soft, options)
    if not marks:
        raise ConfigurationError("invalidate needs url=, tags= or prefix=; use clear() for everything")
    return list(dict.fromkeys(marks))


def require_tag(tag: object) -> None:
    """Raise ConfigurationError for what is no tag."""
    if not isinstance(tag, str) or not tag:
        raise ConfigurationError(f"a tag must be a non-empty string, not {tag!r}")


def named_keys(marks: Iterable[Invalidation]) -> list[CacheKey]:
    """Return the keys that hard *marks* name in full."""
    return [mark.target for mark in marks if mark.kind is Kind.KEY and not mark.soft]  # type: ignore[misc]  # a key


def _url_marks(url: str, soft: bool, options: PolicyOptions, base: CacheKey | None) -> list[Invalidation]:
    if base is None and url.startswith("/"):
        key = policy.key_of_url("http://any" + url, options)
        return [Invalidation(Kind.PATH, form[3:], soft) for form in (key, policy.decoded_key(key))]
    key = policy.key_of_url(url, options, base)
    # The same URL where the server gives no raw path.
    return [Invalidation(Kind.KEY, key, soft), Invalidation(Kind.KEY, policy.decoded_key(key), soft)]


def _prefix_marks(prefix: str, soft: bool, options: PolicyOptions) -> list[Invalidation]:
    everywhere = prefix.startswith("/")
    key = policy.key_of_url("http://any" + prefix if everywhere else prefix, options)
    _, scheme, host, _, query = key
    if query:
        raise ConfigurationError(f"prefix is the beginning of a path, without a query: {prefix!r}")
    origin = (None, None) if everywhere else (scheme, host)
    return [Invalidation(Kind.PREFIX, (*origin, form[3]), soft) for form in (key, policy.decoded_key(key))]
