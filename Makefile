# make setup | run | test | bench. Each sets up what is missing by itself.
DATA ?= $(HOME)/.local/share/fusefs
# A checkout that lies in ~/fusefs itself is not a place to mount on.
MOUNT ?= $(HOME)/fusefs$(if $(filter $(HOME)/fusefs,$(CURDIR)),-mount)
LONG ?=
SEED ?=
ONLY ?=
JSON ?=
PYTEST_ARGS ?=

.PHONY: setup run test bench clean

setup:
	@.ci/setup run

run: setup
	@mkdir -p "$(DATA)" "$(MOUNT)"
	@exec .venv/bin/fusefs up "$(DATA)" --mount "$(MOUNT)" --welcome

test:
	@.ci/setup test
	@LONG="$(LONG)" SEED="$(SEED)" .venv/bin/python -m pytest $(PYTEST_ARGS)

bench:
	@.ci/setup test
	@.venv/bin/python -m tests.bench $(if $(ONLY),--only "$(ONLY)") $(if $(JSON),--json "$(JSON)")

clean:
	@rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .hypothesis
