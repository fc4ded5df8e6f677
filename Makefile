# demo: install and run the main job on the embedded model.  test: everything CI checks.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Tests on all cores, neighbours on one of them, so that they share fixtures; who has none left takes over some of
# another's. More than eight workers would only wait for memory.
SPREAD := -n logical --maxprocesses 8 --dist worksteal
PIP    := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile
# pip would compile one file after another, and all that hardly anyone imports: tests, and hundreds of models. It is left
# to the first import, and so are templates, which do not compile.
COMPILE := $(BIN)/python -m compileall -qq -j 0 -x '/tests?/|/transformers/models/' $(VENV)/lib

# What a program compiles as it imports is kept, whatever the shell says: tests start dozens that import the same.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help install demo test suite test-versions test-newest package conformance conformance-quick torture lint drawing bench-search bench-quality bench-intervals bench-check bench-check-servers bench-memory bench-stream bench-stream-2 bench-gpu bench-decode bench-distil clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing indexcache and some 70 packages into $(VENV); PyTorch is most of what pip" \
		"fetches: some 0.3 GB as built for the CPU, 3 GB as built for GPUs"
	@while sleep 5; do echo "installing: $$(du -sh $(VENV) 2>/dev/null | cut -f 1) in $(VENV) so far"; done & beat=$$!; \
		$(PIP) --upgrade pip && $(PIP) -c constraints.txt -e '.[dev]'; \
		ended=$$?; test $$ended -ne 0 || $(COMPILE); kill $$beat; exit $$ended
	@touch $@

install: $(STAMP) ## create .venv and install indexcache into it

demo: $(STAMP) ## search the embedded model, then check the plan on held-out text
	$(BIN)/indexcache search --recipe tiny --keep 0.25
	$(BIN)/indexcache eval outputs/tiny/plan.json
	@echo "report: outputs/tiny/report.html"

test: lint suite ## ruff, mypy and the whole test suite

suite: $(STAMP)
	$(BIN)/python -m pytest $(SPREAD)

test-versions: $(STAMP) ## contract, applied, long windows and search on the lowest, pinned and newest transformers
	$(BIN)/python tests/run_versions.py

test-newest: $(STAMP) ## a minute of that on the newest transformers
	$(BIN)/python tests/run_versions.py --newest

conformance: $(STAMP) ## real engines run the embedded plan as exported, against transformers; half an hour at first
	$(BIN)/python tests/run_conformance.py $(ARGS)

conformance-quick: $(STAMP) ## mlx-vlm alone, in a minute or two
	$(BIN)/python tests/run_conformance.py mlx-vlm

package: $(STAMP) ## sdist and wheel, installed and run in empty environments on the lowest and newest Python, or on PYTHONS
	$(BIN)/python tests/run_package.py $(PYTHONS)

torture: $(STAMP) ## every case of the reliability list R1 to R25, with a table, and the slow tests
	$(BIN)/python -m pytest $(SPREAD) --torture -m "reliability or torture"

# mypy names modules after their folder; the link gives the repository root its package name.
lint: $(STAMP) ## ruff and mypy --strict only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p build/typing && ln -sfn ../.. build/typing/indexcache
	cd build/typing && ../../$(BIN)/mypy --config-file ../../pyproject.toml \
		-m indexcache.__main__ -m indexcache.cli -m indexcache.evaluate -m indexcache.pattern -m indexcache.errors \
		-p indexcache.calibrate -p indexcache.commands -p indexcache.dsa -p indexcache.recipes -p indexcache.search -p indexcache.system

bench-search: $(STAMP) ## searches against Algorithm 1, on held-out text; minutes on a GPU, hours on 2 cores
	$(BIN)/python tests/benchmarks/bench_search.py

bench-quality: $(STAMP) ## plans against all patterns and on probes, figures against float64; likewise
	$(BIN)/python tests/benchmarks/bench_quality.py

bench-distil: $(STAMP) ## kept indexers distilled, losses before and after; minutes on 2 cores; options in ARGS
	$(BIN)/python tests/benchmarks/bench_distil.py $(ARGS)

bench-check-servers: $(STAMP) ## what check says of servers that run the plan, other patterns or a fault; after make demo; 2 minutes
	test -f outputs/tiny/fingerprint.json || $(BIN)/indexcache eval outputs/tiny/plan.json --fingerprint
	$(BIN)/python tests/benchmarks/bench_check_servers.py $(ARGS)

bench-intervals: $(STAMP) ## intervals, decisions and races on simulated documents with known means; 2 minutes
	$(BIN)/python tests/benchmarks/bench_intervals.py

bench-check: $(STAMP) ## a running server tried where the truth is known, on the plan of make demo; some minutes
	test -f outputs/tiny/fingerprint.json || $(MAKE) demo
	$(BIN)/python tests/benchmarks/bench_check.py outputs/tiny

bench-memory: $(STAMP) ## peak memory and time of one GLM-5-like layer on the CPU, stock up to 8192 tokens (18 GB)
	$(BIN)/python tests/benchmarks/bench_layer_memory.py --tokens 4096 8192 16384

# Needs a CUDA build of torch, which the one pinned here is not: PYTHON names an environment with one and indexcache
# in it (pip install -e .).
bench-stream: ## layers that stream against the same in memory, and a checkpoint of 107 GB from files; one GPU of 80 GB
	$(PYTHON) tests/benchmarks/bench_stream.py --folder outputs/bench-stream --parts dequantise stream together rate
	$(PYTHON) tests/benchmarks/bench_stream.py --folder outputs/bench-stream-large --layers 84 --parts large

bench-stream-2: ## two processes that gather a model in host memory and in files; two GPUs
	$(PYTHON) -m accelerate.commands.launch --multi_gpu --num_processes 2 tests/benchmarks/bench_stream.py \
		--folder outputs/bench-stream --parts together

bench-gpu: ## kernels and a 30B model with random weights on one GPU of 80 GB, stock in the same run; about 7 minutes
	PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True $(PYTHON) tests/benchmarks/bench_gpu.py

bench-decode: ## seconds an output token behind 8K to 128K tokens, 30B model with random weights on one GPU of 80 GB; about 5 minutes
	PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True $(PYTHON) tests/benchmarks/bench_decode.py

drawing: ## make the tree and the drawings in docs/architecture.md and the lists in docs/troubleshooting.md current
	$(PYTHON) docs/architecture.py --write
	$(PYTHON) docs/troubleshooting.py --write

clean: ## remove the venv and caches
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis
