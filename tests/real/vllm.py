"""Lives of a real vLLM server that chainette runs. Usage: vllm.py CHAINETTE VLLM WORK FIELDS ENVIRONMENT (see vllm.sh)."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

BINARY, VLLM, WORK = (pathlib.Path(arg).absolute() for arg in sys.argv[1:4])
FIELDS, ENVIRONMENT = sys.argv[4:6]
MARK = str(WORK)
CHAIN = f"""
engines:
  tiny:
    backend: vllm
    model: ./tiny
    binary: {VLLM}
    max_model_len: 1024
    {chr(10).join('    ' + field.strip() for field in FIELDS.split(',') if field.strip()).strip()}
    flags: [--enforce-eager]
    concurrency: 8
    memory: {{ram: 4GiB}}
    startup_timeout: 10min
    env: {{{ENVIRONMENT} HF_HUB_OFFLINE: "1", VLLM_NO_USAGE_STATS: "1", DO_NOT_TRACK: "1", VLLM_HOST_IP: 127.0.0.1}}
steps:
  - id: grade
    engine: tiny
    user_prompt: "Grade {{{{ text }}}}"
    output_model: {{label: good | bad, sure: boolean}}
    sampling: {{temperature: 0.8, max_tokens: 80, seed: 7}}
"""


def processes() -> dict:
    found = {}
    for entry in pathlib.Path("/proc").iterdir():
        try:
            environment = (entry / "environ").read_bytes().decode(errors="replace")
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except (OSError, IndexError):
            continue
        if entry.name.isdigit() and "CHAINETTE_ENGINE=" in environment and state != "Z":
            found[int(entry.name)] = " ".join(words)[:120]
    return found


def until(what: str, reached, patience: float = 600):
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if found := reached():
            return found
        time.sleep(0.2)
    told = [line for path in sorted(WORK.glob("*.events")) for line in path.read_text().splitlines()[-30:]]
    raise AssertionError("\n".join([*told, f"no {what}"]))


def gone(what: str) -> None:
    until(f"end of every process of vLLM after {what}", lambda: not processes(), 30)
    print(f"{what}: nothing is left")


def run(out: str, count: int):
    rows = WORK / f"{count}.jsonl"
    # Once: an input that was touched is another input.
    if not rows.exists():
        rows.write_text("".join(json.dumps({"text": f"thing {n}"}) + "\n" for n in range(count)))
    log = (WORK / f"{out}.events").open("ab")
    return subprocess.Popen([BINARY, "run", WORK / "chain.yaml", rows, WORK / out, "--json-logs"], stderr=log)


def events(out: str, name: str) -> list:
    lines = (WORK / f"{out}.events").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == name]


def finished(out: str, process, count: int) -> None:
    code = process.wait(timeout=1800)
    text = (WORK / f"{out}.events").read_text()
    assert code in (0, 3), text[-6000:]
    end = events(out, "run_finished")[-1]
    assert end["rows_in"] == count, end
    kinds = {event["kind"] for event in events(out, "rows_failed")}
    assert kinds <= {"invalid_output", "truncated", "runaway"}, kinds
    subprocess.run([BINARY, "verify", WORK / out], check=True, stdout=subprocess.DEVNULL)
    print(f"{out}: {end['rows_out']} of {count} rows out, {end['rows_failed']} failed {sorted(kinds)}, {end['seconds']:.0f} s")


def answers(out: str) -> int:
    return sum(path.stat().st_size for path in (WORK / out).glob(".chainette/answers/*"))


def main() -> None:
    (WORK / "chain.yaml").write_text(CHAIN)
    start = time.monotonic()
    process = run("plain", 60)
    until("server", lambda: events("plain", "engine_ready"))
    print(f"ready after {time.monotonic() - start:.0f} s; processes: {sorted(processes().values())}")
    finished("plain", process, 60)
    gone("a run")

    process = run("crash", 200)
    until("answers", lambda: answers("crash") > 1000)
    server = next(pid for pid, words in processes().items() if " serve " in words and "__" not in words)
    os.kill(server, signal.SIGKILL)
    until("crash told", lambda: events("crash", "engine_crashed"))
    finished("crash", process, 200)
    gone("a crash and a run")

    process = run("stop", 400)
    until("answers", lambda: answers("stop") > 1000)
    # With requests in flight: its API process waits for its clients before it ends.
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 130
    gone("SIGTERM with requests in flight")
    process = run("stop", 400)
    until("server again", lambda: len(events("stop", "engine_ready")) >= 2 or process.poll() is not None)
    assert process.poll() is None, events("stop", "error")
    process.kill()
    process.wait()
    gone("kill -9 of chainette")
    process = run("stop", 400)
    finished("stop", process, 400)
    gone("the resumed run")


if __name__ == "__main__":
    main()
