"""A transformer in numpy's float64, for llama and gemma3 files: the truth that logits are held to.

Weights are dequantized by the gguf package and everything after that is double precision, keys and
values too. Written from the papers and the file format only and checked against llama.cpp run on
the same weights as F32 (see make_truth.py), so it shares no code with what it judges.
"""

import gguf
import numpy


class Network:
    def __init__(self, path):
        reader = gguf.GGUFReader(path)
        self.fields = reader.fields
        self.arch = self.field("general.architecture")
        assert self.arch in ("llama", "gemma3"), self.arch
        self.tensors = {t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(numpy.float64)
                        for t in reader.tensors}
        key = lambda suffix, default=None: self.field(f"{self.arch}.{suffix}", default)
        self.n_layers = key("block_count")
        self.n_embd = key("embedding_length")
        self.n_heads = key("attention.head_count")
        self.n_kv = key("attention.head_count_kv", self.n_heads)
        self.head_dim = key("attention.key_length", self.n_embd // self.n_heads)
        self.epsilon = key("attention.layer_norm_rms_epsilon")
        self.base = key("rope.freq_base", 10000.0)
        self.window = key("attention.sliding_window", 0) if self.arch == "gemma3" else 0
        self.cache = [([], []) for _ in range(self.n_layers)]

    def field(self, key, default=None):
        return self.fields[key].contents() if key in self.fields else default

    def norm(self, x, gain):
        return x / numpy.sqrt((x * x).mean(-1, keepdims=True) + self.epsilon) * self.tensors[gain]

    def rotate(self, x, positions, base):
        """x [n, heads, dim]. llama pairs neighbours, gemma pairs the halves."""
        half = self.head_dim // 2
        angles = positions[:, None] * base ** (-2.0 * numpy.arange(half) / self.head_dim)
        cos, sin = numpy.cos(angles)[:, None, :], numpy.sin(angles)[:, None, :]
        out = numpy.empty_like(x)
        first, second = (slice(0, half), slice(half, None)) if self.arch == "gemma3" else (
            slice(0, None, 2), slice(1, None, 2))
        out[..., first] = x[..., first] * cos - x[..., second] * sin
        out[..., second] = x[..., first] * sin + x[..., second] * cos
        return out

    def attention(self, i, x, positions):
        blk = f"blk.{i}"
        local = self.window > 0 and i % 6 != 5
        base = 10000.0 if local else self.base
        heads = lambda name: (x @ self.tensors[f"{blk}.{name}.weight"].T).reshape(len(x), -1, self.head_dim)
        q, k, v = heads("attn_q"), heads("attn_k"), heads("attn_v")
        if self.arch == "gemma3":
            q = self.norm(q, f"{blk}.attn_q_norm.weight")
            k = self.norm(k, f"{blk}.attn_k_norm.weight")
        self.cache[i][0].extend(self.rotate(k, positions, base))
        self.cache[i][1].extend(v)
        keys = numpy.repeat(numpy.array(self.cache[i][0]), self.n_heads // self.n_kv, axis=1)
        values = numpy.repeat(numpy.array(self.cache[i][1]), self.n_heads // self.n_kv, axis=1)
        scores = numpy.einsum("qhd,khd->hqk", self.rotate(q, positions, base), keys) / self.head_dim ** 0.5
        distance = positions[:, None] - numpy.arange(len(keys))[None, :]
        hidden = (distance < 0) | ((distance >= self.window) if local else False)
        scores = numpy.where(hidden[None], -numpy.inf, scores)
        weights = numpy.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed = numpy.einsum("hqk,khd->qhd", weights, values).reshape(len(x), -1)
        return mixed @ self.tensors[f"{blk}.attn_output.weight"].T

    def feed_forward(self, i, x):
        gate = x @ self.tensors[f"blk.{i}.ffn_gate.weight"].T
        up = x @ self.tensors[f"blk.{i}.ffn_up.weight"].T
        if self.arch == "gemma3":
            inner = (2 / numpy.pi) ** 0.5 * (gate + 0.044715 * gate ** 3)
            act = 0.5 * gate * (1 + numpy.tanh(inner))
        else:
            act = gate / (1 + numpy.exp(-gate))
        return (act * up) @ self.tensors[f"blk.{i}.ffn_down.weight"].T

    def reset(self):
        self.cache = [([], []) for _ in range(self.n_layers)]

    def feed(self, tokens):
        """Appends tokens to the sequence; log-probabilities after the last of them."""
        done = len(self.cache[0][0])
        positions = numpy.arange(done, done + len(tokens))
        x = self.tensors["token_embd.weight"][tokens]
        gemma = self.arch == "gemma3"
        if gemma:
            x = x * self.n_embd ** 0.5
        for i in range(self.n_layers):
            y = self.attention(i, self.norm(x, f"blk.{i}.attn_norm.weight"), positions)
            x = x + (self.norm(y, f"blk.{i}.post_attention_norm.weight") if gemma else y)
            y = self.feed_forward(i, self.norm(x, f"blk.{i}.ffn_norm.weight"))
            x = x + (self.norm(y, f"blk.{i}.post_ffw_norm.weight") if gemma else y)
        x = self.norm(x[-1], "output_norm.weight")
        logits = self.tensors.get("output.weight", self.tensors["token_embd.weight"]) @ x
        return logits - logits.max() - numpy.log(numpy.exp(logits - logits.max()).sum())
