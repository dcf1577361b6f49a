# `make test` needs Python 3.11 to 3.13 and nothing else; another one than python3: make test PYTHON=python3.12
PYTHON ?= python3
VENV ?= .venv
# A file's tests share what is compiled for them, so that one process gets all of them; long files are not last.
WORKERS := -n 2 --dist=loadfile --no-loadscope-reorder

.DELETE_ON_ERROR:
.PHONY: help demo test parity guarantees lint format clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' $(MAKEFILE_LIST)

demo: $(VENV)/.run  ## pictures from the bundled base: look at runs/demo/index.html
	$(VENV)/bin/python -m attrjax.main --config=configs/demo.py --workdir=runs/demo --resume
	@echo "open $(CURDIR)/runs/demo/index.html"

test: $(VENV)/.test  ## set up a virtual environment, run the tests
	$(VENV)/bin/python -m pytest $(WORKERS) -q

parity: $(VENV)/.test $(VENV)/.parity  ## add torch and diffusers, check parity with them
	$(VENV)/bin/python -m pytest $(WORKERS) -q tests/live

guarantees: $(VENV)/.test  ## kill it, fill its disk, damage its files: minutes
	$(VENV)/bin/python -m pytest -q tests/guarantees

lint: $(VENV)/.dev  ## style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/shellcheck -x launch/*.sh launch/slurm.sbatch .ci/run

format: $(VENV)/.dev  ## put the code into the project's style
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:  ## remove the virtual environment and what tools left behind
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp for each extra, and .run for none. Every package is pinned by constraints.txt, the build tool included.
$(VENV)/.test $(VENV)/.parity $(VENV)/.dev: $(VENV)/.%: $(VENV)/.created setup.py pyproject.toml constraints.txt
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt setuptools
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt --no-build-isolation -e ".[$*]"
	@touch $@

$(VENV)/.run: $(VENV)/.created setup.py pyproject.toml constraints.txt
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt setuptools
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt --no-build-isolation -e .
	@touch $@

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; \
	  sys.exit(0 if (3, 11) <= v < (3, 14) else "error: attrjax needs Python 3.11 to 3.13, and $(PYTHON) is %d.%d: name \
	another one, make test PYTHON=python3.12" % v)'
	$(PYTHON) -m venv $(VENV)
	@touch $@
