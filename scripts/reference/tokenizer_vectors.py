#!/usr/bin/env python3
"""Writes tests/data/tokenizer_vectors.json: what the published tokenizers say, for tests/test_tokenizer_*.cpp.

    PYTHON scripts/reference/tokenizer_vectors.py tests/data      (tiktoken 0.14, tokenizers 0.23, unicodedata2 16.0.0)

Oracles: tiktoken for the character classes (Unicode 16) and for ids under .tiktoken rules; HF tokenizers for piece
boundaries, for trained merges and for ids under tokenizer.json rules; unicodedata2 for NFC.
Texts are stored as hexadecimal UTF-8, piece boundaries as byte lengths.
"""
import hashlib
import itertools
import json
import random
import sys

import tiktoken
import tokenizers
import unicodedata2
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama3": CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + TAIL,
    "qwen2": CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + TAIL,
}
SPLITS = {name: pre_tokenizers.Split(Regex(pattern), "isolated", False) for name, pattern in PATTERNS.items()}

NASTY = [
    "Hello, world! It's 12345 o'clock; WE'LL see: I'D, they'Re, 'twas 'S 's'' ''ve 'x 'll'll 'l 'v",
    "don't DON'T don\u2019t '\u017f x'\u017f '\u017fa 'K\u212a 're've'd'm  's 'ſt",
    "  leading", "trailing  ", "a  b   c    d", " \t mixed \t\t white \n\n  lines\r\n\r\nend\r", "\n", " ", "\r\n \r\n",
    "a\nb\n\nc\r\nd\re", "x \n y \n\n z\n ", "!\n?\r\n;\n\n a", "...\n\n...  \n!!", " !\n!", "\u00a0\u00a0x \u00a0 y\u2003z\u2003 ",
    "\u0085a\u0085 b\u0085\n", "\u2028\u2029x\u2028", "\ufeffbom \ufeff", "\u200bzero\u200bwidth\u200d joiner", "\u3000全角\u3000 空白",
    "1234567890 12 345 6789 ٣٤٥٦ ५६७ ½¼ ⅷⅨ ²³ 1,234.56 0x1F 1e-9", "3rd 4x4 a1b2c3 x86_64 ½cup",
    "naïve café cafe\u0301 e\u0301e\u0301 \u0301x a\u0300\u0301b", "Ünïcödé ÄÖÜß ĳ ǅ ŉ ﬁ ﬀ",
    "日本語のテキスト、句読点。「引用」 中文，标点！ 한국어 텍스트 ㅎㅏㄴ 각", "हिन्दी में कुछ पाठ தமிழ் ไทยภาษา العربية‏ עברית",
    "emoji 😀😃 👩‍👩‍👧‍👦 🇩🇪🇫🇷 👍🏽 ❤️ ☎ ©®™ €£¥", "𝒜𝓁𝓅𝒽𝒶 𐐷𐐀 𒀀𒁀 𞤀 🄰 𝟘𝟙 \U00010d40\U00010d41",
    "\ua7da\ua7dc\u1c89\u1c8a\U00016d40\U00010d4a x\U000105c0 \U00013460", "\u0295\u0294 \u02bc'\u02bcs",
    "if (x != 0) {\n\treturn *p++;\n}\n\n// comment -- here\n#define A_B(c) ((c)<<3)\r\n", "foo->bar::baz<int>(\"str\\n\"); /* x */",
    "http://example.org/a_b?c=d&e=%20f#g", "<|endoftext|> <|endoftext|><|fim|>", "\x00\x01\x1f\x7f\x80", "\ufffd\ufffe\uffff\U0010ffff",
    "$100 -5 +3 3.14 §5 #1 @a_b -x", "'", "''", " '", "' ", "'\n", "_", "__init__ ", "a_b", "\u0300", " \u0300", "\u0600\u0661 \u06dd",
    "tab\there\t\tand\t there", "end with newline and spaces\n   ", "spaces before newline   \nnext", "\t\n\t\n\tx", "a\u2003\n\u2003b", "\x0b\x0cx\x1c\x1d",
]
FUZZ = [" ", " ", "\n", "\r", "\t", "\u00a0", "\u3000", "\u0085", "'", "s", "S", "t", "ll", "ve", "a", "Z", "é", "\u017f", "1", "23", "٣", "½", "!", ".",
        "_", "-", "\u0301", "中", "한", "😀", "\u200d", "\ufeff", "\U00010d40", "ǅ", "ʰ"]


def lengths(name, text):
    """Byte lengths of the pieces; the split gives offsets in code points."""
    return [len(piece.encode()) for piece, _ in SPLITS[name].pre_tokenize_str(text)]


def digest(parts):
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part)
    return sha.hexdigest()


def class_summary():
    """tiktoken drops what its pattern does not match, so a pattern of one class filters that class."""
    everything = "".join(chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000)
    bytes_only = {bytes([b]): b for b in range(256)}
    summary = {}
    for name, pattern in (("letter", r"\p{L}+"), ("number", r"\p{N}+"), ("space", r"\s+")):
        probe = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=bytes_only, special_tokens={})
        members = bytes(probe.encode_ordinary(everything))
        summary[name] = {"count": len(members.decode()), "sha256": digest([members])}
    return summary


def piece_cases():
    rng = random.Random(16)
    texts = NASTY + ["".join(rng.choices(FUZZ, k=rng.randrange(1, 24))) for _ in range(400)]
    return [{"text": text.encode().hex(), **{name: lengths(name, text) for name in PATTERNS}} for text in texts]


def white_space_digest(name):
    """All strings of 1 to 6 of four white-space characters, in four contexts: text and lengths, in order."""
    def parts():
        for count in range(1, 7):
            for combination in itertools.product(" \t\n\r", repeat=count):
                run = "".join(combination)
                for text in (run, "a" + run, run + "a", "a" + run + "!"):
                    yield (" ".join(map(str, lengths(name, text))) + "\n").encode()
    return digest(parts())


def nfc_vectors():
    nfc = lambda text: unicodedata2.normalize("NFC", text)
    scalars = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    marks = ["\u0301", "\u0323", "\u0308", "\u0345", "\u3099", "\u1161", "\u11a8", "\u0338", "\u05b7", "\u0f71", "\U000110ba", "\u09be"]
    bases = ["a", "e", "A", "\u1e69", "\u00e9", "\uac00", "\u1100", "\uac01", "\u304b", "\u03b1", "\u212b", "\u0958", "\u05d0", "\u2260", "x", " ", "\U00011099", "\u0dd9", "\u1025", "\u102e", "\u0fb2"]
    rng = random.Random(9)
    cases = ["".join(rng.choices(bases + marks + marks, k=rng.randrange(1, 12))) for _ in range(300)]
    return {"every_code_point": digest(nfc(c).encode() for c in scalars),
            "every_code_point_and_marks": digest(nfc(c + "\u0323\u0301\u11a8").encode() for c in scalars),
            "cases": [[text.encode().hex(), nfc(text).encode().hex()] for text in cases]}


def id_vectors(text, merges_wanted):
    """A tokenizer trained by HF on `text`, and the ids that HF and tiktoken give for the nasty strings."""
    hf = Tokenizer(models.BPE())
    hf.pre_tokenizer = pre_tokenizers.Sequence([SPLITS["llama3"], pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    hf.train_from_iterator([text], trainers.BpeTrainer(
        vocab_size=256 + merges_wanted, min_frequency=2, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    model = json.loads(hf.to_str())["model"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    byte_of = dict(zip(alphabet, printable + [b for b in range(256) if b not in printable]))
    ranks = {bytes(byte_of[c] for c in token): rank for token, rank in model["vocab"].items()}
    tik = tiktoken.Encoding("trained", pat_str=PATTERNS["llama3"], mergeable_ranks=ranks, special_tokens={})
    texts = NASTY + [text[:2000], "a" * 300, "the" * 100, "ab" * 64 + "!" * 65]
    return {"merges": [" ".join(merge) for merge in model["merges"]],
            "cases": [{"text": t.encode().hex(), "hf": hf.encode(t).ids, "tiktoken": tik.encode_ordinary(t)} for t in texts]}


def main():
    folder = sys.argv[1]
    assert unicodedata2.unidata_version == "16.0.0", unicodedata2.unidata_version
    with open(f"{folder}/tokenizer_text.txt", encoding="utf-8", newline="") as file:
        text = file.read()
    vectors = {
        "made_by": f"scripts/reference/tokenizer_vectors.py, tiktoken {tiktoken.__version__}, tokenizers {tokenizers.__version__}, "
                   f"unicodedata2 {unicodedata2.unidata_version}",
        "classes": class_summary(),
        "white_space": {name: white_space_digest(name) for name in PATTERNS},
        "nfc": nfc_vectors(),
        "training": id_vectors(text, 300),
        "pieces": piece_cases(),
    }
    with open(f"{folder}/tokenizer_vectors.json", "w", encoding="ascii") as out:
        body = json.dumps(vectors)
        out.write(body.replace('{"text"', '\n{"text"').replace('], ["', '],\n["') + "\n")
    print({name: row["count"] for name, row in vectors["classes"].items()}, len(body), "bytes")


main()
