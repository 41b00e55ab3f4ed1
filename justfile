# Recipes for who works on Compass; `just` alone lists them. CONTRIBUTING.md says when to run which.

python := ".venv/bin/python"
bin := ".venv/bin"

# list the recipes
default:
    @just --list

# under a minute: form, types, layers, and the rules of the domain
check: form
    {{ python }} -m pytest -q tests/unit/domain

# ruff, mypy and import-linter; changes nothing
form:
    {{ bin }}/ruff check .
    {{ bin }}/ruff format --check .
    {{ bin }}/mypy
    {{ bin }}/lint-imports

# let ruff put in order what it can
fix:
    {{ bin }}/ruff check --fix .
    {{ bin }}/ruff format .

# four minutes: unit and property tests, side by side
quick:
    {{ python }} -m pytest -n auto tests/unit tests/property

# some tests by path, with pytest's own options: just test tests/unit/storage -k drop
test *arguments:
    {{ python }} -m pytest {{ arguments }}

# everything that runs before a change lands, in the order of its cost
all: form quick
    {{ python }} -m pytest tests/fault tests/integration tests/notebooks

# the long forms of the tests; hours
long:
    {{ python }} -m pytest -m long --timeout 0

# what CI does, from the set-up on; in a clean checkout
ci:
    bash .ci/run
