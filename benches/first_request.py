#!/usr/bin/env python3
"""Runs a command against a fresh test server; says how long after its start the first request arrived, and its memory.

    first_request.py SERVER PORT SECONDS COMMAND...

The clock starts before the command does. SECONDS after the first request it is told to stop; 0 lets it finish.
Prints a line of JSON. Python's standard library only; Linux.
"""

import json
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path


def memory(pid):
    """Memory now and at most, in KB."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return [int(fields[name].split()[0]) for name in ("VmRSS", "VmHWM")] if "VmHWM" in fields else None


def main():
    server, port, seconds, *command = sys.argv[1:]
    engine = subprocess.Popen([server, "--port", port, "--forget"], stdout=subprocess.PIPE, text=True)
    run = None
    try:
        url = engine.stdout.readline().strip().removesuffix("/v1") + "/stats"

        def stats():
            with urllib.request.urlopen(url, timeout=60) as reply:
                return json.load(reply)

        stats()
        begun = time.time()
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        first = at_first = peak = None
        stopped = False
        while run.poll() is None:
            if first is None:
                first = stats()["first"]
                at_first = memory(run.pid)
            now = memory(run.pid)
            peak = now[1] if now else peak
            if first and float(seconds) and not stopped and time.time() - first > float(seconds):
                run.send_signal(signal.SIGTERM)
                stopped = True
            time.sleep(0.01)
        took = time.time() - begun
        first = first or stats()["first"]
        print(json.dumps({
            "first_request_s": first and round(first - begun, 3), "seconds": round(took, 2), "exit": run.returncode,
            "rss_at_first_kb": at_first and at_first[0], "peak_kb": peak, "asked": stats()["asked"],
        }))
        return 0 if run.returncode in ((0, 3, 130) if stopped else (0, 3)) else 1
    finally:
        for process in (run, engine):
            if process and process.poll() is None:
                process.kill()
                process.wait()


if __name__ == "__main__":
    sys.exit(main())
