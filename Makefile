# Everything a person or CI does here. `make test` and `make demo` do all their own set-up.

VENV   := .venv
PYTEST := $(VENV)/bin/python -m pytest -W error
# Many tests wait for clocks and processes more than for a core: three at a time on two cores are done in a third of the time.
AT_ONCE := -n $(shell expr $$(nproc) + 1) --dist worksteal

.PHONY: help setup packages demo test check e2e ceph bench bench-replica bench-scale crash fuzz format clean

help:
	@echo "make demo       see it work: private Postfix and Dovecot, mail captured, deleted and put back"
	@echo "make test       set up everything and run all tests (what CI runs)"
	@echo "make setup      only .venv, with the command at $(VENV)/bin/mailkeep"
	@echo "make check      format, lint, import rules, types, tests without real servers"
	@echo "make e2e        tests with real Postfix and Dovecot"
	@echo "make ceph       replicas in a real Ceph, and clocks that are wrong: installs Debian's ceph and faketime"
	@echo "make crash      the service killed 200 times under load"
	@echo "make bench      the mail path and the store against named peers"
	@echo "make bench-replica  recovery, replication's cost, deduplication across hosts: 20 minutes, 4 GB of free disk"
	@echo "make bench-scale  ten million deliveries: an hour or more, 50 GB of free disk"
	@echo "make fuzz format clean"

setup:
	@deploy/setup/venv.sh

packages:
	@deploy/setup/packages.sh

demo:
	@deploy/setup/packages.sh
	@deploy/setup/venv.sh
	@$(VENV)/bin/mailkeep demo

test:
	@deploy/setup/packages.sh
	@deploy/setup/venv.sh
	@$(MAKE) --no-print-directory check
	@$(MAKE) --no-print-directory e2e

check: setup
	$(VENV)/bin/ruff format --check --quiet .
	$(VENV)/bin/ruff check --quiet .
	$(VENV)/bin/lint-imports --no-logo
	$(VENV)/bin/mypy
	$(PYTEST) -q $(AT_ONCE) tests --ignore=tests/e2e --ignore=tests/ceph --ignore=tests/fuzz --ignore=tests/bench

e2e: setup
	$(PYTEST) -q $(AT_ONCE) tests/e2e

# Not in `make test`: the packages are large. Here nothing may be skipped.
ceph: setup
	@deploy/setup/packages.sh ceph
	CI=true $(PYTEST) -q tests/ceph

crash: setup
	MAILKEEP_KILLS=200 MAILKEEP_LOSSES=50 $(PYTEST) -q -s tests/crash

fuzz: setup
	$(PYTEST) -q tests/fuzz

bench: setup
	@deploy/setup/packages.sh bench
	$(VENV)/bin/python -m tests.bench mail store replay find audit

bench-replica: setup
	$(VENV)/bin/python -m tests.bench recovery replication fleet-dedup

bench-scale: setup
	$(VENV)/bin/python -m tests.bench scale

format: setup
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
