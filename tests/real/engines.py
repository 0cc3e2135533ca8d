"""Engines that chainette starts itself, on a real llama.cpp server: crashes, warm engines, two models in the room of one.

Usage: engines.py CHAINETTE LLAMA_SERVER WORK [SCENARIO...]
After every scenario nothing may be left: no process, PID file, handoff or port.
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import check
import tiny_gguf

BINARY, SERVER, WORK = (pathlib.Path(arg).resolve() for arg in sys.argv[1:4])
STATE = WORK / "state" / "chainette" / "engines"
ENV = {**os.environ, "XDG_STATE_HOME": str(WORK / "state"), "NO_COLOR": "1"}
PATIENCE = 120
SAMPLING = "sampling: {temperature: 0.8, max_tokens: 60, seed: 7}"
# A model of noise may run in white space or be cut: some rows fail by that, and by nothing else.
NOISE = {"invalid_output", "truncated", "runaway"}


def engine(name: str, more: str = "") -> str:
    # One compute thread: two spin against each other on small machines.
    return (
        f"  {name}: {{backend: llamacpp, model: ./{name}.gguf, binary: {SERVER}, concurrency: 2, "
        f"context: 1024, flags: [-t, '1']{more}}}\n"
    )


def branches() -> str:
    """Two engines on two models, and three branches that run side by side."""

    def branch(alias: str, name: str) -> str:
        return (
            f"      - branch: {alias}\n        join: {alias}\n        steps:\n"
            f"          - {{id: say_{alias}, engine: {name}, user_prompt: '{alias} {{{{ chain_input.text }}}}', "
            f"output_model: {{lang: fr | en, ok: boolean}}, {SAMPLING}}}\n"
        )

    both = "engines:\n" + engine("one") + engine("two")
    return both + "steps:\n  - parallel:\n" + branch("fr", "one") + branch("de", "two") + branch("it", "one")


def in_line(resources: str = "", more: str = "") -> str:
    """One model after the other."""

    def step(name: str, at: str) -> str:
        return (
            f"  - {{id: {name}, engine: {at}, user_prompt: '{name} {{{{ chain_input.text }}}}', "
            f"output_model: {{ok: boolean}}, {SAMPLING}}}\n"
        )

    both = f"{resources}engines:\n" + engine("one", more) + engine("two", more)
    return both + "steps:\n" + step("first", "one") + step("second", "two")


def write(name: str, text: str) -> pathlib.Path:
    path = WORK / f"{name}.yaml"
    path.write_text(text)
    return path


def rows(count: int) -> pathlib.Path:
    path = WORK / f"rows-{count}.jsonl"
    words = "great broken fast slow cheap noisy pretty heavy useless perfect".split()
    with path.open("w") as out:
        for n in range(count):
            text = " ".join(words[(n * k) % 10] for k in (1, 3, 7))
            out.write(json.dumps({"text": f"{n} {text}", "n": n}) + "\n")
    return path


class Run:
    """A run with its events."""

    def __init__(self, chain: pathlib.Path, count: int, out: str, *flags: str):
        self.out, self.count = WORK / out, count
        self.log = WORK / f"{out}.events"
        command = [BINARY, "run", chain, rows(count), self.out, "--json-logs", *flags]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stderr=log, stdout=subprocess.DEVNULL, env=ENV, cwd=WORK)

    def events(self, name: str) -> list:
        lines = self.log.read_text().splitlines()
        events = (json.loads(line) for line in lines if line.endswith("}"))
        return [event for event in events if event["event"] == name]

    def answers(self) -> int:
        return sum(path.stat().st_size for path in self.out.glob(".chainette/answers/*"))

    def further(self, size: int) -> None:
        seen = self.answers()
        until("further answers", lambda: self.answers() > seen + size)

    def finish(self) -> None:
        code = self.process.wait(timeout=600)
        assert code in (0, 3), f"exit {code}\n" + self.log.read_text()[-4000:]
        check.main(self.out, self.count, 0.5)
        subprocess.run([BINARY, "verify", self.out], check=True, env=ENV, stdout=subprocess.DEVNULL)
        kinds = {event["kind"] for event in self.events("rows_failed")}
        assert kinds <= NOISE, f"an engine cost rows: {kinds}"


def until(what: str, reached, patience: float = PATIENCE):
    end = time.monotonic() + patience
    while time.monotonic() < end:
        found = reached()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"no {what} within {patience} s")


def processes():
    """Every living process: its PID and its command line."""
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if state != "Z":
            yield int(entry.name), words


def servers() -> dict:
    """Every llama-server on models of ours, by PID: its port."""
    ours = (
        (pid, words)
        for pid, words in processes()
        if pathlib.Path(words[0]).name == SERVER.name and any(str(WORK) in word for word in words)
    )
    return {pid: int(words[words.index("--port") + 1]) for pid, words in ours}


def guards() -> list:
    return [pid for pid, words in processes() if len(words) > 1 and words[1] in ("__guard", "__exec")]


def files(folder: pathlib.Path) -> list:
    kinds = (".pid", ".json", ".sock")
    return [path.name for path in folder.glob("*-*") if path.suffix in kinds] if folder.exists() else []


def nothing_left(*outs: pathlib.Path) -> None:
    until("end of all servers and guards", lambda: not servers() and not guards(), 30)
    for folder in (STATE, *(out / ".chainette" / "engines" for out in outs)):
        assert not files(folder), f"{folder}: {files(folder)}"


def ask(*command: str) -> str:
    done = subprocess.run([BINARY, *command], env=ENV, cwd=WORK, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def crashes() -> None:
    """A server is killed three times; no row is lost, and nothing is left."""
    run = Run(write("branches", branches()), 600, "crashes")
    for n in range(3):
        run.further(2000)
        # Ready ones: each has left its handoff.
        folder = run.out / ".chainette" / "engines"
        ready = until("two servers", lambda: found if len(found := sorted(folder.glob("*.json"))) == 2 else None)
        os.kill(json.loads(ready[n % 2].read_text())["pid"], signal.SIGKILL)
        until("crash told", lambda: len(run.events("engine_crashed")) == n + 1)
    run.finish()
    nothing_left(run.out)


def killed() -> None:
    """chainette itself is killed; its servers go with it, and the same command goes on."""
    chain = write("branches", branches())
    run = Run(chain, 300, "killed")
    run.further(4000)
    ports = list(servers().values())
    assert len(ports) == 2, ports
    run.process.kill()
    run.process.wait()
    until("end of the servers", lambda: not servers() and not guards(), 30)
    for port in ports:
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)), f"port {port} is still served"
    again = Run(chain, 300, "killed")
    again.finish()
    nothing_left(again.out)


def warm() -> None:
    """`engine up`, two runs that bind to it, reload and drain while a run is under way, `engine down`."""
    chain = write("warm", in_line())
    ask("engine", "up", str(chain))
    up = servers()
    assert len(up) == 2, up
    status = json.loads(ask("engine", "status", "--json"))
    assert len(status["engines"]) == 2, status
    for out in ("warm-1", "warm-2"):
        Run(chain, 60, out).finish()
        assert servers() == up, "a run started or stopped a server"
    run = Run(chain, 300, "reloaded")
    run.further(2000)
    ask("engine", "reload", "--pool", "one")
    until("another server", lambda: len(servers()) == 2 and servers().keys() != up.keys())
    run.further(2000)
    ask("engine", "drain", "--pool", "two")
    # The run starts a server of its own where the warm one has gone.
    run.finish()
    ask("engine", "down", "--all")
    nothing_left(run.out)


def one_at_a_time() -> None:
    """Two models and room for one: one switch for all rows, not one for each chunk."""
    chain = write("switching", in_line("resources: {ram: 1500MiB}\n", ", memory: {ram: 1GiB}"))
    run = Run(chain, 400, "switching", "--batch-size", "16")
    most = 0
    while run.process.poll() is None:
        most = max(most, len(servers()))
        time.sleep(0.02)
    run.finish()
    assert most == 1, f"{most} servers at the same time"
    finished = run.events("run_finished")[-1]
    ready = run.events("engine_ready")
    assert finished["switches"] <= 2 and len(ready) <= 3, (finished, ready)
    nothing_left(run.out)


SCENARIOS = (crashes, killed, warm, one_at_a_time)


def main() -> None:
    for seed, model in enumerate(("one", "two"), start=7):
        tiny_gguf.main(str(WORK / f"{model}.gguf"), seed)
    asked = sys.argv[4:]
    for scenario in SCENARIOS:
        if asked and scenario.__name__ not in asked:
            continue
        start = time.monotonic()
        scenario()
        print(f"{scenario.__name__}: holds, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    try:
        main()
    finally:
        subprocess.run([BINARY, "engine", "down", "--all"], env=ENV, capture_output=True)
