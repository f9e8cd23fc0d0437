"""
A cache from the environment. The one rule: what is wrong is told all at once, each with the name of its variable, and
no secret is shown.

    settings = Settings.from_env()  # ECHO_CACHE_URL=redis://cache, ECHO_CACHE_L1_TTL=1m, ...
    app.add_middleware(HTTPCacheMiddleware, **settings.middleware())

The variables are made from the fields of the options, so that a new option has one at once; docs/settings.md has all.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from decimal import Decimal
from typing import Any, Final, Self
from urllib.parse import unquote_plus

from echo_cache.cache import Cache
from echo_cache.coordination.clock import Clock
from echo_cache.errors import ConfigurationError
from echo_cache.events import Observer
from echo_cache.options import CoordinationOptions, PolicyOptions, TwoLevelConfig
from echo_cache.stores.base import Store
from echo_cache.stores.memory import DEFAULT_MAX_BYTES, MemoryStore
from echo_cache.stores.redis import RedisStore
from echo_cache.stores.redis.urls import parse_server_url
from echo_cache.stores.twolevel import TwoLevelStore

__all__ = ["VARIABLES", "MemoryOptions", "RedisOptions", "Settings", "Variable", "parse_duration", "parse_size"]

_MEMORY: Final = "memory://"
_PREFIX: Final = "ECHO_CACHE_"

# --- what is set ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MemoryOptions:
    """What a MemoryStore is made with; its docstring explains each."""

    max_bytes: int = DEFAULT_MAX_BYTES
    max_entries: int | None = None
    policy: str = "s3fifo"
    max_variants: int = 32
    max_prepared: int = 1024

    def store(self, clock: Clock | None = None) -> MemoryStore:
        """Return a new store. Raises ConfigurationError."""
        return MemoryStore(**_as_keywords(self), clock=clock)


@dataclass(frozen=True, slots=True)
class RedisOptions:
    """What a RedisStore is made with, beside its URL; its docstring explains each."""

    prefix: str = "echo_cache"
    timeout: float = 0.1
    max_connections: int = 16
    max_body_bytes: int = 8 * 1024 * 1024
    max_variants: int = 32
    secret: Sequence[str] | None = field(default=None, repr=False)
    breaker_failures: int = 3
    probe_interval: float = 0.5

    def store(self, url: str, clock: Clock | None = None) -> RedisStore:
        """Return a new store, which connects when it is used. Raises ConfigurationError."""
        return RedisStore(url, **_as_keywords(self), clock=clock)


@dataclass(frozen=True, slots=True, repr=False)
class Settings:
    """
    All that a cache is made of. Settings that could be made can be used: a cache is made of them once, as a trial.

    url: "memory://", or where Redis is, as RedisStore has it. levels: 2, memory before Redis; 1, one of them alone.
        None: 2 with the URL of a Redis, 1 without.
    policy, coordination, two_level, memory, redis: the options of each part. What the URL does not ask for is not used.
    name, fill_timeout: as Cache has them. include, exclude: as HTTPCacheMiddleware has them.
    dashboard_token: who has it may use the dashboard; None, nobody may. At least 16 visible ASCII characters.

    Its repr shows no secrets. Raises ConfigurationError, without them.
    """

    url: str = _MEMORY
    levels: int | None = None
    policy: PolicyOptions = field(default_factory=PolicyOptions)
    coordination: CoordinationOptions = field(default_factory=CoordinationOptions)
    two_level: TwoLevelConfig = field(default_factory=TwoLevelConfig)
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    redis: RedisOptions = field(default_factory=RedisOptions)
    name: str = "echo_cache"
    fill_timeout: float = 30.0
    include: Mapping[str, float | None] | None = None
    exclude: Sequence[str] = ()
    dashboard_token: str | None = None

    def __post_init__(self) -> None:
        _require_levels(self.url, self.levels)
        if self.dashboard_token is not None:
            _token(self.dashboard_token)
        self.cache()

    def __repr__(self) -> str:
        signed = "signed" if self.redis.secret and self._is_shared else "not signed"
        dashboard = "dashboard" if self.dashboard_token else "no dashboard"
        where = parse_server_url(self.url).location if self._is_shared else self.url
        memory = "memory before " if self._is_shared and self.levels != 1 else ""
        return f"<Settings {self.name!r} for {memory}{where} [{signed}, {dashboard}]>"

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ, prefix: str = _PREFIX) -> Self:
        """
        Return what the variables in *environ* whose names begin with *prefix* say. One that is empty is not set.

        Raises one ConfigurationError for all that is wrong, one line for each mistake. An unknown name is one, unless
        it is Kubernetes's, which sets ECHO_CACHE_PORT and the like where a service is called echo-cache, or one of the
        command line's own (ECHO_CACHE_TARGET, ECHO_CACHE_TOKEN, ECHO_CACHE_DEBUG).
        """
        if not prefix:
            raise ConfigurationError("prefix must not be empty: every variable there is would be meant")
        reading = _Reading()
        for name, text in sorted(environ.items()):
            if name.startswith(prefix) and text and not _is_of_others(name.removeprefix(prefix)):
                reading.take(name if name.isprintable() else _shown(name), name.removeprefix(prefix), text, prefix)
        return cls(**reading.result())

    @classmethod
    def from_url(cls, url: str) -> Self:
        """
        Return what *url* says: where entries are, and after "?" other settings by their names in lower case.

            redis://cache/0?prefix=shop&l1_ttl=1m&default_ttl=none
            memory://?max_bytes=64MiB

        With memory:// the l1_ of a name may be left out. Secrets are not taken from a URL.
        Raises one ConfigurationError for all that is wrong, one line for each mistake.
        """
        reading = _Reading()
        reading.take("the URL", "URL", url, "")
        return cls(**reading.result())

    def store(self, clock: Clock | None = None) -> Store:
        """Return a new store. clock: where the time comes from; the machine's if None."""
        if not self._is_shared:
            return self.memory.store(clock)
        redis = self.redis.store(self.url, clock)
        if self.levels == 1:
            return redis
        return TwoLevelStore(self.memory.store(clock), redis, self.two_level, clock=clock)

    def cache(self, observers: Sequence[Observer] = (), clock: Clock | None = None) -> Cache:
        """Return a new cache over a new store. observers, clock: as Cache has them; the store has the same clock."""
        return Cache(
            self.store(clock),
            self.policy,
            name=self.name,
            fill_timeout=self.fill_timeout,
            coordination=self.coordination,
            observers=observers,
            clock=clock,
        )

    def middleware(self, cache: Cache | None = None) -> dict[str, Any]:
        """Return the arguments of HTTPCacheMiddleware: *cache*, or a new one, and the paths."""
        return {
            "cache": self.cache() if cache is None else cache,
            "include": self.include,
            "exclude": self.exclude,
        }

    def dashboard(self) -> dict[str, Any]:
        """
        Return what says who may use the dashboard: `mount(app, **settings.dashboard())`. Without a token, nobody may.
        """
        return {} if self.dashboard_token is None else {"auth": self.dashboard_token}

    @property
    def _is_shared(self) -> bool:
        return self.url != _MEMORY


def _require_levels(url: str, levels: int | None) -> None:
    if levels not in (None, 1, 2):
        raise ConfigurationError(f"levels must be 1 or 2, not {levels!r}")
    if levels == 2 and url == _MEMORY:
        raise ConfigurationError("levels must be 1 with memory://: a second level needs the URL of a Redis")


def _as_keywords(options: MemoryOptions | RedisOptions) -> dict[str, Any]:
    return {one.name: getattr(options, one.name) for one in fields(options)}


# --- what a value may look like ---------------------------------------------------------------------------------------

_UNITS: Final = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600), "d": Decimal(86400)}
# Digits are bounded: Python refuses to read very long numbers, and no duration or size needs them.
_DURATION: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?(ms|s|m|h|d)?", re.ASCII)
_SIZE: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?(?:([kmgt])(i?))?b?", re.ASCII | re.IGNORECASE)
_TRUE: Final = ("true", "1", "yes", "on")
_FALSE: Final = ("false", "0", "no", "off")
# What an Authorization field can carry; and nobody guesses it, if it is random.
_TOKEN: Final = re.compile(r"[!-~]{16,}", re.ASCII)
_LONGEST_SHOWN: Final = 80


def parse_duration(text: str) -> float:
    """
    Return the seconds that *text* says: "300", "300s", "5m", "1.5h", "2d" or "100ms".

    Raises ConfigurationError.
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        raise _must_be("a duration such as 300, 300s, 5m, 1h, 2d or 100ms", text)
    return float(Decimal(match[1]) * _UNITS[match[2] or "s"])


def parse_size(text: str) -> int:
    """
    Return the bytes that *text* says: "65536", "64MB" (thousands), "64MiB" (1,024s), in any case, B may be left out.

    A part of a byte is dropped. Raises ConfigurationError.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise _must_be("a size such as 65536, 64KiB, 128MiB, 64MB or 1.5GiB", text)
    power = " kmgt".index((match[2] or " ").lower())
    return int(Decimal(match[1]) * (1024 if match[3] else 1000) ** power)


def _boolean(text: str) -> bool:
    if text.lower() not in _TRUE + _FALSE:
        raise _must_be("true or false (or 1, 0, yes, no, on, off)", text)
    return text.lower() in _TRUE


def _whole(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,15}", text, re.ASCII):
        raise _must_be("a whole number", text)
    return int(text)


def _ratio(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,15}(\.[0-9]{1,15})?|\.[0-9]{1,15}", text, re.ASCII):
        raise _must_be("a number such as 0.1", text)
    return float(text)


def _level(text: str) -> int:
    if text not in ("1", "2"):
        raise _must_be("1 or 2", text)
    return int(text)


def _words(text: str) -> tuple[str, ...]:
    words = tuple(word.strip() for word in text.split(","))
    # A star would be a name like any other here, and not what was meant by it. Nor is it known what is meant by none:
    # no host, or no limit?
    if "" in words or "*" in words or text.lower() == "none":
        raise _must_be("names with commas between, not empty, * or none", text)
    return words


def _paths(text: str) -> tuple[str, ...]:
    paths = tuple(path.strip() for path in text.split(","))
    if not all(path.startswith(("/", "*")) for path in paths):
        raise _must_be("path patterns with commas between, each beginning with / or *", text)
    return paths


def _timed_paths(text: str) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for path in _paths(text):
        pattern, given, ttl = path.rpartition("=")
        pattern = pattern.strip() if given else path
        if pattern in found:
            raise ConfigurationError(f"the pattern {_shown(pattern)} is there twice")
        found[pattern] = parse_duration(ttl.strip()) if given else None
    return found


def _text(text: str) -> str:
    return text


def _url(text: str) -> str:
    # Python's parser drops line ends without a word; and what comes after a # is a part of nothing here.
    if not text.isprintable() or " " in text or "#" in text:
        raise ConfigurationError("must be one URL, without blanks, control characters and # (in a password, %23)")
    return text


def _secrets(text: str) -> tuple[str, ...]:
    """Return the secrets that have commas or line ends between them. No message shows them."""
    secrets = tuple(one.strip() for one in re.split(r"[,\n]", text))
    if not all(secrets):
        raise ConfigurationError("must be secrets with commas between, none of them empty")
    return secrets


def _token(text: str) -> str:
    if not _TOKEN.fullmatch(text):
        raise ConfigurationError("the dashboard's token must have 16 characters or more, all of them visible ASCII")
    return text


def _as_text(value: object, parse: Callable[[str], object]) -> str:
    """Return what *parse* takes for *value*, in the largest unit that leaves no fraction."""
    if parse in (parse_size, parse_duration):
        units = ("TiB", "GiB", "MiB", "KiB", "") if parse is parse_size else ("d", "h", "m", "s", "ms")
        for unit in units:
            number = Decimal(str(value)) / Decimal(str(parse(f"1{unit}")))
            if value and number == number.to_integral_value():
                return f"{number:f}".partition(".")[0] + unit
        return "0"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def _must_be(allowed: str, text: str) -> ConfigurationError:
    return ConfigurationError(f"must be {allowed}; not {_shown(text)}")


def _shown(text: str) -> str:
    return repr(text) if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]!r}..."


# --- the variables ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Variable:
    """
    A setting that has a name: "L1_TTL", after the prefix.

    parse: returns the value of a text, or raises ConfigurationError. default: the value of one that is not set.
    optional: "none" stands for None. secret: its value is shown nowhere, and may be in a file, which NAME_FILE names.
    options: what it sets, as pairs of a field of Settings ("" for Settings itself) and a field of that one's value.
    """

    name: str
    parse: Callable[[str], object]
    default: object
    options: tuple[tuple[str, str], ...]
    optional: bool = False
    secret: bool = False

    @property
    def default_text(self) -> str:
        """The text that stands for the default; empty where only a variable that is not set does."""
        return _as_text(self.default, self.parse) if self.default is not None else "none" if self.optional else ""

    def value(self, text: str) -> object:
        """Return the value of *text*. Raises ConfigurationError, which does not show a secret."""
        if self.optional and text.lower() == "none":
            return None
        if not self.secret and "://" in text:
            raise ConfigurationError("looks like a URL; that belongs into the variable whose name ends with URL")
        try:
            return self.parse(text)
        except ConfigurationError as error:
            message = str(error)
            if self.optional:
                message = message.replace("must be", "must be none or", 1)
            raise ConfigurationError(message) from None


# Parts in the order of the documentation, with what comes before the names of their options.
_PARTS: Final[Mapping[str, tuple[type[Any], str]]] = {
    "memory": (MemoryOptions, "L1_"),
    "redis": (RedisOptions, ""),
    "two_level": (TwoLevelConfig, ""),
    "policy": (PolicyOptions, ""),
    "coordination": (CoordinationOptions, ""),
    "": (Settings, ""),
}
# The same for both stores: a variant that one level keeps is of no use to the other if that one does not.
_NAMES: Final = {("memory", "max_variants"): "MAX_VARIANTS"}
# Floats that are no durations.
_RATIOS: Final = frozenset({"heuristic_fraction", "expiry_jitter", "early_refresh"})
# What its type does not tell. Only what has one of these can have a variable among the fields of Settings itself.
_SPECIAL: Final[Mapping[str, Callable[[str], object]]] = {
    "url": _url,
    "levels": _level,
    "secret": _secrets,
    "name": _text,
    "fill_timeout": parse_duration,
    "include": _timed_paths,
    "exclude": _paths,
    "dashboard_token": _token,
}
_SECRET: Final = frozenset({"url", "secret", "dashboard_token"})
_PARSERS: Final[Mapping[str, Callable[[str], object]]] = {
    "bool": _boolean,
    "str": _text,
    "int": _whole,
    "float": parse_duration,
    "Sequence[str]": _words,
}


def _variables() -> Iterator[Variable]:
    found: dict[str, Variable] = {}
    for part, (kind, before) in _PARTS.items():
        for option in fields(kind):
            if part == "" and option.name not in _SPECIAL:
                continue
            name = _NAMES.get((part, option.name), f"{before}{option.name.upper()}")
            options = (*found[name].options, (part, option.name)) if name in found else ((part, option.name),)
            found[name] = _variable(name, option, options)
    yield from found.values()


def _variable(name: str, option: Field[Any], options: tuple[tuple[str, str], ...]) -> Variable:
    written = str(option.type)
    annotation = written.removesuffix(" | None")
    special = _SPECIAL.get(option.name)
    parse = special or _PARSERS[annotation]
    if option.name in _RATIOS:
        parse = _ratio
    elif annotation == "int" and option.name.endswith("_bytes"):
        parse = parse_size
    # A list that is not given is not the same as one that has nothing in it: for lists, none says too little.
    optional = written != annotation and special is None and parse is not _words
    assert option.default is not MISSING
    return Variable(name, parse, option.default, options, optional, option.name in _SECRET)


VARIABLES: Final[Mapping[str, Variable]] = {variable.name: variable for variable in _variables()}
"""All variables by their names, without the prefix."""

_FILE: Final = "_FILE"
_LARGEST_FILE: Final = 64 * 1024

# What Kubernetes tells every container about a service called echo-cache, or echo-cache-redis.
_OF_KUBERNETES: Final = re.compile(
    r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)", re.ASCII
)

# What the command line reads of the same environment.
_OF_COMMAND_LINE: Final = frozenset({"TARGET", "TOKEN", "DEBUG"})

# --- reading them -----------------------------------------------------------------------------------------------------


def _is_of_others(name: str) -> bool:
    return name in _OF_COMMAND_LINE or _OF_KUBERNETES.fullmatch(name) is not None


class _Reading:
    """Texts on their way to settings, and the mistakes in them."""

    def __init__(self) -> None:
        self._mistakes: list[str] = []
        # What each variable that was given is called by who gave it.
        self._labels: dict[str, str] = {}
        self._values: dict[str, dict[str, Any]] = {part: {} for part in _PARTS}

    def take(self, label: str, name: str, text: str, prefix: str) -> None:
        """Note that the variable *name* is *text*, or in the file *text*. label: what it is called by who gave it."""
        variable = VARIABLES.get(name)
        from_file = False
        if variable is None and name.endswith(_FILE):
            variable = VARIABLES.get(name.removesuffix(_FILE))
            from_file = True
        if variable is None or (from_file and not variable.secret):
            self._mistake(label, _unknown(name, prefix))
        else:
            self._put(label, variable, text.strip(), from_file=from_file)

    def _put(self, label: str, variable: Variable, text: str, *, from_file: bool = False) -> None:
        if variable.name in self._labels:
            self._mistake(label, f"is given twice, also by {self._labels[variable.name]}")
            return
        self._labels[variable.name] = label
        try:
            text = _content(text) if from_file else text
            if variable.name == "URL":
                text = self._take_options(text, label)
            value = variable.value(text)
        except ConfigurationError as error:
            self._mistake(label, error)
            return
        for part, option in variable.options:
            self._values[part][option] = value

    def _take_options(self, url: str, label: str) -> str:
        """Take the settings that *url* has after "?", and return it without them."""
        bare, _, query = url.partition("?")
        # An @ comes after a password with a ? in it. What follows is the rest of the password, and not for a message.
        if not query or "@" in query or "#" in url:
            return url
        kept = []
        for option in query.split("&"):
            name, _, text = option.partition("=")
            variable = VARIABLES.get(name.upper()) if name.islower() else None
            if variable is None and bare == _MEMORY:
                variable = VARIABLES.get(f"L1_{name.upper()}")
            if variable is not None and not variable.secret:
                self._put(f"{name} in {label}", variable, unquote_plus(text).strip())
            elif bare == _MEMORY:
                self._mistake(f"{_shown(name)} in {label}", "is no setting, or one that a URL cannot have")
            else:
                kept.append(option)
        return f"{bare}?{'&'.join(kept)}" if kept else bare

    def result(self) -> dict[str, Any]:
        """Return the arguments of Settings. Raises one ConfigurationError for all mistakes."""
        own = self._values[""]
        self._check(_try_url, "", ("url",))
        self._check(lambda **options: Cache(MemoryStore(), **options), "", ("name", "fill_timeout"))
        if "url" in own or "URL" not in self._labels:
            self._check(lambda levels: _require_levels(own.get("url", _MEMORY), levels), "", ("levels",))
        for part, make in _TRIALS.items():
            self._check(make, part)
        made = {part: kind(**self._values[part]) for part, (kind, _) in _PARTS.items() if part}
        if self._mistakes:
            count = f"{len(self._mistakes)} mistake{'s' if len(self._mistakes) > 1 else ''}"
            raise ConfigurationError("\n  ".join([f"{count} in the settings of the cache:", *self._mistakes]))
        return {**own, **made}

    def _check(self, make: Callable[..., object], part: str, among: Sequence[str] | None = None) -> None:
        """Note what *make* says of the values of *part*, and drop those that are wrong."""
        given = self._values[part]
        while names := [name for name in given if among is None or name in among]:
            try:
                make(**{name: given[name] for name in names})
            except ConfigurationError as error:
                wrong = _named(str(error), names)
                self._mistake(", ".join(self._label(part, name) for name in wrong), error)
                for name in wrong:
                    del given[name]
            else:
                return

    def _label(self, part: str, option: str) -> str:
        (name,) = (name for name, variable in VARIABLES.items() if (part, option) in variable.options)
        return self._labels[name]

    def _mistake(self, label: str, error: ConfigurationError | str) -> None:
        # One variable may be wrong for two parts.
        if not any(mistake.startswith(f"{label}: ") for mistake in self._mistakes):
            self._mistakes.append(f"{label}: {error}")


def _try_url(url: str) -> None:
    if url == _MEMORY:
        return
    try:
        RedisStore(url)
    except ConfigurationError as error:
        if url.startswith(("redis", "unix://")):
            raise
        raise ConfigurationError(f"{error}; for memory alone it is memory://") from None


# What finds the mistakes in the options of each part.
_TRIALS: Final[Mapping[str, Callable[..., object]]] = {
    "memory": lambda **options: MemoryOptions(**options).store(),
    "redis": lambda **options: RedisOptions(**options).store("redis://localhost"),
    "two_level": TwoLevelConfig,
    "policy": PolicyOptions,
    "coordination": CoordinationOptions,
}

_QUOTED: Final = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")


def _named(message: str, options: Sequence[str]) -> list[str]:
    """Return which of *options* the *message* is about: all, if it names none. What it quotes are values."""
    words = set(re.findall(r"\w+", _QUOTED.sub("", message)))
    return [option for option in options if option in words] or list(options)


def _unknown(name: str, prefix: str) -> str:
    known = [*VARIABLES, *(f"{name}{_FILE}" for name, variable in VARIABLES.items() if variable.secret)]
    near = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.5)
    return f"unknown; did you mean {prefix}{near[0]}?" if near else "unknown, and like no name that is known"


def _content(path: str) -> str:
    """
    Return the lines of the file at *path* that are not blank.

    Raises ConfigurationError, which does not show the path: it may be a secret, in the wrong variable.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(_LARGEST_FILE + 1)
        text = content.decode()
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"the file cannot be read as UTF-8 text: {type(error).__name__}") from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines or len(content) > _LARGEST_FILE:
        raise ConfigurationError(f"the file must have a line that is not blank, and at most {_LARGEST_FILE} bytes")
    return "\n".join(lines)
