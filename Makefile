# make demo    sets everything up and does the main job on a small C program
# make test    sets everything up and runs every check and test, real kernels in QEMU included

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := build/demo
DEMO_FLAGS := -std=c11 -O2 -g -fno-pie -no-pie
WORKERS ?= $(shell nproc)
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)

# The first clang with -fsanitize=kcfi is 16; which one a Debian release has beside its own differs.
KCFI_CLANG = $(or $(shell apt-cache pkgnames clang- 2>/dev/null | grep -xE 'clang-(1[6-9]|[2-9][0-9])' | sort -V | head -1),clang-16)

DEMO_PACKAGES := gcc libc6-dev python3 python3-venv
TEST_PACKAGES = $(DEMO_PACKAGES) $(KCFI_CLANG) bc binutils bison bpftool busybox-static bzip2 chromium clang \
    cmake cpio dpkg dwarves file fish flex fonts-dejavu-core g++ gdb git less libelf-dev libelf1 libssl-dev \
    lld llvm lz4 lzop make man-db mandoc meson mold ninja-build openssl pkg-config qemu-system-x86 sbsigntool \
    strace util-linux xz-utils zsh zstd

.PHONY: help setup demo test check kernels stress fuzz bench docs man build sbom release lock clean

help: ## these lines
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# Installs what is missing of a list of Debian packages; says so where that is not possible.
define require_packages
	@missing=$$(for p in $(1); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'install ok installed' \
	    || echo $$p; done); \
	if [ -n "$$missing" ]; then \
	    echo "installing $$(echo $$missing)"; \
	    $(SUDO) apt-get update -q && DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -q -y $$missing; \
	fi
endef

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --require-hashes --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

setup: $(READY) ## the Python environment, as locked in requirements.lock
	@$(BIN)/python -m compileall -q staticcall

demo: ## report, patch and run a small C program, before and after
	$(call require_packages,$(DEMO_PACKAGES))
	@$(MAKE) --no-print-directory setup
	@mkdir -p $(DEMO)
	gcc $(DEMO_FLAGS) -o $(DEMO)/demo fixtures/demo/demo.c
	@echo; echo "--- what is there ---"
	$(BIN)/staticcall report $(DEMO)/demo
	@echo; echo "--- before ---"
	$(DEMO)/demo 500
	@echo; echo "--- another checksum, and a log where there was none ---"
	$(BIN)/staticcall patch $(DEMO)/demo --set checksum=checksum_fast --set log=log_print \
	    -o $(DEMO)/demo-fast --edits $(DEMO)/undo.json
	@echo; echo "--- after ---"
	$(DEMO)/demo-fast 500
	@echo; echo "--- and back ---"
	$(BIN)/staticcall revert $(DEMO)/demo-fast --edits $(DEMO)/undo.json -o $(DEMO)/demo-again
	cmp $(DEMO)/demo $(DEMO)/demo-again
	@echo; echo "--- a program of your own, with staticcall.h: annotated, bound, and patched while it runs ---"
	rm -rf $(DEMO)/own && cp -r examples/make $(DEMO)/own
	$(MAKE) --no-print-directory -C $(DEMO)/own STATICCALL=$(CURDIR)/$(BIN)/staticcall all check
	$(DEMO)/own/app.bound
	@echo; echo "The same on a kernel (apt-get install linux-image-cloud-amd64-dbg, or make kernels):"
	@echo "    $(BIN)/staticcall report /usr/lib/debug/boot/vmlinux-*"
	@echo "    $(BIN)/staticcall patch /usr/lib/debug/boot/vmlinux-... --bind -o vmlinux.bound --edits undo.json"
	@echo "    qemu-system-x86_64 -kernel vmlinux.bound -append console=ttyS0 -nographic -m 1024"

kernels: ## download the kernels that the tests use, through apt, and build some objects, into a cache
	$(call require_packages,$(TEST_PACKAGES))
	@$(MAKE) --no-print-directory setup
	$(BIN)/python -m tests.support.kernels
	$(BIN)/python -m tests.support.kbuild

check: setup ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: setup ## the documentation site, into build/site; without the network
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

test: kernels check ## every check and every test
	$(BIN)/pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder

stress: setup ## ten times the updates of every protocol, while threads run through the sites
	STATICCALL_STRESS=10 $(BIN)/pytest tests/test_stress.py

fuzz: ## INPUTS=1000000 bad files, structure-aware and by coverage
	$(call require_packages,$(TEST_PACKAGES))
	@$(MAKE) --no-print-directory setup
	$(BIN)/python -m fuzz --inputs $(or $(INPUTS),1000000)

bench: kernels ## the figures, each beside its peer
	$(BIN)/python -m bench

man: setup ## the manual pages, into build/man
	$(BIN)/python -m staticcall.cli.man build/man

build: setup ## the wheel and the source distribution, into dist
	$(BIN)/python -m build --no-isolation --sdist --wheel .

sbom: setup ## the software bill of materials of the locked versions, into dist
	$(BIN)/python -m release.sbom

release: ## a dry run of a release, with all its checks; tags nothing, uploads nothing
	$(call require_packages,$(DEMO_PACKAGES) git)
	@$(MAKE) --no-print-directory setup
	$(BIN)/python -m release

lock: ## choose the newest versions of everything anew
	$(BIN)/uv pip compile --quiet --upgrade --generate-hashes --no-emit-index-url --no-header --no-annotate \
	    --all-extras --python-version 3.11 pyproject.toml --output-file requirements.lock

clean: ## remove what was built; the kernels' cache stays
	rm -rf build dist $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find staticcall tests bench fuzz release tools -name __pycache__ -prune -exec rm -rf {} +
