"""
Which commands are needed, how it is asked for them, and what is lost without.

The one rule: a probe is a command as the store gives it, on a name that no entry has, and does nothing. Permissions are
checked before a command looks at anything, and so is whether there is memory for a write.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, TypeAlias

from echo_cache.cli.doctor.facts import Facts, Finding, Level
from echo_cache.cli.doctor.server import ANOTHER_POLICY, NO_SAVING, THE_PRIMARY
from echo_cache.cli.text import shown
from echo_cache.stores.redis.servers import Words

__all__ = ["Probes", "entry_probes", "failures", "log_probes", "permissions", "sifted"]

Probes: TypeAlias = Mapping[str, Words]
"""Commands by their names."""

# Where a probe has the name that it is for.
_NAME: Final = "<name>"

_READS: Final = "nothing can be read from Redis"
_WORKERS: Final = "a dashboard shows one worker, not the sum of all"
_SCRIPTS: Final = "nothing can be invalidated for other workers, and no variants be stored"

# What comes behind the command, how bad it is without, and what is lost.
_NEEDED: Final[Mapping[str, tuple[Words, Level, str]]] = {
    "MGET": ((_NAME,), "problem", _READS),
    "GET": ((_NAME,), "problem", _READS),
    "SET": ((_NAME, "", "XX", "PX", 1_000), "problem", "nothing can be stored in Redis"),
    "EVALSHA": (("0" * 40, 1, _NAME), "problem", _SCRIPTS),
    "EVAL": (("return 1", 1, _NAME), "problem", _SCRIPTS),
    "UNLINK": ((_NAME,), "problem", "nothing can be deleted"),
    "PING": ((), "warning", "an operation on a connection that was idle for half a minute fails"),
    "PEXPIRE": ((_NAME, 1_000), "warning", "leases cannot be renewed, so slow handlers are called once in each worker"),
    "TIME": (
        (),
        "warning",
        "entries carry the machine's own time, and machines whose clocks differ disagree on what is fresh",
    ),
    "INFO": (("server",), "warning", "a restart that lost the last invalidations is not noticed"),
    "SCAN": ((0, "COUNT", 1), "warning", "clear, count, sync and the list of entries do not work"),
    "GETRANGE": ((_NAME, 0, 0), "warning", "the list of entries does not work"),
    "HGETALL": ((_NAME,), "note", _WORKERS),
    "HLEN": ((_NAME,), "note", _WORKERS),
    "HEXISTS": ((_NAME, ""), "note", _WORKERS),
    "HDEL": ((_NAME, ""), "note", _WORKERS),
}

# On the log's own names, which a pattern of an ACL may leave out. Without one of them there is no log.
_NEEDED_FOR_LOG: Final[Mapping[str, Words]] = {
    "TYPE": (_NAME,),
    "GET": (f"{_NAME}:run",),
    "SET": (f"{_NAME}:run", "", "NX", "XX"),  # contradicts itself
    "XRANGE": (_NAME, "-", "+", "COUNT", 1),
    "XREVRANGE": (_NAME, "+", "-", "COUNT", 1),
    "XREAD": ("COUNT", 1, "STREAMS", _NAME, "$"),
    "XADD": (_NAME, "NOMKSTREAM", "0-0", "marks", ""),  # no entry can have this ID
    "EVAL": ("return 1", 1, _NAME),
    "DEL": (f"{_NAME}:doctor",),
}

# What a probe may be answered with on a server that is well: also that a slot is on its way elsewhere.
_EXPECTED: Final = frozenset({"ERR", "NOSCRIPT", "WRONGTYPE", "MOVED", "ASK", "TRYAGAIN"})

# What a command that fails is answered with first, what that means, and what helps.
_FAILURES: Final = (
    ("OOM", "Its memory is full, and nothing may be evicted.", ANOTHER_POLICY),
    ("READONLY", "It is a replica.", THE_PRIMARY),
    ("MISCONF", "It cannot save to its disk.", NO_SAVING),
    ("NOREPLICAS", "It has too few replicas.", "Look at min-replicas-to-write, and why replicas are gone."),
    ("CLUSTERDOWN", "The cluster is down.", "See CLUSTER NODES for who is down."),
    ("MASTERDOWN", "It has lost its primary.", "See INFO replication."),
    ("BUSY", "A script runs in it that does not end.", "SCRIPT KILL, and find out whose script it is."),
    ("", "", "Look into the server's log."),
)


def entry_probes(name: str, *, is_cluster: bool) -> Probes:
    """Return a probe of each command that entries and leases need, on *name*, which none of them may have."""
    unused = "MGET" if is_cluster else "GET"
    return {command: _filled(command, rest, name) for command, (rest, _, _) in _NEEDED.items() if command != unused}


def log_probes(name: str) -> Probes:
    """Return a probe of each command that the invalidation log needs, on its *name*; none of them changes it."""
    return {command: _filled(command, rest, name) for command, rest in _NEEDED_FOR_LOG.items()}


def _filled(command: str, rest: Words, name: str) -> Words:
    return (command, *(word.replace(_NAME, name) if isinstance(word, str) else word for word in rest))


def sifted(replies: Mapping[str, object]) -> tuple[frozenset[str], dict[str, str]]:
    """Return which commands are refused, and which fail for another reason, with its words, by what they replied."""
    errors = {command: reply for command, reply in replies.items() if isinstance(reply, Exception)}
    refused = frozenset(command for command, error in errors.items() if _is_refusal(error))
    failing = {
        command: str(error) if str(error).startswith(_code(error)) else f"{_code(error)} {error}"
        for command, error in errors.items()
        if command not in refused and _code(error) not in _EXPECTED
    }
    return refused, failing


def _is_refusal(error: Exception) -> bool:
    """Say whether *error* says that the command is not to be had: by an ACL, renamed, or not of this server."""
    return _code(error) == "NOPERM" or "unknown command" in str(error).lower()


def _code(error: Exception) -> str:
    """Return the first word of an error reply; redis-py keeps it apart where it knows it."""
    known = getattr(error, "status_code", None)
    return str(known) if known else str(error).partition(" ")[0]


def permissions(facts: Facts) -> Iterator[Finding]:
    """Return what is lost by the commands that are refused."""
    missing = {command: _NEEDED[command][1:] for command in _NEEDED if command in facts.refused}
    levels: tuple[Level, ...] = ("problem", "warning", "note")
    for level in levels:
        some = {command: harm for command, (bad, harm) in missing.items() if bad == level}
        if some:
            harms = "; ".join(dict.fromkeys(some.values()))
            remedy = f"ACL SETUSER <user> ~{facts.prefix}:* {_allowing(some)}"
            yield Finding(level, f"The server does not permit {', '.join(some)}: {harms}.", remedy)
    log = sorted(facts.refused_for_log)
    if log:
        yield Finding(
            "problem",
            f"The server does not permit {', '.join(log)} on the names of the invalidation log: workers cannot tell "
            "each other what was invalidated.",
            f"ACL SETUSER <user> ~{{{facts.prefix}:log}}* {_allowing(log)}",
        )
    if not missing and not log and facts.lost is None:
        yield Finding("ok", "All commands that are needed are permitted.")


def _allowing(commands: Iterable[str]) -> str:
    return " ".join(f"+{command.lower()}" for command in commands)


def failures(facts: Facts) -> Iterator[Finding]:
    """Return what the commands that fail say; those that say the same are told together."""
    told: dict[str, list[str]] = {}
    for command, words in facts.failing.items():
        told.setdefault(words, []).append(command)
    for words, commands in told.items():
        meaning, remedy = next((meaning, remedy) for code, meaning, remedy in _FAILURES if words.startswith(code))
        yield Finding("problem", f"{', '.join(commands)} fail: {shown(words)}. {meaning}".strip(), remedy)
