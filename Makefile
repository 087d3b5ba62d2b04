# `make quickstart`, `make test`, `make lint`, `make docs`. Each makes .venv and installs pinned versions first.
PYTHON ?= python3
BIN := .venv/bin
PINS := requirements/constraints.txt
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c $(PINS)
STAGES := quickstart/stage1 quickstart/stage2 quickstart/stage3
# Overrides for a shorter run, e.g. OPTIONS="train_cfg.max_epochs=2"
OPTIONS ?=
# A folder of your own pairs in place of the synthetic images, e.g. DATA=data/mine with images/ and masks/
DATA ?=
# opencv-python needs libGL of the system. Where it is missing, the headless build takes its place.
CV2 := $(BIN)/python -c 'import cv2' 2>/dev/null || \
  $(PIP) --quiet --force-reinstall --no-deps opencv-python-headless

.PHONY: quickstart test lint docs clean

.venv/.installed: pyproject.toml $(PINS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "error: codmoe needs Python 3.10 or newer; run: make $(MAKECMDGOALS) PYTHON=python3.x")'
	@echo "making .venv and installing pinned versions: one to three minutes, once"
	$(PYTHON) -m venv .venv
	$(PIP) -e .
	$(CV2)
	@touch $@

.venv/.installed-test: .venv/.installed
	$(PIP) -e ".[test,export,docs]"
	$(CV2)
	@touch $@

quickstart: .venv/.installed
	$(BIN)/python tools/run_stages.py $(STAGES) --work-dir quickstart \
	  $(if $(DATA),--data-root "$(DATA)") $(if $(OPTIONS),--cfg-options $(OPTIONS))

lint: .venv/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layout.py

docs: .venv/.installed-test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

test: lint docs
	# A file stays on one worker: its exported models and trained studies are made once.
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --cov=codmoe --cov-report=term

clean:
	rm -rf .venv
