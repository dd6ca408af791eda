#!/bin/bash
# GPT-2 124M from nothing, on 10 billion tokens of FineWeb: the run that llm.c made known, with its rate, batch and warm-up.
#   scripts/launch/gpt2_124m.sh TRAIN_SHARDS VAL_SHARDS OUT [other flags of build/train]
#   scripts/launch/gpt2_124m.sh 'fineweb10B/fineweb_train_*.bin' 'fineweb10B/fineweb_val_*.bin' runs/gpt2-124m
#   Variables: TRAIN (build/train)  takes train's flags: 'sbatch --gres gpu:1 scripts/launch/slurm.sbatch'
# Shards: llm.c's of FineWeb 10B as they are, or build/curate and build/tokenize encode with GPT-2's tokenizer.
#
#   tokens: 19073 steps x 524288 = 1.00e10, 80 a parameter
#   FLOPs: 7.98e8 a token x 1.00e10 = 7.98e18 (6 for each weight of a matrix, head included, and 6 L T C for causal attention)
#   build/plan --model gpt2-124m --gpu h100 --gpus 1 --micro-batch 64 --seq-len 1024 --batch-tokens 524288
#   -> 20.9 GiB, 516.0k tokens/s a GPU, MFU 41.6 %: 5.4 hours, 16 USD at 3 a GPU-hour
#   build/plan --model gpt2-124m --gpu h100 --gpus 8 --micro-batch 64 --seq-len 1024 --batch-tokens 524288
#   -> 19.7 GiB, 515.1k tokens/s a GPU, MFU 41.5 %: 0.67 hours, 16 USD at 3 a GPU-hour
#
# Figures on paper: this has not run on a GPU, the price is an assumption, evaluations and checkpoints are not counted. Eight
# GPUs need ranks on GPUs, which are not there yet: this trains on one. On CPUs several ranks work, and take long: the two cores
# of README.md, with their 440 tokens/s, 263 days.
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "error: gpt2_124m: expected TRAIN_SHARDS VAL_SHARDS OUT, got $# arguments  hint: globs in quotes" >&2
    exit 2
fi
read -ra train <<<"${TRAIN:-build/train}"
exec "${train[@]}" --init gpt2-124m --train-data "$1" --val-data "$2" --out "$3" \
    --dtype bf16 --seq-len 1024 --micro-batch 64 --batch-tokens 524288 --steps 19073 \
    --lr 6e-4 --schedule cosine --warmup 700 --lr-final-frac 0 --weight-decay 0.1 --grad-clip 1 \
    --eval-every 250 --eval-batches 20 --checkpoint-every 1000 "${@:4}"
