"""A small llama in torch: RMSNorm, interleaved RoPE, grouped heads, SwiGLU, tied embeddings."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class Config:
    vocab: int = 2560
    width: int = 192
    layers: int = 4
    heads: int = 6
    kv_heads: int = 2
    hidden: int = 384
    context: int = 512
    rope_base: float = 10000.0
    norm_eps: float = 1e-5
    dropout: float = 0.0

    @property
    def head_width(self):
        return self.width // self.heads


def rotate(x, cos, sin):
    """Turns the pairs (0, 1), (2, 3), ... of each head: the order that GGUF llama files expect."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        kv = c.kv_heads * c.head_width
        self.attn_norm = nn.RMSNorm(c.width, eps=c.norm_eps)
        self.attn_q = nn.Linear(c.width, c.width, bias=False)
        self.attn_k = nn.Linear(c.width, kv, bias=False)
        self.attn_v = nn.Linear(c.width, kv, bias=False)
        self.attn_output = nn.Linear(c.width, c.width, bias=False)
        self.ffn_norm = nn.RMSNorm(c.width, eps=c.norm_eps)
        self.ffn_gate = nn.Linear(c.width, c.hidden, bias=False)
        self.ffn_up = nn.Linear(c.width, c.hidden, bias=False)
        self.ffn_down = nn.Linear(c.hidden, c.width, bias=False)
        self.drop = nn.Dropout(c.dropout)

    def forward(self, x, cos, sin):
        c = self.c
        batch, length, _ = x.shape
        h = self.attn_norm(x)
        q = self.attn_q(h).view(batch, length, c.heads, c.head_width).transpose(1, 2)
        k = self.attn_k(h).view(batch, length, c.kv_heads, c.head_width).transpose(1, 2)
        v = self.attn_v(h).view(batch, length, c.kv_heads, c.head_width).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        groups = c.heads // c.kv_heads
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.drop(self.attn_output(h.transpose(1, 2).reshape(batch, length, c.width)))
        h = self.ffn_norm(x)
        return x + self.drop(self.ffn_down(F.silu(self.ffn_gate(h)) * self.ffn_up(h)))


class Llama(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.token_embd = nn.Embedding(c.vocab, c.width)
        self.blk = nn.ModuleList(Layer(c) for _ in range(c.layers))
        self.output_norm = nn.RMSNorm(c.width, eps=c.norm_eps)
        self.drop = nn.Dropout(c.dropout)
        speed = c.rope_base ** (-torch.arange(0, c.head_width, 2).float() / c.head_width)
        angle = torch.outer(torch.arange(c.context).float(), speed)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                scale = 0.02 if "token_embd" in name else weight.shape[1] ** -0.5
                if name.endswith(("attn_output.weight", "ffn_down.weight")):
                    scale /= (2 * c.layers) ** 0.5
                nn.init.normal_(weight, std=scale)

    def hidden(self, ids):
        """ids [batch, length] to states [batch, length, width]."""
        x = self.drop(self.token_embd(ids))
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        for layer in self.blk:
            x = layer(x, cos, sin)
        return self.output_norm(x)

    def logits(self, states):
        """States [.., width] to scores [.., vocab], with the embedding as output matrix."""
        return states @ self.token_embd.weight.T

    @torch.no_grad()
    def greedy(self, ids, stop, limit=32):
        """The most likely tokens after a prompt, up to the stop token."""
        ids = list(ids)
        start = len(ids)
        while len(ids) - start < limit:
            states = self.hidden(torch.tensor([ids]))
            token = int(self.logits(states[0, -1]).argmax())
            if token == stop:
                break
            ids.append(token)
        return ids[start:]
