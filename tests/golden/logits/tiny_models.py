"""Tiny random models, one for each family and each thing that families do differently.

Two or more layers, 64 wide, F32: large enough that a wrong scale, mask, rotation or order shows in
the first digit of the logits, small enough to be made where they are needed instead of being kept.
Numbers come from Python's Mersenne Twister, whose random() is the same in every version, so the
files are the same everywhere. Needs nothing but the standard library.

    python tiny_models.py FOLDER     writes them all
"""

import array
import random
import struct
import sys
from pathlib import Path

VOCABULARY = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)] + ["\u2581", "a", "b", "c", "d"]
TOKEN_TYPES = [2, 3, 3] + [6] * 256 + [1] * 5
U32, F32, BOOL, STRING, ARRAY, I32 = 4, 6, 7, 8, 9, 5


def _string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value):
    """Type number and bytes of a metadata value; lists hold one type, numbers in them I32."""
    if isinstance(value, bool):
        return BOOL, struct.pack("<B", value)
    if isinstance(value, int):
        return U32, struct.pack("<I", value)
    if isinstance(value, float):
        return F32, struct.pack("<f", value)
    if isinstance(value, str):
        return STRING, _string(value)
    if isinstance(value[0], int):
        return ARRAY, struct.pack(f"<IQ{len(value)}i", I32, len(value), *value)
    kind = _value(value[0])[0]
    return ARRAY, struct.pack("<IQ", kind, len(value)) + b"".join(_value(v)[1] for v in value)


def write_gguf(path, pairs, tensors):
    """tensors: name -> (shape, array of floats); shape[0] is the length of a row, as in the file."""
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(pairs))
    for key, value in pairs.items():
        kind, data = _value(value)
        head += _string(key) + struct.pack("<I", kind) + data
    body = b""
    for name, (shape, values) in tensors.items():
        head += _string(name) + struct.pack("<I", len(shape))
        head += struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<IQ", 0, len(body))
        body += values.tobytes()
        body += bytes(-len(body) % 32)
    Path(path).write_bytes(head + bytes(-len(head) % 32) + body)


class Maker:
    """Random tensors by name; each name has its own stream, so adding one changes no other."""

    def __init__(self, seed):
        self.seed = seed
        self.tensors = {}

    def _random(self, name, n, low, high):
        draw = random.Random(f"{self.seed}/{name}").random
        return array.array("f", [low + (high - low) * draw() for _ in range(n)])

    def matrix(self, name, n_cols, n_rows, gain=1.0):
        spread = gain * (3.0 / n_cols) ** 0.5  # keeps the variance of what goes through at gain^2
        self.tensors[name] = ([n_cols, n_rows], self._random(name, n_cols * n_rows, -spread, spread))

    def vector(self, name, n, low, high):
        self.tensors[name] = ([n], self._random(name, n, low, high))


class Family:
    """What one tiny model looks like; the defaults are a plain llama."""

    def __init__(self, arch, **changes):
        self.arch = arch
        self.layers, self.embd, self.ff = 2, 64, 96
        self.heads, self.kv_heads, self.head_dim = 4, 2, 16
        self.rot = 16
        self.pairs = {}          # metadata without the family's prefix
        self.factors = {}        # rope factor tensors: name -> (low, high)
        self.tied = False
        self.biases = []         # matrices that have one
        self.qk_norm = self.post_norms = self.norm_bias = self.fused = False
        self.context = 256       # what the models are run with: llama.cpp rounds up to this
        self.__dict__.update(changes)

    def metadata(self):
        epsilon = "attention.layer_norm_epsilon" if self.norm_bias else "attention.layer_norm_rms_epsilon"
        own = {
            "block_count": self.layers, "context_length": 256, "embedding_length": self.embd,
            "feed_forward_length": self.ff, "attention.head_count": self.heads,
            "attention.head_count_kv": self.kv_heads, "rope.dimension_count": self.rot,
            "attention.key_length": self.head_dim, "attention.value_length": self.head_dim,
            epsilon: 1e-5, "rope.freq_base": 10000.0, **self.pairs,
        }
        return {
            "general.architecture": self.arch, "general.name": "tiny",  # llama.cpp looks for "phi3" in it
            **{f"{self.arch}.{key}": value for key, value in own.items()},
            "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": VOCABULARY,
            "tokenizer.ggml.scores": [0.0] * len(VOCABULARY),
            "tokenizer.ggml.token_type": TOKEN_TYPES,
            "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.unknown_token_id": 0,
        }

    def norm(self, m, name, n):
        m.vector(f"{name}.weight", n, 0.7, 1.3)
        if self.norm_bias:
            m.vector(f"{name}.bias", n, -0.2, 0.2)

    def shapes(self):
        """Matrices of a layer: name -> (columns, rows, gain). Queries and keys are large, so that
        attention is far from uniform and a wrong angle or mask shows."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        if self.fused:
            return {"attn_qkv": (self.embd, q + 2 * kv, 1.5), "attn_output": (q, self.embd, 1),
                    "ffn_up": (self.embd, 2 * self.ff, 1), "ffn_down": (self.ff, self.embd, 1)}
        return {"attn_q": (self.embd, q, 1.7), "attn_k": (self.embd, kv, 1.7),
                "attn_v": (self.embd, kv, 1), "attn_output": (q, self.embd, 1),
                "ffn_gate": (self.embd, self.ff, 1), "ffn_up": (self.embd, self.ff, 1),
                "ffn_down": (self.ff, self.embd, 1)}

    def layer(self, m, i):
        blk = f"blk.{i}"
        for name, (n_cols, n_rows, gain) in self.shapes().items():
            m.matrix(f"{blk}.{name}.weight", n_cols, n_rows, gain)
            if name in self.biases:
                m.vector(f"{blk}.{name}.bias", n_rows, -0.3, 0.3)
        self.norm(m, f"{blk}.attn_norm", self.embd)
        self.norm(m, f"{blk}.ffn_norm", self.embd)
        if self.qk_norm:
            m.vector(f"{blk}.attn_q_norm.weight", self.head_dim, 1.0, 2.0)
            m.vector(f"{blk}.attn_k_norm.weight", self.head_dim, 1.0, 2.0)
        if self.post_norms:
            m.vector(f"{blk}.post_attention_norm.weight", self.embd, 0.7, 1.3)
            m.vector(f"{blk}.post_ffw_norm.weight", self.embd, 0.7, 1.3)

    def build(self, seed):
        m = Maker(seed)
        m.matrix("token_embd.weight", self.embd, len(VOCABULARY), self.embd ** 0.5 * 0.2)
        self.norm(m, "output_norm", self.embd)
        if not self.tied:
            m.matrix("output.weight", self.embd, len(VOCABULARY), 2)
        for name, (low, high) in self.factors.items():
            m.vector(name, self.rot // 2, low, high)
        for i in range(self.layers):
            self.layer(m, i)
        return m.tensors

    def write(self, path, seed):
        write_gguf(path, self.metadata(), self.build(seed))

    def adapter(self, path, seed, matrices, rank, alpha):
        """A LoRA adapter for the given matrices of all layers, and for both ends where named."""
        m = Maker(f"{seed}/lora")
        for i in range(self.layers):
            for name in matrices:
                if name in self.shapes():
                    n_cols, n_rows, _ = self.shapes()[name]
                    self.pair(m, f"blk.{i}.{name}.weight", n_cols, n_rows, rank)
        if "output" in matrices:
            self.pair(m, "output.weight", self.embd, len(VOCABULARY), rank)
        if "token_embd" in matrices:
            m.matrix("token_embd.weight.lora_a", rank, len(VOCABULARY), 1)
            m.matrix("token_embd.weight.lora_b", rank, self.embd, 0.5)
        write_gguf(path, {"general.architecture": self.arch, "general.type": "adapter",
                          "adapter.type": "lora", "adapter.lora.alpha": alpha}, m.tensors)

    @staticmethod
    def pair(m, name, n_cols, n_rows, rank):
        m.matrix(f"{name}.lora_a", n_cols, rank, 1)
        m.matrix(f"{name}.lora_b", rank, n_rows, 0.5)


YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 64}
QKV = ["attn_q", "attn_k", "attn_v"]

FAMILIES = {
    "llama": Family("llama"),
    "llama-tied-biases": Family("llama", tied=True, biases=QKV + ["attn_output", "ffn_gate", "ffn_up", "ffn_down"]),
    "llama-linear": Family("llama", pairs={"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}),
    "llama-old-linear": Family("llama", pairs={"rope.scale_linear": 2.0}),
    "llama-yarn": Family("llama", head_dim=32, rot=32, pairs=YARN),
    "llama-yarn-attn-factor": Family("llama", head_dim=32, rot=32,
                                     pairs={**YARN, "rope.scaling.attn_factor": 0.8}),
    "llama-llama3": Family("llama", factors={"rope_freqs.weight": (1.0, 8.0)}),
    "llama-layers-differ": Family("llama", layers=2, kv_heads=4, pairs={"attention.head_count_kv": [4, 4]}),
    "qwen2": Family("qwen2", tied=True, biases=QKV),
    "qwen2-yarn": Family("qwen2", biases=QKV, pairs=YARN),
    "qwen3": Family("qwen3", qk_norm=True, head_dim=32, rot=32),
    "gemma": Family("gemma", tied=True, kv_heads=1, head_dim=32, rot=32),
    "gemma2": Family("gemma2", tied=True, layers=4, post_norms=True,
                     pairs={"attention.sliding_window": 8, "attn_logit_softcapping": 5.0,
                            "final_logit_softcapping": 4.0}),
    "gemma2-default-caps": Family("gemma2", tied=True, layers=2, post_norms=True,
                                  pairs={"attention.sliding_window": 20}),
    "gemma3": Family("gemma3", tied=True, layers=8, post_norms=True, qk_norm=True, kv_heads=1,
                     head_dim=32, rot=32,
                     pairs={"attention.sliding_window": 8, "rope.freq_base": 1000000.0,
                            "rope.scaling.type": "linear", "rope.scaling.factor": 8.0}),
    "gemma3-no-window": Family("gemma3", tied=True, post_norms=True, qk_norm=True),
    "phi3": Family("phi3", fused=True, kv_heads=4, rot=12,
                   pairs={"rope.scaling.original_context_length": 256, "rope.scaling.attn_factor": 1.2,
                          "rope.scaling.type": "longrope"},
                   factors={"rope_factors_long.weight": (4.0, 20.0), "rope_factors_short.weight": (1.0, 2.0)}),
    "phi3-long": Family("phi3", fused=True, kv_heads=4,
                        pairs={"rope.scaling.original_context_length": 64,
                               "rope.scaling.attn_factor": 1.2, "rope.scaling.type": "longrope",
                               "attention.sliding_window": 8},
                        factors={"rope_factors_long.weight": (4.0, 20.0), "rope_factors_short.weight": (1.0, 2.0)}),
    "stablelm": Family("stablelm", norm_bias=True, rot=4, biases=QKV),
}

# adapter -> (model, matrices, rank, alpha)
ADAPTERS = {
    "llama-lora": ("llama", QKV + ["attn_output", "ffn_gate", "ffn_up", "ffn_down", "output", "token_embd"], 4, 8.0),
    "gemma2-lora-no-alpha": ("gemma2", ["attn_q", "attn_v"], 3, 0.0),
    "phi3-lora-fused": ("phi3", ["attn_qkv", "ffn_up"], 8, 16.0),
}

# Ids of one prompt, longer than every window above and than a page of keys and values.
PROMPT = [1] + [random.Random("prompt").randrange(3, len(VOCABULARY))] + [
    3 + (i * i * 37 + i * 11) % (len(VOCABULARY) - 3) for i in range(68)]
POSITIONS = [0, 6, 33, 69]


def write_all(folder):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, family in FAMILIES.items():
        family.write(folder / f"{name}.gguf", name)
    for name, (model, matrices, rank, alpha) in ADAPTERS.items():
        FAMILIES[model].adapter(folder / f"{name}.gguf", name, matrices, rank, alpha)


if __name__ == "__main__":
    write_all(sys.argv[1])
