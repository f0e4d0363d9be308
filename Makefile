# `make demo` and `make test` set up everything they need: Python ≥ 3.11, make and a network will do. They install the
# versions in constraints.txt, which `make lock` renews; `make test-newest` tests with the newest of everything.
# Environments: .venv has TransformerLens 3 (HookedTransformer), .venv-4 TransformerLens 4 (TransformerBridge).

PYTHON ?= python3
PIP_FLAGS ?= --quiet --disable-pip-version-check

# A worker a core, each a file at a time: trained models are shared within a file.
IN_PARALLEL ?= --numprocesses auto --dist loadfile --no-loadscope-reorder

PLAIN = --doctest-modules --strict-markers
# What hardly depends on TransformerLens, or takes long and depends on it only through what it is made of.
KNOWS_NOTHING = moments processes beliefs figures page experiments formation data controls docs \
	$(addprefix test_,architecture.py bad_input.py checks.py cli.py damaged_files.py distributed.py distribution.py \
	files.py parallel.py pyright.py refusals.py tables.py) \
	$(addprefix inference/test_,networks.py likelihood.py machine.py predictive_states.py infer.py site_ranks.py) \
	$(addprefix probing/test_,class_readouts.py cross_validation.py distances.py geometry.py notes.py own_labels.py \
	parts.py probe.py probe_plots.py probe_report.py transfer.py) \
	$(addprefix interventions/test_,edits.py experiments.py findings.py given_words.py inferred_process.py manifold.py \
	published.py requests.py rrxor.py targets.py) \
	$(addprefix representation/test_,crosstalk.py curvature.py factor_geometry.py inert_past.py) \
	$(addprefix training/test_,batches.py config.py folder.py resume.py)
# The rooms whose examples build or read a network.
KNOWS_LENS = $(addprefix msp_lens/,models training probing interventions representation)

.PHONY: demo shell docs test test-fast test-3 test-4 test-newest style lint lock mutants notebooks benchmark records clean

demo: .venv/core
	.venv/bin/msp-lens run mess3
	@echo "For a shell that finds msp-lens: make shell"

# A shell that finds msp-lens and its Python.
shell: .venv/core
	@echo "This shell finds msp-lens, for example: msp-lens infer runs/mess3. To leave it: exit"
	@VIRTUAL_ENV="$(CURDIR)/.venv" PATH="$(CURDIR)/.venv/bin:$$PATH" $${SHELL:-sh}

# Pyright is one of the tests (tests/test_pyright.py).
test: style test-3 test-4

# The site, into build/docs; `tests/docs` builds it too, and follows its links.
docs: .venv/installed
	.venv/bin/python -m sphinx -W --keep-going -n -q docs build/docs
	@echo "Open build/docs/index.html in a browser."

# One thread a worker, also in the processes that tests start: threads of two jobs on the same cores wait for each other.
test-fast test-3 test-4: export OMP_NUM_THREADS = 1
# Bytecode is kept: else each process that tests start would compile what it imports, for four seconds.
test-fast test-3 test-4: export PYTHONDONTWRITEBYTECODE =

# For the inner loop: no slow tests, and no checks of annotated calls.
test-fast: .venv/installed
	.venv/bin/pytest $(IN_PARALLEL) -m "not slow" -o addopts="$(PLAIN)"

# With the checks of annotated calls, but for what gains nothing from them (UNCHECKED in tests/conftest.py).
test-3: .venv/installed
	.venv/bin/pytest $(IN_PARALLEL)

# What knows TransformerLens, without these checks.
test-4: .venv-4/installed
	.venv-4/bin/pytest $(IN_PARALLEL) -o addopts="$(PLAIN)" $(KNOWS_NOTHING:%=--ignore tests/%) tests $(KNOWS_LENS)

style: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

lint: style
	.venv/bin/pyright --pythonpath .venv/bin/python

# Hours; continues where it was stopped. `.venv/bin/mutmut results` lists what no test noticed.
mutants: .venv/installed
	.venv/bin/pip install $(PIP_FLAGS) --constraint constraints.txt mutmut
	OMP_NUM_THREADS=1 .venv/bin/mutmut run

benchmark: .venv/installed
	.venv/bin/python -m tests.benchmarks.spine
	.venv/bin/python -m tests.benchmarks.sampling
	.venv/bin/python -m tests.benchmarks.beliefs
	.venv/bin/python -m tests.benchmarks.probing
	.venv/bin/python -m tests.benchmarks.interventions
	.venv/bin/python -m tests.benchmarks.inference
	.venv/bin/python -m tests.benchmarks.training

# The outputs that the notebooks keep; half an hour on an idle machine.
notebooks: .venv/installed
	.venv/bin/python -m tests.execute_demos

# Seconds to a fixed regret, kept by commit and machine; only on an idle machine.
records: .venv/installed
	GOMP_SPINCOUNT=5000 .venv/bin/python -m tests.benchmarks.records
	GOMP_SPINCOUNT=5000 .venv/bin/python -m tests.benchmarks.records paper

clean:
	rm -rf .venv .venv-4 .venv-newest

# The newest versions of all but torch, whose other builds are gigabytes.
test-newest:
	rm -rf .venv-newest
	$(call install,.venv-newest,--upgrade $(FOR_DEVELOPERS) "torch==2.13.0")
	OMP_NUM_THREADS=1 .venv-newest/bin/pytest $(IN_PARALLEL) -m "not slow" -o addopts="$(PLAIN)"

# TransformerLens itself is not locked by constraints.txt, as both of these are installed.
LENS_3 = 3.9.0
LENS_4 = 4.3.0
COMPILE = uv pip compile --quiet --universal --python-version 3.11 --extra dev --extra docs --no-annotate --no-header --upgrade pyproject.toml

# Newer versions of everything, for every platform and Python. Look for newer LENS_3 and LENS_4 by hand.
lock: .venv/installed
	echo "torch==2.13.0" > .lock.in
	for lens in $(LENS_3) $(LENS_4); do \
		echo "transformer-lens==$$lens" | .venv/bin/$(COMPILE) - --constraint .lock.in || exit 1; done \
		| grep -v "^transformer-lens==" | LC_ALL=C sort -u > .lock.out
	(sed -n "/^#/p" constraints.txt; cat .lock.out) > .lock.new
	mv .lock.new constraints.txt
	rm .lock.in .lock.out

# uv installs in a tenth of pip's time; where it cannot be had, pip does the same. Wheels that pip is told to look for on
# this machine are looked for by uv, too.
define install
	$(PYTHON) -m venv $(1)
	-$(1)/bin/pip install $(PIP_FLAGS) uv
	$(1)/bin/uv pip install --quiet --python $(1)/bin/python $(PIP_FIND_LINKS:%=--find-links %) $(2) \
		|| $(1)/bin/pip install $(PIP_FLAGS) $(2)
endef

# A comma within a call of `install` would end its argument.
FOR_DEVELOPERS = --editable ".[dev,docs]"

# What `make demo` needs, and then what the tests need.
.venv/core: constraints.txt pyproject.toml
	$(call install,.venv,--constraint constraints.txt --editable . "transformer-lens==$(LENS_3)")
	touch $@

.venv/installed: constraints.txt pyproject.toml
	$(call install,.venv,--constraint constraints.txt $(FOR_DEVELOPERS) "transformer-lens==$(LENS_3)")
	touch $@ .venv/core

.venv-4/installed: constraints.txt pyproject.toml
	$(call install,.venv-4,--constraint constraints.txt --editable ".[dev]" "transformer-lens==$(LENS_4)")
	touch $@
