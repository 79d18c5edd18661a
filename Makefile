# Every target does its own set-up: Python 3.11 or newer is all a machine needs.
PYTHON ?= python3
BIN := .venv/bin
MTKD := $(BIN)/mtkd-cache
RECIPE ?= paper

.PHONY: help setup test lint api demo teachers build student paper bench clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: .venv/installed  ## make .venv and install the package into it

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

test: setup  ## run all tests, on all cores
	$(BIN)/python -m pytest -n auto --dist worksteal

lint: setup  ## ruff, import-linter (the order of the layers), mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

api: setup  ## docs/api.md from the docstrings
	$(BIN)/python docs/make_api.py > docs/api.md.part && mv docs/api.md.part docs/api.md

demo: setup  ## phantom -> ingest -> teachers -> build -> students -> report, about ten minutes on two cores
	$(BIN)/python -m mtkd_cache.study.demo

teachers: setup  ## stage 1: train one teacher per anatomy of data/samples.zarr
	$(MTKD) train-teachers --recipe $(RECIPE)

build: setup  ## run the teachers once and cache their logits in data/logits.zarr
	$(MTKD) build --recipe $(RECIPE)

student: setup  ## stage 2: train the student on the cached logits
	$(MTKD) train-student --recipe $(RECIPE)

# RECIPE=smoke tries all of it on a phantom: about ten minutes on two cores and 8 GB of disk
STUDY := runs/$(basename $(notdir $(RECIPE)))
STORE := data/samples.zarr
ifeq ($(RECIPE),smoke)
STORE := data/smoke/samples.zarr
TIMED := --size 64x64 --rounds 1 --form folded
PHANTOM := data/smoke/phantom
endif

paper: setup $(PHANTOM)  ## reproduce Table 1, with times on this machine, and write the report; RECIPE=smoke on a phantom
ifdef PHANTOM
	$(MTKD) ingest $(PHANTOM) --store $(STORE) --size 64x64
endif
	@$(MTKD) study --recipe $(RECIPE) --store $(STORE) --dry-run > /dev/null
	$(MAKE) --no-print-directory $(STUDY)/bench-inference.json
	$(MTKD) study --recipe $(RECIPE) --store $(STORE)

data/smoke/phantom: | setup
	rm -rf $@.part
	$(MTKD) phantom $@.part --size 64x64 --images-per-surgery 1 --surgeries 1,4,3,2
	mv $@.part $@

$(STUDY)/bench-inference.json: | setup  # delete it to measure again
	mkdir -p $(@D)
	$(MTKD) bench inference $(TIMED) --json > $@.$$$$ && mv $@.$$$$ $@ || { rm -f $@.$$$$; exit 1; }

# One benchmark after the other, on an otherwise idle machine; a file that exists is not measured again. MACHINE is the files' prefix.
# A step of batch 8 at 640x512 takes 19 GB of memory: use BATCH=4 on a machine with less.
MACHINE ?= cpu
BATCH ?= 8
MEASURED := docs/measurements
BENCH_stage2 := stage2 --batch $(BATCH) --resident off --rounds 8
BENCH_stage2-resident := stage2 --teacher mininetv2 --size 320x256 --resident host --rounds 8
BENCH_stage2-compiled := stage2 --teacher mininetv2 --size 320x256 --resident host --compile --rounds 5
BENCH_cache := cache --rounds 10
BENCH_build := build --teacher segformer-mit_b0 --compile --rounds 2
BENCH_build-small := build --teacher mininetv2 --size 320x256 --samples 44 --rounds 3
BENCH_build-stacked := build --teacher mininetv2 --size 320x256 --stacked --rounds 2
BENCH_stage1 := stage1 --arch segformer-mit_b0 --batch $(BATCH) --resident off --rounds 5
BENCH_ingest := ingest --rounds 3
BENCH_scale := scale
BENCH_frame := frame --frame 1280x720 --layout shared --layout joint --form fastest --form onnxruntime --form openvino
ARCHS := mininetv2 segformer-mit_b0 segformer-mit_b3 deeplabv3-efficientnet-b0 deeplabv3-efficientnet-b3 deeplabv3-resnet18 deeplabv3-resnet50
$(foreach arch,$(ARCHS),$(eval BENCH_inference-$(arch) := inference --arch $(arch) --rounds 3))
BENCHES := stage2 build cache build-small stage1 stage2-resident build-stacked stage2-compiled ingest scale frame $(ARCHS:%=inference-%)

bench: $(BENCHES:%=$(MEASURED)/$(MACHINE)-%.json)  ## run all benchmarks on this machine, print the table of measurements
	@$(BIN)/python -m mtkd_cache.bench.table $(MEASURED)

$(MEASURED)/$(MACHINE)-%.json: | setup
	$(MTKD) bench $(BENCH_$*) --json > $@.part && mv $@.part $@

clean:  ## remove .venv and build files; data and runs stay
	rm -rf .venv build *.egg-info
