# make setup         .venv with the pinned CPU stack (idempotent)
# make demo          trains vanilla GRPO, Clip-Cov and KL-Cov on this CPU; then a table, and report and plots in runs/demo
# make test          unit, engine-level and end-to-end tests
# make nightly       every cell of the recipes' matrix, composed and put through verl's checks
# make release-test  the wheel in clean environments and beside other versions of verl; needs a package index
# make compat        the tests that apply with each verl release from 0.6.1 on; writes docs/compatibility.md
# make bench         timings against verl's own losses, written to docs/benchmarks.md
# make check         ruff and mypy
PYTHON ?= python3
VENV := .venv
# Two processes, a file of tests each: a training's start and a gloo rank leave a core idle for most of their time. In the
# order of the files' names, which has the long ones first; xdist's own order ends with them.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: help setup demo test test-fast nightly release-test compat bench check format
help:
	@sed -n 's/^# \(make \)/\1/p' Makefile

setup:
	@$(PYTHON) requirements/setup.py --venv $(VENV)

demo: setup
	@$(VENV)/bin/verl-cov recipes run demo/vanilla demo/clip_cov demo/kl_cov --report $(ARGS)

test: setup
	$(VENV)/bin/python -m pytest -m "not (nightly or release)" $(PARALLEL) $(ARGS)

test-fast: setup
	$(VENV)/bin/python -m pytest -m "not (e2e or nightly or release)" --ignore tests/hooks $(PARALLEL) $(ARGS)

nightly: setup
	$(VENV)/bin/python -m pytest -m nightly -n 2 --dist load $(ARGS)

# One after the other: each fills a virtual environment.
release-test: setup
	$(VENV)/bin/python -m pytest -m release $(ARGS)

# make compat ARGS="0.8.0 --no-write": one release, and no page.
compat: setup
	$(VENV)/bin/python -m tests.compat $(ARGS)

bench: setup
	$(VENV)/bin/python -m benchmarks.run $(ARGS)

check: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: setup
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
