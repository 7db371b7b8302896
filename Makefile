# A newcomer needs `make demo` and `make test`; both set up what is missing first, once.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
SANITIZE := -fsanitize=address,undefined
# The dependencies of pyproject.toml, with those of some of its extras, a line each; without building the package.
REQUIREMENTS = $(RUN) -c 'import sys, tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	print(*p["dependencies"], *(d for e in sys.argv[1:] for d in p["optional-dependencies"][e]), sep="\n")' $(1)
INSTALL := $(RUN) -m pip install --disable-pip-version-check --no-compile -c constraints.txt -r /dev/stdin
CXX_FILES := $(wildcard $(foreach kind,h cpp cu cuh,csrc/*.$(kind) csrc/*/*.$(kind) tests/emulator/*.$(kind)))
SAY := @printf '\n==> %s\n'
# The tests start many processes, and each would compile PyTorch's modules anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help env build browser demo test test-gpu-sim test-all nightly lint format bench docs gpu-check gpu-rehearse sanitize variants fuzz crash clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10 | sed 's/^/make /'

env: $(VENV)/.built ## make .venv with every dependency, and build the native kernels

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $$($(PYTHON) --version 2>&1) is too old; expected 3.11 or newer (make PYTHON=python3.12 ...)" >&2; exit 2; }
	$(SAY) "making $(VENV) and installing the dependencies (a minute or more: PyTorch is large)"
	@$(PYTHON) -m venv $(VENV)
	@$(call REQUIREMENTS,train cuda dev) | $(INSTALL)
	@TIMECYCLE_WITHOUT_NATIVE=1 $(RUN) -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation -e .
	@touch $@

build: $(VENV)/.built ## build the native kernels into the checkout

$(VENV)/.built: $(VENV)/.installed setup.py csrc/cuda/build.py $(CXX_FILES)
	$(SAY) "building the native kernels (about a minute)"
	@mkdir -p build
	@$(RUN) setup.py --quiet build_ext >build/log || { cat build/log >&2; exit 1; }
	@grep -v '^\[' build/log || true
	@touch $@

# Names as in tests/browser.py. Without one the tests of pages are skipped, so this never fails, nor waits for a network
# that is not there: apt-get gets 75 seconds each to update, to download and to install.
BROWSERS := chromium chromium-browser google-chrome google-chrome-stable
APT := env DEBIAN_FRONTEND=noninteractive timeout -k 9 75 apt-get -qq -y -o Acquire::Retries=1 -o Acquire::http::Timeout=20
browser: ## install Chromium, in which the tests open pages, if it is not here and this machine allows it
	@for name in $(BROWSERS); do command -v $$name >/dev/null && exit 0; done; \
	if ! command -v apt-get >/dev/null; then why="there is no apt-get"; \
	elif [ "$$(id -u)" != 0 ]; then why="apt-get needs root"; \
	else \
		said=$$({ $(APT) update && $(APT) --no-install-recommends --download-only install chromium && \
			$(APT) --no-install-recommends --no-download install chromium; } </dev/null 2>&1) && exit 0; \
		why="apt-get ended with status $$?: $$(echo "$$said" | tail -n 1)"; \
	fi; \
	echo "Chromium is not here ($$why); tests of pages are skipped (apt-get install chromium; macOS: brew)"

demo: $(VENV)/.built ## propagate masks through a synthetic video set; print scores and the address of a page with pictures
	$(SAY) "label propagation on a synthetic video set (about two minutes on two cores)"
	@$(RUN) test_davis.py --protocol best --fps 12 --save_path out/demo --overwrite

# Files in parallel, the tests of one in order, since fixtures are made once a file.
PARALLEL := -p no:benchmark --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: $(VENV)/.built ## run the test suite, without the long simulations of GPUs
	$(SAY) "running the tests (about five minutes on two cores)"
	@$(RUN) -m pytest $(PARALLEL)

test-gpu-sim: $(VENV)/.built ## run the long simulations of GPUs: compile matrices, Triton's interpreter, the CUDA emulator
	$(SAY) "running the long simulations of GPUs (some four minutes on two cores)"
	@$(RUN) -m pytest $(PARALLEL) -m gpu_sim

test-all: $(VENV)/.built ## both in one run
	$(SAY) "running the tests and the long simulations of GPUs (some nine minutes on two cores)"
	@$(RUN) -m pytest $(PARALLEL) -m "not nightly"

nightly: $(VENV)/.built ## run what takes long: that training learns, then fuzz and crash
	$(SAY) "running the nightly tests (some ten minutes)"
	@$(RUN) -m pytest -m nightly -s
	@$(MAKE) fuzz crash

SEED ?= 1
fuzz: $(VENV)/.built ## files and arguments drawn at random, some 300,000: right or refused by a sentence
	$(SAY) "fuzzing (about an hour)"
	@$(RUN) -m tests.fuzz --seed $(SEED) --results tests/fuzz/results.json

crash: $(VENV)/.built ## kill every program at its file-system changes, fill its disk, hand it hostile names
	$(SAY) "killing and obstructing the programs (about an hour)"
	@$(RUN) -m tests.crash --seed $(SEED) --results tests/crash/results.json

lint: $(VENV)/.installed ## check style, types and spelling
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy
	@git ls-files | xargs $(RUN) -m codespell_lib
	@$(VENV)/bin/clang-format --dry-run --Werror $(CXX_FILES)

format: $(VENV)/.installed ## put the code into the project's format
	@$(RUN) -m ruff check --fix .
	@$(RUN) -m ruff format .
	@$(VENV)/bin/clang-format -i $(CXX_FILES)

bench: $(VENV)/.built ## run the benchmarks, store their results, rewrite the tables and numbers of all pages
	@$(call REQUIREMENTS,bench) | $(INSTALL) --quiet
	$(SAY) "running the benchmarks (some ten minutes)"
	@mkdir -p out
	@$(RUN) -m pytest benchmarks --benchmark-json out/benchmarks.json
	@$(RUN) -m benchmarks.report out/benchmarks.json
	@$(RUN) -m docs.generated --write
	@$(RUN) -m docs.numbers --write

docs: $(VENV)/.built ## build the pages of docs/ into out/docs, running their notebooks
	@$(call REQUIREMENTS,docs) | $(INSTALL) --quiet
	$(SAY) "building the pages (a minute or two)"
	@$(RUN) -m sphinx -W --keep-going -q -b html docs out/docs
	@echo "file://$(CURDIR)/out/docs/index.html"

# The machine's own Python: where the GPU is there may be no network, and .venv holds a PyTorch for CPUs.
PART ?= all
gpu-check: ## with a GPU: build, test and measure its kernels (PART=first to fourth, each useful alone)
	@$(PYTHON) -m benchmarks.gpu_check $(PART) --results "$(RESULTS)" --commit "$(COMMIT)"

gpu-rehearse: $(VENV)/.built ## run all of gpu-check on this CPU, emulated and tiny; fails if a step would be skipped
	@$(RUN) -m benchmarks.gpu_rehearse

KERNEL_TESTS := $(wildcard tests/test_topk_affinity*.py) $(foreach op,affinity_propagate propagate_sequence attention softmax_at,tests/test_$(op).py)

sanitize: $(VENV)/.installed ## run the kernels' tests under AddressSanitizer and UBSan (rebuilds the kernels twice)
	$(SAY) "building the native kernels with sanitizers"
	@CFLAGS="$(SANITIZE) -fno-sanitize-recover=undefined -fno-omit-frame-pointer -DTIMECYCLE_ONE_VARIANT" \
		LDFLAGS="$(SANITIZE)" $(RUN) setup.py --quiet build_ext --force
	@LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0 \
		sh -ec '$(RUN) -m pytest $(KERNEL_TESTS) tests/test_published_protocols.py -k "cpu and not finite_differences"; \
		$(RUN) -m tests.fuzz operators --cases 7000 --seed $(SEED)'
	@$(RUN) setup.py --quiet build_ext --force

variants: $(VENV)/.installed ## run the kernels' tests as an older x86-64 machine would (rebuilds the kernels three times)
	@for arch in x86-64-v3 x86-64-v2; do \
		printf '\n==> the native kernels for %s\n' $$arch; \
		CFLAGS="-march=$$arch -DTIMECYCLE_ONE_VARIANT" $(RUN) setup.py --quiet build_ext --force && \
		ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 $(RUN) -m pytest $(KERNEL_TESTS) \
			-k "cpu and not finite_differences" || exit 1; \
	done
	@$(RUN) setup.py --quiet build_ext --force

clean: ## remove what was built and made; keeps .venv
	rm -rf build out data timecycle/_*.so .pytest_cache .mypy_cache .ruff_cache
