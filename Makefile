# What a newcomer types: make demo, make test. Needs Python 3.10 or later: make demo PYTHON=python3.12 picks one.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# Two stamps: what the GPT-2 recipe needs, and everything. Each target installs what it needs and no more.
EXAMPLES := $(VENV)/.installed-examples
STAMP := $(VENV)/.installed
# Threads that wait by spinning slow each other down twenty times where something else shares the cores.
export OMP_WAIT_POLICY ?= PASSIVE
# Two workers, a file of tests each: most of a test's time is one process's. In the files' order, since by itself xdist
# ends with those of few and long tests, one worker alone.
IN_TWO := -n 2 --dist loadfile --no-loadscope-reorder
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest $(IN_TWO)
# Bytecode is made of what is imported, not of all that is installed: half of the time.
PIP := $(RUN) -m pip install --quiet --no-compile -c constraints.txt
DEMO := runs/stdlib-$(shell date +%Y%m%d-%H%M%S)

.PHONY: wheels demo demo-instruct paper test test-quick test-all test-slow test-distributed test-long test-distributed-docs docs-numbers test-oldest test-newest test-python mutants check bench bench-train bench-low-bits bench-report test-tritons test-frameworks address site site-serve

demo: $(EXAMPLES)
	$(RUN) examples/gpt2_pretraining/train.py --config examples/gpt2_pretraining/configs/stdlib.yaml --output_dir $(DEMO)

demo-instruct: $(STAMP)
	$(RUN) examples/llama_instruct/train.py --output_dir $(DEMO)-instruct

paper: $(STAMP)
	$(RUN) -m experiments paper --quick

test: $(STAMP)
	$(PYTEST)

# The equations, the state, the plan of a step and the backends but Triton's, which the CPU interprets.
QUICK := $(addprefix tests/, core state plan distributed backends golden/test_trajectories.py test_layout.py)
test-quick: $(STAMP)
	$(PYTEST) $(QUICK) -m "not everyday and not slow and not distributed" --ignore tests/backends/triton

test-all: test test-long

test-slow: $(STAMP)
	$(PYTEST) -m slow

test-distributed: $(STAMP)
	$(PYTEST) -m distributed

test-long: $(STAMP)
	$(PYTEST) -m "slow or distributed"

test-distributed-docs: $(STAMP)
	$(RUN) -m pytest -m distributed $(addprefix tests/processes/test_, matrix.py meshes.py faults.py memory.py) --update-docs
	$(RUN) -m experiments report

# Every table, list and number of README.md and docs/ that a program makes, from the code and the kept results.
docs-numbers: $(STAMP)
	$(RUN) -m experiments report

# The core and the integrations on the oldest versions that pyproject.toml allows, and on the newest that are known.
# Each: a minute of installing (5 GB with the CUDA libraries that torch's wheel asks for), three of one core for tests.
OTHERS := $(addprefix tests/core/test_, $(addsuffix .py, optimizer layerwise param_groups)) tests/state/test_loading.py \
	tests/plan/test_kept.py tests/backends/test_capture.py tests/distributed/test_flat.py tests/integrations/test_guard.py \
	$(addprefix tests/integrations/, deepspeed/test_ds_config.py transformers/test_optim_args.py transformers/test_arguments.py)
WITH := peft trl requests deepspeed torch-adopt optuna pytest pytest-timeout pytest-xdist hypothesis expecttest psutil

test-oldest test-newest: test-%: .venv-%/.installed
	OMP_NUM_THREADS=1 .venv-$*/bin/python -m pytest $(IN_TWO) $(OTHERS)

.venv-%/.installed: pyproject.toml constraints-%.txt
	$(PYTHON) -m venv .venv-$*
	@echo "Installing into .venv-$*, once: some minutes"
	.venv-$*/bin/python -m pip install --quiet --no-compile -c constraints-$*.txt -e . $(WITH)
	@touch $@

# The site, from docs/ and the code (experiments/site): into site/, or shown at http://127.0.0.1:8000. Python 3.11 or later.
site: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

site-serve: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs serve

# `make test-quick` and the part above on another Python, with the pinned versions: make test-python PYTHON=python3.13
THIS := .venv-$(notdir $(PYTHON))
test-python:
	$(PYTHON) -m venv $(THIS)
	$(THIS)/bin/python -m pip install --quiet --no-compile -c constraints.txt -e . $(WITH) triton hatchling pyyaml
	OMP_NUM_THREADS=1 $(THIS)/bin/python -m pytest $(IN_TWO) $(QUICK) $(OTHERS) \
		-m "not everyday and not slow and not distributed" --ignore tests/backends/triton

# Planted faults, each in a copy of the tree: all of them have to be noticed. Half an hour and more on two cores.
mutants: $(STAMP)
	$(RUN) -m tests.mutants --jobs 2

# The machine code of the GPU kernels by each Triton: 600 to 1,000 MB each, without what it depends on.
TRITONS := 3.6.0 3.7.0 3.7.1 3.8.0 3.9.0
test-tritons: $(STAMP)
	for version in $(TRITONS); do \
		$(RUN) -m pip install --quiet --no-compile --no-deps --upgrade --target $(VENV)/tritons/$$version triton==$$version || exit; \
	done
	TRITON_FOLDERS=$(VENV)/tritons $(PYTEST) tests/backends/triton/test_kernels.py tests/backends/triton/test_rounded_kernels.py -k "versions"

# A wheel for each platform with the compiled kernel inside, one without it for all others, and the sdist, into dist/.
WHEELS := any manylinux_x86_64 manylinux_aarch64 macos_arm64 windows_amd64 windows_arm64
wheels: | $(RUN)
	$(PIP) hatchling twine ziglang
	$(RUN) -m hatchling build -t sdist -d dist
	for platform in $(WHEELS); do ADOPT_HF_WHEEL=$$platform $(RUN) -m hatchling build -t wheel -d dist || exit; done
	$(RUN) -m twine check --strict dist/*

# ADOPT in other frameworks, each in an environment of its own below $(VENV)/frameworks: 1.5 GB and twenty minutes of a
# core. `.venv/bin/python -m experiments frameworks NAME` runs one. Rows go to docs/results, and from there into the docs.
test-frameworks: $(STAMP)
	$(RUN) -m experiments frameworks
	$(RUN) -m experiments report

check: $(STAMP)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

# The repository's address is `Repository` in pyproject.toml. Where a file has to repeat it, this writes it, too:
# make address URL=https://host/owner/adopt_hf
ADDRESS := $(shell sed -n 's/^Repository = "\(.*\)"/\1/p' pyproject.toml)
REPLACE := import pathlib, sys; old, new, *files = sys.argv[1:]; \
	[path.write_text(path.read_text("utf-8").replace(old, new), "utf-8") for path in map(pathlib.Path, files)]
address:
	@case "$(URL)" in https://?*) ;; *) echo 'write make address URL=https://host/owner/adopt_hf' >&2; exit 2;; esac
	git grep -lF "$(ADDRESS)" | xargs $(PYTHON) -c '$(REPLACE)' "$(ADDRESS)" "$(patsubst %/,%,$(URL))"

bench: $(STAMP)
	$(RUN) -m experiments step

bench-train: $(STAMP)
	$(RUN) -m experiments training

# The 8-bit AdamWs that it compares with lie apart, too: transformers and peft change with them.
bench-low-bits: $(STAMP)
	$(PIP) --no-deps --upgrade --target $(VENV)/low_bit_peers torchao bitsandbytes
	$(RUN) -m experiments state_formats
	$(RUN) -m experiments low_bits

bench-report: $(STAMP)
	$(RUN) -m experiments report

$(RUN):
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("adopt_hf needs Python 3.10 or later, $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

$(EXAMPLES): pyproject.toml constraints.txt | $(RUN)
	@echo "Installing the recipe's packages into $(VENV), once: a minute or two"
	$(PIP) -e ".[examples]"
	@touch $@

# Other implementations of ADOPT, which benchmarks and tests compare with. They come without what they depend on, since
# timm's torchvision would replace the CPU build of torch, and lie apart: accelerate imports every timm that it finds.
# trackio lies apart, too: it asks for a pillow before 13.
TRACKIO := trackio gradio_client orjson starlette uvicorn httpx httpcore python-multipart brotli sniffio websockets h11 anyio
$(STAMP): pyproject.toml constraints.txt | $(RUN)
	@echo "Installing into $(VENV), once: some minutes"
	$(PIP) -e ".[dev]"
	$(PIP) --no-deps --upgrade --target $(VENV)/peers timm pytorch_optimizer \
		'heavyball; python_version >= "3.11"' opt_einsum
	$(PIP) --no-deps --upgrade --target $(VENV)/trackers $(TRACKIO)
	@touch $(EXAMPLES) $@
