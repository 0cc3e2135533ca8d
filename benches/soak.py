#!/usr/bin/env python3
"""An hour of chainette at full speed, with faults and restarts: what it holds must stay flat.

Lap after lap, in the same OUT: a run of three Steps and a Python Apply over generated rows, against tests/fake_engine
without latency and with faults. It is killed (-9), terminated and interrupted several times and resumed, and when it
is done, every row is accounted for. Every few seconds the memory, open files, threads and children of the running
chainette and the size of its ledger are written to a CSV; at the end an SVG is drawn of them.

Exit 1 when a lap went wrong, a process was left behind, or something grew. Python's standard library only; Linux.

    cargo build --release --example fake_engine
    cargo build --release --bins
    python3 benches/soak.py --seconds 3600
"""

import argparse
import csv
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
COLUMNS = ["seconds", "lap", "pid", "age", "rss_mb", "fds", "sockets", "threads", "children", "answers", "ledger_bytes",
           "bytes_per_answer", "rows", "rows_per_s", "answers_per_s", "server_rss_mb"]
# The first seconds of a process: connections are opened, workers start, the ledger is read.
WARM = 10
# A process that lived as long shows whether it grows with its age.
LONG = 60
# What the index of the ledger may take for an answer that came in meanwhile.
INDEX_BYTES = 40
LETTERS = "abcdefghijklmnopqrstuvwxyz     "

CHAIN = """\
name: soak
models:
  Grade: {{label: a | b | c, score: integer}}
  Note: {{text: string, words: "[string]"}}
engines:
  fake: {{backend: openai, model: fake, endpoint: "{endpoint}", concurrency: {concurrency}}}
steps:
  - id: grade
    engine: fake
    user_prompt: "Grade {{{{ id }}}}: {{{{ text }}}}"
    output_model: Grade
  - {{id: parts, apply: {{python: "parts.py:parts", workers: 2}}}}
  - parallel:
      - branch: side
        join: side
        when: parts.score % 3 != 0
        steps:
          - id: note
            engine: fake
            user_prompt: "Note {{{{ row_id }}}}: {{{{ part }}}} {{{{ grade.label }}}}"
            output_model: Note
            on_error: "null"
  - id: digest
    engine: fake
    user_prompt: "Digest {{{{ row_id }}}}: {{{{ parts.part }}}} / {{{{ side }}}}"
    output_model: Grade
    retries: {{transport: 1, output: 1}}
"""

PARTS = '''\
"""Fans out, filters, and fails now and then."""


def parts(item, row):
    n = row["chain_input"]["id"]
    if n % 53 == 5:
        raise ValueError(f"no part of {n}")
    words = row["chain_input"]["text"].split()
    count = n % 8 and 1 + (n % 8 == 7)
    return [{"part": " ".join(words[k::count]), "score": item["score"], "k": k} for k in range(count)]
'''


class Gone(Exception):
    """The process that was looked at has ended."""


class Failed(Exception):
    """The soak has found something."""


def arguments():
    target = Path(os.environ.get("CARGO_TARGET_DIR", HERE.parent / "target")) / "release"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3600, help="no lap begins later (3600)")
    parser.add_argument("--rows", type=int, default=300_000, help="input rows of a lap (300000)")
    parser.add_argument("--kills", type=int, default=6, help="kills in a lap (6)")
    parser.add_argument("--every", type=float, default=5, help="seconds between samples (5)")
    parser.add_argument("--concurrency", type=int, default=64, help="requests in flight (64)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--binary", type=Path, default=target / "chainette")
    parser.add_argument("--engine", type=Path, default=target / "examples" / "fake_engine")
    parser.add_argument("--csv", type=Path, default=None, help="the samples (soak.csv in the temporary folder)")
    parser.add_argument("--svg", type=Path, default=HERE / "soak.svg")
    parser.add_argument("--draw", type=Path, metavar="CSV", help="only judge and draw the samples of a former soak")
    return parser.parse_args()


# What a process holds


def status(pid):
    """`rss` in MB, `threads`."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
        fields = dict(line.split(":", 1) for line in text.splitlines())
        return int(fields["VmRSS"].split()[0]) / 1024, int(fields["Threads"])
    except (OSError, KeyError) as gone:
        raise Gone from gone


def open_files(pid):
    """All file descriptors, and the sockets among them."""
    try:
        numbers = os.listdir(f"/proc/{pid}/fd")
    except OSError as gone:
        raise Gone from gone
    sockets = 0
    for number in numbers:
        try:
            sockets += os.readlink(f"/proc/{pid}/fd/{number}").startswith("socket:")
        except OSError:
            continue
    return len(numbers), sockets


def processes():
    """Every living process: its parent and when it started."""
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            stat = Path(f"/proc/{entry}/stat").read_text()
        except OSError:
            continue
        # "pid (name) state ppid ...": the name may hold anything.
        rest = stat.rpartition(")")[2].split()
        if rest[0] not in "ZX":
            found[int(entry)] = (int(rest[1]), int(rest[19]))
    return found


def descendants(pid):
    """Living processes that come from one, with the time each started, so that a number used again is another one."""
    living = processes()
    found, parents = {}, {pid}
    while parents:
        below = {child for child, (parent, _) in living.items() if parent in parents} - found.keys()
        found.update((child, living[child][1]) for child in below)
        parents = below
    return found


def mentioning(folder):
    """Living processes that name a folder in their command line or stand in it."""
    found = set()
    for pid in processes():
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
            if os.fsencode(str(folder)) in line or os.readlink(f"/proc/{pid}/cwd").startswith(str(folder)):
                found.add(pid)
        except OSError:
            continue
    return found


def none_left(children, folder, others, what):
    """Waits until what a chainette had started is gone."""
    end = time.monotonic() + 15
    while True:
        living = processes()
        left = {pid for pid, start in children.items() if living.get(pid, (0, None))[1] == start}
        left |= mentioning(folder) - others
        if not left:
            return
        if time.monotonic() > end:
            lines = [Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:200]
                     for pid in left if Path(f"/proc/{pid}").exists()]
            raise Failed(f"{len(left)} processes are left {what}: {lines}")
        time.sleep(0.05)


def size_of(folder):
    """Bytes in a folder; files may go while we look."""
    total = 0
    for dir_path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(dir_path, name)).st_size
            except OSError:
                continue
    return total


# The laps


class Soak:
    def __init__(self, args, work):
        self.args, self.work, self.out = args, work, work / "out"
        self.random = random.Random(args.seed)
        self.samples, self.kills, self.laps = [], [], 0
        self.engine = self.run = None
        self.begun = time.monotonic()

    def prepare(self):
        args = self.args
        self.engine = subprocess.Popen(
            [args.engine, "--forget", "--seed", str(args.seed), "--rate-500", "0.03", "--rate-close", "0.01",
             "--rate-bad-json", "0.06", "--rate-429", "0.00002"],
            stdout=subprocess.PIPE, text=True, cwd="/")
        self.url = self.engine.stdout.readline().strip()
        if not self.url:
            raise Failed("the test server did not start")
        (self.work / "chain.yaml").write_text(CHAIN.format(endpoint=self.url, concurrency=args.concurrency))
        (self.work / "parts.py").write_text(PARTS)
        self.bad_lines = 0
        with open(self.work / "in.jsonl", "w") as out:
            for n in range(args.rows):
                if n % 97 == 96:
                    self.bad_lines += 1
                    out.write("no json\n")
                else:
                    text = "".join(self.random.choices(LETTERS, k=80))
                    out.write(json.dumps({"id": n, "text": text}) + "\n")

    def stats(self):
        with urllib.request.urlopen(self.url.removesuffix("/v1") + "/stats", timeout=60) as reply:
            return json.load(reply)

    def start(self, *more):
        command = [self.args.binary, "run", "chain.yaml", "in.jsonl", "out", "--quiet", *more]
        self.started = time.monotonic()
        # Each process has its own log; the last one says why it failed.
        with open(self.work / "stderr.txt", "wb") as log:
            self.run = subprocess.Popen(command, cwd=self.work, stdout=log, stderr=log)

    def rows_done(self):
        try:
            return json.loads((self.out / ".chainette" / "checkpoint.json").read_text())["counts"]["rows_in"]
        except (OSError, ValueError):
            return 0

    def sample(self, lap_base):
        """A line of the table; none when the process has just ended."""
        try:
            rss, threads = status(self.run.pid)
            (fds, sockets), children = open_files(self.run.pid), len(descendants(self.run.pid))
        except Gone:
            return
        now, answers = time.monotonic(), self.stats()["answered"] - lap_base
        ledger, rows = size_of(self.out / ".chainette" / "answers"), self.rows_done()
        rates = [0.0, 0.0]
        if self.samples and self.samples[-1]["pid"] == self.run.pid:
            last = self.samples[-1]
            since = now - self.begun - last["seconds"]
            rates = [(rows - last["rows"]) / since, (answers - last["answers"]) / since]
        self.samples.append({
            "seconds": round(now - self.begun, 2), "lap": self.laps, "pid": self.run.pid,
            "age": round(now - self.started, 2), "rss_mb": round(rss, 2), "fds": fds,
            "sockets": sockets, "threads": threads, "children": children, "answers": answers,
            "ledger_bytes": ledger, "bytes_per_answer": round(ledger / answers, 2) if answers > 1000 else "", "rows": rows,
            "rows_per_s": round(rates[0], 1), "answers_per_s": round(rates[1], 1),
            "server_rss_mb": round(status(self.engine.pid)[0], 2),
        })
        self.table.writerow(self.samples[-1])

    def lap(self):
        """One run, killed and resumed until it is done, and checked."""
        lap_base = self.stats()["answered"]
        self.start("--overwrite")
        kills, next_sample = self.args.kills, time.monotonic()
        while True:
            # Some die young, some later; the last process of a lap is left to finish.
            wait = self.random.uniform(0, 1) if self.random.random() < 0.25 else self.random.uniform(1, 25)
            end = time.monotonic() + wait if kills else None
            while (code := self.run.poll()) is None and (end is None or time.monotonic() < end):
                if time.monotonic() >= next_sample:
                    self.sample(lap_base)
                    next_sample = time.monotonic() + self.args.every
                if self.engine.poll() is not None:
                    raise Failed("the test server has died")
                time.sleep(0.05)
            if code is not None:
                break
            self.kill(self.random.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
            kills -= 1
            # Killed before it had removed the lap before?
            self.start(*([] if self.stats()["answered"] > lap_base else ["--overwrite"]))
        # 0: a kill came between the last file and the exit.
        if code not in (0, 3):
            raise Failed(f"the run ended with {code}: {(self.work / 'stderr.txt').read_text()[-2000:]}")
        none_left({}, self.work, {self.engine.pid, os.getpid()}, "after the end of a run")
        self.check()

    def kill(self, how):
        children = descendants(self.run.pid)
        self.run.send_signal(how)
        try:
            code = self.run.wait(30)
        except subprocess.TimeoutExpired as late:
            raise Failed(f"{how.name} did not end it within 30 s") from late
        # One that was just about to finish may do so.
        good = {-9} if how == signal.SIGKILL else {130, 3}
        if code not in good:
            raise Failed(f"{how.name} ended it with {code}: {(self.work / 'stderr.txt').read_text()[-2000:]}")
        self.kills.append((round(time.monotonic() - self.begun, 1), how.name))
        none_left(children, self.work, {self.engine.pid, os.getpid()}, f"after {how.name}")

    def check(self):
        """Every row has its fate, and every line that the metadata counts is there, once and in order."""
        metadata = json.loads((self.out / "metadata.json").read_text())
        rows, nodes = metadata["rows"], metadata["nodes"]
        lines = {}
        for folder in ["flattened", "errors", *nodes]:
            count, last = 0, ()
            for shard in sorted((self.out / folder).glob("*.jsonl"), key=lambda path: int(path.stem)):
                with open(shard, "rb") as text:
                    for line in text:
                        count += 1
                        if folder == "errors":
                            continue
                        # {"row_id":"17.0", ...
                        row = tuple(map(int, line[11:line.index(b'"', 11)].split(b".")))
                        if row <= last:
                            raise Failed(f"{folder} has row {row} after {last}")
                        last = row
            lines[folder] = count
        fates = ["emitted", "filtered", "skipped", "nulled", "failed"]
        problems = [
            f"{what}: {found} instead of {expected}"
            for what, found, expected in [
                ("state", metadata["state"], "finished"),
                ("rows in", rows["in"], self.args.rows),
                ("bad lines", metadata["errors"].get("invalid_input", 0), self.bad_lines),
                ("rows at the first node", nodes["grade"]["rows"], self.args.rows - self.bad_lines),
                ("rows at parts", nodes["parts"]["rows"], nodes["grade"]["emitted"]),
                ("rows at note", nodes["note"]["rows"] + metadata["branches"]["side"]["skipped"],
                 nodes["parts"]["children"]),
                ("rows at digest", nodes["digest"]["rows"], nodes["parts"]["children"]),
                ("flattened", lines["flattened"], rows["out"]),
                ("rows out", rows["out"], nodes["digest"]["emitted"]),
                ("errors", lines["errors"], rows["errors"]),
                *((f"fates of {id}", sum(node[fate] for fate in fates), node["rows"]) for id, node in nodes.items()),
                *((f"lines of {id}", lines[id], node["children"]) for id, node in nodes.items()),
            ] if found != expected]
        if problems:
            raise Failed("; ".join(problems))
        proof = subprocess.run([self.args.binary, "verify", "out"], cwd=self.work, capture_output=True, text=True)
        if proof.returncode:
            raise Failed(f"verify: {proof.stdout}{proof.stderr}")

    def soak(self):
        path = self.args.csv or self.work.parent / "soak.csv"
        with open(path, "w", newline="", buffering=1) as out:
            self.table = csv.DictWriter(out, COLUMNS)
            self.table.writeheader()
            self.prepare()
            while not self.laps or time.monotonic() - self.begun < self.args.seconds:
                begun = time.monotonic()
                self.laps += 1
                self.lap()
                print(f"lap {self.laps}: {time.monotonic() - begun:.0f} s, checked; {len(self.kills)} kills so far, "
                      f"{time.monotonic() - self.begun:.0f} s", flush=True)
        kinds = {name: sum(kind == name for _, kind in self.kills) for _, name in self.kills}
        print(f"{self.laps} laps of {self.args.rows} rows, kills: {kinds}, samples in {path}")

    def stop(self):
        for process in (self.run, self.engine):
            if process and process.poll() is None:
                process.kill()
                process.wait()


# The verdict


def value(sample, key):
    """A measured value. Connections come and go with the faults, so open files are counted without them."""
    if key == "files":
        return float(sample["fds"]) - float(sample["sockets"])
    return float(sample[key])


def quarters(samples, key):
    values = [value(s, key) for s in samples if s.get(key) != "" and float(s["age"]) >= WARM]
    part = len(values) // 4
    if part < 3:
        raise Failed("too few samples for a verdict; let it run longer")
    return values[:part], values[-part:]


def judge(samples):
    """Prints what it held at first and at last, and tells what grew."""
    grown = []
    print(f"{'':18}{'first quarter: min  median  max':>34}{'last quarter: min  median  max':>36}")
    for key in ["rss_mb", "fds", "files", "sockets", "threads", "children", "bytes_per_answer", "rows_per_s",
                "answers_per_s", "server_rss_mb"]:
        first, last = quarters(samples, key)
        shown = ["{:.1f}  {:.1f}  {:.1f}".format(min(part), statistics.median(part), max(part)) for part in (first, last)]
        print(f"{key:18}{shown[0]:>34}{shown[1]:>36}")
        before, after = statistics.median(first), statistics.median(last)
        # Connections come and go with the faults: of them the last may not be more than the first ever were.
        if (key == "rss_mb" and after > before * 1.2 + 5 or key in ("files", "children") and after > before
                or key == "sockets" and after > max(first)):
            grown.append(f"{key} grew from {before} to {after}")
        if key == "bytes_per_answer" and after > before * 1.1:
            grown.append(f"{key} grew from {before} to {after}")
    return grown + judge_processes(samples)


def judge_processes(samples):
    """Processes come and go: what grows with the age of one shows only within it."""
    by_pid = {}
    for sample in samples:
        if float(sample["age"]) >= WARM:
            by_pid.setdefault((sample["lap"], sample["pid"]), []).append(sample)
    long = [s for s in by_pid.values() if len(s) >= 6 and float(s[-1]["age"]) >= LONG]
    if not long:
        print(f"no process lived for {LONG} s")
        return []
    grown = []
    for key in ["rss_mb", "files", "sockets", "children"]:
        growth, allowed = [], []
        for mine in long:
            part = len(mine) // 3
            before, after = (statistics.median(value(s, key) for s in end) for end in (mine[:part], mine[-part:]))
            growth.append(after - before)
            answers = float(mine[-1]["answers"]) - float(mine[0]["answers"])
            allowed.append({"rss_mb": before * 0.2 + 5 + INDEX_BYTES * answers / 2**20, "sockets": before * 0.1}.get(key, 0))
        print(f"{key} in {len(long)} processes of {LONG} s and more: "
              f"from their first third to their last {statistics.median(growth):+.1f} (median), {max(growth):+.1f} (most)")
        if statistics.median(growth) > statistics.median(allowed):
            grown.append(f"{key} grows with the age of a process, by {statistics.median(growth):.1f}")
    return grown


# The plot


def thinned(points, most=360):
    """At most so many points: the medians of neighbours."""
    if len(points) <= most:
        return points
    step = len(points) / most
    groups = [points[int(n * step):int((n + 1) * step)] for n in range(most)]
    return [(statistics.mean(x for x, _ in group), statistics.median(y for _, y in group)) for group in groups if group]


def nice(most):
    """A round number that is not below `most`, and how many parts it is drawn in."""
    scale = 10 ** (len(str(int(most))) - 1)
    for top, parts in [(1, 2), (2, 2), (3, 3), (4, 2), (5, 5), (6, 3), (8, 4), (10, 2)]:
        if top * scale >= most:
            return top * scale, parts
    return most, 1


def draw(samples, path):
    panels = [("rss_mb", "memory of chainette (RSS), MB", "#1f6f8b"), ("fds", "open file descriptors", "#8b5a1f"),
              ("children", "child processes", "#5b8b1f"), ("bytes_per_answer", "ledger, bytes per answer", "#7a3f9d"),
              ("rows_per_s", "input rows committed per second", "#444444")]
    left, right, top, height, gap, width = 62, 14, 12, 92, 44, 860
    plot = width - left - right
    minutes = max(float(s["seconds"]) for s in samples) / 60
    part = 10 if minutes > 10 else 1
    parts = int(-(-minutes // part))
    end = parts * part
    total = top + len(panels) * (height + gap) + 14
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {total}" width="{width}" height="{total}" '
           'font-family="sans-serif" font-size="11" fill="#333">',
           f'<rect width="{width}" height="{total}" fill="#fff"/>']
    laps, restarts = {}, {}
    for s in samples:
        laps.setdefault(s["lap"], float(s["seconds"]) / 60)
        restarts.setdefault((s["lap"], s["pid"]), float(s["seconds"]) / 60)
    for n, (key, title, colour) in enumerate(panels):
        y0 = top + n * (height + gap) + 16
        points = thinned([(float(s["seconds"]) / 60, float(s[key])) for s in samples if s[key] != ""])
        high, steps = nice(max([1, *(y for _, y in points)]))
        out.append(f'<text x="{left}" y="{y0 - 6}" font-weight="bold">{title}</text>')
        for step in range(steps + 1):
            y = y0 + height - height * step / steps
            out.append(f'<line x1="{left}" x2="{left + plot}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
                       f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{high * step / steps:g}</text>')
        for step in range(parts + 1):
            x = left + plot * step / parts
            out.append(f'<text x="{x:.1f}" y="{y0 + height + 14}" text-anchor="middle">{end * step / parts:g}</text>')
        marks = "".join(f"M{left + plot * x / end:.1f} {y0}v{height}" for x in laps.values())
        marks += "".join(f"M{left + plot * x / end:.1f} {y0 + height}v-5" for x in restarts.values())
        out.append(f'<path d="{marks}" stroke="#bbb" fill="none"/>')
        line = " ".join(f"{left + plot * x / end:.1f},{y0 + height - height * min(max(y, 0), high) / high:.1f}" for x, y in points)
        out.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.2"/>')
    out.append(f'<text x="{left + plot}" y="{total - 2}" text-anchor="end">minutes; an upright line '
               'is the start of a lap, a short one a process after a kill</text></svg>')
    path.write_text("\n".join(out) + "\n")
    print(f"drawn to {path}, {path.stat().st_size} bytes")


def main():
    args = arguments()
    if args.draw:
        with open(args.draw, newline="") as lines:
            samples = list(csv.DictReader(lines))
        return finish(samples, args.svg, [])
    folder = Path(tempfile.mkdtemp(prefix="chainette-soak-"))
    (folder / "work").mkdir()
    soak, found = Soak(args, folder / "work"), []
    try:
        soak.soak()
    except Failed as problem:
        found.append(f"lap {soak.laps}: {problem}; left as it is in {folder}")
    finally:
        soak.stop()
    if not found:
        shutil.rmtree(folder / "work")
        if args.csv:
            folder.rmdir()
    return finish(soak.samples, args.svg, found)


def finish(samples, svg, found):
    try:
        found += judge(samples)
        draw(samples, svg)
    except Failed as problem:
        found.append(str(problem))
    for problem in found:
        print(f"soak: {problem}", file=sys.stderr)
    print("soak: " + ("something is wrong" if found else "all of it is flat"))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
