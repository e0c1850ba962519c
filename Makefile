# Development tasks. `make` alone lists them.

PYTHON ?= python3
VENV := .venv
OLDEST := .venv-oldest
PIP := -m pip --disable-pip-version-check -qq
ARGS ?=
# Processes that run the tests, and times as many random cases in a thorough run, which begin at a seed.
# Three, also on two cores, because some tests wait for a child or a thread: the suite took 7 min 31 s there, and 11 min
# 13 s with two, a quarter of an hour before, on a machine whose pace varies.
WORKERS ?= 3
TIMES ?= 20
SEED ?= $(shell date +%s)

# Files that real Keras versions wrote lie beside the project where they are at hand; their tests skip elsewhere.
ifndef FASTASSIGN_CORPUS
ifneq ($(wildcard ../shared/corpus/files),)
export FASTASSIGN_CORPUS := $(abspath ../shared/corpus/files)
endif
endif

.PHONY: help env demo test test-fast test-thorough test-processor test-oldest coverage bench check lint types format \
    docs figures dist clean distclean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | while IFS='|' read -r name text; do \
	    printf '%-22s %s\n' "$$name" "$$text"; done

env: $(VENV)/.made ## make the environment .venv: fastassign, editable, with TensorFlow and the tools

demo: $(VENV)/.made ## show what fastassign does, on a model made on the spot
	@$(VENV)/bin/fastassign demo $(ARGS)

test: $(VENV)/.made ## run the tests (ARGS="-k planner" narrows them, ARGS="-n 0" uses one process)
	@$(VENV)/bin/pytest -n $(WORKERS) $(ARGS)

test-fast: $(VENV)/.made ## run what a change to one room needs: make test-fast ROOM=matching
	@$(VENV)/bin/pytest -n $(WORKERS) -m "not slow" $(if $(ROOM),tests/$(ROOM) tests/package/test_layout.py) $(ARGS)

test-thorough: $(VENV)/.made ## run the tests with many random cases; SEED=... runs the same again
	@FASTASSIGN_THOROUGH=$(TIMES) FASTASSIGN_SEED=$(SEED) \
	    $(VENV)/bin/pytest -n $(WORKERS) --hypothesis-seed=$(SEED) $(ARGS)

# TensorFlow allocates memory in one way where it uses oneDNN, and in another on processors where it does not.
test-processor: $(VENV)/.made ## run the tests that depend on the maker of the processor, as if on either
	@for onednn in 0 1; do \
	    TF_ENABLE_ONEDNN_OPTS=$$onednn $(VENV)/bin/pytest -n $(WORKERS) -m processor $(ARGS) || exit 1; done

test-oldest: $(OLDEST)/.made ## run the tests with the oldest supported versions, in .venv-oldest
	@$(OLDEST)/bin/pytest -n $(WORKERS) $(ARGS)

coverage: $(VENV)/.made ## run the tests and print which lines and branches they cover, child processes included
	@rm -rf build/coverage
	@$(VENV)/bin/coverage run -m pytest -n $(WORKERS) $(ARGS)
	@$(VENV)/bin/coverage combine -q
	@$(VENV)/bin/coverage report

bench: $(VENV)/.made ## run the benchmarks: ratios to stock and to the limit of the hardware
	@$(VENV)/bin/pytest benchmarks --benchmark-enable $(ARGS)

check: lint types ## lint and types

lint: $(VENV)/.made ## ruff: rules and format; codespell
	@$(VENV)/bin/ruff check
	@$(VENV)/bin/ruff format --check
	@$(VENV)/bin/codespell

# mypy looks for fastassign.kernels below a folder fastassign/, and finds kernels/ there by this link.
types: $(VENV)/.made ## mypy, strict
	@mkdir -p build/mypy/fastassign
	@ln -sfn ../../../kernels build/mypy/fastassign/kernels
	@ln -sfn ../../../benchmarks build/mypy/fastassign/benchmarks
	@$(VENV)/bin/mypy

format: $(VENV)/.made ## let ruff repair what it can
	@$(VENV)/bin/ruff check --fix --exit-zero
	@$(VENV)/bin/ruff format

docs: $(VENV)/.made ## build the pages into build/site (ARGS=--serve shows them while they are written)
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs $(if $(filter --serve,$(ARGS)),serve,build --strict --quiet)
	@$(if $(filter --serve,$(ARGS)),,echo "build/site/index.html")

figures: $(VENV)/.made ## draw the figures of the pages from benchmarks/results (ARGS="--record FOLDER" measures first)
	@$(VENV)/bin/python docs/figures.py $(ARGS)

dist: $(VENV)/.made ## build an sdist and a wheel, and run the wheel from a bare environment
	@.ci/dist $(VENV)/bin/python

clean: ## remove caches and what was built
	@rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
	@find fastassign kernels tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## remove the environments too
	@rm -rf $(VENV) $(OLDEST)

# An environment is made once, and again when what it is made from has changed.
$(VENV)/.made: pyproject.toml setup.py
	$(call virtualenv,$(VENV))
	@echo "installing fastassign, TensorFlow and the tools into $(VENV): this takes a minute or two" >&2
	@$(VENV)/bin/python $(PIP) install -e '.[dev]'
	@$(VENV)/bin/python $(PIP) install --no-deps "tf_keras==$$($(VENV)/bin/python -c '$(tf_minor)').*"
	@touch $@

$(OLDEST)/.made: pyproject.toml setup.py requirements-oldest.txt
	$(call virtualenv,$(OLDEST))
	@echo "installing the oldest supported versions into $(OLDEST): this takes a minute or two" >&2
	@$(OLDEST)/bin/python $(PIP) install -c requirements-oldest.txt -e '.[test]'
	@$(OLDEST)/bin/python $(PIP) install -c requirements-oldest.txt --no-deps tf_keras
	@touch $@

define virtualenv
@command -v $(PYTHON) >/dev/null || { echo "no $(PYTHON) here: name a Python with make PYTHON=/path/to/python" >&2; exit 1; }
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
    echo "fastassign needs Python 3.10 or newer, and $(PYTHON) is $$($(PYTHON) -V 2>&1):" >&2; \
    echo "name a newer one with make PYTHON=/path/to/python" >&2; exit 1; }
@test -x $(1)/bin/python || $(PYTHON) -m venv $(1) || { rm -rf $(1); \
    echo "$(PYTHON) can't make a virtual environment. Debian and Ubuntu ship that apart: apt install python3-venv;" >&2; \
    echo "or name another Python with make PYTHON=/path/to/python" >&2; exit 1; }
endef

# tf_keras goes with TensorFlow of the same minor version, whichever build of TensorFlow that is.
tf_minor := import importlib.metadata as m; print(*{".".join(d.version.split(".")[:2]) for d in m.distributions() \
    if d.name.lower() in ("tensorflow", "tensorflow-cpu", "tensorflow_cpu")})
