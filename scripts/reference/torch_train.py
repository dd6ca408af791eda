#!/usr/bin/env python3
"""PyTorch beside the same GPU's bench_gpu and bench_train: one line of JSON for each op's row and for each model.

    build/bench/bench_gpu --list >rows.jsonl
    scripts/reference/torch_train.py --ops rows.jsonl --json torch.jsonl            the rows' products and attention
    scripts/reference/torch_train.py --models gpt2-124m,llama-1b --json torch.jsonl training throughput
    build/bench/bench_gpu --library torch.jsonl                                     fills the column "x lib"

Ops: matrix products by F.linear and torch.mm in bf16 (the weight gradient is bf16 here and f32 there), attention by
scaled_dot_product_attention with the fastest of its backends that takes the shape. Cold L2, medians, random data: as
bench_gpu measures.

Training: the models below, written for this file: f32 parameters, bf16 autocast, torch.compile of each block and of the
loss, fused AdamW, clipping, gradients accumulated in f32 to steps of --batch-tokens. The micro-batch is halved until it
fits. A host wait a step (the loss), as in our trainer.
"""
import argparse
import gc
import json
import statistics
import sys
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

DEVICE = "cuda"
BACKENDS = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]


# ---- models --------------------------------------------------------------------------------------------------------
@dataclass
class Shape:
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    channels: int
    mlp: int
    vocab: int
    gpt2: bool = False
    qkv_bias: bool = False
    tied: bool = True
    rope_theta: float = 500000.0
    eps: float = 1e-5


def gpt2(layers, heads, channels):
    return Shape(layers, heads, heads, channels // heads, channels, 4 * channels, 50257, gpt2=True, qkv_bias=True)


def qwen2(layers, heads, kv_heads, head_dim, channels, mlp, vocab, tied):
    return Shape(layers, heads, kv_heads, head_dim, channels, mlp, vocab, qkv_bias=True, tied=tied, rope_theta=1e6,
                 eps=1e-6)


MODELS = {  # as in model/presets.cpp
    "gpt2-124m": gpt2(12, 12, 768),
    "gpt2-355m": gpt2(24, 16, 1024),
    "gpt2-774m": gpt2(36, 20, 1280),
    "gpt2-1558m": gpt2(48, 25, 1600),
    "llama-1b": Shape(16, 32, 8, 64, 2048, 8192, 128256),
    "llama-3b": Shape(28, 24, 8, 128, 3072, 8192, 128256),
    "llama-8b": Shape(32, 32, 8, 128, 4096, 14336, 128256, tied=False),
    "qwen2.5-0.5b": qwen2(24, 14, 2, 64, 896, 4864, 151936, True),
    "qwen2.5-1.5b": qwen2(28, 12, 2, 128, 1536, 8960, 151936, True),
    "qwen2.5-3b": qwen2(36, 16, 2, 128, 2048, 11008, 151936, True),
    "qwen2.5-7b": qwen2(28, 28, 4, 128, 3584, 18944, 152064, False),
}


def flops_per_token(s, seq_len):
    """6 for each weight of a product, the head included, and causal attention at half."""
    attention = s.heads * s.head_dim
    mlp = (2 if s.gpt2 else 3) * s.channels * s.mlp
    layer = s.channels * (attention + 2 * s.kv_heads * s.head_dim) + attention * s.channels + mlp
    return 6 * (s.layers * layer + s.channels * s.vocab) + 6 * s.layers * attention * seq_len


def norm(s):
    return nn.LayerNorm(s.channels, eps=s.eps) if s.gpt2 else nn.RMSNorm(s.channels, eps=s.eps)


class Block(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.s = s
        self.norm1, self.norm2 = norm(s), norm(s)
        self.qkv = nn.Linear(s.channels, (s.heads + 2 * s.kv_heads) * s.head_dim, bias=s.qkv_bias)
        self.out = nn.Linear(s.heads * s.head_dim, s.channels, bias=s.gpt2)
        self.up = nn.Linear(s.channels, s.mlp if s.gpt2 else 2 * s.mlp, bias=s.gpt2)
        self.down = nn.Linear(s.mlp, s.channels, bias=s.gpt2)

    def forward(self, x, cos, sin):
        s = self.s
        batch, length, _ = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, length, s.heads + 2 * s.kv_heads, s.head_dim).transpose(1, 2)
        q, k, v = qkv.split([s.heads, s.kv_heads, s.kv_heads], dim=1)
        if not s.gpt2:
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=s.heads != s.kv_heads)
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, -1))
        h = self.up(self.norm2(x))
        if s.gpt2:
            h = F.gelu(h, approximate="tanh")
        else:
            gate, value = h.chunk(2, dim=-1)
            h = F.silu(gate) * value
        return x + self.down(h)


def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Model(nn.Module):
    def __init__(self, s, seq_len):
        super().__init__()
        self.s = s
        self.wte = nn.Embedding(s.vocab, s.channels)
        self.wpe = nn.Embedding(seq_len, s.channels) if s.gpt2 else None
        self.blocks = nn.ModuleList(Block(s) for _ in range(s.layers))
        self.norm = norm(s)
        self.head = nn.Linear(s.channels, s.vocab, bias=False)
        if s.tied:
            self.head.weight = self.wte.weight
        angles = torch.outer(torch.arange(seq_len).float(),
                             s.rope_theta ** (-torch.arange(0, s.head_dim, 2).float() / s.head_dim))
        self.register_buffer("cos", angles.cos().to(torch.bfloat16))
        self.register_buffer("sin", angles.sin().to(torch.bfloat16))

    def init(self):
        for name, p in self.named_parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)
            else:
                nn.init.ones_(p)

    def forward(self, tokens, targets):
        x = self.wte(tokens)
        if self.wpe is not None:
            x = x + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        x = x.to(torch.bfloat16)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return self.loss(x, targets)

    def loss(self, x, targets):
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]).float(), targets.view(-1))


def build(s, seq_len, compiled):
    with torch.device("meta"):
        model = Model(s, seq_len)
    # Parameters come to be on the GPU; buffers are made there again.
    model = model.to_empty(device=DEVICE)
    fresh = Model(Shape(0, s.heads, s.kv_heads, s.head_dim, 8, 8, 8, s.gpt2, rope_theta=s.rope_theta), seq_len)
    model.cos, model.sin = fresh.cos.to(DEVICE), fresh.sin.to(DEVICE)
    if s.tied:
        model.head.weight = model.wte.weight
    model.init()
    if compiled == "whole":
        model.compile()
    elif compiled == "blocks":  # one compilation serves all layers
        for block in model.blocks:
            block.compile()
        model.loss = torch.compile(model.loss)
    return model


def train(name, args, emit):
    s = MODELS[name]
    facts = {"kind": "torch_train", "model": name, "dtype": "bf16", "seq_len": args.seq_len,
             "batch_tokens": args.batch_tokens, "optimizer": "adamw", "compile": args.compile,
             "precision": "f32 parameters, bf16 autocast"}
    rows = args.micro_batch
    while rows * args.seq_len > args.batch_tokens:
        rows //= 2
    while rows >= 1:
        try:
            result = measure(s, rows, args)
            emit({**facts, "fits": True, "micro_batch": rows, **result})
            return
        except torch.cuda.OutOfMemoryError:
            rows //= 2
        finally:
            torch._dynamo.reset()
            gc.collect()
            torch.cuda.empty_cache()
    emit({**facts, "fits": False})


def measure(s, rows, args):
    torch.cuda.reset_peak_memory_stats()
    model = build(s, args.seq_len, args.compile)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    num_micro = args.batch_tokens // (rows * args.seq_len)
    batches = [torch.randint(s.vocab, (2, rows, args.seq_len), device=DEVICE) for _ in range(min(8, num_micro + 1))]

    def step(micro, first):
        total = torch.zeros((), device=DEVICE)
        for i in range(micro):
            tokens, targets = batches[(first + i) % len(batches)]
            with torch.autocast(DEVICE, dtype=torch.bfloat16):
                loss = model(tokens, targets) / micro
            loss.backward()
            total += loss.detach()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total.item()

    for _ in range(3):  # compilation, clocks
        step(min(num_micro, 3), 0)
    torch.cuda.synchronize()
    seconds, began = [], time.perf_counter()
    for i in range(args.steps):
        if i > 0 and time.perf_counter() - began > args.model_limit_s:
            break
        start = time.perf_counter()
        loss = step(num_micro, i)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    flops, peak = flops_per_token(s, args.seq_len), data_sheet()
    result = {"micro_batches": num_micro, "steps": len(seconds), "loss": loss,
              "tokens_per_s": args.batch_tokens / median, "ms": median * 1e3, "flops_per_token": flops,
              "device_bytes": torch.cuda.max_memory_reserved()}
    if peak:
        result.update(peak_flops=peak, mfu=flops * args.batch_tokens / median / peak)
    return result


def data_sheet():
    """Dense bf16 with f32 sums, FLOP/s; as in kernels/peak.cpp."""
    name = torch.cuda.get_device_name()
    for part, tflops in [("H100 PCIe", 756), ("H100 NVL", 835), ("H100", 989.4), ("H200", 989.4), ("GH200", 989.4),
                         ("B200", 2250), ("A100", 312), ("A800", 312), ("L40S", 362), ("RTX 4090", 165.2)]:
        if part in name:
            return tflops * 1e12
    return 0


# ---- ops -------------------------------------------------------------------------------------------------------------
class Clock:
    """Median microseconds with a cold L2: as bench/gpu_report.h measures."""

    def __init__(self):
        bytes_ = max(2 * torch.cuda.get_device_properties(0).L2_cache_size, 128 << 20)
        self.evict = torch.empty(bytes_, dtype=torch.uint8, device=DEVICE)

    def us(self, run, repetitions):
        for _ in range(3):
            run()
        torch.cuda.synchronize()
        events = []
        for _ in range(repetitions):
            self.evict.zero_()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            events.append((begin, end))
        torch.cuda.synchronize()
        return statistics.median(begin.elapsed_time(end) for begin, end in events) * 1e3


def normal(*shape):
    return torch.randn(*shape, device=DEVICE, dtype=torch.bfloat16)


def product(row):
    n, outputs, inputs = row["N"], row["outputs"], row["inputs"]
    which = row["pass"].split()[0]
    if which == "forward":
        inp, w = normal(n, inputs), normal(outputs, inputs)
        return lambda: F.linear(inp, w)
    if which == "backward_input":
        dout, w = normal(n, outputs), normal(outputs, inputs)
        return lambda: torch.mm(dout, w)
    dout, inp = normal(n, outputs), normal(n, inputs)
    return lambda: torch.mm(dout.t(), inp)


def attention(row, clock, repetitions):
    """Microseconds and the backend that took least."""
    best = None
    for backend in BACKENDS:
        for grouped in (True, False):  # a backend that does not know grouped queries gets repeated keys, for free
            repeats = 1 if grouped else row["H"] // row["K"]
            if not grouped and repeats == 1:
                continue
            q = normal(row["B"], row["H"], row["T"], row["D"]).requires_grad_()
            k, v = (normal(row["B"], row["K"] * repeats, row["T"], row["D"]).requires_grad_() for _ in range(2))

            def forward():
                return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])

            try:
                with sdpa_kernel(backend):
                    if row["pass"] == "forward":
                        with torch.no_grad():
                            us = clock.us(forward, repetitions)
                    else:
                        out = forward()
                        dout = torch.randn_like(out)
                        us = clock.us(lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True),
                                      repetitions)
            except RuntimeError:
                continue
            if best is None or us < best[0]:
                best = (us, backend.name.lower() + ("" if grouped or repeats == 1 else ", keys repeated"))
            break
    return best


def time_ops(path, args, emit, deadline):
    clock = Clock()
    for line in open(path):
        if time.perf_counter() > deadline:
            print("torch_train: no time for the other rows", file=sys.stderr)
            return
        row = json.loads(line)
        plain = len(row["pass"].split()) == 2 and "bias" not in row["pass"] and "gelu" not in row["pass"].split()
        result = None
        if row["dtype"] != "bf16":
            continue
        if row["op"] == "matmul" and plain:
            result = (clock.us(product(row), args.repetitions), "mm")
        elif row["op"] == "attention" and row["pass"] in ("forward", "backward"):
            result = attention(row, clock, args.repetitions)
        if result is not None:
            emit({"kind": "torch_op", **{key: row[key] for key in ("op", "pass", "shape", "dtype")}, "us": result[0],
                  "backend": result[1]})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ops", help="rows of bench_gpu --list")
    parser.add_argument("--models", default="", help="comma-separated: " + ", ".join(MODELS))
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--batch-tokens", type=int, default=524288)
    parser.add_argument("--micro-batch", type=int, default=32, help="largest that is tried")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--compile", choices=["blocks", "whole", "none"], default="blocks")
    parser.add_argument("--limit-s", type=float, default=3600, help="nothing new begins after so many seconds")
    parser.add_argument("--model-limit-s", type=float, default=15, help="no further step of a model after so many")
    parser.add_argument("--json", help="lines are added to this file, too")
    args = parser.parse_args()
    models = [name for name in args.models.split(",") if name]
    unknown = [name for name in models if name not in MODELS]
    if unknown:
        parser.error(f"unknown model {unknown[0]}: one of {', '.join(MODELS)}")
    began = time.perf_counter()
    facts = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "cuda": torch.version.cuda}

    def emit(line):
        text = json.dumps({**line, **facts})
        print(text, flush=True)
        if args.json:
            with open(args.json, "a") as file:
                file.write(text + "\n")

    if args.ops:  # training, whose models are few, keeps two thirds of the time
        share = 1 / 3 if models else 1
        time_ops(args.ops, args, emit, began + share * args.limit_s)
    for name in models:
        if time.perf_counter() - began > args.limit_s:
            print(f"torch_train: no time for {name}", file=sys.stderr)
            continue
        train(name, args, emit)


if __name__ == "__main__":
    main()
