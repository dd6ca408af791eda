#!/usr/bin/env python3
"""Breaks the CUDA kernels in many small ways and sees whether the tests notice.

    scripts/mutate.py [--count N] [--seed N] [--kind KIND] [--sanitize] [kernels/X.cu ...]

Each mutant is one changed place in one kernel file: a barrier or wait deleted, += made =, two names in an index
swapped, a bound moved by one, a condition turned. The file's own test is built against the emulator and run. A
mutant that does not compile is none; one that the test lets pass is a survivor; with --sanitize survivors are tried again under AddressSanitizer and
ThreadSanitizer. Works in a copy under build/mutants; nothing of the tree is touched. Ends with the survivors and a
line `mutants: N killed, N survived, N did not compile`; exit code 1 when more than one in ten survived.
"""
import argparse
import pathlib
import random
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
TREE = ROOT / "build" / "mutants"
SEAM = {"gpu.h", "mma.h", "tma.h", "wgmma.h"}
NAME = r"[A-Za-z_][A-Za-z0-9_.]*"

# kind, pattern of what is changed, its replacement
CHANGES = [
    ("barrier", re.compile(r"__sync(threads|warp)\([^;]*\);"), lambda m: ";"),
    ("wait", re.compile(r"cp_async_(wait<[^;]*>\(\)|commit\(\));"), lambda m: ";"),
    ("sum", re.compile(r" \+= "), lambda m: " = "),
    ("bound", re.compile(r"(?<=[A-Za-z0-9_)\]]) < (?=[A-Za-z0-9_(])"), lambda m: " <= "),
    ("bound", re.compile(r" <= "), lambda m: " < "),
    ("bound", re.compile(r" >= "), lambda m: " > "),
    ("step", re.compile(r" [+-] 1\b(?!\.)"), lambda m: ""),
    ("begin", re.compile(r"(?<== )0(?=; )"), lambda m: "1"),
    ("condition", re.compile(r" && "), lambda m: " || "),
    ("condition", re.compile(r" \? (" + NAME + r") : (" + NAME + r")"), lambda m: f" ? {m[2]} : {m[1]}"),
    ("index", re.compile(r"\[(" + NAME + r") \* (" + NAME + r") \+ (" + NAME + r")\]"),
     lambda m: f"[{m[3]} * {m[2]} + {m[1]}]"),
    ("index", re.compile(r"\[(" + NAME + r")\]\[(" + NAME + r")\]"), lambda m: f"[{m[2]}][{m[1]}]"),
    ("index", re.compile(r"(" + NAME + r") \* (" + NAME + r") \+ (" + NAME + r")"), lambda m: f"{m[1]} + {m[2]} * {m[3]}"),
    ("sign", re.compile(r"(?<=[A-Za-z0-9_)\]]) - (?=[A-Za-z_(])"), lambda m: " + "),
]


def code_lines(text):
    """Lines of code that the emulator runs: no comments, includes and checks, nothing between #if of nvcc and its #el or #endif."""
    conditions = []  # of each #if around the line: is this branch nvcc's alone?
    for number, line in enumerate(text.split("\n")):
        bare = line.strip()
        if bare.startswith("#if"):
            conditions.append("defined(__CUDA" in bare and "!defined(__CUDACC__)" not in bare)
        elif bare.startswith("#el"):
            conditions[-1] = False
        elif bare.startswith("#endif"):
            conditions.pop()
        if any(conditions):
            continue
        if bare and not bare.startswith(("//", "#", "template", "static_assert", "check", "CHECK")):
            yield number, line


def mutants_of(path):
    found = []
    for number, line in code_lines(path.read_text()):
        code = line.split("//")[0]
        for kind, pattern, change in CHANGES:
            for match in pattern.finditer(code):
                changed = code[: match.start()] + change(match) + code[match.end():]
                if changed != code:
                    found.append((path, number, kind, line, changed + line[len(code):]))
    return found


def sources(named):
    if named:
        return [ROOT / name for name in named]
    files = sorted((ROOT / "kernels").glob("*.cu"))
    files += [f for f in sorted((ROOT / "kernels").glob("*.h")) if f.name not in SEAM and "__device__" in f.read_text()]
    return [f for f in files if f.name != "gpu.cu"]


def kernels_with(header, seen):
    """The .cu files that include a header, themselves or through other headers."""
    found = []
    for f in sorted((ROOT / "kernels").glob("*")):
        if f.suffix in (".cu", ".h") and f not in seen and f'"kernels/{header}"' in f.read_text():
            seen.add(f)
            found += [f] if f.suffix == ".cu" else kernels_with(f.name, seen)
    return found


def tests_named(stem):
    """test_matmul_mma, else test_matmul and test_matmul_gpu: the small ones of GPUs first."""
    while stem:
        names = [f"test_{stem}{suffix}" for suffix in ("_gpu", "")]
        if any((ROOT / "tests" / f"{name}.cpp").exists() for name in names):
            return [name for name in names if (ROOT / "tests" / f"{name}.cpp").exists()]
        stem = stem.rpartition("_")[0]
    return []


def test_of(path):
    """The tests of an op; of what serves several, theirs."""
    tests = tests_named(path.stem) if path.suffix == ".cu" else []
    if not tests:
        for f in kernels_with(f"{path.stem}.h", {path}):
            tests += [test for test in test_of(f) if test not in tests]
    if not tests:
        tests = [f.stem for f in sorted((ROOT / "tests").glob("test_*.cpp")) if f'"kernels/{path.stem}.h"' in f.read_text()]
    if not tests:
        sys.exit(f"error: mutate: no test is known for {path.relative_to(ROOT)}  hint: name its test after it")
    return tests


def run(command, seconds):
    try:
        done = subprocess.run(command, cwd=TREE, capture_output=True, text=True, timeout=seconds)
        return done.returncode
    except subprocess.TimeoutExpired:
        return 124  # a kernel that never ends has been noticed


def verdict(tests, build, flags):
    for test in tests:
        make = ["make", f"BUILD={build}", *flags, f"{build}/tests/{test}"]
        if run(make, 900) != 0:
            return "does not compile"
        if run([f"{build}/tests/{test}"], 180) != 0:
            return f"killed by {test}"
    return "survived"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", default="", help="only this kind: " + ", ".join(sorted({c[0] for c in CHANGES})))
    parser.add_argument("--sanitize", action="store_true")
    parser.add_argument("files", nargs="*")
    options = parser.parse_args()

    mutants = [m for f in sources(options.files) for m in mutants_of(f) if options.kind in ("", m[2])]
    if not mutants:
        sys.exit("error: mutate: nothing to change in these files  hint: name files such as kernels/rope.cu")
    random.Random(options.seed).shuffle(mutants)
    # Every kind in turn, so that the few barriers are not lost among the many indices.
    by_kind = {}
    for mutant in mutants:
        by_kind.setdefault(mutant[2], []).append(mutant)
    chosen = []
    while len(chosen) < options.count and any(by_kind.values()):
        for rest in by_kind.values():
            if rest and len(chosen) < options.count:
                chosen.append(rest.pop())
    chosen.sort(key=lambda m: (m[0], m[1]))

    TREE.mkdir(parents=True, exist_ok=True)
    for name in subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n"):
        if name and (ROOT / name).is_file():
            (TREE / name).parent.mkdir(parents=True, exist_ok=True)
            if not (TREE / name).exists() or (TREE / name).read_bytes() != (ROOT / name).read_bytes():
                shutil.copy2(ROOT / name, TREE / name)
    subprocess.run(["git", "init", "-q"], cwd=TREE, check=True)

    sanitizers = {
        "asan": ["CXXFLAGS=-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined",
                 "CXX=g++ -fsanitize=address,undefined"],
        "tsan": ["CXXFLAGS=-O1 -g -fsanitize=thread", "CXX=g++ -fsanitize=thread"],
    }
    survivors, killed, invalid = [], 0, 0
    for path, number, kind, before, after in chosen:
        copy = TREE / path.relative_to(ROOT)
        original = copy.read_text()
        lines = original.split("\n")
        lines[number] = after
        copy.write_text("\n".join(lines))
        tests = test_of(path)
        result = verdict(tests, "build", ["NVCC="])
        if result == "survived" and options.sanitize:
            for name, flags in sanitizers.items():
                result = verdict(tests, f"build-{name}", ["NVCC=", *flags])
                if result != "survived":
                    result += f" under {name}"
                    break
        copy.write_text(original)
        print(f"{path.relative_to(ROOT)}:{number + 1}: {kind}: {result}: {before.strip()}  ->  {after.strip()}", flush=True)
        if result == "survived":
            survivors.append((path, number, kind, before, after))
        elif result.startswith("does not compile"):
            invalid += 1
        else:
            killed += 1
    print("\nsurvivors:" if survivors else "\nno survivors")
    for path, number, kind, before, after in survivors:
        print(f"  {path.relative_to(ROOT)}:{number + 1}: {kind}: {before.strip()}  ->  {after.strip()}")
    print(f"mutants: {killed} killed, {len(survivors)} survived, {invalid} did not compile")
    sys.exit(1 if len(survivors) * 10 > killed else 0)


if __name__ == "__main__":
    main()
