# What people type. Everything installs what it needs on a fresh Debian machine with a Rust toolchain.

.PHONY: all build release image image-test audit fuzz demo test lint manifests bench tools install clean

all: build

# What building and the demo need.
tools:
	@e2e/install.sh

# And what the tests, the benchmarks and the lints need, such as a virtual machine with a kernel of its own.
install:
	@e2e/install.sh --machine

build:
	cargo build --locked

# The static binary that ships, in target/TARGET/release.
release: tools
	@deploy/build

# The image, with docker, podman or buildah; where none works, podman is installed.
image:
	@e2e/install.sh --image
	@deploy/image

# The image as the chart runs it, with podman and runc; part of CI.
image-test: install
	@e2e/image-test

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
	grep --recursive --files-with-matches --binary-files=without-match --extended-regexp '^#!.*[/ ](ba)?sh$$' \
		.ci deploy e2e fuzz/run | xargs shellcheck

# Licences, sources and duplicates of what the binary is linked from.
audit: tools
	@command -v cargo-deny >/dev/null || cargo install --quiet --locked --debug --version 0.20.2 cargo-deny
	cargo deny --log-level=error check licenses bans sources

# Half a minute for each fuzz target; in CI (FUZZ=short) some seconds with the same inputs each time.
fuzz: install
	@fuzz/run $(FUZZ)

# deploy/ and the table in the chart's README, from the chart. A test fails when they are stale.
manifests: install
	@e2e/python e2e/chart/chart.py

# Measures, prints tables, asserts nothing. What needs IPVS is measured in the virtual machine.
bench: install
	cargo bench --locked

clean:
	cargo clean
