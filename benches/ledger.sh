#!/usr/bin/env bash
# What the ledger costs, how soon a run of many done rows goes on, and what its index takes in memory.
# Needs: python3, GNU time (apt install python3 time), and about 1.5 KB per row in ${TMPDIR:-/tmp}.
# Usage: benches/ledger.sh [cost|resume]...   (default: both)
#   ROWS   done rows of two Steps that are resumed (1000000)
#   PAIRS  runs with the ledger, each beside one without (7), of COST_ROWS rows (100000)
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release --example fake_engine
# Last and by itself: together with an example it would get what only tests have.
cargo build --release --bins
source benches/common.sh
ROWS=${ROWS:-1000000}
PAIRS=${PAIRS:-7}
COST_ROWS=${COST_ROWS:-100000}
more=1000

cost() {
    echo "# $COST_ROWS rows, one Step, a server without latency, 256 in flight; with the ledger and with --no-ledger, $PAIRS times in turn"
    rows "$COST_ROWS" 80 "$work/rows.jsonl"
    start_server --forget
    local ledger pair
    # The first pair warms up.
    for pair in $(seq 0 "$PAIRS"); do
        for ledger in "" --no-ledger; do
            rm -rf "$work/out"
            sync
            /usr/bin/time -a -o "$work/times" -f "$pair ${ledger:---ledger} %e %U %S" \
                "$target/chainette" run --quiet $ledger "$work/step.yaml" "$work/rows.jsonl" "$work/out"
        done
    done
    stop_server
    python3 - "$work/times" "$COST_ROWS" <<'PY'
import statistics, sys
rates, cpu, rows = {}, {}, int(sys.argv[2])
for line in open(sys.argv[1]):
    pair, kind, seconds, user, system = line.split()
    if pair != "0":
        rates.setdefault(kind, []).append(rows / float(seconds))
        cpu.setdefault(kind, []).append((float(user) + float(system)) / rows * 1e6)
for kind in rates:
    print(f"{kind[2:]}: {' '.join(f'{rate:,.0f}' for rate in rates[kind])} rows/s, median {statistics.median(rates[kind]):,.0f}; "
          f"CPU time a row {statistics.median(cpu[kind]):.1f} us (median)")
for name, of in [("rows/s", rates), ("CPU time a row", cpu)]:
    ratios = sorted(kept / thrown for kept, thrown in zip(of["--ledger"], of["--no-ledger"]))
    print(f"{name}, ledger / no-ledger by pair: {' '.join(f'{ratio:.3f}' for ratio in ratios)}; median {statistics.median(ratios):.3f}")
PY
}

first_request() { # first_request NAME SECONDS ARGS...
    local name=$1 seconds=$2 told
    shift 2
    sync
    told=$(python3 benches/first_request.py "$target/examples/fake_engine" "$port" "$seconds" \
        "$target/chainette" run --quiet "$@")
    echo "$name: $told" | tee -a "$work/resumes"
}

resume() {
    echo "# $ROWS done rows of two Steps, and $more more to do"
    rows "$((ROWS + more))" 80 "$work/rows.jsonl"
    start_server --forget
    sed -e "s#ENDPOINT#$(head -n 1 "$work/url")#" benches/two_steps.yaml >"$work/two.yaml"
    sed -e 's#WORDING#Be brief.#' "$work/two.yaml" >"$work/edited.yaml"
    # The port stays, or it would be another chain.
    port=$(head -n 1 "$work/url" | sed -E 's#.*:([0-9]+)/.*#\1#')
    timed "run to the $ROWS rows" "$target/chainette" run --quiet --limit "$ROWS" "$work/two.yaml" "$work/rows.jsonl" "$work/done"
    stop_server
    echo "ledger: $(du -sb "$work/done/.chainette/answers" | cut -f 1) bytes for $((2 * ROWS)) answers"
    : >"$work/resumes"
    first_request "nothing done, 20 s" 20 "$work/two.yaml" "$work/rows.jsonl" "$work/fresh"
    rm -rf "$work/fresh"
    first_request "a larger --limit" 0 --limit "$((ROWS + more / 2))" "$work/two.yaml" "$work/rows.jsonl" "$work/done"
    first_request "the same command, stopped at once" 0.01 "$work/two.yaml" "$work/rows.jsonl" "$work/done"
    first_request "and resumed" 0 "$work/two.yaml" "$work/rows.jsonl" "$work/done"
    rows "$more" 81 "$work/appended.jsonl"
    cat "$work/appended.jsonl" >>"$work/rows.jsonl"
    first_request "rows appended, --resume" 0 --resume "$work/two.yaml" "$work/rows.jsonl" "$work/done"
    first_request "the last Step edited, --resume, 20 s" 20 --resume "$work/edited.yaml" "$work/rows.jsonl" "$work/done"
    python3 - "$work/resumes" "$ROWS" <<'PY'
import json, sys
lines = dict(line.rsplit(": {", 1) for line in open(sys.argv[1]))
fresh, *_, edited = (json.loads("{" + text)["peak_kb"] for text in lines.values())
answers = 2 * int(sys.argv[2])
print(f"index: {(edited - fresh) * 1024 / answers:.1f} bytes of memory for each of {answers} answers "
      f"(peak of the edited run, less that of one from nothing)")
PY
}

for figure in "${@:-cost resume}"; do
    for name in $figure; do "$name"; done
done
