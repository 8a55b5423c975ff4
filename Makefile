# `make demo` and `make test` set up what they need and run. Nothing else is needed than Python 3.11 or later.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
# A test process for each core, at most eight: each needs about 1 GB. Who runs out of tests takes some of another's.
PYTEST := python -m pytest --numprocesses logical --maxprocesses 8 --dist worksteal
# `make test COVERAGE=1` also runs those of test-end-to-end, and tells which lines ran. From Python 3.12 on the interpreter
# itself can, at next to no cost.
MEASURED = $(if $(COVERAGE),COVERAGE_CORE=$$($(BIN)/python -c "import sys; print('sysmon' if sys.version_info >= (3, 12) else 'ctrace')"))
# Wherever compiled modules are not kept, each process that tests run in, or start, compiles all of them for itself.
export PYTHONDONTWRITEBYTECODE :=
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)

.PHONY: demo docs test test-beamline test-browser test-busy test-end-to-end test-faults lint types contracts wheel clean

demo: $(READY)
	$(BIN)/bluesky-cdi demo

# The documentation as a site, whose first page is build/docs/index.html: a warning fails, and so does what a browser would
# have to fetch from elsewhere.
docs: $(READY)
	PYTHONPATH=$(CURDIR) $(BIN)/python -m sphinx --quiet --jobs auto --fail-on-warning --keep-going docs build/docs
	! grep -rlE --include='*.html' '<(script|link|img|iframe)[^>]* (src|href)="(https?:)?//' build/docs

test: $(READY)
	$(MEASURED) $(BIN)/$(PYTEST) --ignore tests/faults --ignore tests/beamline \
		$(if $(COVERAGE),-m 'not browser' --cov --cov-report=)
	$(if $(COVERAGE),$(BIN)/python tests/coverage_by_room.py)

# With the software of real detectors, queues and agents; about two minutes.
test-beamline: $(READY)
	$(BIN)/$(PYTEST) tests/beamline

# The page in Debian's Chromium (`apt-get install chromium chromium-driver`); skipped without it.
test-browser: $(READY)
	$(BIN)/python -m pytest -m browser tests/unit/web

# Whole programs, killed, told to end and scripted, and a recorded scan.
test-end-to-end: $(READY)
	$(BIN)/$(PYTEST) -m end_to_end tests/system tests/unit/training

# What a session does when parts of it are killed, hang, or run out of room; some minutes more.
test-faults: $(READY)
	$(BIN)/$(PYTEST) tests/faults

# Twice, beside processes that keep every core busy; the second time in a random order, whose seed is printed.
test-busy: $(READY)
	PYTHON=$(BIN)/python tests/busy_machine.sh

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

contracts: $(READY)
	$(BIN)/lint-imports

# What a user would install, from another directory: that it holds every file of the package as it is here, so that the
# tests of single functions need no second run, and that everything works that finds its files by itself.
INSTALLED := system unit/test_packaging.py unit/test_demo.py unit/test_config.py unit/test_cli_files.py \
	unit/test_cli_reconstruct_single.py unit/models/test_weights.py unit/bench/test_programs.py unit/catalog
wheel: $(READY)
	rm -rf build dist
	$(BIN)/python -m build --wheel --outdir dist .
	$(BIN)/python -m pip install --quiet --no-deps --target build/site dist/*.whl
	mkdir -p build/elsewhere
	cd build/elsewhere && PYTHONPATH=$(CURDIR)/build/site BLUESKY_CDI_WHEEL=$(CURDIR)/build/site \
		$(CURDIR)/$(BIN)/$(PYTEST) -c $(CURDIR)/pyproject.toml --rootdir $(CURDIR) -p no:cacheprovider -m 'not browser' \
		$(addprefix $(CURDIR)/tests/,$(INSTALLED))

clean:
	rm -rf $(VENV) build dist demo_output docs/api

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
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test,dev,test-beamline,browser,docs]"
	touch $(READY)
