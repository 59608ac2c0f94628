# `make demo` and `make test` set up everything by themselves: Python >= 3.12, git and make are all that must be there.

export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1
ifeq ($(shell uname -s),Linux)
export MUJOCO_GL ?= egl
endif

BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format clean

help:
	@echo "make demo    record, train three arms, roll out, probe; about 20 minutes on 2 cores -> outputs/demo/index.html"
	@echo "make test    lint, types, import contracts, all tests that need no GPU"
	@echo "make setup   the virtual environment .venv alone"
	@echo "make format  rewrite the sources in the house format"

setup: $(BIN)/.installed

$(BIN)/.installed: pyproject.toml Makefile
	@sh .ci/setup .venv
	@touch $@

demo: setup
	$(BIN)/aegis-demo

lint: setup
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --check .
	$(BIN)/mypy lerobot_policy_aegis_vla.py aegis_policy envs/aegis_envs backbones/aegis_backbones eval/aegis_eval
	$(BIN)/lint-imports

test: lint
	$(BIN)/pytest -n 2 --dist worksteal -m "not gpu"

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv outputs
