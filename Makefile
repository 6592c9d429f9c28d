# make demo    installs what is missing, builds, makes a small guest and maps it
# make check   installs what is missing and runs all tests
# make check-quick    runs the tests that take seconds
# make check-system   runs the other tests that need no appliance
# make check-docs     runs the commands of the documentation that need one
# make fleet-check    maps a fleet of twenty guests
# make torture        maps corrupted guests
# make operations-torture    compares operations on all filesystems with what a guest did
# make update-torture    updates maps of guests that change at random
# make matrix         tests in other releases of Debian, and writes docs/compatibility.md
# make check-trixie   maps one guest in a fresh Debian 13
# make plugin  builds the plugin for nbdkit
# make wheel   builds the Python package into target/wheels
# make check-python   builds it and runs its tests
# make publishable    packs and builds the library crates as crates.io would get them
# make audit   checks licences, sources and versions of the dependencies with cargo-deny
# make packages, deb, rpm    builds packages in target/packages: docs/packages.md
# make check-packages, check-reproducible    checks them, as root: in chroots, and by a second build
# make container    builds the image of Containerfile
# make build, install [PREFIX=/usr/local DESTDIR=], man, accuracy, bench, bench-trace, bench-python
# make instructions, clean-fixtures
# make site    builds mdbook, and the site of the documentation with it
# make fmt, lint, typos, msrv, doc   the other checks of .ci/run

PREFIX ?= /usr/local
CARGO ?= cargo
# The plugin directory of an nbdkit with the same prefix.
NBDKIT_PLUGINS = $(PREFIX)/lib/nbdkit/plugins
# rustup installs the toolchain here; a shell that is older than the installation does not know it.
export PATH := $(HOME)/.cargo/bin:$(PATH)

# Prints when a step began and how long it took.
STEP := scripts/step.sh

# Always build the whole workspace. With another choice of packages, cargo unifies features
# differently and compiles everything again.
TEST := $(CARGO) test --workspace

BIN := target/release/virt-bmap-rs
PLUGIN := target/release/nbdkit-bmaplogger-plugin.so
DEMO := target/demo

# The spelling checker. The version is fixed, because each version knows other words.
TYPOS_VERSION := 1.52.0
TYPOS := target/typos-$(TYPOS_VERSION)/bin/typos
# Checks of deny.toml. A separate workflow checks the advisories, since their database must be
# fetched.
AUDIT ?= bans licenses sources

# The programs that make packages. The versions are fixed, so that packages can be made again.
PACKAGING_TOOLS := target/packaging-tools
CARGO_DEB := $(PACKAGING_TOOLS)/cargo-deb-3.8.0
CARGO_GENERATE_RPM := $(PACKAGING_TOOLS)/cargo-generate-rpm-0.21.1
CARGO_CYCLONEDX := $(PACKAGING_TOOLS)/cargo-cyclonedx-0.5.9
# What builds the image: podman or docker.
CONTAINER ?= podman
IMAGE ?= ghcr.io/virt-bmap-rs/virt-bmap-rs

# On a CI machine a skipped test is a failure.
ifeq ($(CI),true)
export VIRT_BMAP_REQUIRE_TOOLS := 1
endif

.PHONY: demo check check-all check-quick check-system check-appliance check-programs check-accuracy
.PHONY: check-corrupted check-changed accuracy torture update-torture operations-torture
.PHONY: check-docs fleet-check compare-maps
.PHONY: check-trixie matrix check-python publishable fmt lint typos msrv audit doc site
.PHONY: build plugin install man bench bench-trace bench-python instructions wheel
.PHONY: packages deb rpm setup-packages check-packages check-reproducible container
.PHONY: setup setup-tests clean-fixtures

demo: setup build
	mkdir -p $(DEMO)
	test -e $(DEMO)/guest.raw || scripts/make-demo-guest.sh $(DEMO)/guest.raw
	cd $(DEMO) && ../../$(BIN) guest.raw
	scripts/show-map.sh $(DEMO)/guest.bmap

check: setup-tests
	$(STEP) check $(MAKE) check-all

check-all:
	$(STEP) check-quick $(MAKE) check-quick
	$(STEP) "link the rest" $(TEST) --no-run $(addprefix --test ,system $(GUESTS) accuracy torture)
	$(STEP) check-programs $(MAKE) check-programs

# Tests without an appliance, which take seconds. The plugin has no unit tests: they would not link
# without nbdkit's functions, so the program "quick" tests it in nbdkit.
QUICK := quick messages random states threads volumes
check-quick:
	$(STEP) build $(CARGO) build --workspace --lib --examples
	$(STEP) "unit tests" $(CARGO) test --workspace --exclude virt-bmap-nbdkit --lib --bins --examples
	$(STEP) "documentation tests" $(CARGO) test --workspace --doc
	$(STEP) "link quick" $(TEST) --no-run $(addprefix --test ,$(QUICK))
	$(STEP) quick $(TEST) $(addprefix --test ,$(QUICK))

# Tests without an appliance that wait for other programs: browsers, terminals, batch systems.
check-system:
	$(STEP) system $(TEST) --test system

# Programs whose tests have real appliances on real images, which takes minutes. The longest comes
# first.
GUESTS := appliance operations metadata layers tracing owners changes mapping probes nested saved arrays signals live failures images documentation
.PHONY: $(addprefix check-with-,$(GUESTS))

# Two programs at a time, with three tests at a time: one test or another often waits, for a disk or
# a time limit. Those that do one thing after the other come first, when they run side by side. Each
# prints its output when it ends. After a failure the others still run.
PROGRAMS = $(MAKE) --jobs=2 --keep-going --output-sync=target
CHECK_GUESTS := check-accuracy check-corrupted $(addprefix check-with-,$(GUESTS)) check-changed

check-programs:
	$(PROGRAMS) $(CHECK_GUESTS) check-system

check-appliance:
	$(PROGRAMS) $(CHECK_GUESTS)

check-docs: check-with-documentation

$(addprefix check-with-,$(GUESTS)): check-with-%:
	$(STEP) $* $(TEST) --test $* -- --test-threads=3

check-accuracy:
	$(STEP) accuracy $(TEST) --test accuracy

check-corrupted check-changed: check-%:
	$(STEP) "torture $*" $(TEST) --test torture -- $*

build:
	$(CARGO) build --release --locked

# Cargo names shared libraries differently from nbdkit.
plugin:
	$(CARGO) build --release --locked -p virt-bmap-nbdkit
	cp target/release/libnbdkit_bmaplogger_plugin.so $(PLUGIN)

# Installs the plugin only if it was built.
install: man
	install -D -m 755 $(BIN) $(DESTDIR)$(PREFIX)/bin/virt-bmap-rs
	if test -e $(PLUGIN); then install -D -m 755 -t $(DESTDIR)$(NBDKIT_PLUGINS) $(PLUGIN); fi
	install -d $(DESTDIR)$(PREFIX)/share/man/man1
	install -m 644 target/man/*.1 $(DESTDIR)$(PREFIX)/share/man/man1
	$(BIN) generate completions bash | install -D -m 644 /dev/stdin $(DESTDIR)$(PREFIX)/share/bash-completion/completions/virt-bmap-rs
	$(BIN) generate completions zsh | install -D -m 644 /dev/stdin $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_virt-bmap-rs
	$(BIN) generate completions fish | install -D -m 644 /dev/stdin $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/virt-bmap-rs.fish

man: build
	mkdir -p target/man
	$(BIN) generate man target/man
	@ls target/man/*.1

# Packages take a build of their own, which is why .ci/run does not make them.
packages: setup-packages $(CARGO_DEB) $(CARGO_GENERATE_RPM) $(CARGO_CYCLONEDX)
	packaging/build.sh deb rpm sbom sums

deb: setup-packages $(CARGO_DEB)
	packaging/build.sh deb

rpm: setup-packages $(CARGO_GENERATE_RPM)
	packaging/build.sh rpm

setup-packages: setup
	packaging/setup.sh

# The file with the version in its name says that this version is installed.
$(CARGO_DEB) $(CARGO_GENERATE_RPM) $(CARGO_CYCLONEDX):
	name=$$(echo $(@F) | sed 's/-[0-9.]*$$//'); \
	$(CARGO) install --quiet --locked --force --root $(PACKAGING_TOOLS) $$name@$(lastword $(subst -, ,$(@F)))
	touch $@

check-packages:
	packaging/setup.sh --tests
	packaging/test.sh $(CHECKS)

# Builds everything a second time, in a clone in another directory.
check-reproducible:
	packaging/reproduce.sh

container: deb
	$(CONTAINER) build --file Containerfile --tag $(IMAGE):$$(sed -n 's/^version = "\(.*\)"$$/\1/p' Cargo.toml | head -n 1) .

# Makes and maps guests with every filesystem and layer, and writes docs/accuracy.md. Takes half an
# hour under emulation. ONLY="xfs btrfs" measures these guests, and replaces their rows.
accuracy: setup-tests
	$(TEST) --test accuracy -- $(or $(ONLY),--all)

fleet-check: setup-tests
	VIRT_BMAP_FLEET=20 $(TEST) --test changes fleet:: -- --test-threads=1

# Maps a guest fifty times, each time with other corruptions in its filesystems. Takes half an hour
# under emulation.
torture: setup-tests
	$(TEST) --test torture -- corrupted --all

# Compares the maps of two builds: make compare-maps OLD=PROGRAM IMAGES="a.raw b.raw,c.raw".
compare-maps: build
	scripts/compare-maps.sh $(OLD) $(BIN) $(IMAGES)

update-torture: setup-tests
	$(TEST) --test torture -- changed --all

# Two hundred operations on each filesystem, one by one and ten at a time, and as many at random; the
# same on volumes; and looks at all filesystems beside maps of fresh appliances.
operations-torture: setup-tests
	VIRT_BMAP_OPERATIONS=200 $(TEST) --test operations -- scripted::synced scripted::operations_between scripted::operations_on_two random_writer:: volumes:: --test-threads=1
	VIRT_BMAP_OPERATIONS=200 $(TEST) --test tracing -- looks:: --test-threads=1

# Tests in fresh releases of Debian, each with its own libguestfs, qemu and kernel, and writes their
# table. SUITES="trixie" tests only these. Takes half an hour for each; needs root.
matrix: setup-tests
	CARGO="$(CARGO)" scripts/matrix/run.sh $(SUITES)

# The same program, as the tests have built it, in a fresh Debian 13: one guest, one map. Needs
# root.
check-trixie: setup-tests
	$(TEST) --no-run --test quick
	scripts/matrix/check-release.sh trixie

bench: setup-tests
	$(CARGO) bench

# Measures the cost of tracing and renews the tables of docs/trace.md. Takes three minutes on an
# idle machine.
bench-trace: setup-tests
	scripts/bench-trace.sh --write

# Counts the instructions of the map's code, a measure that does not depend on the load of the
# machine.
instructions: setup-tests build
	scripts/instructions.sh --write

fmt:
	$(CARGO) fmt --all --check

lint:
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	if command -v shellcheck >/dev/null; then shellcheck scripts/*.sh scripts/matrix/*.sh packaging/*.sh .ci/run; fi

# Spelling. PyPI has a wheel of the program for every machine.
typos: $(TYPOS)
	$(TYPOS)

$(TYPOS):
	python3 -m venv target/typos-$(TYPOS_VERSION)
	target/typos-$(TYPOS_VERSION)/bin/pip install --quiet --disable-pip-version-check typos==$(TYPOS_VERSION)

# The Python package, as docs/python.md describes it. It has a virtual environment of its own, which
# is made anew when the list of packages changes.
PYTHON ?= python3
VENV := target/python-venv
PYTHON_CARGO := --manifest-path python/Cargo.toml --target-dir target/python

$(VENV)/installed: python/requirements.txt
	$(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --only-binary :all: -r $<
	touch $@

wheel: $(VENV)/installed
	rm -rf target/wheels
	$(VENV)/bin/maturin build --release --locked $(PYTHON_CARGO) --out target/wheels

# The tests ask the program, too.
check-python: wheel
	$(CARGO) fmt --manifest-path python/Cargo.toml --check
	$(CARGO) clippy $(PYTHON_CARGO) --locked -- -D warnings
	$(VENV)/bin/ruff format --check --quiet python
	$(VENV)/bin/ruff check --quiet python
	$(CARGO) build --locked
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --force-reinstall --no-deps target/wheels/*.whl
	cd python && ../$(VENV)/bin/python -m pytest

# Measures the time until the first answer, for docs/python.md.
bench-python: wheel
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --force-reinstall --no-deps target/wheels/*.whl
	$(VENV)/bin/python python/bench/first_answer.py

# Packs the crates that can be published, and builds each from its package, as `cargo publish` does.
# Nothing is uploaded.
publishable:
	$(CARGO) publish --workspace --dry-run --locked

# The oldest compiler that Cargo.toml promises: a build if it is installed, otherwise a check of the
# versions that the dependencies state.
msrv:
	scripts/msrv.sh

# .ci/run does not run it: the database of advisories is not reachable everywhere, and building
# cargo-deny takes minutes.
audit:
	command -v cargo-deny >/dev/null || $(CARGO) install --locked cargo-deny
	$(CARGO) deny --workspace --all-features check $(AUDIT)

doc:
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --workspace --no-deps --document-private-items --locked

# The site of the documentation, in target/site. .ci/run does not run it: building mdbook takes
# minutes.
MDBOOK_VERSION := 0.5.4
MDBOOK := target/mdbook-$(MDBOOK_VERSION)/bin/mdbook

site: $(MDBOOK)
	$(MDBOOK) build
	scripts/check-site.py target/site

$(MDBOOK):
	$(CARGO) install --locked --no-default-features --features search --root target/mdbook-$(MDBOOK_VERSION) mdbook@$(MDBOOK_VERSION)

setup:
	scripts/setup.sh

setup-tests:
	scripts/setup.sh --tests

clean-fixtures:
	rm -rf target/fixtures target/demo
