# make demo    installs what is missing, builds, makes a small guest and maps it
# make check   installs what is missing and runs all tests
# make check-quick    runs the tests that take seconds
# make check-system   runs the other tests that need no appliance
# make fleet-check    maps a fleet of twenty guests
# make torture        maps corrupted guests
# make update-torture    updates maps of guests that change at random
# make plugin  builds the plugin for nbdkit
# make audit   checks licences, sources and versions of the dependencies with cargo-deny
# make build, install [PREFIX=/usr/local DESTDIR=], man, accuracy, bench, bench-trace
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

# On a CI machine a skipped test is a failure.
ifeq ($(CI),true)
export VIRT_BMAP_REQUIRE_TOOLS := 1
endif

.PHONY: site demo check check-all check-quick check-system check-appliance check-others check-accuracy check-corrupted check-changed accuracy torture update-torture fleet-check build plugin install man bench bench-trace instructions fmt lint typos msrv audit doc setup setup-tests clean-fixtures compare-maps

demo: setup build
	mkdir -p $(DEMO)
	test -e $(DEMO)/guest.raw || scripts/make-demo-guest.sh $(DEMO)/guest.raw
	cd $(DEMO) && ../../$(BIN) guest.raw
	scripts/show-map.sh $(DEMO)/guest.bmap

check: setup-tests
	$(STEP) check $(MAKE) check-all

check-all:
	$(STEP) check-quick $(MAKE) check-quick
	$(STEP) check-system $(MAKE) check-system
	$(STEP) check-appliance $(MAKE) check-appliance

# Tests without an appliance, which take seconds. The plugin has no unit tests: they would not link
# without nbdkit's functions, so the program "quick" tests it in nbdkit.
check-quick:
	$(STEP) build $(CARGO) build --workspace --lib --examples
	$(STEP) "unit tests" $(CARGO) test --workspace --exclude virt-bmap-nbdkit --lib --bins --examples
	$(STEP) "documentation tests" $(CARGO) test --workspace --doc
	$(STEP) "link quick" $(TEST) --no-run --test quick --test messages
	$(STEP) quick $(TEST) --test quick --test messages

# Tests without an appliance that wait for other programs: browsers, terminals, batch systems.
check-system:
	$(STEP) "link system" $(TEST) --no-run --test system
	$(STEP) system $(TEST) --test system

# Tests with real appliances on real images, which take minutes: one program after the other, three
# tests at a time, since some wait for a time limit. After a failure the other programs still run.
# "accuracy" and "torture" print their output when they end.
GUESTS := appliance failures mapping layers metadata changes tracing live
.PHONY: $(addprefix check-with-,$(GUESTS))

check-appliance:
	$(STEP) "link appliance" $(TEST) --no-run $(addprefix --test ,$(GUESTS)) --test accuracy --test torture
	$(MAKE) --keep-going $(addprefix check-with-,$(GUESTS)) check-others

$(addprefix check-with-,$(GUESTS)): check-with-%:
	$(STEP) $* $(TEST) --test $* -- --test-threads=3

check-others:
	$(STEP) "accuracy, torture" $(MAKE) --jobs=2 --keep-going --output-sync=target check-accuracy check-corrupted check-changed

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
	if command -v shellcheck >/dev/null; then shellcheck scripts/*.sh .ci/run; fi

# Spelling. PyPI has a wheel of the program for every machine.
typos: $(TYPOS)
	$(TYPOS)

$(TYPOS):
	python3 -m venv target/typos-$(TYPOS_VERSION)
	target/typos-$(TYPOS_VERSION)/bin/pip install --quiet --disable-pip-version-check typos==$(TYPOS_VERSION)

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
	scripts/setup-debian.sh

setup-tests:
	scripts/setup-debian.sh --tests

clean-fixtures:
	rm -rf target/fixtures target/demo
