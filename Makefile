# Everything a developer or a newcomer runs. All of it lives in $(VENV) inside the checkout; nothing is installed
# elsewhere, and nothing is downloaded again until pyproject.toml or a lock file changes.

VENV ?= .venv
# The interpreter to build $(VENV) with, e.g. `make venv PYTHON=python3.13`; otherwise the first one that will do.
PYTHON ?=
# Test processes at the same time: they wait more than they compute.
WORKERS ?= 3
ARGS ?=
PYTEST_ARGS ?=

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --require-virtualenv
SOURCES := tusd_py hooks/tusd_hooks workers/tusd_workers $(wildcard tests bench)
NODE_CLIENTS := tests/clients/node
FRONTEND := frontend
HAVE_NODE := $(shell command -v node >/dev/null 2>&1 && command -v npm >/dev/null 2>&1 && echo yes)

# Stamps. Each is made by the step that it is named for and stands for its result.
BASE := $(VENV)/.made
RUNTIME := $(VENV)/.runtime
DEV := $(VENV)/.dev
DOCS := build/docs/.installed
NODE := $(NODE_CLIENTS)/node_modules/.installed
FRONTEND_NODE := $(FRONTEND)/node_modules/.installed
# Not built without Node; a checkout may lack it altogether.
FRONTEND_BUILT := $(if $(HAVE_NODE),$(and $(wildcard $(FRONTEND)/package.json),$(FRONTEND)/dist/upload-manager.js))
NPM := npm --prefix $(FRONTEND) --silent

# An environment knows its own path and that of its interpreter: in a copied or moved checkout, or when the interpreter is
# gone, it is built again.
ifneq ($(shell test -x $(PY) && cat $(BASE) 2>/dev/null),$(CURDIR))
.PHONY: $(BASE)
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

.PHONY: help serve venv pages test test-s3 test-lowest containers torture lint fmt docs lock clean

help: ## show this list
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/\1|\2/p' Makefile $(if $(wildcard bench),,| grep -v '^bench') \
		| awk -F'|' '{ printf "  make %-10s %s\n", $$1, $$2 }'

serve: $(RUNTIME) pages ## install what is needed and start the server: make serve ARGS="--port 1080 --upload-dir /srv/uploads"
	@exec $(VENV)/bin/tusd-py serve $(ARGS)

venv: $(DEV) pages ## the development environment in .venv

# With the Node that is here, or else with PyPI's. A server runs without its pages, and says so; in CI they have to be there.
pages: $(RUNTIME) ## build what browsers are shown, if it is not fresh
	@$(PY) frontend/build.py --fresh || { \
		{ $(PY) frontend/build.py --node || $(PIP) install --quiet --require-hashes -r requirements/node.txt; } \
		&& $(PY) frontend/build.py; \
	}$(if $(CI),, || echo 'The server starts without its pages.' >&2)

test: $(DEV) pages $(if $(wildcard $(NODE_CLIENTS)/package-lock.json),$(NODE)) $(FRONTEND_BUILT) ## all tests: make test PYTEST_ARGS="-k T13"
	$(if $(FRONTEND_BUILT),$(NPM) test)
	@# Tests start thousands of servers: where Python writes no bytecode by itself, each would compile all modules.
	$(PY) -m compileall -q tusd_py hooks workers tests
	$(PY) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: $(DEV) $(if $(FRONTEND_BUILT),$(FRONTEND_NODE)) ## style, types, and whether what is installed satisfies pyproject.toml
	$(PY) -m ruff check $(SOURCES)
	$(PY) -m ruff format --check $(SOURCES)
	$(PY) -m mypy
	$(VENV)/bin/lint-imports --no-logo
	$(PIP) check
	$(if $(FRONTEND_BUILT),$(NPM) run lint)

# An object store for each process. Left out is what has nothing to do with the store: progress for pages, hooks and Redis that
# fail, proxies in front. The second store has the statements alone.
ON_STORE = $(PY) -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS) \
	--ignore tests/protocol/test_progress.py --ignore tests/protocol/test_head_failures.py

test-s3: $(DEV) ## the protocols on object stores; all tests of S3 are in `make test` too
	@failed=; \
	TEST_STORE=seaweedfs $(ON_STORE) tests/protocol tests/ietf --ignore tests/ietf/test_proxies.py || failed=1; \
	TEST_STORE=versitygw $(ON_STORE) tests/protocol --ignore tests/protocol/test_finals.py || failed=1; \
	test -z "$$failed"

# The oldest versions of what pyproject.toml names, and of what those name the newest.
LOWEST := build/lowest
LOWEST_PIP = $(LOWEST)/bin/uv pip --no-config --quiet
test-lowest: $(BASE) ## the protocol and mounted applications with the oldest dependencies that pyproject.toml allows
	$(PY) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --disable-pip-version-check --quiet --upgrade uv
	$(LOWEST_PIP) compile --resolution lowest-direct pyproject.toml --extra fastapi --extra s3 -o $(LOWEST)/oldest.txt
	$(LOWEST_PIP) install --python $(LOWEST)/bin/python -r $(LOWEST)/oldest.txt --group test-base
	PYTHONPATH=.:hooks:workers $(LOWEST)/bin/python -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS) tests/protocol tests/embedding

# Images are kept there from one run to the next.
CONTAINERS ?= /var/tmp/tusd-py-containers
containers: $(DEV) ## build the image and run the services of docker-compose.yml in real containers, as root
	TEST_CONTAINERS=$(CONTAINERS) $(PY) -m pytest -n 0 -p no:cacheprovider --durations=10 $(PYTEST_ARGS) tests/containers/engine

torture: $(DEV) ## cut the power under uploads, as root: make torture ARGS="--cuts 100 --filesystem xfs --durability chunk --seed 7"
	$(PY) -m tests.durability.power_cuts $(ARGS)

.PHONY: share
share: $(RUNTIME) ## write the manual page and the completion of shells anew
	$(PY) -m tusd_py manual > share/man/man1/tusd-py.1
	$(PY) -m tusd_py completion bash > share/bash-completion/completions/tusd-py
	$(PY) -m tusd_py completion zsh > share/zsh/site-functions/_tusd-py
	$(PY) -m tusd_py completion fish > share/fish/vendor_completions.d/tusd-py.fish

fmt: $(DEV) ## format and mend what can be mended by machine
	$(PY) -m ruff check --fix --exit-zero $(SOURCES)
	$(PY) -m ruff format $(SOURCES)
	$(if $(wildcard $(FRONTEND_NODE)),$(NPM) run format)

docs: $(DOCS) ## the documentation as a site, in build/site; a broken link fails
	NO_MKDOCS_2_WARNING=1 build/docs/bin/mkdocs build --strict --quiet

ifneq ($(wildcard bench),)
.PHONY: bench bench-sweep
bench: $(DEV) ## measure: make bench ARGS=...
	$(PY) -m bench $(ARGS)

bench-sweep: $(DEV)
	$(PY) -m bench.sweep $(ARGS)
endif

ifneq ($(wildcard tests),)
.PHONY: soak stops torture-s3 url-session
soak: $(DEV) ## uploads of all kinds under faults of all kinds: make soak ARGS="--faults 10000 --minutes 60 --store file --seed 7"
	$(PY) -m tests.soak $(ARGS)

stops: $(DEV) ## stop servers in the middle of requests, many times: make stops ARGS="--count 1000 --seed 7"
	$(PY) -m tests.crash.stops $(ARGS)

torture-s3: $(DEV) ## three servers, a bucket whose requests fail, kills: make torture-s3 ARGS="--faults 2000 --seed 7"
	$(PY) -m tests.s3.torture $(ARGS)

url-session: $(DEV)
	$(PY) -m tests.ietf.url_session $(ARGS)
endif

# With the extra for S3, so that `make serve` and the image can use a bucket. Traces are apart: where they are installed, the
# Redis client loads them, whether they are configured or not.
# The later files are held to the versions of the earlier ones, so that one environment can take all three.
LOCK := build/lock
UV = $(LOCK)/bin/uv pip compile --no-config --quiet --universal --python-version 3.11 --generate-hashes \
	--custom-compile-command "make lock" $(if $(UPGRADE),--upgrade)

lock: $(BASE) ## write requirements/*.txt anew from pyproject.toml; UPGRADE=1 takes newer versions
	$(PY) -m venv $(LOCK)
	$(LOCK)/bin/python -m pip install --disable-pip-version-check --quiet --upgrade uv
	$(PY) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' \
		> $(LOCK)/build.in
	$(UV) --no-annotate $(LOCK)/build.in -o requirements/build.txt
	$(UV) -c requirements/build.txt pyproject.toml --extra s3 -o requirements/runtime.txt
	$(UV) -c requirements/build.txt -c requirements/runtime.txt pyproject.toml --extra s3 --group dev -o requirements/dev.txt
	$(UV) -c requirements/dev.txt --no-annotate pyproject.toml --extra s3 --extra otel -o requirements/otel.txt
	$(UV) --no-annotate --group docs -o requirements/docs.txt
	$(UV) --group node -o requirements/node.txt
	$(UV) --no-annotate bench/peers/python/requirements.in -o bench/peers/python/requirements.txt
	rm -rf $(LOCK)

clean: ## remove the environment, caches and everything else that can be made again; uploads stay
	rm -rf $(VENV) build dist $(NODE_CLIENTS)/node_modules $(FRONTEND)/node_modules $(FRONTEND)/building/node_modules \
		$(FRONTEND)/dist tusd_py/web/pages/built \
		.mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

# --- how the stamps are made ------------------------------------------------------------------------------------------

# A name on PATH proves nothing (version managers put names there that do not run), so each is asked.
$(BASE):
	@tried=; for python in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11); do \
		version=$$($$python -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue; \
		if ! $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
			tried="$$tried\n  $$python is Python $$version"; continue; \
		fi; \
		if ! $$python -c 'import venv, ensurepip' 2>/dev/null; then \
			tried="$$tried\n  $$python is Python $$version without its venv module (Debian, Ubuntu: apt install python$$version-venv)"; \
			continue; \
		fi; \
		echo "Python $$version ($$python) -> $(VENV)"; \
		rm -rf $(VENV) && $$python -m venv $(VENV) && printf '%s\n' '$(CURDIR)' > $@; exit; \
	done; \
	printf 'tusd-py needs Python 3.11 or newer with the venv module (Debian, Ubuntu: apt install python3 python3-venv).\nFound:%b\n' \
		"$${tried:- nothing that runs}" >&2; \
	exit 1

$(RUNTIME): $(BASE) pyproject.toml requirements/build.txt requirements/runtime.txt
	$(PIP) install --quiet --require-hashes -r requirements/build.txt -r requirements/runtime.txt
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(DOCS): $(BASE) requirements/docs.txt
	$(PY) -m venv build/docs
	build/docs/bin/python -m pip install --disable-pip-version-check --quiet --require-hashes -r requirements/docs.txt
	@touch $@

$(DEV): $(RUNTIME) requirements/dev.txt
	$(PIP) install --quiet --require-hashes -r requirements/dev.txt
	@touch $@

# Without Node the tests of the JavaScript clients skip themselves, which is said; where nobody reads it, it is an error.
$(NODE): $(NODE_CLIENTS)/package.json $(NODE_CLIENTS)/package-lock.json
$(FRONTEND_NODE): $(FRONTEND)/package.json $(FRONTEND)/package-lock.json
$(NODE) $(FRONTEND_NODE):
ifeq ($(HAVE_NODE),yes)
	npm ci --prefix $(dir $(@D)) --no-audit --no-fund --ignore-scripts
	@touch $@
else ifneq ($(CI),)
	@echo 'node and npm are needed for the tests of the JavaScript clients (Debian, Ubuntu: apt install nodejs npm).' >&2; exit 1
else
	@echo 'No node and npm here (Debian, Ubuntu: apt install nodejs npm): the tests of the JavaScript clients will be skipped.' >&2
endif

$(FRONTEND)/dist/upload-manager.js: $(FRONTEND_NODE) $(FRONTEND)/tsconfig.json $(wildcard $(FRONTEND)/src/*.ts)
	$(NPM) run build
