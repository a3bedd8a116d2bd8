# `make demo`: sample data, the segmentation of a new scan with the bundle's weights, and their Dice, in minutes.
# `make train-demo`: a short training on the sample data first, and the same with what it learned.
# `make test`: linter, types and the quick tests.
# `make docs`: the documentation, build/docs/index.html, in an environment of its own.
# `make label-server`: MONAI Label with the app on a sample study, in an environment of its own; `make test-label` tests it.
# TORCH says which PyTorch to install first, for instance: make demo TORCH=torch

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
OUT ?= demo
LABEL_VENV ?= .venv-label
LABEL_OUT ?= label-study
PORT ?= 8000
DOCS_VENV ?= .venv-docs

BIN := $(VENV)/bin
BUNDLE := bundles/whole_brain_lcs_segmentation
DATA := $(OUT)/data
ATLAS := --atlas_image $(DATA)/atlas/atlas_T1w.nii.gz --atlas_labels $(DATA)/atlas/atlas_dseg.nii.gz \
	--label_table $(DATA)/atlas/atlas_dseg.tsv
STUDY := --dataset_dir $(DATA) --datalist $(DATA)/dataset.json $(ATLAS)
RUN := $(BIN)/python -m monai.bundle run --bundle_root $(BUNDLE)
# Few steps, for a few minutes without a GPU; the bundle's own training is longer
TRAINING := --learning_rate 0.002 --epochs 16 --val_interval 8
WEIGHTS := $(BUNDLE)/models/model.pt

# MONAI Label asks for packages that exclude each other; without them it serves this app well
MONAI_LABEL := monailabel==0.8.5 pydicom-seg==0.4.1
LABEL_PYTHON := $(LABEL_VENV)/bin/python
LABEL_ATLAS := $(LABEL_OUT)/data/atlas/atlas
# In place of setup.cfg's: slow tests as well, and the examples of what needs MONAI Label, which imports an old module
LABEL_TESTS := --doctest-modules --strict-markers --strict-config --durations=8 -q -W ignore::DeprecationWarning:passlib.utils

.PHONY: demo train-demo test docs clean label-server test-label

demo: $(DATA)/dataset.json
	@rm -rf $(OUT)/lcs $(OUT)/alignment $(OUT)/scan
	$(RUN) --config_file "['$(BUNDLE)/configs/inference.json','$(BUNDLE)/configs/evaluate.json']" $(STUDY) \
		--checkpoint $(WEIGHTS) --output_dir $(OUT)/lcs
	$(RUN) --config_file "['$(BUNDLE)/configs/inference.json','$(BUNDLE)/configs/evaluate.json']" $(STUDY) \
		--checkpoint '' --inferer "{'_target_': 'monai_lcs.inferers.AtlasLabelInferer'}" --output_dir $(OUT)/alignment
	$(RUN) --config_file $(BUNDLE)/configs/inference.json --dataset_dir $(DATA)/scan/scan.nii.gz $(ATLAS) \
		--checkpoint $(WEIGHTS) --output_dir $(OUT)/scan
	@$(BIN)/python -m monai_lcs.results.dice \
		"label conditioned"=$(OUT)/lcs/dice.tsv "alignment only"=$(OUT)/alignment/dice.tsv
	@ls $(OUT)/scan/*

train-demo: $(DATA)/dataset.json
	@rm -rf $(OUT)/model
	$(RUN) --config_file $(BUNDLE)/configs/train.json $(STUDY) $(TRAINING) \
		--ckpt_dir $(OUT)/model --output_dir $(OUT)/model
	@$(MAKE) --no-print-directory demo WEIGHTS=$(OUT)/model/model.pt

$(DATA)/dataset.json: $(VENV)/.demo
	$(BIN)/python -m monai_lcs.sample_data $(DATA) --spacing 2 --overwrite

test: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

docs: $(DOCS_VENV)/.docs
	rm -rf build/docs docs/reference/generated
	$(DOCS_VENV)/bin/python -m sphinx --quiet --fail-on-warning --keep-going docs build/docs
	@echo build/docs/index.html

label-server: $(LABEL_VENV)/.label $(LABEL_OUT)/study
	@$(LABEL_PYTHON) -m monai_lcs.label_app $(LABEL_OUT)/app --studies $(LABEL_OUT)/study --port $(PORT) \
		--atlas_image $(LABEL_ATLAS)_T1w.nii.gz --atlas_labels $(LABEL_ATLAS)_dseg.nii.gz \
		--label_table $(LABEL_ATLAS)_dseg.tsv \
		$(addprefix --checkpoint ,$(wildcard $(BUNDLE)/models/model.pt)) > $(LABEL_OUT)/start.sh
	@cat $(LABEL_OUT)/start.sh
	@sh $(LABEL_OUT)/start.sh

test-label: $(LABEL_VENV)/.label
	$(LABEL_PYTHON) -m pytest -o addopts="$(LABEL_TESTS)" -rs tests/test_label_app.py tests/test_label_parts.py \
		tests/test_surfaces.py monai_lcs/label_app

$(LABEL_OUT)/study: | $(LABEL_VENV)/.label
	$(LABEL_PYTHON) -m monai_lcs.sample_data $(LABEL_OUT)/data --spacing 2 --overwrite
	mkdir -p $@.new
	cp $(LABEL_OUT)/data/images/sub-0[1-4].nii.gz $@.new
	mv $@.new $@

$(LABEL_VENV)/.label: setup.cfg
	test -d $(LABEL_VENV) || $(PYTHON) -m venv $(LABEL_VENV)
	$(LABEL_PYTHON) -m pip install --quiet $(TORCH)
	$(LABEL_PYTHON) -m pip install --quiet --editable '.[demo,label]' pytest pytest-timeout
	$(LABEL_PYTHON) -m pip install --quiet --no-deps $(MONAI_LABEL)
	touch $@

$(DOCS_VENV)/.docs: setup.cfg
	test -d $(DOCS_VENV) || $(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python -m pip install --quiet $(TORCH)
	$(DOCS_VENV)/bin/python -m pip install --quiet --editable '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) $(OUT) $(LABEL_VENV) $(LABEL_OUT) $(DOCS_VENV) docs/reference/generated build *.egg-info

$(VENV)/.%: setup.cfg
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	touch $@
