# Two commands on a fresh machine: `make reproduce` and `make test`. Everything else is a part of them.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.complete
STUDY  ?= demo
MODULES ?=
SAMPLE ?= 100

.PHONY: env check test slow mutants reproduce figures docs clean

env: $(STAMP)

# The stamp is written last, so that an interrupted installation is never taken for a finished one.
$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"make env: Python 3.11 to 3.13 is needed, {sys.executable} is {v[0]}.{v[1]}; set PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $(STAMP)

check: env
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy lrc_jax theory experiments

test: env
	$(BIN)/python -m pytest -n 2 --dist loadgroup

# Tests that take longer (22 minutes on two cores): whole students on both paths, stock transformers, killed sweeps,
# coverage of intervals. The judge's calibration is a command of its own, `python -m theory validate`.
slow: env
	$(BIN)/python -m pytest -m slow -n 2 --dist loadgroup

# Random mistakes in the judge, and those that no test notices: make mutants MODULES=gates,rates SAMPLE=50
mutants: env
	$(BIN)/python tests/tools/mutants.py --modules "$(MODULES)" --sample $(SAMPLE)

reproduce: env
	$(BIN)/python -m experiments.reproduce study=$(STUDY)

# Every figure, table and verdict of the studies kept in results/reference/, without running a model.
figures: env
	$(BIN)/python -m experiments.archive study=all

# The documentation site, in build/docs; a warning is an error.
docs: env
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs

clean:
	rm -rf $(VENV) .cache build *.egg-info
