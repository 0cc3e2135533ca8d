# Lists the recipes.
default:
    @just --list

# The full kill test: 30,000 rows × 3 Steps, 1,000 kills, as JSON lines and as Parquet.
soak:
    cargo build --release
    CHAINETTE_SOAK=1 CHAINETTE_BIN="${CARGO_TARGET_DIR:-target}/release/chainette" cargo test --test it kill -- --nocapture --test-threads=1

# An hour at full speed with faults and restarts; draws benches/soak.svg.
soak-hour seconds="3600":
    cargo build --release --example fake_engine
    cargo build --release --bins
    python3 benches/soak.py --seconds {{seconds}}

# Chains on a real llama.cpp server.
real:
    cargo build --release
    bash tests/real/run

# Every figure of BENCHMARKS.md.
figures:
    bash benches/figures.sh
