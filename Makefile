# Needs git, make, bash and Python >= 3.10 with venv; everything else goes to .venv.
# Another Python: make demo PYTHON=python3.12. An index or mirror: pip's own settings and variables.

PYTHON ?= python3
BIN    := .venv/bin
READY  := .venv/ready
TOOLS  := .venv/tools

.DEFAULT_GOAL := help
.PHONY: help env demo test check types built clean

help: ## this list
	@echo "flagen: make TARGET"
	@sed -n 's/^\([a-z]*\):.*## /  \1	/p' Makefile | expand -t 10

demo: $(READY) ## build retention's kernels, compare every form with float64, train a small model
	$(BIN)/flagen build specs/retention.yaml
	$(BIN)/python bench/demo.py

test: $(READY) ## every test that needs no GPU (on a GPU: .venv/bin/python -m pytest)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not gpu"

check: $(READY) $(TOOLS) ## lint, format, types, and whether generated/ is what the specs say
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	@$(MAKE) --no-print-directory -j 2 types built

types: $(READY) $(TOOLS)
	$(BIN)/python -m mypy

built: $(READY)
	$(BIN)/flagen build --check

env: $(READY) ## only the environment, in .venv

clean: ## remove .venv, caches and build outputs
	rm -rf .venv dist .pytest_cache .hypothesis .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt .ci/environment
	@PYTHON="$(PYTHON)" .ci/environment
	@touch $@

$(TOOLS): $(READY)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt mypy
	@touch $@
