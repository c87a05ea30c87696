# Every target makes what it needs: a virtual environment under .venv, filled from pyproject.toml.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
# Every worker and every process that a test starts reads what the first has compiled.
unexport PYTHONDONTWRITEBYTECODE
WORKERS ?= 2
# Further words for pytest of `make test`.
CHOSEN ?=
# A file stays on one worker, which has its programs compiled already; tests/conftest.py says which are begun first.
PYTEST := $(PY) -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder
# The oracles of the parity tests. All but torch come without their dependencies: the CPU build
# of torch is enough for the reference package and torchvision, and jaxnn is a foreign package to be anti-aliased.
TORCH ?= torch==2.13.0
ORACLES ?= antialiased-cnns==0.3 torchvision==0.28.0 timm==1.0.31 jaxnn==0.2.0 einops==0.8.2
# Which tests these make, by their marks or names.
PARITY ?= parity and not full
SLOW ?= slow
CLAIMS ?= test
# Seconds that `make gpu` takes.
BUDGET ?= 540
# What leaves JAX, and by which packages.
EXPORTED ?= weights/mobilenet_v2_lpf4-cifar10
ONNX ?= jax2onnx==0.17.1 onnxruntime==1.32.0 pytest hypothesis
TENSORFLOW ?= tensorflow-cpu==2.21.0
# The TPU's compiler, what the trainer's update imports, and what is compiled: docs/tpu.md.
TPU ?= jax[tpu]==0.10.2 grain optax pillow rich simplejpeg tyro
TPU_PROGRAMS ?= --parts --work backward --forms antialiased --batch 4

.PHONY: demo pictures test test-slow test-claims test-newest test-tree-mode test-export parity parity-full lint format docs bench gpu tpu wheel clean help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

$(VENV)/.made:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "aa_flax needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/.made
	$(PY) -m pip install --quiet --editable '.[test]'
	touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/.made
	$(PY) -m pip install --quiet --editable '.[dev]'
	touch $@

$(VENV)/.parity: $(VENV)/.test
	$(PY) -m pip install --quiet $(TORCH)
	$(PY) -m pip install --quiet --no-deps $(ORACLES)
	$(PY) -m pip install --quiet huggingface_hub pyyaml  # timm imports them
	touch $@

# Large pages for large buffers, where Linux and its C library have them: docs/performance.md.
demo: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
demo: $(VENV)/.test ## train a plain and an anti-aliased network on digits and draw both
	$(PY) -m examples.demo

pictures: $(VENV)/.test ## README's moving picture and the page behind it, from the committed weights
	$(PY) -m examples.draw_bird out/bird.png
	$(PY) -m train explain --image out/bird.png --weights weights/mobilenet_v2_plain-cifar10 \
		--compare mobilenet_v2_lpf4 weights/mobilenet_v2_lpf4-cifar10 --output out/bird
	cp out/bird/shift.gif docs/pictures/bird.gif
	cp out/bird/explain.html docs/pictures/bird.html

test: $(VENV)/.test ## the tests, without PyTorch
	$(PYTEST) $(CHOSEN)

test-slow: $(VENV)/.test ## the long tests: kills, several processes, whole matrices
	$(PYTEST) --dist loadgroup -m '$(SLOW)'

test-claims: $(VENV)/.test ## the committed weights, measured again on CIFAR-10
	$(PYTEST) --dist load -m claims tests/test_claims.py -k '$(CLAIMS)'

test-newest: ## the tests on NEWEST (default python3.12) with the newest jax and flax
	$(MAKE) test PYTHON=$(or $(NEWEST),python3.12) VENV=.venv-newest

test-tree-mode: $(VENV)/.test ## the tests of networks and weights in NNX's tree mode
	NNX_GRAPH_MODE=false NNX_GRAPH_UPDATES=false $(PYTEST) tests/test_models.py tests/test_store.py tests/test_recorded.py

test-export: ## ONNX and TensorFlow, each in an environment of its own, against JAX
	$(MAKE) .venv-onnx/.export VENV=.venv-onnx EXPORT='$(ONNX)'
	.venv-onnx/bin/python -m examples.to_onnx --weights $(EXPORTED) --output out/network.onnx
	.venv-onnx/bin/python -m examples.to_onnx --weights $(EXPORTED) --output out/network-zero.onnx --pad-type zero
	.venv-onnx/bin/python -m pytest tests/export
	$(MAKE) .venv-tensorflow/.export VENV=.venv-tensorflow EXPORT='$(TENSORFLOW)'
	.venv-tensorflow/bin/python -m examples.to_savedmodel --weights $(EXPORTED) --output out/saved_model

$(VENV)/.export: pyproject.toml | $(VENV)/.made
	mkdir -p out
	$(PY) -m pip install --quiet --editable . tyro $(EXPORT)
	touch $@

parity: $(VENV)/.parity ## compare with PyTorch: every name, plain and k=4
	$(PYTEST) --dist load -m '$(PARITY)' tests/parity

parity-full: $(VENV)/.parity ## compare with PyTorch: the whole matrix, with a table
	$(PYTEST) --dist load -m 'parity' tests/parity

lint: $(VENV)/.dev ## style, formatting, types, and which way imports point
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright
	$(VENV)/bin/lint-imports --no-cache

format: $(VENV)/.dev ## mend style and formatting
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

docs: ## build the documentation as a site under out/site
	$(MAKE) .venv-docs/.docs VENV=.venv-docs
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --quiet
	@echo open out/site/index.html

$(VENV)/.docs: pyproject.toml | $(VENV)/.made
	$(PY) -m pip install --quiet --group docs
	touch $@

bench: $(VENV)/.test ## speed beside every peer that is installed
	$(PY) -m benchmarks

gpu: $(VENV)/.test ## what needs a GPU and is missing, for BUDGET seconds; DATA is CIFAR-10's tar
	$(PY) -m benchmarks gpu --budget $(BUDGET) $(if $(DATA),--data $(DATA))

tpu: ## compile parts of the networks for TPUs, on any machine; TPU_PROGRAMS='--names resnet50' compiles a network
	$(MAKE) .venv-tpu/.tpu VENV=.venv-tpu
	.venv-tpu/bin/python -m benchmarks tpu $(TPU_PROGRAMS)

$(VENV)/.tpu: pyproject.toml | $(VENV)/.made
	$(PY) -m pip install --quiet --editable . $(TPU)
	touch $@

wheel: | $(VENV)/.made ## build the wheel under dist/
	$(PY) -m pip wheel --no-deps --wheel-dir dist .

clean: ## remove what the targets made
	rm -rf $(VENV) .venv-* build dist out runs *.egg-info
