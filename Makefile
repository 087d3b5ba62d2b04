# Two commands: `make quickstart` and `make test`. Both make .venv and install pinned versions first.
PYTHON ?= python3
BIN := .venv/bin
PINS := requirements/constraints.txt
STAGES := quickstart/stage1 quickstart/stage2 quickstart/stage3
# Overrides for a shorter run, e.g. OPTIONS="train_cfg.max_epochs=2"
OPTIONS ?=

.PHONY: quickstart test lint clean

.venv/.installed: pyproject.toml $(PINS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "error: codmoe needs Python 3.10 or newer; run: make $(MAKECMDGOALS) PYTHON=python3.x")'
	@echo "making .venv and installing pinned versions: one to three minutes, once"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c $(PINS) -e .
	# Two wheels write one cv2/; the headless one, last, needs no libGL of the system.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(PINS) \
	  --force-reinstall --no-deps opencv-python-headless
	@touch $@

.venv/.installed-test: .venv/.installed
	$(BIN)/python -m pip install --disable-pip-version-check -c $(PINS) -e ".[test,export]"
	@touch $@

quickstart: .venv/.installed
	$(BIN)/python tools/run_stages.py $(STAGES) --work-dir quickstart \
	  $(if $(OPTIONS),--cfg-options $(OPTIONS))

lint: .venv/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

test: lint
	$(BIN)/python -m pytest -n 2

clean:
	rm -rf .venv
