# SPDX-License-Identifier: Apache-2.0
# The commands of the project. Every target says what it does and is quick when there is nothing to do.
#
#   make PYTHON=python3.12 build     choose the interpreter (>= 3.11); it is kept in .venv from then on
#   make ARGS='-k tap' test          arguments for pytest
#   make RESULT=FILE bench-docs      the result of another run of vdpa-net bench --json

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

BIN := .venv/bin
STEP := scripts/step
WHEELS := build/wheels
RESULT := build/bench.json
AGENT := src/vdpa_net/lab/guest/agent-$(shell uname -m)
CRATES := rust/dataplane rust/python
RUST := Cargo.toml $(wildcard Cargo.lock) $(shell find $(CRATES) -name '*.rs' -o -name Cargo.toml)
AGENT_RUST := Cargo.toml $(wildcard Cargo.lock) $(shell find rust/guest-agent -name '*.rs' -o -name Cargo.toml)

.PHONY: help build built demo bench bench-full bench-docs bench-peers bench-tools test test-all check wheel clean build-tools lab-tools test-tools check-tools lab-image

help:
	@echo 'make demo      set up everything, then migrate a guest between two devices and judge the result'
	@echo 'make test      set up everything, then run all tests (Rust and Python)'
	@echo 'make test-all  the same and what takes long: matrices, many rounds, long fuzzing'
	@echo 'make wheel     a wheel in build/wheels that installs without Rust, and the proof that it does'
	@echo 'make build     set up .venv, with the command .venv/bin/vdpa-net in it'
	@echo 'make check     lint, types, formatting, layering, and that what documents name is there'
	@echo 'make bench     set up everything, then measure the device beside its peers'
	@echo 'make bench-full bench-docs   the same at length, and the figures in docs/performance.md from it'
	@echo 'make clean     remove what the other targets made here (the lab image in your cache stays)'

# Two at the same time would take each other's extension module away. The lock is taken before the stamps are looked at:
# who had to wait finds everything done.
build:
	@flock Makefile $(MAKE) built

built: .venv/stamp-packages $(AGENT) .venv/stamp-extension .venv/stamp-bytecode

# The small verdict first: it needs no root and no QEMU, so it tells something on every machine.
demo: build
	@$(STEP) 'log-test: the verdict without virtual machines' $(BIN)/vdpa-net log-test
	@scripts/setup lab
	@$(STEP) 'lab image (built once, kept in the cache)' $(BIN)/vdpa-net lab build
	@$(STEP) 'migrate: a guest under traffic' $(BIN)/vdpa-net migrate --report build/demo-report

test: build test-tools lab-image wheel bench-peers
	@$(STEP) 'cargo test' cargo test --workspace --exclude vdpa-net-python
	@$(STEP) --last 'pytest' $(BIN)/pytest -m 'not exhaustive' $(ARGS)

test-all: build test-tools lab-image bench-peers
	@$(STEP) 'cargo test' cargo test --workspace --exclude vdpa-net-python
	@$(STEP) --last 'pytest, exhaustive tests included' $(BIN)/pytest $(ARGS)

bench: bench-tools
	@$(STEP) 'bench: the device beside its peers' $(BIN)/vdpa-net bench --quick $(ARGS)

bench-full: bench-tools
	@mkdir -p $(dir $(RESULT))
	@$(STEP) 'bench: the device beside its peers, at length' $(BIN)/vdpa-net bench --json $(RESULT) $(ARGS)

# One after the other also when both are asked for at once.
bench-docs: build | $(filter bench-full,$(MAKECMDGOALS))
	@$(STEP) 'docs/performance.md and its pictures' $(BIN)/python scripts/write_performance.py $(RESULT)

bench-tools: build bench-peers
	@scripts/setup lab
	@$(STEP) 'lab image (built once, kept in the cache)' $(BIN)/vdpa-net lab build

bench-peers:
	@$(STEP) 'native ends of the bench (Rust)' cargo build --release -p vdpa-net-bench-peers

# maturin finds out itself for which manylinux the wheel is good; what it can't judge is for this Linux alone.
wheel: build
	@rm -rf $(WHEELS)
	@VIRTUAL_ENV=$(CURDIR)/.venv $(STEP) 'wheel' $(BIN)/maturin build --release --out $(WHEELS) || \
	    VIRTUAL_ENV=$(CURDIR)/.venv $(STEP) 'wheel for this machine' $(BIN)/maturin build --release --out $(WHEELS) --compatibility linux
	@$(STEP) 'wheel: log-test in an empty environment' scripts/check-wheel $(WHEELS)/*.whl

check: build check-tools
	@$(STEP) 'ruff check' $(BIN)/ruff check
	@$(STEP) 'ruff format --check' $(BIN)/ruff format --check
	@$(STEP) 'mypy --strict' $(BIN)/mypy --strict
	@$(STEP) 'cargo fmt --check' cargo fmt --all --check
	@$(STEP) 'cargo fmt --check (libFuzzer)' cargo fmt --manifest-path fuzz/libfuzzer/Cargo.toml --check
	@$(STEP) 'cargo clippy' cargo clippy --workspace --all-targets -- -D warnings
	@$(STEP) 'layering, repository rules, documents' $(BIN)/pytest -q tests/unit/test_layering.py tests/unit/test_repo_rules.py \
	    tests/unit/test_docs.py

clean:
	rm -rf .venv target build $(AGENT) src/vdpa_net/_native*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

build-tools:
	@scripts/setup build
lab-tools:
	@scripts/setup lab
test-tools:
	@scripts/setup test
check-tools:
	@scripts/setup check

# Where the machine can't hold a lab, its tests are skipped with the reason; in CI that is a failure.
lab-image: build
	@if scripts/setup lab || [ -n "$${CI:-}" ]; then \
	    $(STEP) 'lab image (built once, kept in the cache)' $(BIN)/vdpa-net lab build; fi

# As installing a wheel does it, and also where PYTHONDONTWRITEBYTECODE keeps Python from doing it: compiling
# the package at each start takes longer than the rest of the start.
.venv/stamp-bytecode: $(shell find src -name '*.py') .venv/stamp-packages
	@$(STEP) 'bytecode' $(BIN)/python -m compileall -q src/vdpa_net
	@touch $@

# The stamps lie in .venv, so that removing it removes them too.
.venv/stamp-packages: pyproject.toml scripts/constraints.txt | build-tools
	@$(STEP) 'Python packages into .venv' scripts/setup packages
	@touch $@

$(AGENT): $(AGENT_RUST) | build-tools
	@RUSTFLAGS='-C target-feature=+crt-static' $(STEP) 'guest agent (Rust, static)' \
	    cargo build --release -p vdpa-net-guest-agent --target-dir target/guest
	@mkdir -p $(@D) && cp target/guest/release/vdpa-net-guest-agent $@

.venv/stamp-extension: pyproject.toml $(RUST) .venv/stamp-packages | build-tools
	@VIRTUAL_ENV=$(CURDIR)/.venv $(STEP) 'data plane (Rust) into .venv' $(BIN)/maturin develop --release
	@touch $@
