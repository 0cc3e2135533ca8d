"""Makes the models of this folder, small and with random numbers, and their golden vectors: what the reference
implementation (sentence-transformers) says to a few texts. Run once; the results are committed.

    pip install sentence-transformers==6.2.0 transformers==5.19.0 torch==2.13.0
    python make.py

Each model is a folder as sentence-transformers saves it, or as transformers does where it has no `modules.json`.
`golden.json` in it: the texts, their vectors, and how many tokens each has.
"""

import json
import shutil
from pathlib import Path

import torch
import transformers as tf
from sentence_transformers import SentenceTransformer, models
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models as cutters,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

HERE = Path(__file__).parent
SEED = 20261122
# What the tokenizers learn from; and some of what they are asked.
LEARNED = [
    "It broke after two days, and nobody answers my letters.",
    "The battery lasts a whole week; I would buy it again.",
    "Too loud for an office, too weak for a workshop.",
    "Arrived early, well packed, works as described.",
    "Der Akku hält eine Woche, und das Gerät ist leise.",
    "Le moteur est trop bruyant, mais il est arrivé en avance.",
]
TEXTS = [
    *LEARNED,
    "x",
    "",
    "  spaces   and\ttabs\nand lines ",
    "NOT IN THE VOCABULARY: ☃ 雪 😀 ﬁ Å",
    "It broke. " * 9,
    "a",
]


def word_pieces(lower=True, signs=("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")):
    """As BERT's; `signs` are padding, unknown, first, last, mask."""
    pad, unknown, first, last, mask = signs
    cutter = Tokenizer(cutters.WordPiece(unk_token=unknown))
    cutter.normalizer = normalizers.BertNormalizer(lowercase=lower)
    cutter.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    cutter.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=list(signs))
    cutter.train_from_iterator(LEARNED, trainer)
    ends = [(first, cutter.token_to_id(first)), (last, cutter.token_to_id(last))]
    cutter.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", pair=f"{first} $A {last} $B {last}", special_tokens=ends
    )
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=cutter, pad_token=pad, unk_token=unknown, cls_token=first, sep_token=last, mask_token=mask
    )


SIGNS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def fast(cutter):
    ends = [("<s>", 0), ("</s>", 2)]
    cutter.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=ends
    )
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=cutter,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        cls_token="<s>",
        sep_token="</s>",
        mask_token=AddedToken("<mask>", lstrip=True),
    )


def byte_pairs():
    """As RoBERTa's."""
    cutter = Tokenizer(cutters.BPE())
    cutter.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    cutter.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    cutter.train_from_iterator(
        LEARNED, trainers.BpeTrainer(vocab_size=320, special_tokens=SIGNS, initial_alphabet=alphabet)
    )
    return fast(cutter)


def pieces():
    """As XLM-RoBERTa's."""
    cutter = Tokenizer(cutters.Unigram())
    cutter.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("  ", " ")])
    cutter.pre_tokenizer = pre_tokenizers.Metaspace()
    cutter.decoder = decoders.Metaspace()
    cutter.train_from_iterator(
        LEARNED, trainers.UnigramTrainer(vocab_size=150, special_tokens=SIGNS, unk_token="<unk>")
    )
    return fast(cutter)


SIZE = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 66,
}


def encoder(folder, model, tokenizer, config):
    """A model with random numbers everywhere, also where a fresh one has zeros and ones."""
    made = model(config)
    random = torch.Generator().manual_seed(SEED)
    for name, weight in made.named_parameters():
        with torch.no_grad():
            noise = torch.randn(weight.shape, generator=random)
            norm = "norm" in name.lower() and name.endswith("weight")
            weight.copy_(1 + 0.2 * noise if norm else 0.25 * noise)
    shutil.rmtree(folder, ignore_errors=True)
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def whole(name, modules, **settings):
    """Puts what follows the encoder behind it, and saves all of it in its place."""
    plain = HERE / f"{name}.plain"
    word = models.Transformer(
        str(plain),
        max_seq_length=settings.pop("most", None),
        model_args={"dtype": torch.float32},
    )
    made = SentenceTransformer(modules=[word, *modules(word.get_word_embedding_dimension())], device="cpu", **settings)
    shutil.rmtree(HERE / name, ignore_errors=True)
    made.save(str(HERE / name), create_model_card=False)
    shutil.rmtree(plain)


MODES = ["cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"]


def as_before(name, modes, settings):
    """Writes the settings as sentence-transformers did before its version 6: so stand most models on the hub."""
    folder = HERE / name
    write = lambda path, what: (folder / path).write_text(json.dumps(what, indent=2) + "\n")
    write("sentence_bert_config.json", settings)
    steps = json.loads((folder / "modules.json").read_text())
    for step in steps:
        step["type"] = "sentence_transformers.models." + step["type"].rsplit(".", 1)[1]
    write("modules.json", steps)
    if modes:
        chosen = {f"pooling_mode_{mode}": mode.removesuffix("_tokens").removesuffix("_token") in modes for mode in MODES}
        assert sum(chosen.values()) == len(modes)
        write("1_Pooling/config.json", {"word_embedding_dimension": SIZE["hidden_size"], **chosen, "include_prompt": True})


def again(name, model, dtype, **saved):
    """Saves the encoder's weights again, in another form."""
    folder = HERE / name
    made = model.from_pretrained(folder, dtype=dtype)
    (folder / "model.safetensors").unlink()
    made.save_pretrained(folder, **saved)


def golden(name, asked):
    model = SentenceTransformer(str(HERE / name), device="cpu", model_kwargs={"dtype": torch.float32})
    prompt = model.prompts.get(model.default_prompt_name, "") if model.default_prompt_name else ""
    texts = [prompt + text for text in asked]
    lengths = [len(ids) for ids in model.tokenizer(texts, add_special_tokens=True)["input_ids"]]
    assert max(lengths) <= model.max_seq_length, (name, lengths, model.max_seq_length)
    # One by one: nothing of what fills up shorter texts of a batch is in it.
    vectors = [[round(float(x), 7) for x in model.encode(text)] for text in asked]
    rows = [{"text": t, "tokens": n, "vector": v} for t, n, v in zip(asked, lengths, vectors)]
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (HERE / name / "golden.json").write_text(f"[\n{lines}\n]\n")
    print(name, model.max_seq_length, lengths, len(vectors[0]), vectors[0][:4])


def main():
    torch.manual_seed(SEED)
    torch.set_num_threads(1)

    cutter = word_pieces()
    config = tf.BertConfig(vocab_size=len(cutter), layer_norm_eps=1e-12, **SIZE)
    encoder(HERE / "bert.plain", tf.BertModel, cutter, config)
    # As all-MiniLM-L6-v2.
    whole("bert", lambda width: [models.Pooling(width, "mean"), models.Normalize()], most=64)
    as_before("bert", ["mean"], {"max_seq_length": 64, "do_lower_case": False})

    cutter = word_pieces(lower=False)
    config = tf.BertConfig(vocab_size=len(cutter), hidden_act="gelu_new", **SIZE)
    encoder(HERE / "bert_half.plain", tf.BertModel, cutter, config)
    # As LaBSE, with weights of 16 bits, a prompt, and texts made lower case first.
    whole(
        "bert_half",
        lambda width: [
            models.Pooling(width, "cls"),
            models.Dense(width, 10, activation_function=torch.nn.Tanh()),
            models.Normalize(),
        ],
        prompts={"query": "search: ", "document": ""},
        default_prompt_name="query",
    )
    as_before("bert_half", None, {"max_seq_length": 64, "do_lower_case": True})
    again("bert_half", tf.BertModel, dtype=torch.float16)

    cutter = byte_pairs()
    config = tf.RobertaConfig(vocab_size=len(cutter), pad_token_id=1, type_vocab_size=1, layer_norm_eps=1e-5, **{**SIZE, "max_position_embeddings": 100})
    # No `modules.json`, and the head of masked words beside what is used.
    encoder(HERE / "roberta", tf.RobertaForMaskedLM, cutter, config)

    cutter = pieces()
    config = tf.XLMRobertaConfig(vocab_size=len(cutter), pad_token_id=1, type_vocab_size=1, layer_norm_eps=1e-5, **{**SIZE, "max_position_embeddings": 100})
    encoder(HERE / "xlm_roberta.plain", tf.XLMRobertaModel, cutter, config)
    # As bge-m3, in several files.
    whole("xlm_roberta", lambda width: [models.Pooling(width, "cls"), models.Normalize()])
    again("xlm_roberta", tf.XLMRobertaModel, dtype=torch.bfloat16, max_shard_size="20KB")

    cutter = word_pieces()
    config = tf.DistilBertConfig(
        vocab_size=len(cutter), dim=24, n_layers=2, n_heads=3, hidden_dim=40, max_position_embeddings=66
    )
    encoder(HERE / "distilbert.plain", tf.DistilBertModel, cutter, config)
    whole("distilbert", lambda width: [models.Pooling(width, ["max", "mean_sqrt_len_tokens"])])

    cutter = word_pieces(signs=("<pad>", "[UNK]", "<s>", "</s>", "<mask>"))
    # Room for a text that is too long to be worked on at once.
    config = tf.MPNetConfig(
        vocab_size=len(cutter), pad_token_id=1, layer_norm_eps=1e-5, **{**SIZE, "max_position_embeddings": 402}
    )
    encoder(HERE / "mpnet.plain", tf.MPNetModel, cutter, config)
    # As all-mpnet-base-v2.
    whole("mpnet", lambda width: [models.Pooling(width, ["lasttoken", "weightedmean"]), models.Normalize()])
    as_before("mpnet", ["weightedmean", "lasttoken"], {"max_seq_length": 400, "do_lower_case": False})

    for name in ["bert", "bert_half", "roberta", "xlm_roberta", "distilbert"]:
        golden(name, TEXTS)
    golden("mpnet", [*TEXTS, "It broke. " * 78])


if __name__ == "__main__":
    main()
