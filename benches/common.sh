# Shared by the scripts behind BENCHMARKS.md: builds, a folder for the work, generated rows, a timed command, the test
# server. Sourced, from the root of the repository.
target=${CARGO_TARGET_DIR:-target}/release
work=$(mktemp -d)
server=
cleanup() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT

rows() { # rows COUNT CHARS FILE
    python3 - "$@" <<'PY'
import json, random, sys
random.seed(1)
letters = "abcdefghijklmnopqrstuvwxyz     "
with open(sys.argv[3], "w") as out:
    for n in range(int(sys.argv[1])):
        out.write(json.dumps({"id": n, "text": "".join(random.choices(letters, k=int(sys.argv[2])))}) + "\n")
PY
}

timed() { # timed NAME COMMAND...
    local name=$1
    shift
    /usr/bin/time -f "$name: %e s, %U s user, %S s system, %M KB peak" "$@" >"$work/stdout" 2>"$work/stderr" || {
        cat "$work/stderr"
        return 1
    }
    tail -n 1 "$work/stderr"
}

start_server() { # start_server ARGS...: fills its endpoint into $work/step.yaml
    : >"$work/url"
    "$target/examples/fake_engine" "$@" >"$work/url" 2>"$work/in_flight" &
    server=$!
    until [ -s "$work/url" ]; do sleep 0.05; done
    sed "s#ENDPOINT#$(head -n 1 "$work/url")#" benches/one_step.yaml >"$work/step.yaml"
}

stop_server() {
    kill "$server"
    wait "$server" 2>/dev/null || true
    server=
}
