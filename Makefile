# Needs only make, Python 3.11 or newer and the package index. Everything else is made below this directory.

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
# Another interpreter means another environment, so the stamps carry its version.
VERSION := $(shell "$(PYTHON)" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null)
# The whole path: to uv, a bare `python3` is also the Python of an environment that is there already.
INTERPRETER := $(shell "$(PYTHON)" -c 'import sys; print(sys.executable)' 2>/dev/null)
DEMO_READY := $(VENV)/.demo-$(VERSION).stamp
DEV_READY := $(VENV)/.dev-$(VERSION).stamp
# What the tests, the checks and the examples use, besides the dev group of pyproject.toml.
EXTRAS := hiredis zstd prometheus otel cli fastapi demo langgraph
# One script each; a benchmark is run by `make bench` only, never by the tests.
BENCHMARKS := benchmarks/hit_path.py benchmarks/memory.py benchmarks/two_level.py benchmarks/eviction.py \
    benchmarks/trouble.py benchmarks/stampede.py benchmarks/invalidation.py benchmarks/langgraph_saver.py \
    benchmarks/observers.py

# uv from the machine, or else one of our own in .uv/.
UV := $(shell command -v uv 2>/dev/null)
ifeq ($(UV),)
UV := .uv/bin/uv
UV_MADE := $(UV)
endif

export UV_PROJECT_ENVIRONMENT := $(VENV)
export UV_PYTHON_DOWNLOADS := never
# Trust the certificates that the machine trusts, as pip does.
export UV_SYSTEM_CERTS ?= true
# A virtual environment that happens to be active is not ours to change.
unexport VIRTUAL_ENV

.DEFAULT_GOAL := help
.PHONY: help demo test coverage check bench wheel clean python-version

help: ## Show this list
	@echo "Targets (set PYTHON=python3.12 to choose the interpreter):"
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-14s%s\n", $$1, $$2 }'

demo: $(DEMO_READY) ## Run the example shop; ARGS=--once runs its tour and exits
	@$(BIN)/python examples/shop.py $(ARGS)
	@echo
	@echo "Next: read examples/shop.py, then put the middleware into an app of your own (README.md)."

# -n auto: one worker per core, but not more than four, as each has a Redis of its own.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses=4 --dist=worksteal
# What the tests of the rules and of the codec reach is counted, which takes them twice as long.
OF_RULES := $(sort $(wildcard tests/test_policy_*.py tests/test_codec*.py tests/test_fields*.py) tests/test_cli_explain.py \
    tests/test_security_input.py tests/test_security_keys.py tests/test_security_poisoning.py tests/test_security_private.py)

test: $(DEV_READY) ## Run the tests; ARGS="tests/test_x.py -k y" runs some
ifeq ($(strip $(ARGS)),)
	@echo "The rules and the codec: every branch."
	@$(PYTEST) -q --cov --cov-report= $(OF_RULES)
	@$(BIN)/python -m coverage report --include='echo_cache/policy/*,echo_cache/codec.py' --fail-under=100
	@echo
	@echo "Everything else."
	@$(PYTEST) $(OF_RULES:%=--ignore=%)
	@echo
	@echo "All tests pass. Next: make check (style, types, layers), or make demo."
else
	@$(PYTEST) $(ARGS)
endif

coverage: $(DEV_READY) ## Run the tests, and show what they reach of every module
	@$(PYTEST) --cov --cov-report=
	@$(BIN)/python -m coverage report

check: $(DEV_READY) ## Check style, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict echo_cache examples tests/typing/api.py
	$(BIN)/python -m pytest -q tests/test_layers.py

bench: $(DEV_READY) ## Run the benchmarks; ARGS is given to each
	@set -e; for script in $(BENCHMARKS); do \
	    echo "== $$script"; $(BIN)/python "$$script" $(ARGS); \
	done

wheel: python-version $(UV_MADE) ## Build the wheel into dist/
	@$(UV) build --wheel --python "$(INTERPRETER)" --out-dir dist

clean: ## Remove what the other targets made
	rm -rf $(VENV) .uv build dist htmlcov .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The demo needs little, so it gets little; --inexact leaves a larger environment as it is.
$(DEMO_READY): pyproject.toml uv.lock $(UV_MADE) | python-version
	@echo "Preparing $(VENV) for the demo ..."
	@$(UV) sync --quiet --frozen --inexact --no-dev --extra demo --python "$(INTERPRETER)"
	@touch $@

$(DEV_READY): pyproject.toml uv.lock $(UV_MADE) | python-version
	@echo "Preparing $(VENV) ..."
	@$(UV) sync --quiet --frozen $(EXTRAS:%=--extra %) --python "$(INTERPRETER)"
	@touch $(DEMO_READY) $@

python-version:
	@command -v "$(PYTHON)" >/dev/null 2>&1 || { \
	    echo "echo_cache needs Python 3.11 or newer, and there is no $(PYTHON) here." \
	         "Install one, or name it: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "echo_cache needs Python 3.11 or newer, but $(PYTHON) is $$("$(PYTHON)" -V 2>&1)." \
	         "Name another: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }

# Some systems ship Python without ensurepip, where a venv cannot hold pip; there the machine's pip is asked.
.uv/bin/uv: | python-version
	@echo "Installing uv into .uv/ ..."
	@rm -rf .uv
	@if "$(PYTHON)" -m venv .uv >/dev/null 2>&1; then \
	    .uv/bin/python -m pip install --quiet --disable-pip-version-check uv; \
	elif "$(PYTHON)" -m pip --version >/dev/null 2>&1; then \
	    rm -rf .uv; "$(PYTHON)" -m pip install --quiet --disable-pip-version-check --target .uv uv; \
	else \
	    rm -rf .uv; \
	    echo "$(PYTHON) has neither venv nor pip. Install one of them (Debian: python3-venv), or uv." >&2; exit 1; \
	fi
	@test -x $@ || { rm -rf .uv; echo "uv could not be installed; see the message of pip above." >&2; exit 1; }
