# CPU or CUDA: by whether this machine has an NVIDIA driver; `make setup BUILD=cpu` decides by hand.
BUILD ?= $(if $(shell command -v nvidia-smi),cuda,cpu)
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed-$(BUILD)

.PHONY: setup demo test check bench format docs

setup: $(STAMP)

# torchrec is installed without its dependencies: they would pull the CUDA build of fbgemm over the CPU one.
$(STAMP): setup.py requirements-cpu.txt requirements-cuda.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -r requirements-$(BUILD).txt
	$(BIN)/pip install --quiet --no-deps torchrec==1.8.0
	$(BIN)/pip install --quiet 'setuptools>=77' ninja && $(BIN)/pip install --quiet --no-build-isolation -e '.[dev]' && $(BIN)/python -m deltarec_kernels
	$(BIN)/deltarec doctor
	touch $@

demo: setup
	$(BIN)/torchx run launch/components.py:train --config configs/adult_demo.yaml --nproc 2

test: setup
	$(BIN)/pytest -n 2 --dist loadfile

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python docs/generate_configuration.py --check

bench: setup
	$(BIN)/deltarec bench reader
	$(BIN)/deltarec bench train

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
