"""`python -m echo_cache` is `echo-cache`."""

from __future__ import annotations

import sys

from echo_cache.cli.main import run

if __name__ == "__main__":
    sys.exit(run())
