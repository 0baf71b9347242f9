# Everything a contributor does, from a fresh clone on. "make" lists it.

# Python 3.11 or newer; make PYTHON=python3.13 takes another one.
PYTHON ?= python3
# Further arguments for pytest: make test ARGS="tests/protocol -x"
ARGS ?=
# Processes that run the tests: "auto" is one more than there are cores; 0 starts none.
PROCESSES ?= auto

VENV := .venv
BIN := $(VENV)/bin
# Written last: without it the environment is not complete.
STAMP := $(VENV)/.complete
# What "make demo" needs is in it before the rest.
DEMO_STAMP := $(VENV)/.demo
# Of the benchmarks: what they compare with is not installed anywhere else.
BENCH := .venv-bench
BENCH_STAMP := $(BENCH)/.complete
# Rules, models, simulator, and what the repository promises.
FAST := tests/protocol tests/models tests/fhir tests/redaction tests/management \
	tests/testing tests/test_architecture.py tests/test_checks.py \
	tests/test_error_pages.py tests/test_reference.py tests/test_repository.py \
	tests/test_translations.py

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast long walk mutation bench bench-large bench-smoke lint \
	format migrations messages docs docs-words screenshots dist clean

help: ## List the goals
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 14

demo: $(DEMO_STAMP) ## Run the example site, a simulated EHR and a worker
	@exec $(BIN)/python -m example_project.demo

test: $(STAMP) ## Run the tests; what needs a missing service is skipped by name
	@exec $(BIN)/python -m pytest --numprocesses $(PROCESSES) $(ARGS)

test-fast: $(STAMP) ## Run in under a minute what needs no service, server or browser
	@exec env HYPOTHESIS_PROFILE=few $(BIN)/python -m pytest --numprocesses $(PROCESSES) \
		-m "not long and not browser and not process" $(FAST) $(ARGS)

long: $(STAMP) ## Run the tests that take minutes, and parsers with many examples
	@exec env HYPOTHESIS_PROFILE=ci $(BIN)/python -m pytest -m "long or hypothesis" \
		$(ARGS)

walk: $(STAMP) ## Walk at random through tabs, frames and charts, and print the seeds
	@exec $(BIN)/python -m pytest -m long -s tests/walk $(ARGS)

soak: $(STAMP) ## Refresh for half an hour, and look at memory and connections
	@exec $(BIN)/python -m tests.chaos.soak $(ARGS)

mutation: $(STAMP) ## Change the rules bit by bit, and list what no test notices
	@$(BIN)/pip install -q 'mutmut==3.8.*'
	@exec $(BIN)/mutmut run $(ARGS)

bench: $(BENCH_STAMP) ## Measure beside other packages, in under 25 minutes
	@exec $(BENCH)/bin/python -m benchmarks $(ARGS)

bench-large: $(BENCH_STAMP) ## Measure what takes too long for "make bench"
	@exec $(BENCH)/bin/python -m benchmarks --large $(ARGS)

bench-smoke: $(STAMP) ## See that the benchmarks run; measures nothing
	@exec $(BIN)/python -m benchmarks --smoke $(ARGS)

lint: $(STAMP) ## Check form and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## Put the code into its form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

migrations: $(STAMP) ## Check that the migration matches the models
	DEBUG=1 $(BIN)/python manage.py makemigrations --check --dry-run

messages: $(STAMP) ## Bring new texts into the catalogues, and compile these (gettext)
	cd django_smart && ../$(BIN)/django-admin makemessages --all --no-obsolete \
		--add-location file --ignore 'testing/*'
	cd example_project && for domain in django djangojs; do \
		../$(BIN)/django-admin makemessages --all --no-obsolete --add-location file \
			--ignore 'vendor/*' --domain $$domain; done
	sed -i '/^"POT-Creation-Date/d' */locale/*/LC_MESSAGES/*.po
	cd django_smart && ../$(BIN)/django-admin compilemessages
	cd example_project && ../$(BIN)/django-admin compilemessages

docs: $(STAMP) ## Build the documentation into docs/_build/html
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

docs-words: $(DEMO_STAMP) ## Count, for each page, what makes it hard to read
	@exec $(BIN)/python docs/words.py

screenshots: $(STAMP) ## Take the pictures of the documentation anew
	@exec $(BIN)/python -m tests.e2e.screenshots

# The archive is packed again, since its packer keeps the times and owners of files; the
# wheel is built from the archive.
dist: $(STAMP) ## Build the wheel and the source archive: the same bytes for a commit
	rm -rf dist
	umask 022 && export SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) && \
	$(BIN)/python -m build --sdist && cd dist && source=$$(basename *.tar.gz .tar.gz) && \
	tar -xzf $$source.tar.gz && chmod -R u=rwX,go=rX $$source && \
	tar --sort=name --mtime=@$$SOURCE_DATE_EPOCH --owner=0 --group=0 --numeric-owner \
		--format=posix --pax-option=delete=atime,delete=ctime \
		-cf $$source.tar $$source && \
	gzip --no-name --best --force $$source.tar && \
	../$(BIN)/python -m build --wheel --outdir . $$source && rm -r $$source

clean: ## Remove the environment and everything that was built
	rm -rf $(VENV) $(BENCH) .tox build dist *.egg-info docs/_build var \
		.mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage htmlcov mutants \
		tests/outside/node/node_modules

$(DEMO_STAMP): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "django_smart needs Python 3.11 or newer, and $(PYTHON) is not:" \
			"name another one, as in make PYTHON=python3.13" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV) || { \
		echo "$(PYTHON) cannot make a virtual environment;" \
			"on Debian: apt install python3-venv" >&2; exit 1; }
	@echo "Installing what the example needs into $(VENV) (once, under a minute)"
	@$(BIN)/pip install --no-warn-script-location -e '.[example]'
	@touch $@

$(STAMP): $(DEMO_STAMP)
	@echo "Installing what the tests need into $(VENV) (once, about a minute)"
	@$(BIN)/pip install -q -e '.[dev]'
	@$(BIN)/pip install -q -e '.[mariadb]' >$(VENV)/mariadb.log 2>&1 || \
		echo "Without the driver for MariaDB, which could not be built here" \
			"(see $(VENV)/mariadb.log); its tests will be skipped"
	@touch $@

$(BENCH_STAMP): setup.cfg pyproject.toml benchmarks/requirements.txt
	@test -x $(BENCH)/bin/pip || $(PYTHON) -m venv --clear $(BENCH)
	@echo "Installing what is measured into $(BENCH) (once, about a minute)"
	@$(BENCH)/bin/pip install -q --upgrade -r benchmarks/requirements.txt -e .
	@$(BENCH)/bin/pip install -q -e '.[mariadb]' >$(BENCH)/mariadb.log 2>&1 || \
		echo "Without the driver for MariaDB, which could not be built here" \
			"(see $(BENCH)/mariadb.log); it will not be measured"
	@touch $@
