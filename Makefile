# make setup | run | test | bench. Each sets up what is missing by itself.
DATA ?= $(HOME)/.local/share/fusefs
# A checkout that lies in ~/fusefs itself is not a place to mount on.
MOUNT ?= $(HOME)/fusefs$(if $(filter $(HOME)/fusefs,$(CURDIR)),-mount)
LONG ?=
SEED ?=
ONLY ?=
JSON ?=
README ?=
PYTEST_ARGS ?=
# Two at a time; of those that start processes, which mostly wait, three files at a time, because the tests of one may
# share a cluster. The longest ones come first.
PURE = tests/test_house.py tests/unit tests/sim tests/golden tests/linear

.PHONY: setup run test bench clean

setup:
	@.ci/setup run

run: setup
	@mkdir -p "$(DATA)"
# A dead mount that a kill left there cannot be looked at. The command takes it away, or says what is wrong.
	@mkdir -p "$(MOUNT)" 2>/dev/null || :
	@exec .venv/bin/fusefs up "$(DATA)" --mount "$(MOUNT)" --welcome

test:
	@.ci/setup test
ifneq ($(PYTEST_ARGS),)
	@LONG="$(LONG)" SEED="$(SEED)" .venv/bin/python -m pytest $(PYTEST_ARGS)
else
	@export LONG="$(LONG)" SEED="$(SEED)"; failed=0; \
	.venv/bin/python -m pytest -n 2 $(PURE) || failed=1; \
	.venv/bin/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(PURE:%=--ignore=%) tests/fault tests || failed=1; \
	exit $$failed
endif

bench:
	@.ci/setup test
	@.venv/bin/python -m tests.bench$(if $(README),.readme) $(if $(ONLY),--only "$(ONLY)") $(if $(JSON),--json "$(JSON)")

clean:
	@rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .hypothesis
