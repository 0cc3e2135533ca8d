#!/usr/bin/env bash
# Reruns every figure of BENCHMARKS.md, each beside its peer, in one run.
# Needs: jq, python3, GNU time (apt install jq python3 time), and 3 GB in ${TMPDIR:-/tmp}.
# Usage: benches/figures.sh [applies|step|straggler|processes|parquet|huge|compile|ledger|models|embedding]...   (default: all)
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release --example fake_engine --example huge_batch_demo
# Last and by itself: together with examples it would get what only tests have.
cargo build --release --bins
source benches/common.sh

applies() {
    echo "# 1,000,000 rows x 200 characters, two jq Applies, all outputs written; jq beside it, three times"
    rows 1000000 200 "$work/rows.jsonl"
    for _ in 1 2 3; do
        rm -rf "$work/out"
        timed chainette "$target/chainette" run --quiet benches/two_applies.yaml "$work/rows.jsonl" "$work/out"
        timed jq jq -c '. + {n_chars: (.text | length)} | select(.id % 2 == 0)' "$work/rows.jsonl"
    done
}

step() {
    echo "# 20,000 rows, one Step, a server that answers after 50 ms, 256 in flight, the ledger on; three times"
    rows 20000 80 "$work/rows.jsonl"
    start_server --latency-ms 50
    for ledger in "" "" "" --no-ledger; do
        rm -rf "$work/out"
        timed "chainette $ledger" "$target/chainette" run --quiet $ledger "$work/step.yaml" "$work/rows.jsonl" "$work/out"
    done
    stop_server
}

straggler() {
    echo "# 120,000 rows, one Step at 2,000 rows/s (128 ms, 256 in flight), row 1000 takes 60 s"
    rows 120000 80 "$work/rows.jsonl"
    sed -i '1001s/"text": "/"text": "STRAGGLER /' "$work/rows.jsonl"
    start_server --watch --latency-ms 128 --latency-for STRAGGLER=60000
    rm -rf "$work/out"
    timed chainette "$target/chainette" run "$work/step.yaml" "$work/rows.jsonl" "$work/out"
    grep -E 'rows ·|finished' "$work/stderr" || true
    stop_server
    # While there is enough to do: the seconds in which at least half of the slots are busy, but the first.
    awk '$1 >= 128 { n++; if (n > 1) { sum += $1; seconds++ } }
         END { printf "busy slots: %.1f of 256 (%.1f %%) over %d s\n", sum / seconds, sum / seconds / 2.56, seconds }' \
        "$work/in_flight"
}

processes() {
    echo "# 200,000 rows x 80 characters through one worker of a Python function, and of a program; two times"
    rows 200000 80 "$work/rows.jsonl"
    for _ in 1 2; do
        for kind in python command; do
            rm -rf "$work/out"
            timed "chainette $kind" "$target/chainette" run --quiet "benches/one_$kind.yaml" "$work/rows.jsonl" "$work/out"
        done
    done
}

parquet() {
    echo "# 1,000,000 rows x 80 characters through one jq Apply, as JSON lines and as Parquet; two times"
    rows 1000000 80 "$work/rows.jsonl"
    for _ in 1 2; do
        for format in jsonl parquet; do
            rm -rf "$work/out"
            timed "chainette $format" "$target/chainette" run --quiet --format "$format" benches/one_apply.yaml \
                "$work/rows.jsonl" "$work/out"
            du -sm "$work/out" | cut -f 1 | sed 's/$/ MB written/'
        done
    done
}

huge() {
    echo "# 1,000,000 and 4,000,000 generated rows, two closures, a join (examples/huge_batch_demo.rs)"
    for count in 1000000 4000000; do
        rm -rf "$work/out"
        timed "huge_batch_demo $count" "$target/examples/huge_batch_demo" "$work/out" "$count"
    done
}

compile() {
    echo "# a chain of 300 nodes, half of them Steps, checked and drawn; three times"
    python3 - "$work/long.yaml" <<'PY'
import sys
with open(sys.argv[1], "w") as out:
    out.write('name: long\nengines: {e: {backend: openai, model: m, endpoint: "http://127.0.0.1:1/v1"}}\nsteps:\n')
    for n in range(150):
        out.write(f"  - {{id: s{n}, engine: e, user_prompt: 'rate {{{{ chain_input.text }}}}', output_model: {{label: a | b}}}}\n")
        out.write(f"  - {{id: a{n}, apply: {{jq: '{{label, n: {n}}}'}}}}\n")
PY
    for _ in 1 2 3; do
        timed "inspect, 300 nodes" "$target/chainette" inspect "$work/long.yaml"
    done
}

ledger() {
    bash benches/ledger.sh
}

models() {
    echo "# 10,000 reviews through the demo model in this process, llama-server beside it; one processor"
    python3 benches/embedded.py "$target/chainette" "$(bash tests/real/engine)" 10000 1 1
}

embedding() {
    echo "# 1,000 texts through an embedding model in this process, sentence-transformers beside it; one processor, three rounds"
    python3 -m venv "$work/peer"
    "$work/peer/bin/pip" install -q sentence-transformers==6.2.0 transformers==5.19.0 torch==2.13.0
    "$work/peer/bin/python" benches/embedding.py "$target/chainette" 1000 3 1
}

for figure in "${@:-applies step straggler processes parquet huge compile ledger models embedding}"; do
    for name in $figure; do "$name"; done
done
