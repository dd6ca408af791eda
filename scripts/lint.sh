#!/bin/bash
# The house rules that a machine can check: who may include whom, file sizes, names, format, paths named in documents.
set -uo pipefail
cd "$(dirname "$0")/.."
problems=0
problem() { echo "lint: $*"; problems=$((problems + 1)); }

# Nothing to check is not clean: git refuses a clone of another owner, and an archive is no clone at all.
if ! tracked=$(git ls-files 2>&1) || [ -z "$tracked" ]; then
    echo "error: lint: git lists no files in $PWD: $(echo "$tracked" | head -n 1)" \
        " hint: run it in a clone; of another owner: git config --global --add safe.directory $PWD" >&2
    exit 2
fi
files=$(for f in $tracked; do [ -f "$f" ] && echo "$f"; done)
code=$(echo "$files" | grep -E '\.(h|cpp|cu|cuh)$')

# ---- layers: "A <- B" in the design: B may include A, nothing else may ---------------------------------------------
allowed() {
    case $1 in
        core) echo core ;;
        kernels) echo core kernels ;;
        tokenizer) echo core tokenizer ;;
        data) echo core tokenizer data ;;
        model) echo core kernels model ;;
        eval) echo core kernels tokenizer data model eval ;;
        serve) echo core kernels tokenizer data model serve ;;
        train.cu) echo core kernels tokenizer data model eval ;;
        *) echo core kernels tokenizer data model eval serve tests bench ;;  # tests/ and bench/ see everything
    esac
}
for f in $code; do
    layer=${f%%/*}
    may=" $(allowed "$layer") "
    case $f in
        # A program sits above its layer: tokenize writes shards, which are data's.
        tokenizer/*_main.cpp) may=" core tokenizer data " ;;
    esac
    while read -r include; do
        case $may in *" ${include%%/*} "*) ;; *) problem "$f includes $include: ${layer} may include only:$may" ;; esac
    done < <(sed -n 's/^#include "\([^"]*\/[^"]*\)".*/\1/p' "$f")
done

# ---- sizes: soft cap 400 lines (told), hard cap 700, attention.cu 900, train.cu 400 --------------------------------
for f in $code $(echo "$files" | grep -E '(\.(sh|py)|^Makefile)$'); do
    lines=$(wc -l <"$f")
    cap=700
    case $f in
        train.cu) cap=400 ;;
        kernels/attention.cu) cap=900 ;;
        tokenizer/unicode_tables.*) cap=100000 ;;  # generated
    esac
    if [ "$lines" -gt "$cap" ]; then
        problem "$f has $lines lines, the cap is $cap: split it by meaning"
    elif [ "$lines" -gt 400 ] && [ "$cap" -le 900 ]; then
        echo "lint: note: $f has $lines lines (soft cap 400)"
    fi
done

# ---- names, banners, leftovers -------------------------------------------------------------------------------------
for f in $files; do
    case $(basename "$f" | sed 's/\..*//') in utils | util | misc | common | helpers | helper) problem "$f: a name that says nothing" ;; esac
done
for f in $code; do
    case $(head -c 2 "$f") in //) ;; *) problem "$f does not open with a comment that says what it is" ;; esac
    case $f in *.h) grep -q '^#pragma once' "$f" || problem "$f has no #pragma once" ;; esac
done
left=$(grep -nwE 'TODO|FIXME|#if 0' $code /dev/null | head -5)
[ -n "$left" ] && problem "unfinished by its own words: $left"
# No preprocessor branches for a backend above kernels/.
branches=$(grep -nE '#\s*if.*(__CUDACC__|INGOT_CUDA)' $(echo "$code" | grep -E '^(model|data|tokenizer|eval|serve|train.cu)') /dev/null | head -5)
[ -n "$branches" ] && problem "backend branch above kernels/: $branches"
# Kernels speak of CUDA through the seam only (kernels/gpu.h): PTX stands in its wrappers, and nothing relies on lanes
# running together.
kernels=$(echo "$code" | grep -E '^kernels/[a-z0-9_]*\.cu$')
for f in $(echo "$kernels" | grep -v '^kernels/matmul_cublaslt.cu$'); do  # which is there to include the library
    foreign=$(grep -nE '\basm\b|<<<|__shared__|__activemask|cooperative_groups|#include <cu' "$f" | head -3)
    [ -n "$foreign" ] && problem "$f goes past kernels/gpu.h: $foreign"
done
# Grids overlap: every kernel waits for the one before it.
for f in $kernels; do
    [ "$(grep -cE '^\s*(static )?__global__|__global__ void' "$f")" -le "$(grep -c 'wait_for_previous();' "$f")" ] ||
        problem "$f: a kernel does not begin with wait_for_previous()"
done
# What a wrapper's PTX does is compared with its C++ on a GPU (tests/test_gpu_wrappers.cpp).
for f in kernels/gpu.h kernels/gpu_fp8.h kernels/mma.h kernels/tma.h kernels/wgmma.h; do
    for name in $(sed -nE '/__device__/{s/.*[ *&]([A-Za-z0-9_]+)\(.*/\1/;h};/\basm\b/{x;p;x}' "$f" | sort -u); do
        grep -qw "$name" tests/gpu_wrappers*.cu || problem "$f: $name() has PTX and no kernel in tests/gpu_wrappers*.cu"
    done
done
# Every op keeps its contract, its CPU code and its test together.
for f in kernels/*.h; do
    name=$(basename "$f" .h)
    [ -f "kernels/$name.cpp" ] || continue
    grep -qlE "include \"kernels/$name.h\"" tests/*.cpp || problem "$f: no test includes it"
done

# ---- paths named in the documents exist ----------------------------------------------------------------------------
for doc in README.md TOUR.md CONTRIBUTING.md; do
    [ -f "$doc" ] || { problem "$doc is missing"; continue; }
    while read -r path; do
        [ -e "$path" ] || problem "$doc names $path, which does not exist"
    done < <(grep -oE '`(core|kernels|tokenizer|data|model|eval|tests|bench|scripts|\.ci)/[A-Za-z0-9_./]*`' "$doc" | tr -d '\`' | sort -u)
done

# ---- the tour says how long it takes -------------------------------------------------------------------------------
minutes=$(sed -n 's/^| \([0-9]*\) |.*/\1/p' TOUR.md | awk '{ sum += $1 } END { print sum + 0 }')
grep -q "the whole is $minutes minutes" TOUR.md || problem "TOUR.md's stops take $minutes minutes, it says otherwise"

# ---- format --------------------------------------------------------------------------------------------------------
if command -v clang-format >/dev/null; then
    unformatted=$(clang-format --dry-run -Werror $code 2>&1 | sed -n 's/^\([^:]*\):[0-9]*:[0-9]*: error: .*/\1/p' | sort -u)
    for f in $unformatted; do problem "$f is not formatted  hint: make format"; done
else
    problem "clang-format is missing  hint: make deps"
fi

[ "$problems" = 0 ] && echo "lint: clean ($(echo "$code" | wc -l) files)"
[ "$problems" = 0 ]
