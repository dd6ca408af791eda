#!/bin/bash
# Raw text -> curated documents -> tokenizer -> shards -> model -> evaluation -> report, on whatever machine this is.
#   scripts/demo.sh BUILD_DIR         CORPUS=DIR uses your own .txt .md .jsonl .html files; DEMO_DIR, DEMO_STEPS
# The last line is for scripts:  demo: ok val_bpb=X xz_bpb=Y tokens_per_s=Z seconds=S report=PATH
set -euo pipefail
export LC_ALL=C  # a decimal comma would break the numbers below
build=$1
out=${DEMO_DIR:-$build/demo}
corpus=$out/corpus
start=$(date +%s)
stage() { printf '\n== %s\n' "$*"; }

stage "1/6 corpus"
mkdir -p "$out"
if [ -n "${CORPUS:-}" ]; then
    corpus=$out/corpus-own  # beside the packages' corpus, which stays for the next plain `make demo`
    scripts/corpus.sh --from "$CORPUS" "$corpus"
    cut=(--max-document-bytes 4096 --val-frac 0.1)  # a small corpus must still have something to hold out
else
    cut=(--val-frac 0.0325)
    scripts/corpus.sh "$corpus"
fi

stage "2/6 curate: documents with licences, duplicates removed, held-out split by document"
rm -rf "$out/curated" "$out/tokenizer" "$out/shards" "$out/run"
"$build/curate" --sources "$corpus/sources.json" --out "$out/curated" "${cut[@]}"

stage "3/6 tokenizer: byte-level BPE, 4096 tokens"
"$build/tokenize" train --input "$out/curated/train.jsonl.zst" --vocab-size 4096 --pattern llama3 --out "$out/tokenizer"
for split in train val; do
    "$build/tokenize" encode --tokenizer "$out/tokenizer" --input "$out/curated/$split.jsonl.zst" --out "$out/shards" --prefix $split
done

stage "4/6 train"
"$build/train" --init demo --train-data "$out/shards/train_*.bin" --val-data "$out/shards/val_*.bin" --out "$out/run" \
    --dtype bf16 --optimizer muon --lr 3e-3 --muon-lr-ratio 5 --schedule linear --warmup 10 --lr-final-frac 0 \
    --steps "${DEMO_STEPS:-300}" --seq-len 256 --micro-batch 16 --eval-every 75 --eval-batches 16 \
    --sample-every 150 --sample-prompt "In the beginning"

stage "5/6 evaluate"
checkpoint=$(ls -d "$out"/run/step_* | tail -1)
xz_bytes=$(xz -9e --stdout "$out/curated/val.txt" | wc -c)
val_bytes=$(wc -c <"$out/curated/val.txt")
xz_bpb=$(awk -v a="$xz_bytes" -v b="$val_bytes" 'BEGIN { printf "%.4f", a * 8 / b }')
"$build/evaluate" --model "$checkpoint" --data "$out/shards/val_*.bin" --out "$out/run" --report \
    --fact "xz -9e bits per byte=$xz_bpb" | tee "$out/evaluate.out"
val_bpb=$(sed -n 's/^evaluate: .*bits_per_byte=\([0-9.]*\).*/\1/p' "$out/evaluate.out")
if [ -z "$val_bpb" ]; then
    echo "error: demo: build/evaluate gave no bits per byte  hint: see $out/evaluate.out" >&2
    exit 1
fi
tokens_per_s=$(sed -n 's/.*"tokens_per_s":\([0-9.]*\).*/\1/p' "$out/run/log.jsonl" | sort -n | awk '{v[NR]=$1} END {printf "%.0f", v[int((NR+1)/2)]}')

stage "6/6 samples"
for prompt in "In the beginning" "The user should" ""; do
    printf '\n-- prompt: "%s"\n' "$prompt"
    "$build/generate" --model "$checkpoint" --prompt "$prompt" --max-new-tokens 80 --temperature 0.8 --top-p 0.95 --seed 1
done

printf '\nheld-out text: %s bytes; model %s bits per byte, xz -9e %s bits per byte\n' "$val_bytes" "$val_bpb" "$xz_bpb"
echo "checkpoint: $checkpoint   (a Hugging Face model directory)"
if ! awk -v m="$val_bpb" -v x="$xz_bpb" 'BEGIN { exit !(m + 0 > 0 && m + 0 < x + 0) }'; then
    echo "demo: the model does not beat xz -9e on the held-out text" >&2
    [ -n "${CORPUS:-}" ] || exit 1  # on a text of your own it may be too small or too short a run
fi
echo "demo: ok val_bpb=$val_bpb xz_bpb=$xz_bpb tokens_per_s=$tokens_per_s seconds=$(($(date +%s) - start)) report=$out/run/report.html"
