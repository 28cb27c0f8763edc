# make demo: train ResNet18 on the bundled digits with CE and with BCE, and compare them.
# make bench: the speed of training on the CPU beside a conventional loop, a minute and a half.
# make test: lint and all tests, as continuous integration runs them.
# make test-fast: lint and the tests that are not marked slow.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo bench lint test test-fast clean

demo: $(VENV)/.installed
	$(BIN)/python demo.py

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/train_speed.py --gpu_id -1 --steps 2 --rounds 6

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy

test: lint
	$(BIN)/python -m pytest -n 2

test-fast: lint
	$(BIN)/python -m pytest -n 2 -m "not slow"

# The stamps make an installation happen again where the requirements changed.
$(VENV)/.installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache
