#!/bin/bash
# Llama 3 8B from nothing, on 20 tokens a parameter, in rows of 8192 tokens, 4 Mi tokens a step, at a peak rate of 3e-4. Meta had
# 15e12 tokens, 93 times as many.
#   scripts/launch/llama_8b.sh TRAIN_SHARDS VAL_SHARDS OUT [other flags of build/train]
#   scripts/launch/llama_8b.sh 'shards/train_*.bin' 'shards/val_*.bin' runs/llama-8b
#   Variables: TRAIN (build/train)  takes train's flags: 'sbatch --gres gpu:1 scripts/launch/slurm.sbatch'
# Shards: build/curate, then build/tokenize encode with Llama 3's tokenizer.
#
#   tokens: 38300 steps x 4194304 = 1.61e11, 20 a parameter
#   FLOPs: 5.15e10 a token x 1.61e11 = 8.27e21 (6 for each weight of a matrix, head included, and 6 L T C for causal attention)
#   build/plan --model llama-8b --gpu b200 --gpus 1 --micro-batch 1 --seq-len 8192 --recompute block --batch-tokens 4194304
#   -> 138.1 GiB, 18.5k tokens/s a GPU, MFU 42.3 %: 2412 hours, 14470 USD at 6 a GPU-hour
#   build/plan --model llama-8b --gpu h100 --gpus 64 --zero 2 --micro-batch 1 --seq-len 8192 --batch-tokens 4194304
#   -> 54.1 GiB, 11.7k tokens/s a GPU, MFU 60.6 %: 59.8 hours, 11490 USD at 3 a GPU-hour
#
# Figures on paper: this has not run on a GPU, the prices are assumptions, evaluations and checkpoints are not counted, and the
# plan is up to 50 % too fast for published runs of this size (build/plan --published). 64 GPUs need ranks on GPUs and ZeRO 2,
# which are not there yet. What is: one GPU of 180 GiB, for a hundred days; less memory is refused before training starts.
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "error: llama_8b: expected TRAIN_SHARDS VAL_SHARDS OUT, got $# arguments  hint: globs in quotes" >&2
    exit 2
fi
read -ra train <<<"${TRAIN:-build/train}"
exec "${train[@]}" --init llama-8b --train-data "$1" --val-data "$2" --out "$3" \
    --dtype bf16 --recompute block --seq-len 8192 --micro-batch 1 --batch-tokens 4194304 --steps 38300 \
    --lr 3e-4 --schedule cosine --warmup 2000 --lr-final-frac 0.01 --weight-decay 0.1 --grad-clip 1 \
    --eval-every 500 --eval-batches 20 --checkpoint-every 250 "${@:4}"
