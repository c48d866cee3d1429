# Holdfast's commands. `make` alone lists them.

# Linting and testing are done with one profile: they share what they can.
PROFILE := ci
# `make` finds cargo also where only a new shell would.
export PATH := $(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin
TARGET := $(or $(CARGO_TARGET_DIR),target)
ROUNDS ?= 50
SECONDS ?= 60

.DEFAULT_GOAL := help
.PHONY: help demo test lint soak fuzz bench format build clean
.SILENT: help

help: ## Lists these commands.
	echo 'Holdfast: make TARGET'
	sed -n 's/^\([a-z]*\):[^#]*## \(.*\)$$/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

demo: ## Protects a PostgreSQL server under load, loses it, and brings it back twice: about a minute after the build.
	scripts/install-deps.sh demo
	cargo build --locked --release -p holdfast -p holdfast-lab
	scripts/demo.sh $(TARGET)/release

test: ## Installs what is missing, and runs all tests against real PostgreSQL servers. What has to pass.
	scripts/install-deps.sh
	scripts/install-postgres-18.sh
	scripts/install-azurite.sh
	cargo test --locked --workspace --doc --profile $(PROFILE) --quiet
	cargo nextest run --locked --workspace --cargo-profile $(PROFILE)

lint: ## Checks layout, lints, scripts and documentation. Changes nothing.
	scripts/install-deps.sh lint
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets --profile $(PROFILE) -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --workspace --no-deps --document-private-items --profile $(PROFILE)
	cargo fmt --manifest-path fuzz/Cargo.toml --check
	shellcheck .ci/run scripts/*.sh fuzz/*.sh

soak: ## Repeats the random accidents, and decodes PostgreSQL's own tests: `make soak ROUNDS=500`, default 50. Takes hours.
	scripts/install-deps.sh
	scripts/install-postgres-18.sh
	scripts/install-azurite.sh
	scripts/fetch-regress.sh 15 18
	cargo nextest run --locked -p holdfast-changes --cargo-profile $(PROFILE) --run-ignored only
	HOLDFAST_ROUNDS=$$(($(ROUNDS) * 200)) cargo nextest run --locked -p holdfast-repository --test expiry --cargo-profile $(PROFILE) --profile soak
	HOLDFAST_ROUNDS=$(ROUNDS) cargo nextest run --locked -p holdfast --test scenario --cargo-profile $(PROFILE) --profile soak

fuzz: ## Feeds every decoder with what nobody would write: `make fuzz SECONDS=600`, for each of them, default 60.
	scripts/install-deps.sh
	fuzz/run.sh $(SECONDS) $(ONLY)

bench: ## Measures against other tools: `make bench ONLY=full SIZE_GIB=8` a part of it, at that size.
	scripts/install-deps.sh bench
	cargo build --locked --release -p holdfast -p holdfast-lab
	cargo build --locked --release -p holdfast-testkit --example s3_server
	python3 bench/run.py $(if $(ONLY),--only $(ONLY)) $(if $(SIZE_GIB),--size-gib $(SIZE_GIB))

format: ## Lays out the code as `make lint` wants it.
	cargo fmt --all
	cargo fmt --manifest-path fuzz/Cargo.toml

build: ## Builds the program for use: target/release/holdfast.
	cargo build --locked --release -p holdfast

clean: ## Removes everything that was built or measured, but not what was installed.
	cargo clean
	rm -rf bench/work fuzz/target fuzz/corpus
