"""Why a server cannot be asked. The one rule: what an error is, its names and words tell; none of them is obeyed."""

from __future__ import annotations

import enum
import re
from typing import Final

from echo_cache.cli.text import shown

__all__ = ["LONG", "Trouble", "remedy_of", "trouble_of"]

LONG: Final = 300
"""How many characters of an error's words are shown."""

# Of an error and of what it comes from; more tell nothing new, and somebody else may have made them long.
_MOST_ERRORS: Final = 5
_MOST_CHARACTERS: Final = 1_000


class Trouble(enum.Enum):
    """
    Why a server cannot be asked: its sign in the names and words of errors, what the server does, and the remedy.

    In the order in which the signs are looked for. The first that is found counts, and the last is always found.
    """

    NO_PASSWORD = (
        r"Authentication required|NOAUTH",
        "wants a password",
        "Put it into the URL: redis://user:password@host (or :password@host).",
    )
    WRONG_PASSWORD = (
        r"WRONGPASS|invalid (username-)?password|AUTH <password>|AuthenticationError",
        "does not accept the user or the password",
        "Correct them in the URL; write / ? # @ in them as %2F %3F %23 %40. A server without a password takes none.",
    )
    PROTECTED = (
        r"protected mode|DENIED",
        "is in protected mode and answers its own machine only",
        "Set a password there (requirepass or ACL), or bind it to an address that only the app reaches.",
    )
    NOT_PERMITTED = (
        r"NoPermission|NOPERM",
        "does not permit this user what is needed",
        "ACL SETUSER <user> +@connection +select; echo-cache doctor names what else is needed.",
    )
    LOADING = (r"BusyLoading|LOADING", "is loading its data", "Wait until it is done.")
    CROWDED = (
        r"max number of clients",
        "has no connection left",
        "Raise maxclients, or lower max_connections of RedisStore.",
    )
    NO_DATABASE = (
        r"DB index is out of range|invalid DB index|SELECT is not allowed",
        "does not have this database",
        "Correct the number at the end of the URL; a cluster has only 0.",
    )
    NO_CLUSTER = (
        r"cluster support disabled|no server of the cluster|No server of this cluster",
        "does not answer as a cluster",
        "If it is one server, write redis:// in place of redis+cluster://. Else see that its servers can be reached.",
    )
    NO_PRIMARY = (
        r"MasterNotFound|sentinels names a primary",
        "names no primary",
        "See that the Sentinels can be reached, that the service in the URL is the name that they monitor, and that "
        "its primary is up.",
    )
    CERTIFICATE = (
        r"CERTIFICATE_VERIFY_FAILED|SSLCertVerificationError",
        "shows a certificate that is not trusted here",
        "Name the CA in the URL: ?ssl_ca_certs=/path/to/ca.pem. The host in the URL must be one that the certificate "
        "names.",
    )
    TLS = (
        r"SSLError|SSL:|SSLEOF|WRONG_VERSION_NUMBER",
        "cannot agree on TLS",
        "If it speaks no TLS at this port, write redis:// in place of rediss://. If it wants a client certificate: "
        "?ssl_certfile=...&ssl_keyfile=...",
    )
    NO_SUCH_HOST = (
        r"gaierror|Name or service not known|nodename nor servname|name resolution",
        "has a host name that nobody knows",
        "Correct the host name in the URL, or the DNS.",
    )
    NO_SOCKET = (
        r"FileNotFoundError|PermissionError",
        "has no socket at that path that may be opened",
        "Correct the path in the URL; the server's `unixsocket` and `unixsocketperm` say where it is and who may.",
    )
    REFUSED = (
        r"ConnectionRefusedError|Connection refused|Connect call failed",
        "refuses connections",
        "Start the server, or correct host and port in the URL.",
    )
    UNREACHABLE = (
        r"No route to host|unreachable",
        "cannot be reached over the network",
        "Look at routes and firewalls between here and there.",
    )
    HUNG = (
        r"TimeoutError|Timeout",
        "does not answer in time",
        "Look at firewalls that drop packets, and at a server that is stopped or busy with a slow command (SLOWLOG "
        "GET).",
    )
    CLOSED = (
        r"closed by server|Connection lost|connection was lost|reset by peer|IncompleteRead",
        "closes the connection at once",
        "If it speaks TLS, write rediss:// in place of redis://. Else look into its log.",
    )
    OTHER = (r"", "cannot be asked", "Look into the server's log.")

    def __init__(self, sign: str, what: str, remedy: str) -> None:
        self.sign = sign
        self.what = what
        self.remedy = remedy


# Which command is not permitted, as servers name it; a subcommand stands behind a bar.
_REFUSED: Final = re.compile(r"run the '([a-zA-Z][a-zA-Z|]{0,40})' command")


def remedy_of(trouble: Trouble, words: str) -> str:
    """Return what helps against *trouble*, of which *words* tell more."""
    if trouble is Trouble.NOT_PERMITTED:
        command = _REFUSED.search(words)
        if command is not None:
            return f"ACL SETUSER <user> +{command[1]}; echo-cache doctor names what else is needed."
        if "access" in words:
            return "Permit this user the names of the cache (its prefix): echo-cache doctor has the rule."
    return trouble.remedy


def trouble_of(error: BaseException) -> tuple[Trouble, str]:
    """Return what *error*, and what it comes from, is a sign of, and its words. Five of them are looked at, no more."""
    chain: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and len(chain) < _MOST_ERRORS:
        chain.append(following)
        following = following.__cause__ or following.__context__
    text = "\n".join(f"{type(one).__name__}: {one}"[:_MOST_CHARACTERS] for one in chain)
    found = next(trouble for trouble in Trouble if re.search(trouble.sign, text))
    words = next((str(one) for one in chain if str(one)), type(error).__name__ if found is Trouble.OTHER else "")
    return found, shown(words, LONG)
