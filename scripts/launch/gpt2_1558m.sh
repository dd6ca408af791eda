#!/bin/bash
# GPT-2 1.5B (gpt2-xl) from nothing, on 34 billion tokens of FineWeb-Edu: llm.c's run of a day on eight H100, with its rate,
# batch, steps and warm-up.
#   scripts/launch/gpt2_1558m.sh TRAIN_SHARDS VAL_SHARDS OUT [other flags of build/train]
#   scripts/launch/gpt2_1558m.sh 'edu_fineweb100B/*_train_*.bin' 'edu_fineweb100B/*_val_*.bin' runs/gpt2-1558m
#   Variables: TRAIN (build/train)  takes train's flags: 'sbatch --gres gpu:1 scripts/launch/slurm.sbatch'
# Shards: llm.c's of FineWeb-Edu 100B as they are, or build/curate and build/tokenize encode with GPT-2's tokenizer.
#
#   tokens: 32000 steps x 1048576 = 3.36e10, 22 a parameter
#   FLOPs: 9.80e9 a token x 3.36e10 = 3.29e20 (6 for each weight of a matrix, head included, and 6 L T C for causal attention)
#   build/plan --model gpt2-1558m --gpu h100 --gpus 1 --micro-batch 16 --seq-len 1024 --batch-tokens 1048576
#   -> 64.1 GiB, 50.7k tokens/s a GPU, MFU 50.2 %: 184 hours, 552 USD at 3 a GPU-hour
#   build/plan --model gpt2-1558m --gpu h100 --gpus 8 --micro-batch 16 --seq-len 1024 --batch-tokens 1048576
#   -> 48.9 GiB, 50.6k tokens/s a GPU, MFU 50.2 %: 23 hours, 553 USD at 3 a GPU-hour
#
# Figures on paper: this has not run on a GPU, the price is an assumption, evaluations and checkpoints are not counted. Eight
# GPUs need ranks on GPUs, which are not there yet: this trains on one GPU of 80 GiB, in more than a week.
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "error: gpt2_1558m: expected TRAIN_SHARDS VAL_SHARDS OUT, got $# arguments  hint: globs in quotes" >&2
    exit 2
fi
read -ra train <<<"${TRAIN:-build/train}"
exec "${train[@]}" --init gpt2-1558m --train-data "$1" --val-data "$2" --out "$3" \
    --dtype bf16 --seq-len 1024 --micro-batch 16 --batch-tokens 1048576 --steps 32000 \
    --lr 6e-4 --schedule cosine --warmup 700 --lr-final-frac 0 --weight-decay 0.1 --grad-clip 1 \
    --eval-every 250 --eval-batches 20 --checkpoint-every 500 "${@:4}"
