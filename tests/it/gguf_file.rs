//! Small GGUF files, made byte by byte: a head, and some bytes that stand for tensors.

/// A value of the head.
#[derive(Clone, Debug)]
pub enum Kv {
    U32(u32),
    U64(u64),
    F32(f32),
    Text(&'static str),
    /// One number per layer.
    I32s(Vec<i32>),
    /// A vocabulary of so many tokens.
    Tokens(u64),
}

/// A file with this head and so many bytes behind it.
pub fn gguf(head: &[(&str, Kv)], tensors: usize) -> Vec<u8> {
    let text = |out: &mut Vec<u8>, text: &str| {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    };
    let mut out = b"GGUF".to_vec();
    out.extend(3_u32.to_le_bytes());
    out.extend(0_u64.to_le_bytes());
    out.extend((head.len() as u64).to_le_bytes());
    for (key, value) in head {
        text(&mut out, key);
        match value {
            Kv::U32(n) => {
                out.extend(4_u32.to_le_bytes());
                out.extend(n.to_le_bytes());
            }
            Kv::U64(n) => {
                out.extend(10_u32.to_le_bytes());
                out.extend(n.to_le_bytes());
            }
            Kv::F32(n) => {
                out.extend(6_u32.to_le_bytes());
                out.extend(n.to_le_bytes());
            }
            Kv::Text(value) => {
                out.extend(8_u32.to_le_bytes());
                text(&mut out, value);
            }
            Kv::I32s(list) => {
                out.extend(9_u32.to_le_bytes());
                out.extend(5_u32.to_le_bytes());
                out.extend((list.len() as u64).to_le_bytes());
                list.iter().for_each(|n| out.extend(n.to_le_bytes()));
            }
            Kv::Tokens(count) => {
                out.extend(9_u32.to_le_bytes());
                out.extend(8_u32.to_le_bytes());
                out.extend(count.to_le_bytes());
                (0..*count).for_each(|n| text(&mut out, &format!("t{n}")));
            }
        }
    }
    out.extend(std::iter::repeat_n(7_u8, tensors));
    out
}

/// A model of 4 layers that was trained on 2048 tokens: 4 × 2 × (16 + 16) = 256 numbers are kept of each token.
pub fn small() -> Vec<u8> {
    gguf(
        &[
            ("general.architecture", Kv::Text("llama")),
            ("general.name", Kv::Text("small")),
            ("llama.block_count", Kv::U32(4)),
            ("llama.context_length", Kv::U64(2048)),
            ("llama.embedding_length", Kv::U32(128)),
            ("llama.attention.head_count", Kv::U32(8)),
            ("llama.attention.head_count_kv", Kv::U32(2)),
            ("llama.rope.freq_base", Kv::F32(10_000.0)),
            ("tokenizer.ggml.tokens", Kv::Tokens(300)),
        ],
        10_000,
    )
}
