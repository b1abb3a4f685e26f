# Three commands: `make demo`, `make demo-hub` and `make test`. Each sets up .venv first; Python 3.10+, git and make
# are all that must be there. PYTHON=python3.12 chooses another interpreter.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.PHONY: demo demo-hub proto test fast exhaustive lint table clean

demo: .venv/ready ## train the digits with five methods and see what the wire carried
	$(BIN)/thinwire demo --picture demo.png

demo-hub: .venv/ready ## a hub and three workers, one of each killed and returned; ends with the ledger
	$(BIN)/thinwire demo-hub

proto: .venv/ready ## write the generated code of hub.proto anew
	$(BIN)/python -m grpc_tools.protoc -I src --python_out=src --pyi_out=src src/thinwire/hub/hub.proto

test: .venv/ready lint ## everything: lint, types, all tests
	$(BIN)/thinwire doctor --warm
	$(BIN)/python -m pytest -n 2 -m "not network and not exhaustive"
	$(BIN)/python -m pytest -m network

fast: .venv/ready ## the unit tests alone
	$(BIN)/python -m pytest -n 2 -m "not slow and not network and not exhaustive"

exhaustive: .venv/ready ## every fault at every yield of every exchange, N of 3 and 4: about a quarter of an hour
	$(BIN)/python -m pytest -n 2 -m exhaustive

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

MNIST ?= ../shared/data/mnist
table: .venv/ready ## the papers' MNIST table, five seeds; MNIST=folder of the IDX files
	$(BIN)/python recipes/mnist/run.py --data $(MNIST)

clean:
	rm -rf .venv

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@
