# make demo: train ResNet18 on the bundled digits with CE and with BCE, and compare them.
# make bench: the speed of training on the CPU beside a conventional loop, two to three minutes.
# make test: lint and tests, as continuous integration runs them.
PYTHON ?= python3
VENV := .venv

.PHONY: demo bench test clean

demo: $(VENV)/.installed
	$(VENV)/bin/python demo.py

bench: $(VENV)/.installed
	$(VENV)/bin/python benchmarks/train_speed.py --gpu_id -1 --steps 2 --rounds 7

test: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/python -m pytest -n 2

# The stamps make an installation happen again where the requirements changed.
$(VENV)/.installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
