# Two commands: `make up` runs the stack, `make check` runs every check and test.
# Both do all the set-up themselves, in .venv, and work from a fresh clone.

.PHONY: help up check install install-dev proto constraints lint types proto-lint proto-fresh test clean
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
CONSTRAINTS := $(if $(filter text-cpu,$(TEXT)),--constraint constraints.txt)

help:
	@echo "make up      install what is missing and serve the default models on 127.0.0.1:8000"
	@echo "make check   install what is missing and run every check and test"
	@echo "make proto   regenerate generated/ from proto/"

up: install
	$(BIN)/isthmus up $(ARGS)

check: install-dev lint types proto-lint proto-fresh test

$(BIN)/uv:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv

.venv/installed: $(BIN)/uv pyproject.toml constraints.txt
	@echo "Installing Isthmus and its engines into .venv ..."
	$(BIN)/uv pip install --python $(BIN)/python $(CONSTRAINTS) -e '.[$(TEXT),embedding,image,demo]'
	@touch $@

.venv/installed-dev: $(BIN)/uv pyproject.toml constraints.txt
	@echo "Installing Isthmus, its engines and its tools into .venv ..."
	$(BIN)/uv pip install --python $(BIN)/python $(CONSTRAINTS) -e '.[$(TEXT),embedding,image,demo,dev]'
	@touch $@ .venv/installed

install: .venv/installed

install-dev: .venv/installed-dev

proto: install-dev
	rm -rf generated/isthmus
	$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=generated --pyi_out=generated \
		$$(cd proto && find . -name '*.proto' | sed 's|^\./||' | sort)
	$(BIN)/python -m grpc_tools.protoc -Iproto --grpc_python_out=generated \
		isthmus/v1/inference.proto isthmus/session/v1alpha1/session.proto
	touch generated/isthmus/py.typed

constraints: install-dev
	$(BIN)/uv pip compile pyproject.toml --quiet --python-version 3.11 --no-header --no-annotate \
		--extra text-cpu --extra embedding --extra image --extra demo --extra dev --upgrade \
		--output-file constraints.txt
	sed -i '1i # Versions that were tried together on CPU; `make constraints` renews them.' $@.txt

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types:
	$(BIN)/mypy

proto-lint:
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	@tag=$$(git describe --tags --abbrev=0 2>/dev/null); \
	if [ -n "$$tag" ]; then $(BIN)/buf breaking --against ".git#tag=$$tag"; \
	else echo "buf breaking: no tag yet, nothing to compare with"; fi

# Regenerates into a scratch folder and compares: the working tree is never touched.
proto-fresh:
	@fresh=$$(mktemp -d) && cp -r proto Makefile pyproject.toml constraints.txt $$fresh/ \
	&& ln -s $(CURDIR)/.venv $$fresh/.venv && mkdir $$fresh/generated \
	&& $(MAKE) -s -C $$fresh proto >/dev/null \
	&& diff -r -x __pycache__ generated $$fresh/generated; status=$$?; rm -rf $$fresh; exit $$status

test:
	$(BIN)/python -m pytest $(ARGS)

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache
