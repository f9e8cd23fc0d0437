"""What is found out, and what is made of it, as values. The one rule: what could not be seen is not made up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from echo_cache.cli.doctor.trouble import Trouble

__all__ = ["Facts", "Finding", "Level", "NameFacts", "ServerFacts", "StreamFacts"]

Level: TypeAlias = Literal["ok", "note", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """
    One thing that was looked at.

    level: "ok"; "note", which is well to know; "warning", which will do harm one day; "problem", which does harm now.
    what: what is so. remedy: what to do, empty where nothing is to be done.
    """

    level: Level
    what: str
    remedy: str = ""

    def as_json(self) -> dict[str, str]:
        """Return the same as JSON has it."""
        return {"level": self.level, "what": self.what, "remedy": self.remedy}


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """
    What one server says of itself.

    info: what INFO says, empty where it is refused. config: what CONFIG says of what INFO did not. pings: how long each
    PING took, in seconds. clock_offset: how far its clock is ahead of this machine's, in seconds, give or take
    clock_doubt; None where it does not tell. cluster: what CLUSTER INFO says. trouble: what ended the examination of
    this server, and its words.
    """

    where: str
    info: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, str] = field(default_factory=dict)
    pings: tuple[float, ...] = ()
    clock_offset: float | None = None
    clock_doubt: float = 0.0
    cluster: Mapping[str, str] = field(default_factory=dict)
    trouble: tuple[Trouble, str] | None = None


@dataclass(frozen=True, slots=True)
class StreamFacts:
    """
    The invalidation log. kind: the type of what is under its name, "none" where nothing is.

    length: how many entries it has, None where that cannot be seen. begins: whether its first entry, as far as it is
    seen, says that a log begins, so nothing was cut. ahead: by how many seconds the last ID is later than the server's
    clock. foreign: whether the last entry is not understood. same_run: whether the server is the one that has written
    its run; None where that is not known.
    """

    kind: str
    length: int | None = 0
    begins: bool = True
    ahead: float = 0.0
    foreign: bool = False
    same_run: bool | None = None


@dataclass(frozen=True, slots=True)
class NameFacts:
    """
    The names under the prefix, as far as they were gone through; complete: whether that was to the end.

    versions: how many there are of each format version. sampled: of how many of this version the expiry is known, and
    endless: how many of these have none.
    """

    versions: Mapping[int, int] = field(default_factory=dict)
    complete: bool = True
    sampled: int = 0
    endless: int = 0


@dataclass(frozen=True, slots=True)
class Facts:
    """
    All that was found out. trouble: why nothing could be; lost: why not more than this.

    refused: the commands that the server does not permit, and refused_for_log: those on the names of the log. failing:
    commands that fail for another reason, and its words. stream, names: None where they could not be seen.
    """

    location: str
    prefix: str = "echo_cache"
    store_timeout: float = 0.1
    trouble: tuple[Trouble, str] | None = None
    is_cluster: bool = False
    servers: Sequence[ServerFacts] = ()
    more_servers: int = 0
    refused: frozenset[str] = frozenset()
    refused_for_log: frozenset[str] = frozenset()
    failing: Mapping[str, str] = field(default_factory=dict)
    stream: StreamFacts | None = None
    names: NameFacts | None = None
    lost: tuple[Trouble, str] | None = None
    has_hiredis: bool = True
