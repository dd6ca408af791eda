"""Models and files against transformers, for every family, in both directions.

    build/peers/bin/python scripts/peers/test_models.py BUILD

What we write must load in transformers without a warning and compute the same logits; what transformers writes must do
so here: random weights everywhere, so that no zero bias or unit norm hides a mistake. Last line: N passed, N failed,
N skipped.
"""
import json
import logging
import os
import subprocess
import sys
import tempfile
import traceback
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

VOCAB = 89
TOKENS = [int(t) for t in torch.randint(0, VOCAB, (37,), generator=torch.Generator().manual_seed(5))]
# Both sides sum in f32, in other orders: 1e-6 of logits up to some tens, through two layers.
TOLERANCE = 1e-4


def gpt2(**more):
    return dict(model_type="gpt2", vocab_size=VOCAB, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=1,
                eos_token_id=1, **more)


def llama_like(family, **more):
    config = dict(model_type=family, vocab_size=VOCAB, max_position_embeddings=64, hidden_size=32, num_hidden_layers=2,
                  num_attention_heads=4, num_key_value_heads=2, head_dim=8, intermediate_size=56,
                  tie_word_embeddings=False, bos_token_id=1, eos_token_id=2)
    config.update(more)
    return config


def rope(rope_type, **more):
    """The form of transformers 5; `rope_scaling` and `rope_theta` below are 4's."""
    return dict(rope_parameters=dict(rope_type=rope_type, rope_theta=5000.0, **more))


CONFIGS = {
    "gpt2": gpt2(),
    "gpt2 untied, narrow MLP": gpt2(tie_word_embeddings=False, n_inner=48),
    "llama": llama_like("llama"),
    "llama tied, multi-head, all biases": llama_like("llama", tie_word_embeddings=True, num_key_value_heads=4,
                                                     attention_bias=True, mlp_bias=True),
    "llama one key head, rope linear": llama_like("llama", num_key_value_heads=1, **rope("linear", factor=2.5)),
    "llama rope dynamic": llama_like("llama", **rope("dynamic", factor=2.0)),
    "llama rope yarn": llama_like("llama", **rope("yarn", factor=4.0, original_max_position_embeddings=16)),
    "llama rope llama3": llama_like("llama", max_position_embeddings=512, **rope(
        "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=256)),
    "llama rope llama3, old form": llama_like(
        "llama", max_position_embeddings=512, rope_theta=700.0,
        rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                          original_max_position_embeddings=256)),
    "qwen2": llama_like("qwen2"),
    "qwen2 tied, sliding window": llama_like("qwen2", tie_word_embeddings=True, use_sliding_window=True,
                                             sliding_window=7, max_window_layers=1),
    "qwen3": llama_like("qwen3"),
    "qwen3 tied, wide heads, biases": llama_like("qwen3", tie_word_embeddings=True, head_dim=16, attention_bias=True),
}


class RecordedWarnings(logging.Handler):
    """What transformers says while loading: nothing is what a good directory gets."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.messages = []

    def emit(self, record):
        self.messages.append(record.getMessage())

    def __enter__(self):
        logging.getLogger("transformers").addHandler(self)
        self.caught = warnings.catch_warnings(record=True)
        self.python_warnings = self.caught.__enter__()
        warnings.simplefilter("always")
        return self

    def __exit__(self, *error):
        self.caught.__exit__(*error)
        logging.getLogger("transformers").removeHandler(self)
        self.messages += [str(w.message) for w in self.python_warnings]


def run_logits(build, *arguments):
    result = subprocess.run([f"{build}/logits", *map(str, arguments)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr.strip()


def our_logits(build, directory, out):
    run_logits(build, "--model", directory, "--tokens", ",".join(map(str, TOKENS)), "--out", out)
    return load_file(out)["logits"]


def their_logits(model):
    with torch.no_grad():
        return model(torch.tensor([TOKENS])).logits[0].float()


def random_model(config, seed):
    """A transformers model in which every parameter is random and matters."""
    fields = dict(config)
    hf_config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    model = AutoModelForCausalLM.from_config(hf_config, attn_implementation="eager").float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            is_norm = parameter.dim() == 1 and name.endswith("weight")
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.25 + is_norm)
    return model


def load_strictly(directory, dtype=torch.float32):
    with RecordedWarnings() as recorded:
        model, info = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, attn_implementation="eager",
                                                           output_loading_info=True)
        GenerationConfig.from_pretrained(directory)
    assert not any(info.values()), f"loading info: {info}"
    assert not recorded.messages, f"warnings: {recorded.messages}"
    return model.eval()


def expect_close(ours, theirs, tolerance=TOLERANCE):
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    assert theirs.abs().max() > 1, "logits too small to compare"
    error = (ours - theirs).abs().max().item()
    assert error < tolerance, f"logits differ by {error:.2e}"


def expect_same_weights(ours, theirs, dtype):
    ours, theirs = dict(ours.named_parameters()), dict(theirs.named_parameters())
    assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
    for name, expected in theirs.items():
        assert torch.equal(ours[name], expected.to(dtype)), name


def test_theirs_loads_here(build, config, work):
    model = random_model(config, 1)
    model.save_pretrained(f"{work}/theirs")
    expect_close(our_logits(build, f"{work}/theirs", f"{work}/logits"), their_logits(model))


def test_their_shards_load_here(build, config, work):
    model = random_model(config, 2)
    model.save_pretrained(f"{work}/theirs", max_shard_size="20KB")
    assert os.path.exists(f"{work}/theirs/model.safetensors.index.json")
    expect_close(our_logits(build, f"{work}/theirs", f"{work}/logits"), their_logits(model))


def test_their_halves_load_here(build, config, work):
    for dtype in torch.bfloat16, torch.float16:
        model = random_model(config, 3)
        model.to(dtype).save_pretrained(f"{work}/{dtype}")
        rounded = random_model(config, 3)  # not model.float(): to(dtype) has rounded RoPE's frequencies as well
        with torch.no_grad():
            for parameter in rounded.parameters():
                parameter.copy_(parameter.to(dtype))
        expect_close(our_logits(build, f"{work}/{dtype}", f"{work}/logits"), their_logits(rounded))


def test_their_bare_model_loads_here(build, config, work):
    """The model without its head: names have no prefix."""
    model = random_model(config, 4)
    model.base_model.save_pretrained(f"{work}/theirs")
    fields = json.load(open(f"{work}/theirs/config.json"))
    fields["architectures"] = [type(model).__name__]
    json.dump(fields, open(f"{work}/theirs/config.json", "w"))
    expect_close(our_logits(build, f"{work}/theirs", f"{work}/logits"), their_logits(model))


def test_ours_loads_there(build, config, work):
    """Loaded here, written here, loaded there: every weight to the bit, config and all."""
    model = random_model(config, 6)
    model.save_pretrained(f"{work}/theirs")
    run_logits(build, "--model", f"{work}/theirs", "--save", f"{work}/ours")
    loaded = load_strictly(f"{work}/ours")
    expect_same_weights(loaded, model, torch.float32)
    expect_close(our_logits(build, f"{work}/ours", f"{work}/logits"), their_logits(loaded))
    run_logits(build, "--model", f"{work}/theirs", "--dtype", "bf16", "--save", f"{work}/ours_bf16")
    expect_same_weights(load_strictly(f"{work}/ours_bf16", "auto"), model, torch.bfloat16)


def test_fresh_model_loads_there(build, config, work):
    """Initialised here from nothing but a config.json, with weights large enough to compare."""
    fields = dict(config)
    hf_config = AutoConfig.for_model(fields.pop("model_type"), **fields, initializer_range=0.4)
    hf_config.architectures = [type(random_model(config, 0)).__name__]
    hf_config.save_pretrained(f"{work}/config")
    run_logits(build, "--init", f"{work}/config", "--seed", 7, "--save", f"{work}/ours",
               "--tokens", ",".join(map(str, TOKENS)), "--out", f"{work}/logits")
    expect_close(load_file(f"{work}/logits")["logits"], their_logits(load_strictly(f"{work}/ours")))


def tests_for(config):
    tests = [test_theirs_loads_here, test_their_shards_load_here, test_their_halves_load_here, test_ours_loads_there,
             test_fresh_model_loads_there]
    if config.get("tie_word_embeddings", config["model_type"] == "gpt2"):  # a bare model has no head of its own
        tests.append(test_their_bare_model_loads_here)
    return tests


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: test_models.py BUILD")
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    passed = failed = 0
    for name, config in CONFIGS.items():
        for test in tests_for(config):
            label = f"{test.__name__[5:].replace('_', ' ')}: {name}"
            try:
                with tempfile.TemporaryDirectory() as work:
                    test(sys.argv[1], config, work)
                passed += 1
            except Exception as error:
                failed += 1
                where = traceback.extract_tb(error.__traceback__)[-1]
                print(f"FAILED {label}: {type(error).__name__}: {error} (line {where.lineno})")
    print(f"{passed} passed, {failed} failed, 0 skipped")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
