# Lists the recipes.
default:
    @just --list

# The full kill test: 20,000 rows × 2 Steps, 100 kills.
soak:
    cargo build --release
    CHAINETTE_SOAK=1 CHAINETTE_BIN="${CARGO_TARGET_DIR:-target}/release/chainette" cargo test --test it kill -- --nocapture --test-threads=1

# Chains on a real llama.cpp server.
real:
    cargo build --release
    bash tests/real/run

# Every figure of BENCHMARKS.md.
figures:
    bash benches/figures.sh
