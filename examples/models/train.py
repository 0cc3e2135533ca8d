"""Trains the demo model on generated reviews and writes it as a GGUF file.

    pip install -r requirements.txt      # Python 3.11 or newer, any CPU
    python train.py                      # writes reviews.gguf, prints its figures

Seeds are fixed and torch's deterministic algorithms are on.
"""

import argparse
import json
import random
import time
from pathlib import Path

import gguf
import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from data import SENTIMENTS, TOPICS, Reviews
from model import Config, Llama

HERE = Path(__file__).parent
SPECIAL = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
END = 0
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SYSTEM = "Grade the product review."
USER = "Review: {}"
SYSTEMS = [
    "Grade this product review.", "You grade product reviews.", "Grade the review.", "Classify the product review.",
    "You classify product reviews by sentiment and topic.", "Give the sentiment and the topic of the review.",
    "You are a helpful assistant.", "Is the review positive or negative, and what is it about?",
    "Grade the product review: sentiment and topic.", "Answer with the sentiment and topic as JSON.",
    "Read the review and grade it.", "You read product reviews.", "Sentiment and topic of this review?",
]  # fmt: skip
USERS = ["{}", "Review:\n{}", "Product review: {}", "review: {}", "Grade this review: {}", 'Review: "{}"', "The review: {}", "Text: {}"]


def prompt(text, system=SYSTEM, user=USER):
    """The chat template by hand, up to where the answer begins."""
    head = f"<|system|>{system}<|end|>" if system else ""
    return f"{head}<|user|>{user.format(text)}<|end|><|assistant|>"


def answer(row):
    return json.dumps({"sentiment": row["sentiment"], "topic": row["topic"]}, separators=(",", ":"))


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def special_tokens():
    return [AddedToken(token, special=True, normalized=False) for token in SPECIAL]


def train_tokenizer(vocab, seed):
    """A byte-level BPE of `vocab` tokens, learned on generated reviews."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=special_tokens(),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    source = Reviews(seed)
    texts = []
    for row in (source.one() for _ in range(20000)):
        texts += [row["text"], row["text"].lower()]
    for row in (source.one() for _ in range(4000)):
        texts += [f"{SYSTEM} {SYSTEM}", USER.format(""), answer(row)]
    texts += SYSTEMS * 50
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


class Batches:
    """Training batches of generated reviews; never the same review list twice."""

    def __init__(self, tokenizer, seed, size):
        # BPE dropout needs a tokenizer of its own: the plain one stays as users will see it.
        self.plain = tokenizer
        self.rough = Tokenizer.from_str(tokenizer.to_str())
        self.rough.model.dropout = 0.12
        self.rng = random.Random(seed)
        self.source = Reviews(seed + 1)
        self.size = size
        self.ready = []

    def example(self):
        """Token ids of one prompt and its answer, and the labels as numbers."""
        rng = self.rng
        row = self.source.one()
        roll = rng.random()
        system = SYSTEM if roll < 0.7 else "" if roll < 0.78 else rng.choice(SYSTEMS)
        user = USER if rng.random() < 0.75 else rng.choice(USERS)
        text = row["text"]
        tokenizer = self.rough if rng.random() < 0.3 else self.plain
        ids = tokenizer.encode(prompt(text, system, user)).ids
        if rng.random() < 0.3:
            # A few random tokens make single words count less.
            rate = rng.choice([0.03, 0.08, 0.15])
            ids = [rng.randrange(len(SPECIAL), self.plain.get_vocab_size()) if i >= len(SPECIAL) and rng.random() < rate else i for i in ids]
        labels = SENTIMENTS.index(row["sentiment"]), TOPICS.index(row["topic"])
        return ids, self.plain.encode(answer(row)).ids + [END], labels

    def next(self):
        """Inputs, targets and parts (1 in the answer, 2 in the later half of the prompt) of a batch, all
        [batch, length], short rows filled up with END; and the labels [batch, 2]."""
        if not self.ready:
            rows = sorted((self.example() for _ in range(self.size * 64)), key=lambda row: len(row[0]) + len(row[1]))
            self.ready = [rows[i : i + self.size] for i in range(0, len(rows), self.size)]
            self.rng.shuffle(self.ready)
        rows = self.ready.pop()
        length = max(len(ask) + len(reply) for ask, reply, _ in rows) - 1
        ids = torch.full((len(rows), length + 1), END)
        part = torch.zeros(len(rows), length, dtype=torch.long)
        for i, (ask, reply, _) in enumerate(rows):
            ids[i, : len(ask) + len(reply)] = torch.tensor(ask + reply)
            part[i, len(ask) - 1 : len(ask) + len(reply) - 1] = 1
            part[i, len(ask) // 2 : len(ask) - 1] = 2
        return ids[:, :-1], ids[:, 1:], part, torch.tensor([labels for _, _, labels in rows])


def train(config, tokenizer, args):
    """The trained model."""
    torch.manual_seed(args.seed)
    model = load(args.resume)[0].train() if args.resume else Llama(config)
    guesser = torch.nn.Linear(config.width, len(SENTIMENTS) + len(TOPICS))  # for training only
    print(f"parameters: {sum(p.numel() for p in model.parameters()):,}", flush=True)
    # Muon for the matrices of the layers, Adam for the embedding and the norms: in a short trial on a
    # smaller network the loss was lower after the same number of steps than with Adam alone.
    inner = [p for name, p in model.named_parameters() if p.dim() == 2 and name.startswith("blk")]
    outer = [p for name, p in model.named_parameters() if p.dim() != 2 or not name.startswith("blk")]
    outer += guesser.parameters()
    optimizers = [
        torch.optim.Muon(inner, lr=args.rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(outer, lr=args.rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    batches = Batches(tokenizer, args.seed, args.batch)
    started, shown = time.monotonic(), 0.0
    for step in range(args.steps):
        # Up in 200 steps, level, and down to nothing over the last `cool` steps.
        rate = args.rate * min(1.0, (step + 1) / 200, (args.steps - step) / args.cool)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        inputs, targets, part, labels = batches.next()
        states = model.hidden(inputs)
        asked = part == 1
        loss = 2 * F.cross_entropy(model.logits(states[asked]), targets[asked], label_smoothing=0.02)
        # The verdict can be guessed while reading: asked at every word of the later half, the model
        # learns single words at once, and what they do to each other after that.
        reading = part == 2
        guess = guesser(states[reading])
        row = reading.nonzero()[:, 0]
        loss = loss + 0.3 * F.cross_entropy(guess[:, : len(SENTIMENTS)], labels[row, 0])
        loss = loss + 0.3 * F.cross_entropy(guess[:, len(SENTIMENTS) :], labels[row, 1])
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        shown = loss.item() if step == 0 else 0.98 * shown + 0.02 * loss.item()
        if (step + 1) % args.show == 0:
            spent = time.monotonic() - started
            print(f"step {step + 1}/{args.steps}  loss {shown:.3f}  {spent:.0f} s  dev {score(model, tokenizer, 'reviews_dev.jsonl')}", flush=True)
            model.train()
    print(f"trained in {time.monotonic() - started:.0f} s")
    return model


def score(model, tokenizer, name):
    """How many rows of a file the model grades right, by greedy decoding."""
    model.eval()
    rows = read(HERE / name)
    sentiment = topic = both = 0
    for row in rows:
        reply = tokenizer.decode(model.greedy(tokenizer.encode(prompt(row["text"])).ids, END))
        try:
            said = json.loads(reply)
        except ValueError:
            said = {}
        said = said if isinstance(said, dict) else {}
        right = said.get("sentiment") == row["sentiment"], said.get("topic") == row["topic"]
        sentiment, topic, both = sentiment + right[0], topic + right[1], both + all(right)
    return f"sentiment {sentiment}, topic {topic}, both {both} of {len(rows)}"


def write(path, model, tokenizer):
    """The GGUF file: F16 matrices, F32 norms, tokenizer and chat template."""
    c = model.c
    out = gguf.GGUFWriter(path, "llama")
    out.add_name("chainette demo: product reviews")
    out.add_description("A toy that grades short English product reviews as JSON; it knows nothing else.")
    out.add_license("MIT OR Apache-2.0")
    out.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    out.add_vocab_size(c.vocab)
    out.add_context_length(c.context)
    out.add_embedding_length(c.width)
    out.add_block_count(c.layers)
    out.add_feed_forward_length(c.hidden)
    out.add_head_count(c.heads)
    out.add_head_count_kv(c.kv_heads)
    out.add_rope_dimension_count(c.head_width)
    out.add_rope_freq_base(c.rope_base)
    out.add_layer_norm_rms_eps(c.norm_eps)
    tokens = [tokenizer.id_to_token(i) for i in range(c.vocab)]
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("gpt-2")
    out.add_token_list(tokens)
    out.add_token_types([gguf.TokenType.CONTROL if t in SPECIAL else gguf.TokenType.NORMAL for t in tokens])
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    out.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    out.add_bos_token_id(END)
    out.add_eos_token_id(END)
    out.add_add_bos_token(False)
    out.add_chat_template(TEMPLATE)
    for name, weight in model.state_dict().items():
        kind = np.float16 if weight.dim() == 2 else np.float32
        out.add_tensor(name, weight.detach().numpy().astype(kind))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def load(path):
    """The model and the tokenizer of a GGUF file that `write` made."""
    reader = gguf.GGUFReader(path)

    def field(name):
        return reader.get_field(name).contents()

    config = Config(
        vocab=field("llama.vocab_size"),
        width=field("llama.embedding_length"),
        layers=field("llama.block_count"),
        heads=field("llama.attention.head_count"),
        kv_heads=field("llama.attention.head_count_kv"),
        hidden=field("llama.feed_forward_length"),
        context=field("llama.context_length"),
        rope_base=field("llama.rope.freq_base"),
        norm_eps=field("llama.attention.layer_norm_rms_epsilon"),
    )
    model = Llama(config).eval()
    model.load_state_dict({t.name: torch.from_numpy(t.data.astype(np.float32)) for t in reader.tensors})
    vocab = {token: i for i, token in enumerate(field("tokenizer.ggml.tokens"))}
    merges = [tuple(merge.split(" ")) for merge in field("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special_tokens())
    return model, tokenizer


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default=str(HERE / "reviews.gguf"))
    parser.add_argument("--resume", help="go on from this GGUF file (with another seed: other reviews)")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--steps", type=int, default=2317)
    parser.add_argument("--cool", type=int, default=800)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--show", type=int, default=400)
    for name, value in vars(Config()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    config = Config(**{name: getattr(args, name) for name in vars(Config())})
    tokenizer = load(args.resume)[1] if args.resume else train_tokenizer(config.vocab, args.seed)
    model = train(config, tokenizer, args).eval()
    for weight in model.parameters():
        if weight.dim() == 2:
            weight.data = weight.data.half().float()
    write(args.out, model, tokenizer)
    print(f"{args.out}: {Path(args.out).stat().st_size:,} bytes")
    print("test file:", score(model, tokenizer, "reviews_test.jsonl"))


if __name__ == "__main__":
    main()
