"""
What is wrong with a Redis as the place of a cache, and what to do about it.

    examining  asks the servers: examine
    judging    what the facts mean: judge
    server     what one server, or a cluster, says of itself
    probes     which commands are needed, how it is asked for them, and what is lost without
    trouble    why a server cannot be asked
    facts      what is found out, and what is made of it, as values

The one rule: facts are gathered first, and a pure function judges them. Whatever is wrong with the server becomes a
finding with its remedy; nothing is raised, and nothing is written there.
"""

from echo_cache.cli.doctor.examining import examine
from echo_cache.cli.doctor.facts import Facts, Finding, NameFacts, ServerFacts, StreamFacts
from echo_cache.cli.doctor.judging import judge
from echo_cache.cli.doctor.server import percentile
from echo_cache.cli.doctor.trouble import Trouble, trouble_of

__all__ = [
    "Facts",
    "Finding",
    "NameFacts",
    "ServerFacts",
    "StreamFacts",
    "Trouble",
    "examine",
    "judge",
    "percentile",
    "trouble_of",
]
