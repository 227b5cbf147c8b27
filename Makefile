# make quickstart   a language model learns from forward passes alone, in about a minute
# make test         lint, types and tests
#
# Everything goes into .venv. PyTorch: on a machine with an NVIDIA driver the newest release that fits, which is a CUDA
# build; elsewhere the release below, of which a CPU build may be at hand in pip's own configuration. To choose
# yourself: make quickstart TORCH='torch==2.13.0 --index-url URL'

PYTHON ?= python3
HAS_GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU && echo yes)
TORCH ?= $(if $(HAS_GPU),torch,torch==2.13.0)

# pip of the system installs into the environment: Debian's python3 can make one without python3-venv only if it need
# not put a pip there.
PIP := $(PYTHON) -m pip --python .venv/bin/python --disable-pip-version-check install --quiet
RUN := .venv/bin/python -m

.PHONY: quickstart test lint clean

quickstart: .venv/installed
	$(RUN) zolit fit --config configs/quickstart.yaml

test: lint
	OMP_NUM_THREADS=1 $(RUN) pytest -n logical --maxprocesses 8

lint: .venv/developing
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	.venv/bin/lint-imports --no-cache

.venv/torch:
	$(PYTHON) -m venv --without-pip .venv
	@echo "installing $(TORCH)"
	$(PIP) $(TORCH)
	@touch $@

.venv/installed: .venv/torch pyproject.toml
	@echo "installing zolit"
	$(PIP) --editable .
	@touch $@

.venv/developing: .venv/installed
	$(PIP) --editable '.[dev]'
	@touch $@

clean:
	rm -rf .venv runs
