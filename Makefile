# Needs make and Python 3.11 or later with its venv module; everything else goes into .venv.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet --quiet
RUN_STAMP := .venv/.installed-demo
DEV_STAMP := .venv/.installed-dev
TOOLS := .venv/tools/bin
TOOLS_STAMP := .venv/.installed-tools
# Only wheels, each with a known hash; greenq itself is built with what is installed by then. For
# Pythons other than 3.11 not all hashes are known yet: the same versions are installed without.
IS_LOCKED := $(shell $(PYTHON) -c 'import sys; print(sys.version_info[:2] == (3, 11) or "")')
install = $(if $(IS_LOCKED),,sed 's/ *--hash=[^ ]*//; s/ *\\$$//; /^ *$$/d' requirements/$(1).txt >.venv/$(1).txt &&) \
  $(PIP) install --only-binary :all: $(if $(IS_LOCKED),--require-hashes -r requirements/$(1).txt,-r .venv/$(1).txt)
INSTALL_GREENQ := $(PIP) install --no-deps --no-build-isolation --editable .

.DEFAULT_GOAL := help
.PHONY: help setup demo test faults explore fuzz check coverage bench bench-all docs lock audit wheel clean .part-one .part-two .part-three .part-four .part-one-again .part-two-again .part-three-again .part-four-again
.DELETE_ON_ERROR:

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

setup: $(DEV_STAMP)  ## install greenq and all development tools into .venv

demo: $(RUN_STAMP)  ## watch 5,000 fetches run, 500 at a time; installs only what that needs
	@$(BIN)/greenq demo

test: $(DEV_STAMP)  ## what a change needs first, on a real server: unit tests and a choice of others
	$(call side_by_side,$(TESTER) -q --hypothesis-profile=quick,\
	  tests/unit -m "not slow and not heavy",\
	  tests/model tests/integration tests/interop tests/faults -m "smoke and not slow and not heavy")
	@! ls .part-*.failed 2>/dev/null

faults: $(DEV_STAMP)  ## run the long tests, most of faults, for a quarter of an hour; QUICK=1: 3 minutes
	@$(BIN)/python -m pytest tests -m heavy
	@$(BIN)/python -m tests.faults.long $(if $(QUICK),--quick)

explore: $(DEV_STAMP)  ## explore schedules of the protocol model; options: SCHEDULES=20000 SEED= JOBS=
	@$(BIN)/python -m tests.model --schedules $(or $(SCHEDULES),20000) \
	  $(if $(SEED),--seed $(SEED)) $(if $(JOBS),--jobs $(JOBS))

fuzz: $(DEV_STAMP)  ## send hostile bytes to a worker; options: SECONDS=3600 SEED=
	@$(BIN)/python -m tests.fuzz --seconds $(or $(SECONDS),300) $(if $(SEED),--seed $(SEED))

check: $(DEV_STAMP)  ## run everything that must pass before a change is accepted, as CI does
	@echo "==> format"
	@$(BIN)/ruff format --check .
	@echo "==> lint"
	@$(BIN)/ruff check .
	@echo "==> types"
	@$(BIN)/mypy greenq $(wildcard tests/typing)
	@echo "==> imports"
	@$(BIN)/lint-imports --no-logo
	@echo "==> docs/settings.md is up to date"
	@$(BIN)/python docs/make_settings.py --check
	$(call side_by_side,$(TESTER) --durations=25 -m "not heavy",$(PART_ONE),$(PART_TWO),$(PART_THREE),$(PART_FOUR))
	@echo "==> the slowest tests"
	@cat .part-*.log | grep -E '^[0-9.]+s (call|setup|teardown) ' | sort -rn | head -25
	@$(MAKE) --no-print-directory .part-one-again .part-two-again .part-three-again .part-four-again
	@rm -rf .part-*

coverage: $(DEV_STAMP)  ## run the checks with coverage and show the lines that no test reaches
	@$(BIN)/coverage erase
	@$(MAKE) --no-print-directory check TESTER='$(BIN)/coverage run -p -m pytest'
	@$(BIN)/coverage combine -q
	@$(BIN)/coverage report

# With this variable, which container images often set, each process would compile greenq anew.
unexport PYTHONDONTWRITEBYTECODE

# Most tests wait, so parts run side by side, about as long as one another. Of each what is not a
# line of dots is shown.
TESTER := $(BIN)/python -m pytest
PART_ONE := tests/unit tests/model tests/fuzz tests/interop tests/faults/test_m*.py
PART_TWO := tests/integration/test_[a-g]*.py
PART_THREE := tests/faults/*/ tests/faults/test_[!m]*.py
PART_FOUR := tests/integration/test_[!a-g]*.py
define side_by_side
@echo "==> tests: parts side by side"
@rm -rf .part-*
@$(MAKE) --no-print-directory -j4 .part-one .part-two $(if $(4),.part-three .part-four) \
  RUN='$(1)' ONE='$(2)' TWO='$(3)' THREE='$(4)' FOUR='$(5)'
@grep -hvE '^[[:alpha:]./_ ]*\[ *[0-9]+%\]$$|^$$' .part-*.log || true
endef

# By make and not in a shell's background, where programs ignore SIGINT.
.part-one: TESTS = $(ONE)
.part-two: TESTS = $(TWO)
.part-three: TESTS = $(THREE)
.part-four: TESTS = $(FOUR)
.part-one .part-two .part-three .part-four: .part-%:
	@$(RUN) -o cache_dir=.part-$*.cache $(TESTS) >.part-$*.log 2>&1 || touch .part-$*.failed

# With all parts running, a test may not get the time it needs, so failed tests run again alone. A
# test that then passes is listed: it has a defect.
.part-one-again .part-two-again .part-three-again .part-four-again: .part-%-again:
	@if [ -e .part-$*.failed ]; then \
	  echo "==> running the failed tests of part $* again, alone"; \
	  $(TESTER) -m "not heavy" -o cache_dir=.part-$*.cache \
	    --last-failed --last-failed-no-failures none tests; \
	fi

bench: $(DEV_STAMP)  ## compare with a bare loop and Celery; takes two minutes
	@$(BIN)/python -m benchmarks --short

bench-all: $(DEV_STAMP)  ## compare everything with six other queues; takes 40 minutes
	@$(BIN)/python -m benchmarks --all

docs: $(DEV_STAMP)  ## build the documentation into docs/_build/html
	@echo "==> building the documentation"
	@$(BIN)/python docs/make_settings.py
	@$(BIN)/python -m sphinx -q -n -W --keep-going -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

lock: $(TOOLS_STAMP)  ## update the hashes in requirements/; UPGRADE=1: with newer versions
	@$(TOOLS)/python requirements/lock.py $(if $(UPGRADE),--upgrade)

audit: $(TOOLS_STAMP)  ## look up known vulnerabilities of the packages in requirements/; needs a network
	@$(TOOLS)/python requirements/audit.py

wheel: $(DEV_STAMP) $(TOOLS_STAMP)  ## build the wheel and its software bill of materials (SBOM)
	@rm -rf build dist
	@$(BIN)/python -m pip --disable-pip-version-check --quiet wheel --no-deps --no-build-isolation \
	  --wheel-dir dist .
	@$(TOOLS)/python requirements/sbom.py dist
	@ls dist/*

clean:  ## remove .venv and everything else that make has created
	@rm -rf .venv .bench .part-* build dist docs/_build *.egg-info .coverage* .*_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "$(PYTHON) is not installed: greenq needs Python 3.11 or later"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$$($(PYTHON) --version 2>&1) is too old: greenq needs 3.11 or later;" \
	    "name one with: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "Python's venv module is missing: install it" \
	    "(Debian, Ubuntu: apt install python3-venv)"; exit 1; }
	@echo "==> creating .venv"
	@$(PYTHON) -m venv .venv

$(RUN_STAMP): pyproject.toml requirements/demo.txt | $(BIN)/python
	@echo "==> installing greenq and the embedded server"
	@$(call install,demo)
	@$(INSTALL_GREENQ)
	@touch $@

$(DEV_STAMP): pyproject.toml requirements/dev.txt requirements/otel.txt | $(BIN)/python
	@echo "==> installing greenq and its development tools"
	@$(call install,dev)
	@$(call install,otel) --no-deps --upgrade --target .venv/otel
	@$(INSTALL_GREENQ)
	@touch $(RUN_STAMP) $@

$(TOOLS_STAMP): requirements/tools.txt | $(BIN)/python
	@echo "==> installing the tools of make lock, audit and wheel"
	@$(PYTHON) -m venv .venv/tools
	@$(TOOLS)/python -m pip --disable-pip-version-check --quiet --quiet \
	  install --require-hashes --only-binary :all: -r requirements/tools.txt
	@touch $@
