"""Records what llama-server answers for the demo model: reviews_golden.jsonl.

    python golden.py /path/to/llama-server             # writes the golden file
    python golden.py /path/to/llama-server --compare   # needs requirements.txt: server against torch

Starts the server itself and stops it again. The golden file holds 50 reviews with the exact text
of the greedy answer, without a schema.
"""

import argparse
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

HERE = Path(__file__).parent
SYSTEM = "Grade the product review."
GOLDEN = 50


class Server:
    """A llama-server on a free port, for the length of a `with` block."""

    def __init__(self, program, model):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.command = [program, "-m", model, "-t", "1", "-c", "2048", "--parallel", "1", "--host", "127.0.0.1", "--port", str(self.port)]
        # Shared libraries may lie beside the program or in a lib folder next to it.
        beside = Path(program).resolve().parent
        folders = [str(beside), str(beside.parent / "lib"), os.environ.get("LD_LIBRARY_PATH", "")]
        self.env = {**os.environ, "LD_LIBRARY_PATH": ":".join(filter(None, folders))}

    def __enter__(self):
        self.process = subprocess.Popen(self.command, env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while True:
            if self.process.poll() is not None:
                raise SystemExit(f"the server ended with {self.process.returncode}: {' '.join(self.command)}")
            try:
                self.ask("/health", None)
                return self
            except (urllib.error.URLError, ConnectionError):
                if time.monotonic() > deadline:
                    self.__exit__()
                    raise SystemExit("the server was not ready within 60 s") from None
                time.sleep(0.05)

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def ask(self, path, body):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.load(reply)

    def messages(self, text):
        return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"Review: {text}"}]

    def answer(self, text):
        """The greedy answer to one review."""
        body = {"messages": self.messages(text), "temperature": 0, "max_tokens": 64, "cache_prompt": False}
        return self.ask("/v1/chat/completions", body)["choices"][0]["message"]["content"]


def read(name):
    return [json.loads(line) for line in (HERE / name).read_text(encoding="utf-8").splitlines()]


def compare(server, model):
    """Prints how many test reviews have the same prompt, tokens and answer in torch as on the server."""
    from train import END, load, prompt

    llama, tokenizer = load(model)
    same = {"prompt": 0, "tokens": 0, "answer": 0}
    rows = read("reviews_test.jsonl")
    for row in rows:
        ours = prompt(row["text"])
        ids = tokenizer.encode(ours).ids
        theirs = server.ask("/apply-template", {"messages": server.messages(row["text"])})["prompt"]
        same["prompt"] += theirs == ours
        same["tokens"] += server.ask("/tokenize", {"content": ours, "parse_special": True})["tokens"] == ids
        same["answer"] += server.answer(row["text"]) == tokenizer.decode(llama.greedy(ids, END))
    print(f"the same in torch and on the server, of {len(rows)}: {same}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("server", help="path of llama-server")
    parser.add_argument("--model", default=str(HERE / "reviews.gguf"))
    parser.add_argument("--compare", action="store_true")
    args = parser.parse_args()
    with Server(args.server, args.model) as server:
        if args.compare:
            compare(server, args.model)
            return
        rows = [{"text": row["text"], "answer": server.answer(row["text"])} for row in read("reviews_test.jsonl")[:GOLDEN]]
    with open(HERE / "reviews_golden.jsonl", "w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(f"{len(rows)} answers")


if __name__ == "__main__":
    main()
