# The verbs of the project; CI calls the same. `make setup` comes first and is instant when done.
.POSIX:
.SUFFIXES:
.PHONY: setup demo test test-slow test-gpu test-triton test-clients parity check bench

BIN = .venv/bin

setup:
	@sh scripts/setup.sh

demo: setup
	@mkdir -p out
	$(BIN)/qvl describe examples/pictures --language ru,en,zh --html out/demo.html
	@echo "the same as a page: out/demo.html"

test: setup
	$(BIN)/python -m pytest

test-slow: setup
	$(BIN)/python -m pytest -m slow

test-gpu: setup
	$(BIN)/python -m pytest -m gpu

# torch brings Triton only with CUDA; elsewhere `pip install triton` first
test-triton: setup
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -m triton tests/kernels

# what other makers' clients say to our server, and what they make of its answers
test-clients: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[clients]'
	$(BIN)/python -m pytest tests/serve/test_clients.py

parity: setup
	$(BIN)/python -m pytest -q -m parity

check: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyrefly check
	$(BIN)/lint-imports
	@sh scripts/check_tree.sh

bench: setup
	@echo "benchmarks/ holds the scripts and the tables they printed last"
	$(BIN)/python -m benchmarks.loading
	$(BIN)/python -m benchmarks.mask_time
