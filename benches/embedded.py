"""A model in this process beside llama.cpp's server with the same file and threads: rows and tokens per second, memory.

Usage: embedded.py CHAINETTE LLAMA_SERVER [ROWS [ROUNDS [CORES]]]
The rows are the hand-written reviews of examples/models, numbered so that no two are the same. Both are asked by the same
chain, one after the other in turns, and everything runs on the same CORES processors (default 1: two compute threads of the
server spin against each other on small machines); the server is started and stopped by chainette.
"""

import json
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
MODEL = HERE.parent / "examples/models/reviews.gguf"
CORES = int((sys.argv[5:] or [1])[0])


def chain(engine):
    return {
        "models": {"Grade": {"sentiment": "positive | negative", "topic": "price | quality | delivery | service | size"}},
        "engines": {"e": engine},
        "steps": [{"id": "grade", "engine": "e", "system_prompt": "Grade the product review.", "user_prompt": "Review: {{ text }}",
                   "output_model": "Grade", "sampling": {"temperature": 0, "max_tokens": 40}}],
    }


def resident(pid):
    """KiB of a process and all it started."""
    total = 0
    for entry in pathlib.Path("/proc").iterdir():
        try:
            status = (entry / "status").read_text()
            mine = entry.name == str(pid) or re.search(rf"^PPid:\t{pid}$", status, re.M)
            if mine or "llama-server" in status.splitlines()[0]:
                total += int(re.search(r"VmRSS:\s+(\d+)", status)[1])
        except (OSError, TypeError):
            continue
    return total


def once(chainette, work, name, rows, count):
    out = work / f"{name}-{time.monotonic_ns()}"
    process = subprocess.Popen(["taskset", "-c", f"0-{CORES - 1}", chainette, "run", work / f"{name}.yaml", rows, out, "--json-logs"], stderr=subprocess.PIPE, text=True)
    most, over = 0, threading.Event()

    def watch():
        nonlocal most
        while not over.wait(0.2):
            most = max(most, resident(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    events = [json.loads(line) for line in process.stderr if line.startswith("{")]
    process.wait()
    over.set()
    watcher.join()
    end = next(event for event in events if event["event"] == "run_finished")
    assert end["rows_out"] == count, end
    ready = next(event["ts"] for event in events if event["event"] == "engine_ready")
    began, ended = (time.mktime(time.strptime(ts[:19], "%Y-%m-%dT%H:%M:%S")) + float(ts[19:-1])
                    for ts in (ready, events[-1]["ts"]))
    seconds = ended - began
    tokens = end["tokens"]
    return {"seconds": seconds, "rows_per_s": count / seconds, "tokens_per_s": (tokens["prompt"] + tokens["completion"]) / seconds,
            "mib": most / 1024}


def main():
    chainette, server = (pathlib.Path(path).absolute() for path in sys.argv[1:3])
    count, rounds = int((sys.argv[3:] or [10_000])[0]), int((sys.argv[4:] or [3])[0])
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        texts = [json.loads(line)["text"] for line in (MODEL.parent / "reviews_test.jsonl").open()]
        rows = work / "rows.jsonl"
        rows.write_text("".join(json.dumps({"text": f"{texts[n % len(texts)]} ({n})"}) + "\n" for n in range(count)))
        engines = {
            "embedded": {"backend": "embedded", "model": str(MODEL)},
            **{f"llama-server, {slots} slots": {
                "backend": "llamacpp", "model": str(MODEL), "binary": str(server), "concurrency": slots, "context": 512,
                "flags": ["-t", str(CORES)]} for slots in (4, 16)},
        }
        for name, engine in engines.items():
            (work / f"{name}.yaml").write_text(json.dumps(chain(engine)))
        found = {name: [] for name in engines}
        for _ in range(rounds):
            for name in engines:
                found[name].append(once(chainette, work, name, rows, count))
                print(name, {key: round(value, 1) for key, value in found[name][-1].items()}, flush=True)
        middle = {name: statistics.median(run["rows_per_s"] for run in runs) for name, runs in found.items()}
        best = max(rate for name, rate in middle.items() if name != "embedded")
        print(f"embedded / the faster llama-server: {middle['embedded'] / best:.2f}")


if __name__ == "__main__":
    main()
