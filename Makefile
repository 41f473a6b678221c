# Two commands do everything: `make loopback` runs the link on this machine, `make test` checks the tree.
# Both need only what README.md's one apt line installs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: loopback test tests-alone check test-postgresql tunnels mutants test-versions coverage release-check wheels deb format lock clean

loopback: $(VENV)/.installed
	$(BIN)/qnode loopback --config config/turin-best.toml --speed 20

# Twice as many processes as processors, for tests of devices and daemons wait; --dist keeps the tests of a file,
# and what they share, in one process. tests/conftest.py says which files begin first.
test: $(VENV)/.developer
	$(MAKE) --no-print-directory --jobs=2 check tests-alone

tests-alone: $(VENV)/.developer
	$(BIN)/pytest -n $$(( $$(nproc) * 2 )) --dist loadfile --no-loadscope-reorder

# Linters, types, import contracts: the same that continuous integration holds.
check: $(VENV)/.developer
	$(BIN)/ruff check qnode drivers tests install
	$(BIN)/ruff format --check qnode drivers tests install
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell README.md CONTRIBUTING.md CHANGELOG.md SECURITY.md docs qnode drivers tests config systemd install

# The tests that the stores in SQLite and in PostgreSQL share, on a real server (Debian's package postgresql).
test-postgresql: $(VENV)/.developer
	QNODE_POSTGRESQL=1 $(BIN)/pytest -n $$(nproc) --dist loadfile tests/test_keys_store.py tests/test_keys_moves.py \
	  tests/test_keys_pool.py tests/test_keys_release.py tests/test_keys_restore.py tests/test_keys_damage.py \
	  tests/test_keys_together.py tests/test_keys_states.py tests/test_postgresql.py tests/test_postgresql_daemons.py tests/test_postgresql_standby.py tests/test_front_ends.py tests/test_front_ends_daemons.py

# Real encryptors, the agents beside them, and a minute of the testbed: root, and the packages of docs/testbed.md.
tunnels: $(VENV)/.developer
	QNODE_TUNNELS=1 $(BIN)/pytest tests/test_agent_wireguard.py tests/test_agent_strongswan.py tests/test_testbed_command.py

# Every small change of small pure modules, and those that no test notices: for the night. The tool has an
# environment of its own, for qnode does not depend on it.
mutants: $(VENV)/.developer
	$(PYTHON) -m venv $(VENV)-mutants
	$(VENV)-mutants/bin/pip install --quiet cosmic-ray==8.7.0
	$(BIN)/python tests/mutants.py $(CURDIR)/$(VENV)-mutants/bin/cosmic-ray

# The tests on CPython 3.12, 3.13 and 3.14, each in an environment of its own; TESTS="FILE ..." runs those.
# A version without an interpreter here is named and skipped (exit code 3).
test-versions:
	$(PYTHON) tests/versions.py $(or $(TESTS),-n $$(nproc) --dist loadfile)

# Which share of each room the tests run; TESTS="FILE ..." runs those alone.
coverage: $(VENV)/.developer
	$(BIN)/python tests/covered.py $(or $(TESTS),-n $$(nproc) --dist loadfile)

# The version in every place; with TAG=vVERSION, whether this tree may get that tag (docs/releases.md).
release-check:
	$(PYTHON) tests/release.py $(if $(TAG),--tag $(TAG))

# qnode and all locked packages as one archive of wheels, for machines like this one that have no network.
wheels: $(VENV)/.installed
	install/wheels.sh $(BIN)/python

# The same as a package for the Debian release of this machine.
deb: wheels
	install/deb.sh "$$(ls -dt dist/qnode-*/ | head -n 1)" $(BIN)/pip

format: $(VENV)/.developer
	$(BIN)/ruff check --fix qnode drivers tests install
	$(BIN)/ruff format qnode drivers tests install

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) install/check_machine.py $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	-$(BIN)/qnode warm
	touch $@

$(VENV)/.developer: requirements-dev.lock $(VENV)/.installed
	$(BIN)/pip install --quiet --require-hashes -r requirements-dev.lock
	touch $@

# After a change of dependencies in pyproject.toml (needs uv).
lock:
	uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --extra zmq --extra visa --extra plots --extra postgresql --extra strongswan --extra testbed --group build -o requirements.lock
	uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --extra zmq --extra visa --extra plots --extra postgresql --extra strongswan --extra testbed --group build --group dev -o requirements-dev.lock

clean:
	rm -rf $(VENV) $(VENV)-* dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
