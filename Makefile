# Needs Python 3.10 or newer and make; nothing else, and no administrator rights.
#   make demo      photos in, distilled training set and report out
#   make test      every test: notebooks, library, packaging, repository rules
#   make lab       the notebooks in JupyterLab
#   make docs      the documentation site in _docs/
#   make sync      after a change in nbs/: link terms to the glossary, export the library, clean notebooks, write README.md
#   make curves    what `sr_distill plan` reads, from the results of the studies in nbs/results, and its check
#   make style     how long cells are and how much prose stands between them
#   make clean     remove what was built (the environment too)
# Another interpreter:  make PYTHON=python3.12 test     Another environment:  make VENV=/tmp/venv test
# Options of pytest or JupyterLab:  make test ARGS="-k photos"     make lab ARGS="--ip 0.0.0.0 --allow-root"

PYTHON ?= python3
VENV   ?= .venv
BIN     = $(abspath $(VENV))/bin
READY   = $(VENV)/.installed

.PHONY: help demo test lab docs sync curves style clean

help:
	@sed -n 's/^#   //p' Makefile

demo: $(READY)
	$(BIN)/sr_distill demo demo-out

test: $(READY)
	$(BIN)/python -m pytest $(ARGS)

lab: $(READY)
	$(BIN)/jupyter lab nbs $(ARGS)

docs: $(READY)
	$(BIN)/python tools/docs.py

sync: $(READY)
	$(BIN)/python tools/glossary.py
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/python tools/readme.py

curves: $(READY)
	$(BIN)/python tools/curves.py
	$(BIN)/python benchmarks/plan_check.py

style: $(READY)
	$(BIN)/python tests/test_style.py

clean:
	rm -rf .venv _docs _proc _runtime build dist demo-out *.egg-info .pytest_cache .hypothesis

$(READY): settings.ini setup.py
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("sr_distill needs Python 3.10 or newer, this is %s: try make PYTHON=python3.12" % sys.version.split()[0])'
	@echo 'Setting up $(VENV): one to three minutes, 1.5 GB with the CPU build of PyTorch'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	@# A PyTorch that pip's settings offer on this machine (find-links) is taken and kept; without one, the newest from the network.
	@$(BIN)/python -m pip install -q --no-index --no-deps torch > /dev/null 2>&1 || true
	@$(BIN)/python -m pip list --format=freeze | grep '^torch==' > $(VENV)/constraints.txt || true
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install -q -c $(VENV)/constraints.txt -e '.[dev]'
	@touch $@
