MANIFEST ?= manifests/quickstart.yaml
FOLDER ?= outputs/$(basename $(notdir $(MANIFEST)))
FOLDERS ?= $(FOLDER)-shard-*
FILES ?= $(FOLDER)
TO ?= webdataset
ARGS ?=
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup run plan verify gallery merge export extract web bench doctor test check schema clean

help: ## show these lines
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo '  variables: MANIFEST=manifests/quickstart.yaml  FOLDER=outputs/quickstart  ARGS="unet_bs=4 ..."'

setup: .venv/ready ## install everything into .venv

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

run: .venv/ready ## render what is missing of MANIFEST
	$(BIN)/runner run $(MANIFEST) $(ARGS)

plan: .venv/ready ## say what a run of MANIFEST would do
	$(BIN)/runner plan $(MANIFEST) $(ARGS)

verify: .venv/ready ## render the pictures of FOLDER again and compare
	$(BIN)/runner verify $(FOLDER) $(ARGS)

gallery: .venv/ready ## rebuild the gallery of FOLDER
	$(BIN)/runner gallery $(FOLDER) $(ARGS)

merge: .venv/ready ## join FOLDERS into FOLDER
	$(BIN)/runner merge $(FOLDERS) out=$(FOLDER) $(ARGS)

export: .venv/ready ## write FOLDER as a dataset, TO=webdataset, imagefolder or parquet
	$(BIN)/runner export $(FOLDER) to=$(TO) $(ARGS)

extract: .venv/ready ## print the manifest that makes FILES again
	@$(BIN)/runner extract $(FILES) $(ARGS)

web: .venv/ready ## show the page for txt2img and img2img
	$(BIN)/runner web $(ARGS)

bench: .venv/ready ## compare with stock diffusers on this machine
	$(BIN)/runner bench $(ARGS)

doctor: .venv/ready ## say what this machine has and what auto chooses
	$(BIN)/runner doctor $(ARGS)

test: .venv/ready check ## run all checks and tests
	$(BIN)/python -m pytest --numprocesses=auto --dist=loadfile $(ARGS)

check: .venv/ready ## lint, format and types only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

schema: .venv/ready ## write the JSON schemas of manifests and records again
	$(BIN)/python -m runner.manifest.schema > runner/schema/manifest.v1.json
	$(BIN)/python -m runner.folder.schema > runner/schema/record.v1.json

clean: ## remove everything that can be made again, but no pictures
	rm -rf .venv dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
