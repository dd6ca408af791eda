"""Tokenizers against tokenizers, transformers and tiktoken.

    build/peers/bin/python scripts/peers/test_tokenizer.py BUILD [TEXT...]

For each split pattern: BUILD/tokenize trains on the texts (default: this repository's own sources and documents); then
 - HF's BpeTrainer on the same text must learn the same merges;
 - HF tokenizers and transformers' AutoTokenizer must read the directory and give the same ids;
 - tiktoken with tokenizer.tiktoken must give the ids that BUILD/tokenize gives for that file;
on the texts, nasty strings and fuzz. Last line: N passed, N failed, N skipped.
"""
import glob
import json
import os
import random
import subprocess
import sys
import tempfile
import traceback

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
import tiktoken
from tiktoken.load import load_tiktoken_bpe
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

VOCAB = 2000
REGEX_OF_BYTE_LEVEL = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def fuzz(count):
    """Random strings over awkward characters, and over all of Unicode that every oracle classes alike.

    HF's regular expressions know Unicode only up to their own version: code points assigned later are left out here;
    that ours are tiktoken's is tested for every code point by tests/test_tokenizer_split.cpp.
    """
    rng = random.Random(7)
    import unicodedata
    known = [chr(c) for c in range(0x110000) if unicodedata.category(chr(c)) not in ("Cs", "Cn")]
    awkward = list(" \n\r\t\u00a0\u3000\u0085'sStTdDmlLvVrReE1٣½!._-\u0301中한😀\u200d\ufeff\u017fǅʰab") + ["<|endoftext|>"]
    texts = []
    for i in range(count):
        pool = awkward if i % 3 else known
        texts.append("".join(rng.choices(pool, k=rng.randrange(1, 40))))
    return texts


def run(*command):
    result = subprocess.run(command, capture_output=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr.decode(errors='replace')}")
    return result.stdout.decode()


class Peers:
    def __init__(self, build, paths, folder):
        self.tokenize = f"{build}/tokenize"
        self.folder = folder
        self.texts = []
        for path in paths:
            with open(path, encoding="utf-8", errors="ignore", newline="") as file:
                self.texts.append(file.read())
        self.documents = self.texts + fuzz(6000)
        self.jsonl = f"{folder}/documents.jsonl"
        self.write(self.jsonl, self.documents)
        self.write(f"{folder}/train.jsonl", self.texts)

    @staticmethod
    def write(path, texts):
        with open(path, "w", encoding="utf-8") as out:
            for text in texts:
                out.write(json.dumps({"text": text}) + "\n")

    def train(self, pattern):
        out = f"{self.folder}/{pattern}"
        print(run(self.tokenize, "train", "--quiet", "--input", f"{self.folder}/train.jsonl", "--pattern", pattern,
                  "--vocab-size", str(VOCAB), "--out", out), end="")
        return out

    def our_ids(self, tokenizer, *flags):
        lines = run(self.tokenize, "encode", "--quiet", "--tokenizer", tokenizer, "--input", self.jsonl, *flags)
        ids = [[int(word) for word in line.split()] for line in lines.splitlines()]
        assert len(ids) == len(self.documents), (len(ids), len(self.documents))
        return ids

    def compare(self, name, ours, theirs):
        for text, a, b in zip(self.documents, ours, theirs):
            if a != b:
                at = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
                raise AssertionError(f"{name}: {text[:60]!r}... token {at}: ours {a[at:at + 5]}, theirs {b[at:at + 5]}")
        print(f"  {name}: {len(ours)} texts, {sum(map(len, ours))} tokens, equal")

    def merges(self, directory):
        with open(f"{directory}/tokenizer.json", encoding="utf-8") as file:
            ours = json.load(file)
        hf = Tokenizer(models.BPE())
        saved = Tokenizer.from_file(f"{directory}/tokenizer.json")
        hf.pre_tokenizer = saved.pre_tokenizer
        if saved.normalizer is not None:
            hf.normalizer = saved.normalizer
        hf.train_from_iterator(self.texts, trainers.BpeTrainer(
            vocab_size=VOCAB, min_frequency=2, show_progress=False, special_tokens=["<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
        theirs = [" ".join(merge) for merge in json.loads(hf.to_str())["model"]["merges"]]
        assert ours["model"]["merges"] == theirs, next(
            (i, a, b) for i, (a, b) in enumerate(zip(ours["model"]["merges"] + [""], theirs + [""])) if a != b)
        print(f"  HF BpeTrainer: {len(theirs)} merges, equal")

    def hf(self, directory):
        hf = Tokenizer.from_file(f"{directory}/tokenizer.json")
        # Specials are text to us unless asked; HF has them as tokens unless asked.
        self.compare("HF tokenizers, specials allowed", self.our_ids(directory, "--allow-special"),
                     [hf.encode(text, add_special_tokens=False).ids for text in self.documents])
        hf.encode_special_tokens = True
        self.compare("HF tokenizers, specials as text", self.our_ids(directory),
                     [hf.encode(text, add_special_tokens=False).ids for text in self.documents])
        # Under a normalizer (qwen2's NFC) it is the normalized text that comes back.
        normal = hf.normalizer.normalize_str if hf.normalizer else str
        for text in self.documents:
            back = hf.decode(hf.encode(text, add_special_tokens=False).ids, skip_special_tokens=False)
            assert back == normal(text), f"HF decoding: {text[:60]!r} comes back as {back[:60]!r}"
        print(f"  HF decoding: all {len(self.documents)} texts come back")

    def transformers(self, directory):
        auto = AutoTokenizer.from_pretrained(directory)
        assert auto.eos_token == "<|endoftext|>" and auto.eos_token_id == VOCAB - 1, (auto.eos_token, auto.eos_token_id)
        assert len(auto) == VOCAB, len(auto)
        self.compare(f"transformers {type(auto).__name__}", self.our_ids(directory, "--allow-special"),
                     [auto.encode(text, add_special_tokens=False) for text in self.documents])

    def tiktoken(self, directory, pattern):
        with open(f"{directory}/tokenizer.json", encoding="utf-8") as file:
            pre = json.load(file)["pre_tokenizer"]
        regex = REGEX_OF_BYTE_LEVEL if pattern == "gpt2" else pre["pretokenizers"][0]["pattern"]["Regex"]
        ranks = load_tiktoken_bpe(f"{directory}/tokenizer.tiktoken")
        peer = tiktoken.Encoding(pattern, pat_str=regex, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": VOCAB - 1})
        normalize = Tokenizer.from_file(f"{directory}/tokenizer.json").normalizer
        texts = [normalize.normalize_str(t) for t in self.documents] if normalize else self.documents
        file = f"{directory}/tokenizer.tiktoken"
        flags = ("--pattern", pattern, "--special", "<|endoftext|>")
        self.compare("tiktoken, specials as text", self.our_ids(file, *flags), [peer.encode_ordinary(t) for t in texts])
        if normalize is None:
            self.compare("tiktoken, specials allowed", self.our_ids(file, *flags, "--allow-special"),
                         [peer.encode(t, allowed_special="all") for t in texts])


def main():
    build = sys.argv[1]
    paths = sys.argv[2:] or sorted(p for kind in ("h", "cpp", "py", "sh", "md", "txt")
                                   for p in glob.glob(f"**/*.{kind}", recursive=True)
                                   if not p.startswith("build") and "unicode_tables" not in p)
    passed = failed = 0
    with tempfile.TemporaryDirectory() as folder:
        peers = Peers(build, paths, folder)
        print(f"{len(paths)} files, {sum(len(t.encode()) for t in peers.texts)} bytes; {len(peers.documents)} texts to encode")
        for pattern in ("gpt2", "llama3", "qwen2"):
            print(pattern)
            directory = peers.train(pattern)
            for check in (peers.merges, peers.hf, peers.transformers, lambda d: peers.tiktoken(d, pattern)):
                try:
                    check(directory)
                    passed += 1
                except Exception:
                    traceback.print_exc()
                    failed += 1
    print(f"{passed} passed, {failed} failed, 0 skipped")
    sys.exit(failed != 0)


main()
