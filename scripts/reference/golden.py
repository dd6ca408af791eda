#!/usr/bin/env python3
"""Writes tests/data/golden_FAMILY/: what tests/test_golden.cpp holds the transformer, its backward pass and AdamW to.

    build/peers/bin/python scripts/reference/golden.py tests/data [--check]

An implementation of the four families from their papers in plain PyTorch, float64, autograd; no code of ours and no
model code of transformers takes part. --check compares it with transformers (loss, logits, every gradient); it is how
the files in the repository were accepted. Weights and documents are the same in every run; regenerating the files
is a commit of its own, with its reason.

    config.json, model.safetensors   a Hugging Face model directory, f32
    golden.safetensors               tokens, targets, positions [B,T]; cu_seqlens [S+1]; logits [B,T,V]; loss [];
                                     grad.NAME of every tensor, in its Hugging Face shape; losses [10] under AdamW,
                                     each before its step (lr 1e-3, betas 0.9 0.95, eps 1e-8, weight decay 0.1 on
                                     matrices only)
"""
import argparse
import json
import math
import os

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

V, B, T, NUM_LAYERS, C = 97, 2, 24, 2, 32  # vocabulary, rows, tokens a row, layers, channels
DOCUMENT_STARTS = [0, 9, 24, 29, 39, 48]  # over the 2 x 24 tokens; rows are boundaries, token 0 opens a document


def llama_like(family, heads, kv_heads, head_dim, mlp_dim, **more):
    architecture = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[family] + "ForCausalLM"
    config = dict(architectures=[architecture], model_type=family, vocab_size=V, max_position_embeddings=64,
                  hidden_size=C, intermediate_size=mlp_dim, num_hidden_layers=NUM_LAYERS, num_attention_heads=heads,
                  num_key_value_heads=kv_heads, head_dim=head_dim, hidden_act="silu", rms_norm_eps=1e-6,
                  rope_theta=10000.0, tie_word_embeddings=False, torch_dtype="float32", bos_token_id=0,
                  eos_token_id=0)
    config.update(more)
    return config


# Between them: multi-head and grouped-query attention, C = H x D and not, tied and untied, biases or none, QK-norm,
# llama3's three frequency bands (D = 8 has one or two of each), a sliding window shorter than the documents.
CONFIGS = {
    "gpt2": dict(architectures=["GPT2LMHeadModel"], model_type="gpt2", vocab_size=V, n_positions=40, n_embd=C,
                 n_layer=NUM_LAYERS, n_head=4, activation_function="gelu_new", layer_norm_epsilon=1e-5,
                 torch_dtype="float32", bos_token_id=0, eos_token_id=0),
    "llama": llama_like("llama", 4, 2, 8, 56, rms_norm_eps=1e-5, max_position_embeddings=512, rope_theta=500.0,
                        rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                          original_max_position_embeddings=256)),
    "qwen2": llama_like("qwen2", 4, 1, 8, 40, tie_word_embeddings=True, use_sliding_window=True, sliding_window=5,
                        max_window_layers=1, layer_types=["full_attention", "sliding_attention"]),
    "qwen3": llama_like("qwen3", 4, 2, 16, 48, tie_word_embeddings=True, rope_theta=1e6),
}


def tensor_shapes(config):
    """Name -> shape of every tensor of the checkpoint, as the family's Hugging Face class has them."""
    shapes = {}
    if config["model_type"] == "gpt2":
        shapes["transformer.wte.weight"] = (V, C)
        shapes["transformer.wpe.weight"] = (config["n_positions"], C)
        for layer in range(NUM_LAYERS):
            at = f"transformer.h.{layer}."
            for norm in "ln_1", "ln_2":
                shapes[at + norm + ".weight"] = shapes[at + norm + ".bias"] = (C,)
            for name, inputs, outputs in (("attn.c_attn", C, 3 * C), ("attn.c_proj", C, C), ("mlp.c_fc", C, 4 * C),
                                          ("mlp.c_proj", 4 * C, C)):
                shapes[at + name + ".weight"], shapes[at + name + ".bias"] = (inputs, outputs), (outputs,)
        shapes["transformer.ln_f.weight"] = shapes["transformer.ln_f.bias"] = (C,)
        return shapes
    family, D = config["model_type"], config["head_dim"]
    q_dim, kv_dim = config["num_attention_heads"] * D, config["num_key_value_heads"] * D
    shapes["model.embed_tokens.weight"] = (V, C)
    for layer in range(NUM_LAYERS):
        at = f"model.layers.{layer}."
        shapes[at + "input_layernorm.weight"] = shapes[at + "post_attention_layernorm.weight"] = (C,)
        for name, outputs, inputs in (("q", q_dim, C), ("k", kv_dim, C), ("v", kv_dim, C), ("o", C, q_dim)):
            shapes[at + f"self_attn.{name}_proj.weight"] = (outputs, inputs)
            if family == "qwen2" and name != "o":
                shapes[at + f"self_attn.{name}_proj.bias"] = (outputs,)
        if family == "qwen3":
            shapes[at + "self_attn.q_norm.weight"] = shapes[at + "self_attn.k_norm.weight"] = (D,)
        for name, outputs, inputs in (("gate", config["intermediate_size"], C), ("up", config["intermediate_size"], C),
                                      ("down", C, config["intermediate_size"])):
            shapes[at + f"mlp.{name}_proj.weight"] = (outputs, inputs)
    shapes["model.norm.weight"] = (C,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (V, C)
    return shapes


def random_weights(config, generator):
    """Large enough that every branch matters: norm weights around 1, nothing zero."""
    weights = {}
    for name, shape in sorted(tensor_shapes(config).items()):
        values = torch.randn(shape, generator=generator, dtype=torch.float64) * 0.2
        if "norm" in name or "ln_" in name:
            values = values + (1 if name.endswith("weight") else 0)
        weights[name] = values.float()
    return weights


def visible(documents, positions, window):
    """[N,N]: may the row's token see the column's?"""
    rows, columns = documents[:, None], documents[None, :]
    distance = positions[:, None] - positions[None, :]
    seen = (rows == columns) & (distance >= 0)
    return seen & (distance < window) if window else seen


def attention(q, k, v, mask):
    """q [N,H,D], k and v [N,K,D]; head h reads key head h / (H/K)."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("ihd,jhd->hij", q, k) / math.sqrt(q.shape[-1])
    weights = torch.softmax(scores.masked_fill(~mask, -math.inf), -1)
    return torch.einsum("hij,jhd->ihd", weights, v).reshape(q.shape[0], -1)


def forward_gpt2(config, w, tokens, positions, documents):
    def linear(x, name):
        return x @ w[name + ".weight"] + w[name + ".bias"]

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        rstd = (centred.square().mean(-1, keepdim=True) + config["layer_norm_epsilon"]).rsqrt()
        return centred * rstd * w[name + ".weight"] + w[name + ".bias"]

    N, mask = len(tokens), visible(documents, positions, 0)
    x = w["transformer.wte.weight"][tokens] + w["transformer.wpe.weight"][positions]
    for layer in range(NUM_LAYERS):
        at = f"transformer.h.{layer}."
        q, k, v = (part.reshape(N, config["n_head"], -1)
                   for part in linear(norm(x, at + "ln_1"), at + "attn.c_attn").split(C, 1))
        x = x + linear(attention(q, k, v, mask), at + "attn.c_proj")
        h = linear(norm(x, at + "ln_2"), at + "mlp.c_fc")
        gelu = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h ** 3)))
        x = x + linear(gelu, at + "mlp.c_proj")
    return norm(x, "transformer.ln_f") @ w["transformer.wte.weight"].T


def rope_frequencies(config):
    D = config["head_dim"]
    frequencies = config["rope_theta"] ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)
    scaling = config.get("rope_scaling")
    if not scaling:
        return frequencies
    low, high, factor = scaling["low_freq_factor"], scaling["high_freq_factor"], scaling["factor"]
    # How often a pair turns within the original context: slow ones are stretched, fast ones kept, a blend between.
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / factor)


def forward_llama_like(config, w, tokens, positions, documents):
    def linear(x, name):
        return F.linear(x, w[name + ".weight"], w.get(name + ".bias"))

    def norm(x, name):
        return x * (x.square().mean(-1, keepdim=True) + config["rms_norm_eps"]).rsqrt() * w[name + ".weight"]

    N, D = len(tokens), config["head_dim"]
    angles = positions[:, None, None] * rope_frequencies(config)

    def rotate(x):
        a, b = x[..., :D // 2], x[..., D // 2:]
        return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)

    x = w["model.embed_tokens.weight"][tokens]
    for layer in range(NUM_LAYERS):
        at = f"model.layers.{layer}."
        slides = config.get("layer_types", [None] * NUM_LAYERS)[layer] == "sliding_attention"
        h = norm(x, at + "input_layernorm")
        q, k, v = (linear(h, f"{at}self_attn.{name}_proj").reshape(N, -1, D) for name in "qkv")
        if config["model_type"] == "qwen3":
            q, k = norm(q, at + "self_attn.q_norm"), norm(k, at + "self_attn.k_norm")
        mask = visible(documents, positions, config["sliding_window"] if slides else 0)
        x = x + linear(attention(rotate(q), rotate(k), v, mask), at + "self_attn.o_proj")
        h = norm(x, at + "post_attention_layernorm")
        gate = linear(h, at + "mlp.gate_proj")
        x = x + linear(gate * torch.sigmoid(gate) * linear(h, at + "mlp.up_proj"), at + "mlp.down_proj")
    head = w["model.embed_tokens.weight"] if config["tie_word_embeddings"] else w["lm_head.weight"]
    return norm(x, "model.norm") @ head.T


def mean_loss(logits, targets):
    log_p = logits - torch.logsumexp(logits, -1, keepdim=True)
    counted = targets >= 0
    return -log_p[counted, targets[counted]].mean()


def random_batch(generator):
    tokens = torch.randint(1, V, (B * T,), generator=generator)
    targets = torch.randint(0, V, (B * T,), generator=generator)
    tokens[DOCUMENT_STARTS[:-1]] = 0
    targets[[3, 8, 20, 21, 22, 47]] = -1
    positions, documents = torch.empty_like(tokens), torch.empty_like(tokens)
    for document, (begin, end) in enumerate(zip(DOCUMENT_STARTS, DOCUMENT_STARTS[1:])):
        positions[begin:end], documents[begin:end] = torch.arange(end - begin), document
    return tokens, targets, positions, documents


def make_golden(family, directory):
    config = CONFIGS[family]
    forward = forward_gpt2 if family == "gpt2" else forward_llama_like
    generator = torch.Generator().manual_seed(20240520)
    weights = random_weights(config, generator)
    tokens, targets, positions, documents = random_batch(generator)

    w = {name: values.double().requires_grad_() for name, values in weights.items()}
    matrices = [p for p in w.values() if p.dim() == 2]
    vectors = [p for p in w.values() if p.dim() == 1]
    optimizer = torch.optim.AdamW([dict(params=matrices, weight_decay=0.1), dict(params=vectors, weight_decay=0.0)],
                                  lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    losses, golden = [], {}
    for step in range(10):
        optimizer.zero_grad()
        logits = forward(config, w, tokens, positions, documents)
        loss = mean_loss(logits, targets)
        loss.backward()
        losses.append(loss.item())
        if step == 0:
            golden = {f"grad.{name}": p.grad.float() for name, p in w.items()}
            golden["logits"] = logits.detach().float().reshape(B, T, V)
        optimizer.step()
    golden.update(tokens=tokens.int().reshape(B, T), targets=targets.int().reshape(B, T),
                  positions=positions.int().reshape(B, T), cu_seqlens=torch.tensor(DOCUMENT_STARTS).int(),
                  loss=torch.tensor(losses[0], dtype=torch.float64), losses=torch.tensor(losses, dtype=torch.float64))

    os.makedirs(directory, exist_ok=True)
    with open(f"{directory}/config.json", "w") as file:
        json.dump(config, file, indent=2)
        file.write("\n")
    save_file(weights, f"{directory}/model.safetensors", {"format": "pt"})
    save_file(golden, f"{directory}/golden.safetensors",
              {"producer": f"scripts/reference/golden.py, torch {torch.__version__}"})
    return losses


def check_with_transformers(directory):
    """Documents are independent, so transformers gets them one by one: no mask of ours reaches it."""
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64, attn_implementation="eager")
    golden = load_file(f"{directory}/golden.safetensors")
    tokens, targets = golden["tokens"].flatten().long(), golden["targets"].flatten().long()
    logits = torch.cat([model(tokens[None, begin:end]).logits[0]
                        for begin, end in zip(DOCUMENT_STARTS, DOCUMENT_STARTS[1:])])
    loss = F.cross_entropy(logits, targets, ignore_index=-1)
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    expected = {name[5:]: g for name, g in golden.items() if name.startswith("grad.")}
    assert set(grads) == set(expected), set(grads) ^ set(expected)
    worst = max(((grads[name] - g).abs().max() / g.abs().max()).item() for name, g in expected.items())
    logit_error = (logits.reshape(B, T, V) - golden["logits"]).abs().max().item()
    loss_error = abs(loss.item() - golden["loss"].item())
    # transformers computes RoPE's angles and the softmax in f32 (6e-8 relative) whatever the model's dtype.
    assert loss_error < 1e-6 and logit_error < 2e-5 and worst < 1e-5, (loss_error, logit_error, worst)
    return f"transformers agrees: loss to {loss_error:.1e}, logits to {logit_error:.1e}, gradients to {worst:.1e}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="directory that golden_FAMILY directories are written to")
    parser.add_argument("--check", action="store_true", help="compare with transformers")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for family in CONFIGS:
        directory = f"{arguments.out}/golden_{family}"
        losses = make_golden(family, directory)
        print(f"{family}: losses {losses[0]:.6f} ... {losses[-1]:.6f}")
        if arguments.check:
            print(" ", check_with_transformers(directory))


if __name__ == "__main__":
    main()
