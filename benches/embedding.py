"""An embedding model in this process beside sentence-transformers with the same files and processors: texts and tokens per
second, memory, and how far their vectors are apart.

Usage: embedding.py CHAINETTE [TEXTS [ROUNDS [CORES [LAYERS,WIDTH,HEADS,INNER]]]]
In a Python with sentence-transformers 6.2.0 (torch 2.13.0). The model has random numbers and, by default, the sizes of
all-MiniLM-L6-v2 (6,384,12,1536); the texts are the hand-written reviews of examples/models, one to twelve in a row. The two
run one after the other in turns on the same CORES processors (default 1).
"""

import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
REVIEWS = HERE.parent / "examples/models/reviews_test.jsonl"
TEXTS, ROUNDS, CORES = (int(x) for x in (sys.argv[2:5] + ["4000", "3", "1"][len(sys.argv[2:5]) :]))
SIZES = [int(x) for x in (sys.argv[5:] or ["6,384,12,1536"])[0].split(",")]


def make(folder):
    import torch
    import transformers as tf
    from sentence_transformers import SentenceTransformer, models
    from tokenizers import Tokenizer, models as cutters, normalizers, pre_tokenizers, processors, trainers

    torch.manual_seed(1)
    cutter = Tokenizer(cutters.WordPiece(unk_token="[UNK]"))
    cutter.normalizer = normalizers.BertNormalizer(lowercase=True)
    cutter.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    signs = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    cutter.train_from_iterator([json.loads(line)["text"] for line in REVIEWS.open()], trainers.WordPieceTrainer(vocab_size=1500, special_tokens=signs))
    cutter.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    layers, width, heads, inner = SIZES
    config = tf.BertConfig(vocab_size=30522, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=inner)
    tf.BertModel(config).save_pretrained(folder / "plain")
    tf.PreTrainedTokenizerFast(tokenizer_object=cutter, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]").save_pretrained(folder / "plain")
    word = models.Transformer(str(folder / "plain"), max_seq_length=512)
    SentenceTransformer(modules=[word, models.Pooling(width, "mean"), models.Normalize()], device="cpu").save(str(folder / "model"))


PEER = """
import json, resource, sys, time
import torch
from sentence_transformers import SentenceTransformer
torch.set_num_threads(int(sys.argv[3]))
model = SentenceTransformer(sys.argv[1], device="cpu")
texts = [json.loads(line)["text"] for line in open(sys.argv[2])]
model.encode(texts[:32])
began = time.monotonic()
vectors = model.encode(texts, batch_size=32)
seconds = time.monotonic() - began
tokens = sum(len(ids) for ids in model.tokenizer(texts)["input_ids"])
print(json.dumps({"seconds": seconds, "tokens": tokens, "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                  "first": [v.tolist() for v in vectors[:50]]}))
"""


def pinned(command):
    return ["taskset", "-c", f"0-{CORES - 1}", *map(str, command)]


def ours(chainette, work, rows):
    out = work / f"out-{time.monotonic_ns()}"
    ran = subprocess.run(pinned(["/usr/bin/time", "-f", "rss %M", chainette, "run", work / "chain.yaml", rows, out, "--json-logs"]),
                         stderr=subprocess.PIPE, text=True, check=True)
    events = [json.loads(line) for line in ran.stderr.splitlines() if line.startswith("{")]
    end = next(event for event in events if event["event"] == "run_finished")
    assert end["rows_out"] == TEXTS, end
    stamp = lambda ts: time.mktime(time.strptime(ts[:19], "%Y-%m-%dT%H:%M:%S")) + float(ts[19:-1])
    ready = next(event["ts"] for event in events if event["event"] == "engine_ready")
    first = [json.loads(line)["embedding"] for line in (out / "vec/000.jsonl").read_text().splitlines()[:50]]
    rss = next(int(line.split()[1]) for line in ran.stderr.splitlines() if line.startswith("rss "))
    return {"seconds": stamp(events[-1]["ts"]) - stamp(ready), "tokens": end["tokens"]["prompt"], "mib": rss / 1024, "first": first}


def main():
    chainette = pathlib.Path(sys.argv[1]).absolute()
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        make(work)
        random.seed(1)
        reviews = [json.loads(line)["text"] for line in REVIEWS.open()]
        rows = work / "rows.jsonl"
        rows.write_text("".join(json.dumps({"text": " ".join(random.choices(reviews, k=random.randint(1, 12)))}) + "\n" for _ in range(TEXTS)))
        (work / "chain.yaml").write_text(json.dumps({
            "engines": {"e": {"backend": "embedded", "model": str(work / "model")}},
            "steps": [{"id": "vec", "engine": "e", "task": "embed", "input": "{{ text }}"}]}))
        seen = {"in this process": [], "sentence-transformers": []}
        for _ in range(ROUNDS):
            seen["in this process"].append(ours(chainette, work, rows))
            ran = subprocess.run(pinned([sys.executable, "-c", PEER, work / "model", rows, CORES]), stdout=subprocess.PIPE, check=True, text=True,
                                 env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(CORES)})
            seen["sentence-transformers"].append(json.loads(ran.stdout.splitlines()[-1]))
        for name, runs in seen.items():
            seconds = statistics.median(run["seconds"] for run in runs)
            print(f"{name}: {TEXTS / seconds:.0f} texts/s, {runs[0]['tokens'] / seconds:.0f} tokens/s, {max(run['mib'] for run in runs):.0f} MiB")
        a, b = (runs[0]["first"] for runs in seen.values())
        print("largest difference:", max(abs(x - y) for a, b in zip(a, b) for x, y in zip(a, b)))
        print("ratios by round:", [round(p["seconds"] / o["seconds"], 2) for o, p in zip(*seen.values())])


if __name__ == "__main__":
    main()
