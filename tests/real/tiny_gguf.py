"""Writes a tiny llama model with random weights: enough for a real server to load, and to answer nonsense.

Usage: tiny_gguf.py OUT.gguf [SEED]
The tokenizer is SentencePiece-like: three control tokens, 256 byte tokens and the printable ASCII characters.
The weights come from a seed (7), so every machine gets the same file.
"""

import sys

import gguf
import numpy as np

LAYERS, WIDTH, HEADS, HIDDEN, CONTEXT = 2, 64, 4, 128, 8192

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def main(path: str, seed: int) -> None:
    tokens = [b"<unk>", b"<s>", b"</s>"]
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    for byte in range(256):
        tokens.append(f"<0x{byte:02X}>".encode())
        kinds.append(gguf.TokenType.BYTE)
    for char in ["▁"] + [chr(c) for c in range(33, 127)]:
        tokens.append(char.encode())
        kinds.append(gguf.TokenType.NORMAL)

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny random llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(kinds)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)

    random = np.random.default_rng(seed)

    def tensor(name: str, *shape: int) -> None:
        writer.add_tensor(name, (random.standard_normal(shape) * 0.4).astype(np.float32))

    tensor("token_embd.weight", len(tokens), WIDTH)
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        writer.add_tensor(f"{block}.attn_norm.weight", np.ones(WIDTH, dtype=np.float32))
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensor(f"{block}.{part}.weight", WIDTH, WIDTH)
        writer.add_tensor(f"{block}.ffn_norm.weight", np.ones(WIDTH, dtype=np.float32))
        tensor(f"{block}.ffn_gate.weight", HIDDEN, WIDTH)
        tensor(f"{block}.ffn_up.weight", HIDDEN, WIDTH)
        tensor(f"{block}.ffn_down.weight", WIDTH, HIDDEN)
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, dtype=np.float32))
    tensor("output.weight", len(tokens), WIDTH)

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main(sys.argv[1], int((sys.argv[2:] or [7])[0]))
