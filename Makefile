# `make` alone lists the targets. Each one installs what it needs first (.ci/setup.py) and is quiet when nothing is missing.

SHELL  := /bin/sh
RUN    := .venv/bin/python
# More words for pytest: make test ARGS="-k copyup -x"
ARGS   ?=

.DEFAULT_GOAL := help
.PHONY: help demo test check bench bench-store setup clean

help:  ## list the targets
	@echo "unionfs: one tree from many layers. Targets:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-17s %s\n", $$1, $$2 }'

demo: setup-demo  ## try it for real: a copy-on-write view of this machine's root
	@$(RUN) -m unionfs.cli.demo

# One process for each core, four at most: the mounts, daemons and namespaces of the tests are the kernel's work.
test: setup-test  ## run all tests (ARGS="-k copyup" for some)
	@$(RUN) -m pytest -n auto --maxprocesses=4 --dist=worksteal $(ARGS)

check: setup-check  ## ruff, format, mypy --strict, the architecture
	@$(RUN) -m ruff check
	@$(RUN) -m ruff format --check
	@$(RUN) -m mypy --strict
	@$(RUN) -m pytest -q tests/test_architecture.py

bench: setup-bench  ## measure us and the peers; keeps data and pictures in benchmarks/results
	@$(RUN) -m benchmarks $(ARGS)

bench-store: setup-bench  ## measure the store against umoci and buildah; keeps results in benchmarks/results/store
	@$(RUN) -m benchmarks --only store/ --seconds 120 --json benchmarks/results/store/latest.json $(ARGS)
	@$(RUN) -m benchmarks.store_digests benchmarks/results/store/digests.json

setup: setup-test  ## make .venv and install what tests and checks need

clean:  ## remove .venv and the caches
	@rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

setup-%:
	@python=$$(.ci/python) && "$$python" .ci/setup.py $*
