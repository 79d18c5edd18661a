# Every target does its own set-up: Python 3.11 or newer is all a machine needs.
PYTHON ?= python3
BIN := .venv/bin
MTKD := $(BIN)/mtkd-cache
RECIPE ?= paper

.PHONY: help setup test lint demo teachers build student paper bench clean

help:  ## what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: .venv/installed  ## .venv with the package in it

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

test: setup  ## the tests
	$(BIN)/python -m pytest

lint: setup  ## ruff, the order of imports, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

demo: setup  ## phantom -> ingest -> teachers -> build -> students -> report, about ten minutes on two cores
	$(BIN)/python -m mtkd_cache.study.demo

teachers: setup  ## stage 1: one teacher for each anatomy of data/samples.zarr
	$(MTKD) train-teachers --recipe $(RECIPE)

build: setup  ## the teachers' logits, once, into data/logits.zarr
	$(MTKD) build --recipe $(RECIPE)

student: setup  ## stage 2: the student, from the cache
	$(MTKD) train-student --recipe $(RECIPE)

# RECIPE=smoke tries all of it on a phantom: some ten minutes on two cores and 8 GB of disk
STUDY := runs/$(basename $(notdir $(RECIPE)))
STORE := data/samples.zarr
ifeq ($(RECIPE),smoke)
STORE := data/smoke/samples.zarr
TIMED := --size 64x64 --rounds 1 --form folded
PHANTOM := data/smoke/phantom
endif

paper: setup $(PHANTOM)  ## the study: all rows of Table 1, their times on this machine, and the report; RECIPE=smoke on a phantom
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

$(STUDY)/bench-inference.json: | setup  # whoever wants it measured anew deletes it
	mkdir -p $(@D)
	$(MTKD) bench inference $(TIMED) --json > $@.$$$$ && mv $@.$$$$ $@ || { rm -f $@.$$$$; exit 1; }

# Each in turn and nothing beside it; a file that is there is not measured again. MACHINE names the files. A step of eight at 640x512
# takes 19 GB: a machine with less wants BATCH=4.
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
ARCHS := mininetv2 segformer-mit_b0 segformer-mit_b3 deeplabv3-efficientnet-b0 deeplabv3-efficientnet-b3 deeplabv3-resnet18 deeplabv3-resnet50
$(foreach arch,$(ARCHS),$(eval BENCH_inference-$(arch) := inference --arch $(arch) --rounds 3))
BENCHES := stage2 build cache build-small stage1 stage2-resident build-stacked stage2-compiled ingest scale $(ARCHS:%=inference-%)

bench: $(BENCHES:%=$(MEASURED)/$(MACHINE)-%.json)  ## measure everything on this machine, and print the README's table
	@$(BIN)/python -m mtkd_cache.bench.table $(MEASURED)

$(MEASURED)/$(MACHINE)-%.json: | setup
	$(MTKD) bench $(BENCH_$*) --json > $@.part && mv $@.part $@

clean:  ## forget .venv; data and runs stay
	rm -rf .venv build *.egg-info
