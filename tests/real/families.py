"""Models of every family that runs in process, tiny and random, answer as they do on llama.cpp's server.

Usage: families.py CHAINETTE LLAMA_SERVER WORK
Each is written as GGUF with 32-bit numbers; a chain asks it in process and on the server, greedily.
"""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time
import urllib.request

import gguf
import numpy as np

from tiny_gguf import TEMPLATE

CONTEXT, WIDTH, HEADS, HEAD, HIDDEN = 512, 64, 4, 16, 96
WORDS = "great broken fast slow cheap noisy pretty heavy useless perfect".split()


class Family:
    def __init__(self, name, *, arch=None, kept=2, layers=2, head=HEAD, qkv_bias=False, head_norms=False,
                 after_norms=False, fused=False, phi2=False, tied=False, caps=False, window=0, rope=None, freqs=False):
        self.name, self.arch = name, arch or name
        self.kept, self.layers, self.head = kept, layers, head
        self.qkv_bias, self.head_norms, self.after_norms = qkv_bias, head_norms, after_norms
        self.fused, self.phi2, self.tied, self.caps = fused, phi2, tied, caps
        self.window, self.rope, self.freqs = window, rope, freqs

    def write(self, path):
        tokens = [b"<unk>", b"<s>", b"</s>"] + [f"<0x{byte:02X}>".encode() for byte in range(256)]
        kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL] + [gguf.TokenType.BYTE] * 256
        pieces = ["▁"] + [chr(c) for c in range(33, 127)] + ["re", "at", "gr", "great", "▁great", "▁b", "ro", "bro", "ken"]
        tokens += [piece.encode() for piece in pieces]
        kinds += [gguf.TokenType.NORMAL] * len(pieces)
        # llama.cpp wants it of every phi3.
        tokens.append(b"<|endoftext|>")
        kinds.append(gguf.TokenType.CONTROL)
        scores = [0.0] * 259 + [-float(n) for n in range(len(pieces) + 1)]
        writer = gguf.GGUFWriter(str(path), self.arch)
        writer.add_name(f"tiny random {self.name}")
        writer.add_context_length(CONTEXT)
        writer.add_embedding_length(WIDTH)
        writer.add_block_count(self.layers)
        writer.add_feed_forward_length(HIDDEN)
        writer.add_head_count(HEADS)
        writer.add_head_count_kv(self.kept)
        writer.add_key_length(self.head)
        writer.add_value_length(self.head)
        if self.phi2:
            writer.add_layer_norm_eps(1e-5)
        else:
            writer.add_layer_norm_rms_eps(1e-6)
        writer.add_rope_dimension_count(self.rope or self.head)
        writer.add_rope_freq_base(10000.0)
        if self.window:
            writer.add_sliding_window(self.window)
        if self.caps:
            writer.add_attn_logit_softcapping(50.0)
            writer.add_final_logit_softcapping(30.0)
        writer.add_vocab_size(len(tokens))
        writer.add_tokenizer_model("llama")
        writer.add_token_list(tokens)
        writer.add_token_scores(scores)
        writer.add_token_types(kinds)
        writer.add_unk_token_id(0)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_chat_template(TEMPLATE)
        random = np.random.default_rng(11)

        def matrix(name, rows, columns, bias=False):
            numbers = random.standard_normal((rows, columns)) * 0.25
            if rows == len(tokens):
                # Signs and bytes are never the likeliest: a reply is text.
                numbers[:259] = 0
            writer.add_tensor(f"{name}.weight", numbers.astype(np.float32))
            if bias:
                writer.add_tensor(f"{name}.bias", (random.standard_normal(rows) * 0.2).astype(np.float32))

        def norm(name, size, bias=False):
            writer.add_tensor(f"{name}.weight", (1 + random.standard_normal(size) * 0.1).astype(np.float32))
            if bias:
                writer.add_tensor(f"{name}.bias", (random.standard_normal(size) * 0.1).astype(np.float32))

        queries, kept = HEADS * self.head, self.kept * self.head
        matrix("token_embd", len(tokens), WIDTH)
        if self.freqs:
            writer.add_tensor("rope_freqs.weight", np.linspace(1, 4, self.head // 2).astype(np.float32))
        for layer in range(self.layers):
            block = f"blk.{layer}"
            norm(f"{block}.attn_norm", WIDTH, self.phi2)
            if self.fused:
                matrix(f"{block}.attn_qkv", queries + 2 * kept, WIDTH, self.phi2)
            else:
                matrix(f"{block}.attn_q", queries, WIDTH, self.qkv_bias)
                matrix(f"{block}.attn_k", kept, WIDTH, self.qkv_bias)
                matrix(f"{block}.attn_v", kept, WIDTH, self.qkv_bias)
            matrix(f"{block}.attn_output", WIDTH, queries, self.phi2)
            if self.head_norms:
                norm(f"{block}.attn_q_norm", self.head)
                norm(f"{block}.attn_k_norm", self.head)
            if self.after_norms:
                norm(f"{block}.post_attention_norm", WIDTH)
                norm(f"{block}.post_ffw_norm", WIDTH)
            if not self.phi2:
                norm(f"{block}.ffn_norm", WIDTH)
            if self.fused:
                matrix(f"{block}.ffn_up", HIDDEN if self.phi2 else 2 * HIDDEN, WIDTH, self.phi2)
            else:
                matrix(f"{block}.ffn_gate", HIDDEN, WIDTH)
                matrix(f"{block}.ffn_up", HIDDEN, WIDTH)
            matrix(f"{block}.ffn_down", WIDTH, HIDDEN, self.phi2)
        norm("output_norm", WIDTH, self.phi2)
        if not self.tied:
            matrix("output", len(tokens), WIDTH, self.phi2)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


FAMILIES = [
    Family("llama"),
    Family("llama3", arch="llama", freqs=True),
    Family("qwen2", qkv_bias=True, tied=True),
    Family("qwen3", head_norms=True, head=32),
    Family("gemma", kept=1, head=32, tied=True),
    Family("gemma2", after_norms=True, caps=True, window=16, layers=4, tied=True),
    Family("gemma3", after_norms=True, head_norms=True, window=16, layers=7, tied=True),
    Family("phi2", kept=HEADS, fused=True, phi2=True, rope=8),
    Family("phi3", fused=True),
]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def ask(chainette, work, name, engine, rows):
    chain = work / f"{name}.yaml"
    chain.write_text(json.dumps({
        "engines": {"e": engine},
        "steps": [{"id": "s", "engine": "e", "user_prompt": "{{ text }}",
                   "sampling": {"temperature": 0, "max_tokens": 24}}],
    }))
    out = work / name
    done = subprocess.run([chainette, "run", chain, rows, out, "--quiet"], capture_output=True, text=True)
    # A reply that its limit cut is in `errors/`, with its text.
    lines = [json.loads(line) for kind in ("s", "errors") for path in out.glob(f"{kind}/*.jsonl") for line in path.open()]
    assert done.returncode in (0, 3) and lines, done.stderr
    return {line["row_id"]: line["text"] if "text" in line else line["reply"] for line in lines}


def first(one, other):
    """The share of one text that the other begins with."""
    return len(os.path.commonprefix([one, other])) / len(one) if one != other else 1


def main():
    chainette, server, work = (pathlib.Path(path).absolute() for path in sys.argv[1:4])
    rows = work / "family_rows.jsonl"
    with rows.open("w") as file:
        for n in range(12):
            text = " ".join(WORDS[(n * k) % 10] for k in range(1, 3 + n % 7))
            file.write(json.dumps({"text": text + (" " if n % 3 == 0 else "")}) + "\n")
    for family in FAMILIES:
        model = work / f"{family.name}.gguf"
        family.write(model)
        port = free_port()
        # Keys and values in 32 bits, as they are in process.
        process = subprocess.Popen(
            [server, "-m", model, "--host", "127.0.0.1", "--port", str(port), "-t", "1", "--parallel", "1", "-c", str(CONTEXT),
             "--cache-type-k", "f32", "--cache-type-v", "f32", "--no-webui", "--swa-full"],
            stdout=subprocess.DEVNULL, stderr=(work / f"{family.name}.log").open("w"))
        try:
            for _ in range(600):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                    break
                except OSError:
                    assert process.poll() is None, (work / f"{family.name}.log").read_text()[-3000:]
                    time.sleep(0.05)
            there = ask(chainette, work, f"{family.name}_server",
                        {"backend": "llamacpp", "model": "m", "endpoint": f"http://127.0.0.1:{port}", "concurrency": 1}, rows)
        finally:
            process.kill()
            process.wait()
        here = ask(chainette, work, f"{family.name}_here", {"backend": "embedded", "model": f"./{model.name}"}, rows)
        both = set(here) & set(there)
        same = sum(here[row] == there[row] for row in both)
        print(f"{family.name}: {same} of {len(both)} replies are the same, character for character")
        if "-v" in sys.argv:
            for row in sorted(both, key=int)[:4]:
                print("   ", repr(here[row])[:90], "\n   ", repr(there[row])[:90])
        # Rounding may flip a token of a random model in a row here or there, and all that follow it: llama.cpp looks up
        # its GELU in a table of half floats.
        alike = sum(first(here[row], there[row]) for row in both) / len(both)
        assert len(both) >= 10 and same >= len(both) * 0.6 and alike > 0.8, (family.name, same, alike)


if __name__ == "__main__":
    main()
