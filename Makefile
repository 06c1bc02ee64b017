# Two commands matter: `make book` and `make test`. `make help` lists the rest.
SHELL := /bin/sh
.SHELLFLAGS := -ec
.DEFAULT_GOAL := help
.PHONY: help env model quick book test lint lab labs wheelhouse gpu-install new-chapter screenshots clean

PYTHON ?= python3
RUN := .venv/bin/python
MODEL := smollm2-135m
export PIP_DISABLE_PIP_VERSION_CHECK := 1

help:  ## list the commands
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-28s %s\n", $$1 ($$1 == "lab" || $$1 == "new-chapter" ? " SLUG=NN_slug" : ""), $$2}' $(MAKEFILE_LIST)

env:
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found: install Python 3.11 or newer" >&2; exit 2; }
	@$(PYTHON) scripts/bootstrap.py

model: env
	@$(RUN) scripts/steps.py "Checking the embedded model ($(MODEL))" .make/model.log $(RUN) -u -m inferlab.models.load $(MODEL)

quick: model
	@$(RUN) scripts/quick.py

book: quick  ## install, fetch the model, measure this machine, build the book
	@$(RUN) scripts/build_book.py --if-changed

test: model  ## every gate: lint, unit tests, the book from clean, pages, notebooks, browser
	@$(RUN) scripts/run_tests.py

lint: env  ## ruff over code and notebooks, and the notebook and prose rules
	@$(RUN) scripts/run_tests.py lint
	@$(RUN) -m pytest -q tests/book -m "not browser and not built"

lab: model  ## run one lab on this machine and keep a record
	@test -n "$(SLUG)" || { echo "error: name the lab: make lab SLUG=02_roofline" >&2; exit 2; }
	@$(RUN) -m inferlab run $(SLUG)

labs: model  ## run all labs on this machine and keep records
	@$(RUN) -m inferlab run --all

wheelhouse: env  ## collect what a GPU box without internet lacks, into .wheelhouse/
	@$(RUN) scripts/wheelhouse.py collect $(WHEELHOUSE_ARGS)

gpu-install:  ## on such a box: install from WHEELHOUSE=dir into the Python that runs
	@test -n "$(WHEELHOUSE)" || { echo "error: name the folder: make gpu-install WHEELHOUSE=dir" >&2; exit 2; }
	@$(PYTHON) scripts/wheelhouse.py install "$(WHEELHOUSE)"

new-chapter: env  ## make chapter and lab from the templates
	@test -n "$(SLUG)" || { echo "error: name it: make new-chapter SLUG=31_tree_decoding" >&2; exit 2; }
	@$(RUN) scripts/new_chapter.py $(SLUG)

screenshots: env  ## pictures of every page, wide and phone, light and dark, in .make/screenshots/
	@$(RUN) scripts/screenshots.py

clean:  ## remove builds and caches; keeps .venv and this machine's records
	@rm -rf _build .make .pytest_cache .ruff_cache .hypothesis build *.egg-info
	@find . -name __pycache__ -type d -not -path "./.venv/*" -not -path "./.peers/*" -prune -exec rm -rf {} +
