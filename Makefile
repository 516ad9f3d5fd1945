# make demo    install what the demo needs, run recipes/tiny.toml end to end, open the chat   (CHAT=0: stop after evaluation)
# make test    install everything for development, run checks and the full test suite   (JOBS=2: test files at a time)
# make docs    write the generated pages of docs/ anew
# make leaderboard   time to 80/100 culture questions, three runs on a quiet machine, a row in dev/LEADERBOARD.md
# make tgi-client   a venv with text-generation's own client, for the test that needs it (TWLLM_TGI_CLIENT_PYTHON)
# make setup   install only, for both of the above

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --disable-pip-version-check --quiet -c constraints.txt
RUN ?= runs/tiny
CHAT ?= 1
PORT ?= 8080
JOBS ?= 2

.PHONY: setup demo test check docs clean tgi-client leaderboard

setup: $(VENV)/.dev

$(VENV)/.venv:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "需要 Python 3.11 以上 (Python 3.11 or newer is needed): make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.core: $(VENV)/.venv pyproject.toml constraints.txt
	$(PIP) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	$(PIP) -e '.[dev]'
	@touch $@

demo: $(VENV)/.core
	$(BIN)/twllm run recipes/tiny.toml --out $(RUN)
ifneq ($(CHAT),0)
	$(BIN)/twllm serve $(RUN)/model --port $(PORT)
endif

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

docs: $(VENV)/.dev
	$(BIN)/python docs/build.py
	$(BIN)/python docs/plan_tables.py

leaderboard: $(VENV)/.core
	$(BIN)/python benchmarks/culture_minutes.py --runs 3 --add

tgi-client: $(VENV)/.venv
	$(PYTHON) -m venv $(VENV)/tgi-client
	$(VENV)/tgi-client/bin/pip install --disable-pip-version-check --quiet text-generation==0.7.0 requests
	@echo 'export TWLLM_TGI_CLIENT_PYTHON=$(VENV)/tgi-client/bin/python'

clean:
	rm -rf $(VENV) build dist
