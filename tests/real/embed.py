"""Steps that embed, on a real llama.cpp server: one that runs already, one that chainette starts, and two that cannot.

Usage: embed.py CHAINETTE LLAMA_SERVER WORK CHAT_ENDPOINT
CHAT_ENDPOINT: a server that was started without `--embeddings`.
"""

import json
import pathlib
import socket
import struct
import subprocess
import sys
import time
import urllib.request

import tiny_gguf

BINARY, SERVER, WORK = (pathlib.Path(arg).resolve() for arg in sys.argv[1:4])
CHAT = sys.argv[4]
DEMOS = pathlib.Path(__file__).resolve().parent / "demos"
ROWS, WIDTH = 50, 64
# As long as a text of these tests gets, and one that is longer. The model's tokens are characters.
BATCH, LONG = 2048, "word " * 600
EMBEDS = ["--embeddings", "--pooling", "mean"]


def texts() -> list[str]:
    words = "great broken fast slow cheap noisy pretty heavy useless perfect naïve 日本".split()
    return [" ".join(words[(n * k + 1) % len(words)] for k in (1, 3, 7)) + f" {n}" for n in range(ROWS)]


def f32(number: float) -> float:
    """The nearest number of 32 bits."""
    return struct.unpack("<f", struct.pack("<f", number))[0]


def plainly(url: str, text: str) -> list[float]:
    """The vector that a plain request gets, alone on the server."""
    body = json.dumps({"model": "any", "input": text, "encoding_format": "float"}).encode()
    request = urllib.request.Request(f"{url}/v1/embeddings", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["data"][0]["embedding"]


class Server:
    """A llama-server for as long as a `with` lasts."""

    def __init__(self, *flags: str):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        # One compute thread: two spin against each other on small machines.
        command = [SERVER, "-m", WORK / "embed.gguf", "--host", "127.0.0.1", "--port", str(port), "-t", "1"]
        self.log = (WORK / f"server-{port}.log").open("wb")
        # One slot: texts that are embedded beside others differ in their last digits.
        more = ["--parallel", "1", "-c", "4096", "--no-webui"]
        self.process = subprocess.Popen([*command, *more, *flags], stdout=self.log, stderr=self.log)

    def __enter__(self):
        end = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                    if answer.status == 200:
                        return self
            except OSError:
                assert self.process.poll() is None and time.monotonic() < end, "the server does not start"
                time.sleep(0.05)

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.log.close()


def run(name: str, engine: str, rows: list[str], code: int) -> tuple[pathlib.Path, str]:
    chain, source, out = WORK / f"{name}.yaml", WORK / f"{name}.jsonl", WORK / name
    chain.write_text(
        f"engines:\n  e: {engine}\n"
        "steps:\n  - {id: vec, engine: e, task: embed, input: '{{ text }}'}\n"
        "  - {id: size, apply: {jq: '{n: (.embedding | length)}'}}\n"
    )
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    done = subprocess.run([BINARY, "run", chain, source, out], capture_output=True, text=True, timeout=300)
    assert done.returncode == code, f"{name}: exit {done.returncode}\n{done.stderr}"
    return out, done.stderr


def vectors(out: pathlib.Path) -> list[list[float]]:
    lines = [json.loads(line) for line in (out / "vec/000.jsonl").read_text().splitlines()]
    assert [line["row_id"] for line in lines] == [str(n) for n in range(ROWS)]
    for line in lines:
        assert len(line["embedding"]) == WIDTH, len(line["embedding"])
        # The shortest text of a number of 32 bits: no more than nine digits.
        for number in line["embedding"]:
            assert len(repr(number).split("e")[0].replace("-", "").replace(".", "").lstrip("0")) <= 9, number
    return [line["embedding"] for line in lines]


def compare(what: str, found: list[list[float]], expected: list[list[float]], within: float) -> None:
    pairs = [(f32(a), f32(b)) for one, other in zip(found, expected) for a, b in zip(one, other)]
    assert len(pairs) == ROWS * WIDTH, len(pairs)
    worst = max(abs(a - b) for a, b in pairs)
    assert worst <= within, f"{what}: a number is off by {worst}"
    same = sum(a == b for a, b in pairs)
    print(f"{what}: {ROWS} vectors of {WIDTH} numbers, {same} of {len(pairs)} bit for bit, none off by more than {worst:.1e}")


def main() -> None:
    tiny_gguf.main(str(WORK / "embed.gguf"), 11)
    with Server(*EMBEDS, "--batch-size", str(BATCH), "--ubatch-size", str(BATCH)) as server:
        expected = [plainly(server.url, text) for text in texts()]
        for backend, end in (("llamacpp", ""), ("openai", "/v1")):
            endpoint = f"{{backend: {backend}, model: any, endpoint: '{server.url}{end}'}}"
            out, _ = run(backend, endpoint, texts(), 0)
            compare(backend, vectors(out), expected, 0)
            metadata = json.loads((out / "metadata.json").read_text())
            assert metadata["nodes"]["vec"]["prompt_tokens"] > 10 * ROWS, metadata["nodes"]["vec"]
        out, _ = run("long", endpoint, ["short", LONG, "short too"], 3)
        error = json.loads((out / "errors/000.jsonl").read_text())
        assert (error["row_id"], error["kind"]) == ("1", "context_length"), error
        subprocess.run([DEMOS, BINARY, f"{server.url}/v1", WORK, sys.executable, "embed.yaml"], check=True)
    # One that chainette starts.
    flags = json.dumps([*EMBEDS, "-t", "1"])
    started = f"{{backend: llamacpp, model: ./embed.gguf, binary: {SERVER}, concurrency: 4, context: 4096, flags: {flags}}}"
    out, _ = run("started", started, texts(), 0)
    # Four at a time. Without `--kv-unified`, which chainette gives it, this build mixes them up: numbers are off by 0.6.
    compare("started", vectors(out), expected, 1e-3)
    # Texts as long as `context` says fit.
    out, _ = run("roomy", started, ["short", LONG], 0)
    # Two that cannot: the run stops at once, and says what to do.
    _, said = run("chat", f"{{backend: llamacpp, model: any, endpoint: '{CHAT}'}}", texts(), 1)
    assert "`flags: [--embeddings]`" in said, said
    with Server("--embeddings") as server:
        _, said = run("unpooled", f"{{backend: llamacpp, model: any, endpoint: '{server.url}'}}", texts(), 1)
        assert "`--pooling mean`" in said, said


if __name__ == "__main__":
    main()
