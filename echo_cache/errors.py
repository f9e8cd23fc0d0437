"""
The exceptions of echo_cache, all under one base.

    EchoCacheError
    +-- ConfigurationError (also ValueError)   wrong options, found at start
    +-- CodecError                             bytes that are not an entry of ours
        +-- ForgedError                        ... because they are not signed with a secret of ours
    +-- StoreError                             a store could not do its work
        +-- NotStorable                        ... because of what it was given
        +-- StoreTimeout                       ... in the time it was given
        +-- NotPropagated                      ... so that other workers do not know of an invalidation yet

A request never sees one of these: a failure of the cache becomes an event and a forward to the app.
They reach the code that configures, manages or invalidates.
"""

from __future__ import annotations

__all__ = [
    "CodecError",
    "ConfigurationError",
    "EchoCacheError",
    "ForgedError",
    "NotPropagated",
    "NotStorable",
    "StoreError",
    "StoreTimeout",
]


class EchoCacheError(Exception):
    """Base of every exception that echo_cache raises."""


class ConfigurationError(EchoCacheError, ValueError):
    """Raised when an option, a pattern or a combination of them cannot work; says what is allowed."""


class CodecError(EchoCacheError):
    """Raised when bytes cannot be decoded into an entry of this version, for this key."""


class ForgedError(CodecError):
    """Raised when a secret is demanded and the bytes are not signed with it for this key."""


class StoreError(EchoCacheError):
    """Raised when a store could not complete an operation; the cause is the client library's error."""


class NotStorable(StoreError):
    """Raised when an entry or a key cannot be kept, whatever the state of the store: to try again would not help."""


class StoreTimeout(StoreError):
    """Raised when a store did not complete an operation in its time budget."""


class NotPropagated(StoreError):
    """Raised when an invalidation that was to be strict is known to this worker alone, until Redis is back."""
