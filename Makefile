# `make demo` and `make test` set up everything by themselves: Python >= 3.12, git and make are all that must be there.

export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1
ifeq ($(shell uname -s),Linux)
export MUJOCO_GL ?= egl
endif
# Set in many containers. Every command and many a test would compile torch and LeRobot anew, 20 seconds each.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo test bench bench-gpu lint format clean

help:
	@echo "make demo    record, train three arms, roll out, probe; about 20 minutes on 2 cores -> outputs/demo/index.html"
	@echo "make test    lint, types, import contracts, all tests that need no GPU"
	@echo "make bench   speed and memory beside plain fine-tuning and LeRobot's policies -> outputs/bench/cpu.md"
	@echo "make bench-gpu  the same on a GPU of 80 GB at the sizes of SmolVLM2-500M and PaliGemma2-3B"
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

# A benchmark that fails does not keep the others from running; what is there is put together in any case.
BENCH := outputs/bench
RUN := -$(BIN)/python benchmarks
CPU := $(BENCH)/cpu
bench: setup
	rm -f $(CPU)/*.md  # of a benchmark that fails now, what it said before would be put in
	$(RUN)/step.py --out $(CPU)/1-step-nano
	$(RUN)/step.py --backbone small-smolvlm2 --batch 4 --chunk 16 --out $(CPU)/1-step-smolvlm2
	$(RUN)/step.py --backbone small-paligemma2 --batch 4 --chunk 16 --out $(CPU)/1-step-paligemma2
	$(RUN)/inference.py --out $(CPU)/2-inference
	$(RUN)/anchor.py --out $(CPU)/3-anchor-nano
	$(RUN)/anchor.py --backbone small-paligemma2 --batch 8 --samples 128 --out $(CPU)/3-anchor-paligemma2
	$(RUN)/subspace.py --out $(CPU)/4-subspace-small
	$(RUN)/subspace.py --shape smolvlm2-500m --out $(CPU)/4-subspace-smolvlm2
	$(RUN)/subspace.py --arithmetic --out $(CPU)/4-subspace-arithmetic
	$(RUN)/scaling.py --out $(CPU)/5-scaling
	$(RUN)/reading.py --out $(CPU)/6-reading
	$(RUN)/ranks.py --out $(CPU)/7-ranks
	$(RUN)/environment.py | tee $(CPU)/8-environment.txt
	cat $(CPU)/*.md > $(CPU).md

GPU := $(BENCH)/gpu
CUDA := --device cuda --dtype bfloat16
bench-gpu: setup
	rm -f $(GPU)/*.md
	$(RUN)/step.py $(CUDA) --out $(GPU)/1-step-nano
	$(RUN)/step.py $(CUDA) --backbone smolvlm2-500m --batch 32 --chunk 50 --fresh --rounds 4 --out $(GPU)/1-step-smolvlm2
	$(RUN)/step.py $(CUDA) --backbone paligemma2-3b --batch 8 --chunk 50 --fresh --rounds 3 --out $(GPU)/1-step-paligemma2
	$(RUN)/inference.py $(CUDA) --size full --out $(GPU)/2-inference
	$(RUN)/anchor.py --device cuda --backbone smolvlm2-500m --out $(GPU)/3-anchor-smolvlm2
	$(RUN)/anchor.py --device cuda --backbone paligemma2-3b --out $(GPU)/3-anchor-paligemma2
	$(RUN)/subspace.py --device cuda --shape smolvlm2-500m --rounds 20 --out $(GPU)/4-subspace-smolvlm2
	$(RUN)/subspace.py --device cuda --shape paligemma2-3b --rounds 20 --out $(GPU)/4-subspace-paligemma2
	$(RUN)/scaling.py $(CUDA) --backbone smolvlm2-500m --batch 8 --chunk 50 --out $(GPU)/5-scaling
	cat $(GPU)/*.md > $(GPU).md

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv outputs
