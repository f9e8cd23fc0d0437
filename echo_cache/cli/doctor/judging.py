"""What the facts mean. The one rule: nothing is asked here, and whatever a server has said is shown, not believed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from echo_cache.cli.doctor import probes
from echo_cache.cli.doctor.facts import Facts, Finding
from echo_cache.cli.doctor.server import YEAR, cluster_findings, server_findings
from echo_cache.cli.doctor.trouble import Trouble, remedy_of
from echo_cache.cli.text import shown
from echo_cache.codec import FORMAT_VERSION
from echo_cache.coordination.log import MAX_MARKS

__all__ = ["judge"]

_LONGEST_LOG: Final = 2 * MAX_MARKS
_MOST_VERSIONS: Final = 5

_OWN_PREFIX: Final = "Give each app a prefix of its own"
_PASSES: Final = "Nothing, while versions are being changed."


def judge(facts: Facts) -> list[Finding]:
    """Return what *facts* mean, in the order in which they were asked for."""
    if facts.trouble is not None:
        return [_unasked(facts.location, facts.trouble, facts)]
    return [
        Finding("ok", f"Redis at {facts.location} answers."),
        *_servers(facts),
        *([] if facts.lost is None else [_unasked(facts.location, facts.lost, facts)]),
        *probes.permissions(facts),
        *probes.failures(facts),
        *_log(facts),
        *_names(facts),
        *_installed(facts),
    ]


def _servers(facts: Facts) -> Iterator[Finding]:
    many = len(facts.servers) > 1
    for server in facts.servers:
        if server.trouble is not None:
            yield _unasked(server.where, server.trouble, facts)
            continue
        where = f"{server.where}: " if many else ""
        for finding in server_findings(server, facts.store_timeout, is_cluster=facts.is_cluster):
            yield replace(finding, what=where + finding.what)
    if facts.more_servers:
        yield Finding("note", f"{facts.more_servers} more servers of the cluster were not looked at.")
    if facts.is_cluster:
        yield from cluster_findings(facts.servers, len(facts.servers) + facts.more_servers)


def _unasked(where: str, trouble: tuple[Trouble, str], facts: Facts) -> Finding:
    why, words = trouble
    remedy = remedy_of(why, words)
    if why in (Trouble.HUNG, Trouble.CLOSED) and facts.location.startswith("rediss"):
        # So a server answers that speaks no TLS, too.
        remedy = f"{Trouble.TLS.remedy} {remedy}"
    return Finding("problem", f"Redis at {where} {why.what}{f': {words}' if words else '.'}", remedy)


def _log(facts: Facts) -> Iterator[Finding]:
    stream, name = facts.stream, f"{{{facts.prefix}:log}}"
    if stream is None:
        return
    if stream.kind == "none":
        yield Finding("ok", f"There is no invalidation log {name} yet; the first worker begins it.")
        return
    if stream.kind != "stream":
        yield Finding(
            "warning",
            f"{name} is a {shown(stream.kind)} and no stream: somebody else writes there. The next worker deletes it.",
            f"{_OWN_PREFIX}.",
        )
        return
    if stream.ahead > YEAR:
        yield Finding(
            "warning",
            f"The last ID of {name} is more than a year ahead. The next worker begins the log anew, and what workers "
            "hold is confirmed by the app.",
            "Find out who wrote it; with a password or an ACL it would be nobody.",
        )
        return
    cut = "" if stream.begins else ", the oldest were cut"
    length = "an unknown number of" if stream.length is None else stream.length
    yield Finding("ok", f"The invalidation log {name} has {length} entries{cut}.")
    if stream.ahead > 1:
        yield Finding(
            "note",
            f"The last ID of the log is {stream.ahead:.0f} s ahead of the server's clock, which was set back. IDs go "
            "on from there.",
        )
    if (stream.length or 0) > _LONGEST_LOG:
        yield Finding(
            "warning",
            f"The log has {stream.length} entries, and should be cut at about {MAX_MARKS}: somebody else writes there.",
            f"{_OWN_PREFIX}, and see who can write to this server.",
        )
    if stream.foreign:
        yield Finding(
            "note",
            "The last entry of the log is not understood: it is a later version's or somebody else's. What was "
            "stored before it is confirmed by the app.",
            _PASSES,
        )
    if stream.same_run is False:
        yield Finding(
            "note",
            "The server has restarted since the log was last opened. The next worker begins it anew, and what was "
            "stored before is confirmed by the app.",
        )


def _names(facts: Facts) -> Iterator[Finding]:
    names = facts.names
    if names is None:
        return
    least = "" if names.complete else "at least "
    own = names.versions.get(FORMAT_VERSION, 0)
    yield Finding("ok", f"There are {least}{own} values of this format ({facts.prefix}:{FORMAT_VERSION}:...).")
    others = [(version, count) for version, count in sorted(names.versions.items()) if version != FORMAT_VERSION]
    if others:
        listed = ", ".join(f"{count} of version {version}" for version, count in others[:_MOST_VERSIONS])
        yield Finding(
            "note",
            f"There are values of other formats: {least}{listed}. They are not read here, and expire by themselves.",
            _PASSES,
        )
    if names.endless:
        yield Finding(
            "warning",
            f"{names.endless} of {names.sampled} values that were looked at never expire. The cache writes none such.",
            "Delete them, and find out who wrote them (or ran PERSIST); RedisStore(secret=...) keeps forged ones "
            "unread.",
        )


def _installed(facts: Facts) -> Iterator[Finding]:
    if not facts.has_hiredis:
        yield Finding("note", "hiredis is not installed here; with it, reading costs half.", "pip install hiredis")
