# What people type. Everything installs what it needs on a fresh Debian machine with a Rust toolchain.

.PHONY: all build release demo test lint bench tools install clean

all: build

# What building and the demo need.
tools:
	@e2e/install.sh

# And what the tests and the benchmarks need: a virtual machine with a kernel of its own.
install:
	@e2e/install.sh --machine

build:
	cargo build --locked

release:
	cargo build --locked --release

# Nodes, pods and a client as network namespaces; the proxy programs the node and traffic flows.
demo: tools build
	@e2e/demo.sh target/debug/sluice

# All tests. Those that need a kernel make their own network namespaces; without root they say so and
# pass, but not in CI.
test: install
	cargo test --locked

lint:
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings

# Measures, prints tables, asserts nothing. What needs IPVS is measured in the virtual machine.
bench: install
	cargo bench --locked

clean:
	cargo clean
