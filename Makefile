# make demo    installs what is missing, builds, makes a small guest and maps it
# make check   installs what is missing and runs all tests
# make fleet-check    maps a fleet of twenty guests; make torture  maps corrupted guests
# make update-torture    updates maps of guests that are changed at random
# make plugin  builds the plugin for nbdkit
# make build, install [PREFIX=/usr/local DESTDIR=], man, accuracy, bench, bench-trace, instructions, fmt, lint, doc, clean-fixtures

PREFIX ?= /usr/local
CARGO ?= cargo
# Where nbdkit looks for plugins if it has the same prefix.
NBDKIT_PLUGINS = $(PREFIX)/lib/nbdkit/plugins
# Where the installer of the Rust toolchain puts it, for shells that were started before.
export PATH := $(HOME)/.cargo/bin:$(PATH)

BIN := target/release/virt-bmap-rs
PLUGIN := target/release/nbdkit-bmaplogger-plugin.so
DEMO := target/demo

# The tests that start an appliance, and those that do not. The latter run first.
ALL_TESTS := $(sort $(basename $(notdir $(wildcard tests/*.rs))) $(patsubst tests/%/main.rs,%,$(wildcard tests/*/main.rs)))
APPLIANCE_TESTS := $(filter map_% accuracy,$(ALL_TESTS))
OTHER_TESTS := $(filter-out $(APPLIANCE_TESTS),$(ALL_TESTS))

# On a CI machine a test that cannot run is a failure.
ifeq ($(CI),true)
export VIRT_BMAP_REQUIRE_TOOLS := 1
endif

.PHONY: demo check check-quick check-appliance accuracy torture update-torture fleet-check build plugin install man bench bench-trace instructions fmt lint doc setup setup-tests clean-fixtures

demo: setup build
	mkdir -p $(DEMO)
	test -e $(DEMO)/guest.raw || scripts/make-demo-guest.sh $(DEMO)/guest.raw
	cd $(DEMO) && ../../$(BIN) guest.raw
	scripts/show-map.sh $(DEMO)/guest.bmap

check: setup-tests
	$(MAKE) check-quick
	$(MAKE) check-appliance

# Seconds: library, agent, protocol, formats. The plugin is tested in nbdkit: a program of its own tests would lack
# nbdkit's functions.
check-quick:
	$(CARGO) build --workspace --lib --examples
	$(CARGO) test --workspace --exclude virt-bmap-nbdkit --lib --bins --examples
	$(CARGO) test --workspace --doc
	$(if $(OTHER_TESTS),$(CARGO) test $(addprefix --test ,$(OTHER_TESTS)))

# Minutes: real appliances on real images, two at a time. What a test program prints comes when it ends.
check-appliance:
	$(CARGO) test --no-run $(addprefix --test ,$(APPLIANCE_TESTS))
	$(MAKE) --jobs=2 --keep-going --output-sync=target $(addprefix check-appliance-,$(APPLIANCE_TESTS))

check-appliance-%:
	RUST_TEST_THREADS=1 $(CARGO) test --test $*

build:
	$(CARGO) build --release --locked

# Cargo has its own names for shared libraries; nbdkit wants this one.
plugin:
	$(CARGO) build --release --locked -p virt-bmap-nbdkit
	cp target/release/libnbdkit_bmaplogger_plugin.so $(PLUGIN)

# The plugin only where it was built.
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

# Makes and maps guests with every filesystem and layer; writes docs/accuracy.md. Takes half an hour under emulation.
accuracy: setup-tests
	$(CARGO) test --test accuracy -- --all

fleet-check: setup-tests
	VIRT_BMAP_FLEET=20 $(CARGO) test --test map_fleet

# Maps a guest fifty times, each time with every filesystem in it corrupted in another way. Half an hour under emulation.
torture: setup-tests
	$(CARGO) test --test map_torture -- --all

update-torture: setup-tests
	$(CARGO) test --test map_update_torture -- --all

bench: setup-tests
	$(CARGO) bench

# What tracing costs: renews the tables of docs/trace.md. Three minutes on a machine that does nothing else.
bench-trace: setup-tests
	scripts/bench-trace.sh --write

# How many instructions the map's code takes, which no other work on the machine changes.
instructions: setup-tests build
	scripts/instructions.sh --write

fmt:
	$(CARGO) fmt --all --check

lint:
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	if command -v shellcheck >/dev/null; then shellcheck scripts/*.sh .ci/run; fi

doc:
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --workspace --no-deps --document-private-items --locked

setup:
	scripts/setup-debian.sh

setup-tests:
	scripts/setup-debian.sh --tests

clean-fixtures:
	rm -rf target/fixtures target/demo
