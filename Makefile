# `make demo` shows what hoist does; `make test` is all that CI runs. Both need root: they mount.

CARGO ?= cargo
# Seconds for each fuzz target.
FUZZ_SECONDS ?= 20

.PHONY: demo test check bench fuzz deps chroots build deb

demo: deps build
	demo/demo.sh

test: deps chroots check
	$(CARGO) test --workspace
	scripts/containerd-suite

check:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

bench: deps build
	bench/run.sh

fuzz:
	scripts/fuzz $(FUZZ_SECONDS)

deps:
	scripts/deps

chroots:
	scripts/chroots
	scripts/containerd-next

build:
	$(CARGO) build --release --bin hoist --bin hoist-testkit

# target/hoist_VERSION_ARCHITECTURE.deb
deb: deps build
	scripts/deb
