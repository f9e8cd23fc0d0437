"""The edge: pure ASGI middleware, one responder per request, one observer of each call of the app."""

from echo_cache.asgi.middleware import HTTPCacheMiddleware

__all__ = ["HTTPCacheMiddleware"]
