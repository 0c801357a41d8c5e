# Two commands: `make demo` does the main job, `make test` runs every check. Each sets up .venv by itself.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.PHONY: demo test check format clean

demo: $(READY)
	@$(BIN)/mp2 demo

test: check
	@echo "== tests"
	@$(BIN)/python -m pytest

check: $(READY)
	@echo "== ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "== mypy (strict)"
	@$(BIN)/mypy

format: $(READY)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# Installed again only when what is needed changes.
$(READY): pyproject.toml constraints.txt
	@echo "== setting up .venv (a few minutes the first time, nothing afterwards)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $(READY)

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache dist
