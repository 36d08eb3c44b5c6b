# verl_uae: set-up, quickstart and tests. Needs Python 3.10-3.12 and make.

PYTHON ?= python3
VENV ?= .venv
HOME_DIR ?= outputs/quickstart
# Training commands at a time in the learning runs; each needs about a core.
JOBS ?= 2
# Processes of the tests; one more than the cores, since some wait for processes of their own.
TEST_JOBS ?= 3
# A test that its own time limit of 600 s does not end prints its stacks and ends its process, never the patience of CI.
TEST_END := -o faulthandler_timeout=700 -o faulthandler_exit_on_timeout=true
BIN := $(VENV)/bin
# Or every process, here and in training commands, would compile this package anew.
unexport PYTHONDONTWRITEBYTECODE
STAMP := $(VENV)/.installed

.PHONY: help setup quickstart test pytest docs test-slow test-big test-install test-wheels test-vllm learn-all learn-controls learn-emoji learn-flux3 learn-g4u learn-grounding learn-long learn-mutual learn-objectives learn-rates learn-rewards learn-stages learn-u4g learn-unified lint clean

help:
	@echo "make quickstart   set up, pre-train the tiny models, run Generation for Understanding, report"
	@echo "make test         set up, lint, type-check and run the tests"
	@echo "make docs         the documentation as pages with search and the API, in outputs/docs"
	@echo "make test-slow    the slow tests (kill and resume, hostile data through the whole trainer)"
	@echo "make test-big     two steps at real size on a CPU (22 GiB of memory, a quarter of an hour)"
	@echo "make test-wheels  the built wheel and source archive, installed and run on every Python of 3.10 to 3.12 (network)"
	@echo "make test-install whether what README tells people to install resolves, on Python 3.10 to 3.12 (network)"
	@echo "make test-vllm    captions from the real vLLM on a CPU (own environment, 4 GB)"
	@echo "make learn-all    what each of the following takes, then what of it is not done yet"
	@echo "make learn-controls  stages with one change each against those without, over three seeds; writes outputs/learn-controls"
	@echo "make learn-emoji  both stages on emoji, which it downloads (npm, 136 MB), over three seeds; writes outputs/learn-emoji"
	@echo "make learn-flux3  both stages on FLUX 3 and Qwen3-VL, over three seeds; writes outputs/learn-flux3"
	@echo "make learn-g4u    Generation for Understanding over three seeds; writes outputs/learn-g4u"
	@echo "make learn-u4g    Understanding for Generation, every preset over three seeds; writes outputs/learn-u4g"
	@echo "make learn-unified  both in turns against either alone, 120 steps, over five seeds; writes outputs/learn-unified"
	@echo "make learn-mutual   do both gain: either alone, both, a ceiling, over five seeds; writes outputs/learn-mutual"
	@echo "make learn-grounding  where both gain: starts that know a word more or less; writes outputs/learn-mutual"
	@echo "make learn-rates    which learning rate each objective of the decoder is compared with; writes outputs/learn-objectives"
	@echo "make learn-objectives  every objective of the decoder, with and without a pool, over five seeds; writes outputs/learn-objectives"
	@echo "make learn-stages   pre-training, cold start, G4U, U4G and export in a row, three seeds; writes outputs/learn-stages"
	@echo "make learn-rewards  G4U with four rewards, over three seeds; writes outputs/learn-rewards"
	@echo "make learn-long   captions past 77 tokens against their cut, over three seeds; writes outputs/learn-long"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints/cpu.txt
	$(PYTHON) -m venv $(VENV)
	@# The pip of the venv can be years old and take minutes to resolve what a new one does in half of one. What is
	@# imported is compiled when it is first imported, a fifth of what is installed. Where PYTHONDONTWRITEBYTECODE is set,
	@# as in many containers, every command outside make would compile it anew: there the doctor's imports do it here.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints/cpu.txt -e ".[dev]"
	$(if $(PYTHONDONTWRITEBYTECODE),$(BIN)/verl-uae doctor --hardware cpu | tail -n 1)
	touch $(STAMP)

quickstart: setup
	$(BIN)/verl-uae quickstart $(HOME_DIR)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: setup
	$(MAKE) -j 2 pytest lint

pytest: setup
	$(BIN)/python -m pytest -n $(TEST_JOBS) $(TEST_END)

docs: setup
	VERL_PLATFORM=cpu $(BIN)/sphinx-build -W --keep-going -q -c docs -b html . outputs/docs
	@echo "outputs/docs/docs/index.html"

test-slow: setup
	$(BIN)/python -m pytest -m slow

test-big: setup
	$(BIN)/python -m pytest -m big

test-install:
	bash tests/install/resolve.sh

test-wheels:
	bash tests/install/wheels.sh

test-vllm:
	bash tests/vllm/run.sh

learn-all learn-controls learn-emoji learn-flux3 learn-g4u learn-grounding learn-long learn-mutual learn-objectives learn-rates learn-rewards learn-stages learn-u4g learn-unified: setup
	$(BIN)/python -m benchmarks.learning $(@:learn-%=%) --jobs $(JOBS)

clean:
	rm -rf outputs .pytest_cache .mypy_cache .ruff_cache
