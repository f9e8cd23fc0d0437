"""
The description of the JSON interface: OpenAPI 3.1, as a dict.

The one rule: the bounds that are described are the constants that are checked.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Final, TypeAlias

from echo_cache.cache.report import LogReport, Report, RouteReport
from echo_cache.management.manager import MAX_LIMIT

__all__ = [
    "LONGEST_CURSOR",
    "LONGEST_FIELD",
    "LONGEST_TEXT",
    "LONGEST_TOKEN",
    "LONGEST_URL",
    "MAX_FIELDS",
    "MAX_URLS",
    "openapi",
]

Json: TypeAlias = dict[str, Any]

LONGEST_URL: Final = 8_192
LONGEST_TEXT: Final = 1_024
LONGEST_CURSOR: Final = 128
LONGEST_FIELD: Final = 8_192
MAX_FIELDS: Final = 32
LONGEST_TOKEN: Final = 1_024
MAX_URLS: Final = 1_000


def _nullable(schema: Json) -> Json:
    if "type" in schema:
        return {**schema, "type": [schema["type"], "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(properties: Json, *, optional: tuple[str, ...] = ()) -> Json:
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }


def _list(items: Json) -> Json:
    return {"type": "array", "items": items}


def _text(longest: int) -> Json:
    return {"type": "string", "minLength": 1, "maxLength": longest}


_STRING: Final[Json] = {"type": "string"}
_COUNT: Final[Json] = {"type": "integer", "minimum": 0}
_NUMBER: Final[Json] = {"type": "number"}
_FLAG: Final[Json] = {"type": "boolean"}
_LEVEL: Final[Json] = {"type": "string", "enum": ["l1", "l2"]}
_STRINGS: Final = _list(_STRING)
_WORKER: Final[Json] = {**_STRING, "description": "Which worker has answered."}

_KINDS: Final[dict[str, Json]] = {
    "str": _STRING,
    "int": {"type": "integer"},
    "float": _NUMBER,
    "bool": _FLAG,
    "Mapping[str, int]": {"type": "object", "additionalProperties": {"type": "integer"}},
    "LogReport": _ref("LogReport"),
    "tuple[RouteReport, ...]": _list(_ref("RouteReport")),
}


def _of_dataclass(of: type) -> Json:
    """Return the schema of a dataclass of reports: they tell what they have by their types."""
    properties = {}
    for one in fields(of):
        kind = _KINDS[str(one.type).removesuffix(" | None")]
        properties[one.name] = _nullable(kind) if str(one.type).endswith("| None") else kind
    return _object(properties)


_ENTRY: Final = _object(
    {
        "url": _STRING,
        "key_digest": _STRING,
        "level": _LEVEL,
        "variants": {"type": "integer", "minimum": 1},
        "bytes": _COUNT,
        "status": {"type": "integer"},
        "age": {**_NUMBER, "description": "Seconds."},
        "ttl": {**_nullable(_NUMBER), "description": "Seconds; negative: stale for so long."},
        "tags": _STRINGS,
        "route": _STRING,
        "stored_at": {**_NUMBER, "description": "Epoch seconds."},
        "stands": {"type": "string", "enum": ["fresh", "stale", "gone", "doubtful"]},
    }
)

_VARIANT: Final = _object(
    {
        "status": {"type": "integer"},
        "age": _NUMBER,
        "ttl": _nullable(_NUMBER),
        "retained_for": _nullable(_NUMBER),
        "generated_at": _NUMBER,
        "stored_at": _NUMBER,
        "tags": _STRINGS,
        "vary": {"type": "object", "additionalProperties": _nullable(_STRING)},
        "headers": _list({"type": "array", "prefixItems": [_STRING, _STRING], "minItems": 2, "maxItems": 2}),
        "body_bytes": _COUNT,
        "content_type": _nullable(_STRING),
        "etag": _nullable(_STRING),
        "stale_while_revalidate": _nullable(_NUMBER),
        "stale_if_error": _nullable(_NUMBER),
        "always_validate": _FLAG,
        "anonymous_only": _FLAG,
        "route": _STRING,
        "mark": _STRING,
        "stands": {"type": "string", "enum": ["fresh", "stale", "gone", "doubtful"]},
        "why": _STRING,
    }
)

_SCHEMAS: Final[Json] = {
    "Error": _object({"error": {"type": "string", "description": "What was wrong, and what is allowed."}}),
    "Report": _of_dataclass(Report),
    "LogReport": _of_dataclass(LogReport),
    "RouteReport": _of_dataclass(RouteReport),
    "Stats": _object(
        {
            "shared": {**_FLAG, "description": "Whether workers know of each other, by a Redis."},
            "worker": _ref("Report"),
            "total": _ref("Report"),
            "workers": _list(_ref("Report")),
            "workers_known": {**_FLAG, "description": "Whether the other workers could be asked."},
        }
    ),
    "Entry": _ENTRY,
    "Entries": _object(
        {"worker": _WORKER, "level": _LEVEL, "entries": _list(_ref("Entry")), "cursor": _nullable(_STRING)}
    ),
    "Variant": _VARIANT,
    "Inspection": _object(
        {
            "worker": _WORKER,
            "url": _STRING,
            "key_digest": {**_STRING, "description": 'What names it in Redis and in the logs; "" where nothing can.'},
            "levels": {"type": "object", "additionalProperties": _list(_ref("Variant"))},
            "unknown": {**_list(_LEVEL), "description": "The levels that could not be asked."},
            "selected": _nullable(_object({"level": _LEVEL, "index": _COUNT})),
            "verdict": _STRING,
        }
    ),
    "Top": _object(
        {
            "worker": _WORKER,
            "by_hits": _list(_object({"url": _STRING, "hits": _COUNT})),
            "by_bytes": _list(_object({"url": _STRING, "bytes": _COUNT})),
        }
    ),
    "Refusals": _list(
        _object({"time": _NUMBER, "url": _STRING, "reason": _STRING, "explanation": _STRING, "remedy": _STRING})
    ),
    "Purge": {
        **_object(
            {
                "url": _text(LONGEST_URL),
                "tag": _text(LONGEST_TEXT),
                "prefix": _text(LONGEST_URL),
                "all": _FLAG,
                "soft": {**_FLAG, "description": "Make it stale only."},
                "dry_run": {**_FLAG, "description": "Only say what it would be."},
            },
            optional=("url", "tag", "prefix", "all", "soft", "dry_run"),
        ),
        "description": "Exactly one of url, tag, prefix and all.",
    },
    "Purged": _object(
        {
            "worker": _WORKER,
            "dry_run": _FLAG,
            "purged": _FLAG,
            "propagated": {**_FLAG, "description": "Whether the other workers have been told."},
            "position": _nullable(_STRING),
            "matched": _COUNT,
            "is_complete": _FLAG,
            "sample": _STRINGS,
        },
        optional=("propagated", "position", "matched", "is_complete", "sample"),
    ),
    "Synced": _object(
        {"worker": _WORKER, "to": _LEVEL, "seen": _COUNT, "copied": _COUNT, "skipped": _COUNT, "failed": _COUNT}
    ),
    "Warmed": _object({"done": _COUNT, "stored": _COUNT, "hits": _COUNT, "uncached": _COUNT, "failed": _COUNT}),
    "Cleared": _object(
        {
            "worker": _WORKER,
            "cleared": {"type": "string", "enum": ["l1", "l2", "all"]},
            "entries": _nullable(_COUNT),
            "propagated": _FLAG,
        },
        optional=("propagated",),
    ),
    "Reset": _object(
        {
            "worker": _WORKER,
            "reset": {"const": True},
            "told": {
                **_nullable(_FLAG),
                "description": "Whether the other workers have been told, which follow within seconds; null: there is "
                "nothing by which they could be.",
            },
        }
    ),
    "StoreStats": {
        "type": "object",
        "description": "The fields of CacheStats, of a store with two levels; of StoreStats, of another.",
        "additionalProperties": {"type": ["number", "string", "null"]},
    },
}

_ERRORS: Final = {
    400: "What was asked for cannot be done.",
    401: "No token, or a wrong one.",
    403: "It came from a page of another origin, or whoever asked may not.",
    404: "There is nothing here, for whoever asked.",
    409: "The same is under way.",
    413: "The body is too large.",
    415: "The body is not application/json.",
    429: "Too many wrong tokens.",
    503: "Redis cannot be asked, there is no cache, or there are too many streams.",
}
_ALWAYS: Final = (400, 401, 403, 404, 429, 503)
_OF_BODIES: Final = (409, 413, 415)


def _answers(schema: Json | None, *more: int, media: str = "application/json") -> Json:
    if schema is None:
        good: Json = {"204": {"description": "Done."}}
    else:
        good = {"200": {"description": "What was asked for.", "content": {media: {"schema": schema}}}}
    errors = {str(status): {"$ref": f"#/components/responses/{status}"} for status in sorted({*_ALWAYS, *more})}
    return {**good, **errors}


def _body(schema: Json, *, required: bool = True) -> Json:
    return {"required": required, "content": {"application/json": {"schema": schema}}}


def _parameter(name: str, schema: Json, description: str, *, required: bool = False) -> Json:
    return {"name": name, "in": "query", "required": required, "schema": schema, "description": description}


def _get(summary: str, schema: Json, parameters: list[Json] | None = None, **more: Any) -> Json:
    return {"summary": summary, "parameters": parameters or [], "responses": _answers(schema, **more)}


def _post(summary: str, body: Json, schema: Json) -> Json:
    return {"summary": summary, "requestBody": body, "responses": _answers(schema, *_OF_BODIES)}


def _delete(summary: str) -> Json:
    return {"summary": summary, "responses": _answers(_ref("Cleared"))}


_NOTHING: Final = _object({})

_PATHS: Final[Json] = {
    "/login": {
        "post": {
            "summary": "Sign in: the cookie that is set stands for the token, for 12 hours.",
            "security": [],
            "requestBody": _body(_object({"token": _text(LONGEST_TOKEN)})),
            "responses": _answers(None, *_OF_BODIES),
        }
    },
    "/logout": {
        "post": {
            "summary": "Forget the cookie.",
            "security": [],
            "requestBody": _body(_NOTHING, required=False),
            "responses": _answers(None, *_OF_BODIES),
        }
    },
    "/api/openapi.json": {"get": _get("This description.", {"type": "object"})},
    "/api/stats": {"get": _get("What the workers have done.", _ref("Stats"))},
    "/api/events": {
        "get": _get(
            "The same once a second: events called stats, top and refusals.", _STRING, media="text/event-stream"
        )
    },
    "/api/entries": {
        "get": _get(
            "A page of what is stored.",
            _ref("Entries"),
            [
                _parameter("match", _text(LONGEST_URL), 'A glob over the URL; "*" stands for any characters.'),
                _parameter("tag", _text(LONGEST_TEXT), "Only what has this tag."),
                _parameter("level", _LEVEL, "Memory (l1), or what is below it (l2)."),
                _parameter(
                    "limit", {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": 50}, "About how many."
                ),
                _parameter("cursor", _text(LONGEST_CURSOR), "Where the page before ended."),
            ],
        )
    },
    "/api/entry": {
        "get": _get(
            "All that is stored under a URL, and what a GET of it would get now.",
            _ref("Inspection"),
            [
                _parameter("url", _text(LONGEST_URL), "Absolute, as clients ask for it.", required=True),
                {
                    **_parameter(
                        "header",
                        {"type": "array", "maxItems": MAX_FIELDS, "items": _text(LONGEST_FIELD)},
                        "A field of that request, as Name: value; may be repeated.",
                    ),
                    "style": "form",
                    "explode": True,
                },
            ],
        )
    },
    "/api/top": {"get": _get("What is hit most, and what is largest.", _ref("Top"))},
    "/api/refusals": {"get": _get("What was not stored lately, newest first.", _ref("Refusals"))},
    "/api/purge": {"post": _post("Make what is named gone, or stale.", _body(_ref("Purge")), _ref("Purged"))},
    "/api/sync": {
        "post": _post(
            "Copy to one level what the other has and it has not.", _body(_object({"to": _LEVEL})), _ref("Synced")
        )
    },
    "/api/warm": {
        "post": _post(
            "Ask the app for these URLs through the cache.",
            _body(
                _object({"urls": {"type": "array", "minItems": 1, "maxItems": MAX_URLS, "items": _text(LONGEST_URL)}})
            ),
            _ref("Warmed"),
        )
    },
    "/stats": {"get": _get("The counters of the store, flat.", _ref("StoreStats"))},
    "/stats/reset": {
        "post": _post("Begin to count anew, in all workers.", _body(_NOTHING, required=False), _ref("Reset"))
    },
    "/l1": {"delete": _delete("Empty this worker's memory.")},
    "/l2": {"delete": _delete("Empty the level below it.")},
    "/all": {"delete": _delete("Make everything gone, in all workers.")},
}

_DOCUMENT: Final[Json] = {
    "openapi": "3.1.0",
    "info": {
        "title": "echo_cache",
        "version": "1",
        "description": "What the cache does, and what it is told to do.",
    },
    "security": [{"token": []}, {"cookie": []}],
    "paths": _PATHS,
    "components": {
        "schemas": _SCHEMAS,
        "responses": {
            str(status): {
                "description": description,
                "content": {"application/json": {"schema": _ref("Error")}},
            }
            for status, description in _ERRORS.items()
        },
        "securitySchemes": {
            "token": {"type": "http", "scheme": "bearer"},
            "cookie": {"type": "apiKey", "in": "cookie", "name": "echo_cache_dashboard"},
        },
    },
}


def openapi(root: str) -> Json:
    """Return the description of the interface that is mounted at *root*, a path."""
    return {**_DOCUMENT, "servers": [{"url": root or "/"}]}
