# The commands of this project. `make help` lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := operator model tests examples images benchmarks deploy tools

TRAINER := $(BIN)/python -m images.run trainer --
CACHE := $(or $(FINETUNE_CACHE),$(HOME)/.cache/finetune)
# More workers than cores: tests wait for processes a good part of their time.
PYTEST := $(BIN)/pytest -n 3 --dist worksteal
# Keep bytecode, whatever the shell says: tests start hundreds of programs.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help demo demo-dpo chaos bench-training bench-quality bench-pages bench-registry test down clean lint types unit prometheus training-tests programs api e2e gitops cluster images lock crds pages vendor reference docs release argocd format manifests

help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

demo: $(VENV)/ready ## A cluster, the images, the chart, a dataset and a TrainingRun; ends with a registered adapter
	$(BIN)/python -m examples.demo

demo-dpo: $(VENV)/ready ## As demo; then a DPO run whose parent is the first run's adapter
	$(BIN)/python -m examples.demo_dpo

bench-training: $(VENV)/ready ## Speed beside TRL and a bare loop; BENCH=--quick for a first look
	$(BIN)/python -m benchmarks.launch training $(BENCH)

bench-quality: $(VENV)/ready ## What SFT, DPO and KTO learn from the demo's rows, over three seeds
	$(BIN)/python -m benchmarks.launch quality $(BENCH)

bench-operator: programs ## What a run costs the operator and the API server; BENCH="--quick --loads=a" for a first look
	$(BIN)/python -m benchmarks.operator $(BENCH)

bench-registry: $(VENV)/ready ## Lists, curves, rows and files of a registry with 10,000 runs, 20 readers and 200 trainers; BENCH=--quick
	$(BIN)/python -m benchmarks.registry $(BENCH)

bench-pages: $(VENV)/ready ## The registry's pages with 10,000 runs and 200 viewers; BENCH=--quick for a first look
	$(BIN)/python -m benchmarks.pages $(BENCH)

test: lint types unit api training-tests e2e ## Everything that can be tested on this machine, but the longest tests (chaos)

down: $(VENV)/ready ## Remove the cluster and what runs in it (images stay in the cache)
	$(BIN)/python -m tests.cluster down

clean: down ## As down, and remove the environment, the outputs and the cached images
	$(BIN)/python -m tests.cluster down --purge
	rm -rf $(VENV) out

lint: $(VENV)/ready ## Style, and the rules of who may import whom
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/lint-imports

types: $(VENV)/ready ## Strict type check
	MYPY_CACHE_DIR=$(CACHE)/mypy $(BIN)/mypy  # looks at contents: a fresh clone need not begin anew

unit: $(VENV)/ready prometheus ## Unit tests: seconds, no cluster
	$(PYTEST) -m "not long" tests/unit

programs: $(VENV)/ready ## Build the cluster's programs into the cache; compilers beside tests would let those run out of time
	$(BIN)/python -m tests.cluster build

prometheus: $(VENV)/ready
	-@$(BIN)/python -m tests.support.prometheus  # without it the tests that need it are skipped, and say so
	-@$(BIN)/python -m tests.support.oci

api: programs prometheus ## The API, the operator and the registry's authentication against a real API server
	$(PYTEST) -m "not long" tests/api

training-tests: $(VENV)/ready ## The trainer's tests, inside the trainer image
	$(TRAINER) env OMP_NUM_THREADS=1 python -m pytest -p no:cacheprovider -n 3 --dist worksteal -m "not long" --durations=12 tests/training

chaos: programs ## A hundred trainers, five hundred operators and two hundred registries killed at random moments; and the long tests
	$(TRAINER) python -m pytest -p no:cacheprovider tests/chaos/test_kills.py
	$(BIN)/pytest -n 2 tests/chaos/test_failpoints.py tests/chaos/test_registry.py
	$(TRAINER) env OMP_NUM_THREADS=1 python -m pytest -p no:cacheprovider -n 2 --dist worksteal -m long tests/training
	$(BIN)/pytest -n 2 --dist worksteal -m long tests/unit tests/api
	$(BIN)/pytest -n 2 --dist loadfile -m long tests/e2e

gitops: programs ## Runs in Git: the real Argo CD on the local cluster
	$(BIN)/pytest -n 0 tests/gitops

e2e: programs ## The whole, on the local cluster with real pods
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not long" tests/e2e

cluster: $(VENV)/ready ## Start the local cluster and leave it running
	$(BIN)/python -m tests.cluster up

images: $(VENV)/ready ## Build the images
	$(BIN)/python -m images.build

format: $(VENV)/ready ## Format the sources
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

pages: $(VENV)/ready ## A real browser over the registry's pages; makes the pictures in docs/pages
	$(BIN)/pytest -n 0 tests/browser

vendor: $(VENV)/ready ## Fetch the libraries of the pages, at the versions of deploy/pages/vendor.py
	$(BIN)/python -m deploy.pages.vendor

crds: $(VENV)/ready ## Write the CustomResourceDefinition from the models
	$(BIN)/python -m finetune.api.crd crds/finetune.dev_trainingruns.yaml charts/finetune-operator/files/finetune.dev_trainingruns.yaml

reference: $(VENV)/ready ## Write the documentation's reference pages from the models
	$(BIN)/python -m tools.reference

docs: $(VENV)/ready ## Build the documentation's site into out/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

release: programs ## Fill dist/ with a release's files; VERSION=0.2.0, and ADDRESS where they will be downloaded
	$(BIN)/python -m tools.release $(VERSION) $(if $(ADDRESS),--address=$(ADDRESS))

manifests: programs ## Write deploy/install.yaml, the chart's README and what its values change, from the chart
	$(BIN)/python -m tests.support.chart
	$(BIN)/python -m deploy.manifests

argocd: $(VENV)/ready ## Write Argo CD's ConfigMap from the scripts in deploy/argocd
	$(BIN)/python -m deploy.argocd.render

lock: $(VENV)/ready ## Pin the newest versions that pyproject.toml allows
	for extra in operator training dev; do \
	  $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	    --custom-compile-command "make lock" --no-emit-package finetune-operator \
	    --extra $$extra --output-file locks/$$extra.txt pyproject.toml || exit 1; \
	done

$(VENV)/ready: locks/dev.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --require-hashes --requirement locks/dev.txt
	$(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null || true  # pip would compile on one core
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@
