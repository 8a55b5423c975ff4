# `make demo` and `make test` set up what they need and run. Nothing else is needed than Python 3.11 or later.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)

.PHONY: demo test lint types contracts wheel clean

demo: $(READY)
	$(BIN)/bluesky-cdi demo

test: $(READY)
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

contracts: $(READY)
	$(BIN)/lint-imports

# The tests again, from another directory, against what a user would install.
wheel: $(READY)
	rm -rf build dist
	$(BIN)/python -m build --wheel --outdir dist .
	$(BIN)/python -m pip install --quiet --no-deps --target build/site dist/*.whl
	mkdir -p build/elsewhere
	cd build/elsewhere && PYTHONPATH=$(CURDIR)/build/site BLUESKY_CDI_WHEEL=$(CURDIR)/build/site \
		$(CURDIR)/$(BIN)/python -m pytest -c $(CURDIR)/pyproject.toml --rootdir $(CURDIR) -p no:cacheprovider $(CURDIR)/tests

clean:
	rm -rf $(VENV) build dist demo_output

# PyTorch comes first and on its own: where there is no GPU, its CPU build spares gigabytes. pip takes
# it where it is configured to find it, uv knows where PyTorch keeps it, and the standard build works everywhere.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import torch" 2>/dev/null || \
	if command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; then \
		$(BIN)/python -m pip install --quiet torch==$(TORCH); \
	else \
		$(BIN)/python -m pip install --quiet torch==$(TORCH)+cpu 2>/dev/null || \
		{ $(BIN)/python -m pip install --quiet uv && $(BIN)/uv pip install --quiet --python $(BIN)/python --torch-backend=cpu torch==$(TORCH); } || \
		$(BIN)/python -m pip install --quiet torch==$(TORCH); \
	fi
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test,dev]"
	touch $(READY)
