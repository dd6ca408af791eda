#!/bin/bash
# Behind `make profile K=op` and `make sass K=op`: says clearly what is missing, then looks into an op's kernels.
#   scripts/inspect.sh has-profiler OP NVCC      scripts/inspect.sh profile OP BUILD [flags of bench_gpu]
#   scripts/inspect.sh has-sass OP NVCC [OBJECT...]   scripts/inspect.sh sass OP OBJECT...
set -euo pipefail
export LC_ALL=C
fail() { echo "error: inspect: $1  hint: $2" >&2; exit 2; }
what=$1 op=$2
shift 2
tool() { # NAME -> its path, wherever the toolkit is
    command -v "$1" || ls "${CUDA_HOME:-/usr/local/cuda}/bin/$1" /opt/nvidia/nsight-compute/*/"$1" 2>/dev/null | tail -n 1
}
[ -n "$op" ] || fail "no op was named" "K=attention (an op of kernels/), or for sass K=ladder/gemm_1_naive"
case $what in
    has-profiler)
        [ -n "${1:-}" ] || fail "this build has no CUDA: no nvcc was found" "install the CUDA toolkit"
        [ -f "kernels/$op.cu" ] || fail "there is no kernels/$op.cu" "K is an op's name: $(cd kernels && ls ./*.cu | sed 's|^\./||; s/\.cu$//' | paste -sd' ')"
        [ -n "$(tool ncu)" ] || fail "ncu is missing" "install Nsight Compute (the CUDA toolkit brings it) and put ncu on the PATH"
        ;;
    has-sass)
        [ -n "${1:-}" ] || fail "this build has no CUDA: no nvcc was found" "install the CUDA toolkit"
        [ $# -gt 1 ] || fail "there is no kernels/$op.cu" "K is an op's name, or ladder/ and a rung's"
        [ -n "$(tool cuobjdump)" ] || fail "cuobjdump is missing" "install the CUDA toolkit's binary utilities (cuda-cuobjdump) and put it on the PATH"
        ;;
    profile)
        build=$1
        shift
        report=$build/profile_$op
        # One small shape of each kind; ncu itself runs each kernel several times, with cold caches and fixed clocks.
        [ $# -gt 0 ] || set -- --shapes llama-1b --tokens 8192 --seq-lens 4096
        "$(tool ncu)" --set full --import-source yes --force-overwrite --export "$report" \
            "$build/bench/bench_gpu" --once --op "$op" "$@"
        "$(tool ncu)" --import "$report.ncu-rep" --page details --print-summary per-kernel
        echo "profile: $report.ncu-rep (open it with ncu-ui; --page source for lines)"
        ;;
    sass)
        for object in "$@"; do
            echo "== $object"
            "$(tool cuobjdump)" -sass "$object"
        done
        ;;
    *) fail "unknown word $what" "see the file's head" ;;
esac
