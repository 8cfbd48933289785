# Every target sets up what it needs, and does nothing twice. `make` alone lists the targets.
PARAMS ?= params/demo.yaml
PYTHON ?= python3.11 python3 python
PYTEST_FLAGS ?= -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

venv := .venv
py := $(venv)/bin/python
stamp := $(venv)/.installed
unfinished := $(venv)/.installing
# What is installed is right while it is this project in this folder.
wanted := { echo "$(CURDIR)"; cat pyproject.toml; }

# Nothing is fetched while the project runs.
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: help setup doctor test paper replicates terms pairs miniatures explanations streams lab lint benchmark clean clean-venv

help:
	@echo "make paper      render the data, run the stale notebooks, build the paper  [PARAMS=params/demo.yaml]"
	@echo "make test       the tests, with the whole pipeline in small"
	@echo "make doctor     what is installed, found and missing, each fault with its fix  [PARAMS=…]"
	@echo "make lab        JupyterLab on copies of the notebooks, which git does not see"
	@echo "make replicates the methods on other clips, streams and trainings: half an hour  [PARAMS=params/demo.yaml]"
	@echo "make terms      each loss term and regulariser against its absence, five seeds each  [PARAMS=params/demo.yaml]"
	@echo "make pairs      the headline and late concatenation on other pairs of streams  [PARAMS=params/demo.yaml]"
	@echo "make miniatures CAST and TimeSformer in miniature beside the headline method  [PARAMS=params/demo.yaml]"
	@echo "make explanations  which methods of explanation can be believed of the model  [PARAMS=params/demo.yaml]"
	@echo "make streams    train the small streams and baselines that come with the package again"
	@echo "make setup      create $(venv) and install; every target does so when it has to  [PYTHON=…]"
	@echo "make lint       check the style"
	@echo "make benchmark  measure what must be fast"
	@echo "make clean      remove caches; runs/ and figures/ stay"
	@echo "make clean-venv remove $(venv)"

# An installation that was cut off leaves its mark, and a moved folder another first line: both begin anew, since
# half a package cannot be told from a whole one.
setup:
	@if ! $(wanted) | cmp -s - $(stamp); then set -e; \
	  if [ -e $(unfinished) ] || { [ -e $(stamp) ] && [ "$$(head -n 1 $(stamp))" != "$(CURDIR)" ]; } || \
	     { [ -e $(venv) ] && ! $(py) -m pip --version >/dev/null 2>&1; }; then \
	    echo "$(venv) is incomplete or from elsewhere: making it anew"; rm -rf $(venv); \
	  fi; \
	  if [ ! -e $(venv) ]; then \
	    found=""; \
	    for version in "== (3, 11)" ">= (3, 11)"; do for candidate in $(PYTHON); do \
	      if [ -z "$$found" ] && $$candidate -c "import sys; sys.exit(not sys.version_info[:2] $$version)" 2>/dev/null; \
	      then found=$$candidate; fi; \
	    done; done; \
	    [ -n "$$found" ] || { echo "no Python 3.11 among: $(PYTHON). Install it, or name it: make PYTHON=/path/to/python3.11"; exit 1; }; \
	    echo "creating $(venv) with $$($$found --version)"; $$found -m venv $(venv); \
	  fi; \
	  touch $(unfinished); \
	  echo "installing the pinned packages into $(venv) (about 3 GB, some minutes); log in $(venv)/install.log"; \
	  $(py) -m pip install --quiet --disable-pip-version-check --log $(venv)/install.log -e '.[dev]'; \
	  $(wanted) > $(stamp); rm $(unfinished); \
	fi

paper: setup
	@$(venv)/bin/tcar paper "$(PARAMS)"

replicates: setup
	@$(venv)/bin/tcar replicates "$(PARAMS)"

terms: setup
	@$(venv)/bin/tcar terms "$(PARAMS)"

pairs: setup
	@$(venv)/bin/tcar pairs "$(PARAMS)"

miniatures: setup
	@$(venv)/bin/tcar miniatures "$(PARAMS)"

explanations: setup
	@$(venv)/bin/tcar explanations "$(PARAMS)"

test: setup
	OMP_NUM_THREADS=1 $(py) -m pytest tests --ignore=tests/benchmarks $(PYTEST_FLAGS)

doctor: setup
	@$(venv)/bin/tcar doctor "$(PARAMS)"

streams: setup
	$(venv)/bin/tcar streams

lab: setup
	@$(venv)/bin/tcar notebooks

lint: setup
	$(py) -m ruff check .

benchmark: setup
	$(py) -m pytest tests/benchmarks -s

clean:
	find tcar tests -name __pycache__ -prune -exec rm -rf {} +
	rm -rf build *.egg-info .pytest_cache .ruff_cache .hypothesis notebooks/.ipynb_checkpoints

clean-venv:
	rm -rf $(venv)
