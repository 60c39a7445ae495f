# Every target sets up what it needs in .venv; nothing else on the machine is touched.
# Needs Python 3.11 or newer (PYTHON=python3.12 picks another one) and make. Uses uv when it is there.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)
DJANGO := celery_misfire/contrib/django

ifdef UV
INSTALL := uv pip install --quiet --python $(BIN)/python
else
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-long matrix bench mutation lint format messages docs links clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# The tests start Python some hundred times: without bytecode each would compile the package again.
unexport PYTHONDONTWRITEBYTECODE

demo: $(VENV)/.demo ## Kill a real beat for 10 seconds and see what each misfire instruction does (1 minute)
	@$(BIN)/python -m example_project.demo

test: $(VENV)/.test ## Run the tests (ARGS="-k name" goes to pytest)
	$(BIN)/python -m pytest -n 8 $(ARGS)

test-long: $(VENV)/.test ## Run the tests that take minutes, and those that repeat a kind
	$(BIN)/python -m pytest -m long $(ARGS)

matrix: $(VENV)/.matrix ## Run the tests with each Celery, redis-py and Python (ARGS="-l" lists them)
	$(BIN)/nox -f .ci/noxfile.py $(ARGS)

lint: $(VENV)/.lint ## Check style, types and the arrows between the modules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.lint ## Format the code, and mend what can be mended by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/bench/.ready ## Measure dispatch beside its peers, and write docs/performance.md (75 minutes; ARGS=--quick takes 3)
	$(VENV)/bench/bin/python -m tests.benchmarks $(ARGS)

mutation: $(VENV)/.test ## Break the planner's branches one by one and see which test notices (10 minutes)
	$(BIN)/python -m tests.mutation

# Without the date: a catalogue changes when its texts do.
messages: $(VENV)/.test ## Bring the translations up to date with the texts, and compile them (needs gettext)
	cd $(DJANGO) && $(CURDIR)/$(BIN)/django-admin makemessages --all --no-location --no-wrap --no-obsolete
	sed -i '/^"\(POT-Creation-Date\|Report-Msgid-Bugs-To\):/d' $(DJANGO)/locale/*/LC_MESSAGES/django.po
	cd $(DJANGO) && $(CURDIR)/$(BIN)/django-admin compilemessages

docs: $(VENV)/.docs ## Build the documentation into docs/_build/html
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

links: $(VENV)/.docs ## Check that the links of the documentation to other sites lead somewhere (needs the internet)
	$(BIN)/sphinx-build -W --keep-going -b linkcheck docs docs/_build/links

clean: ## Remove the environment and everything built
	rm -rf $(VENV) build dist docs/_build .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is not Python 3.11 or newer; name one: make PYTHON=python3.12 ..." >&2; exit 1; }
ifdef UV
	uv venv --quiet --seed --python "$$(command -v $(PYTHON))" $(VENV)
else
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
endif

# One stamp for each set of packages, renewed when pyproject.toml changes.
$(VENV)/.demo: pyproject.toml | $(BIN)/python
	@echo "Setting up $(VENV) (once) ..."
	$(INSTALL) --editable '.[demo]'
	@touch $@

$(VENV)/.test $(VENV)/.lint $(VENV)/.matrix $(VENV)/.docs: $(VENV)/.%: pyproject.toml | $(BIN)/python
	@echo "Setting up $(VENV) for $* (once) ..."
	$(INSTALL) --editable . --group $*
	@touch $@

# An environment of its own: a peer connects to Celery's signals in every beat that it is installed beside.
$(VENV)/bench/.ready: pyproject.toml | $(BIN)/python
	@echo "Setting up $(VENV)/bench (once) ..."
	$(BIN)/python -m venv $(VENV)/bench
	$(VENV)/bench/bin/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(VENV)/bench/bin/python -m pip install --quiet --disable-pip-version-check --editable . --group bench
	@touch $@
