#!/bin/bash
# Everything that only a machine with a GPU can tell, in one command and at most nine minutes: for a machine with nvcc and
# perhaps no network, no MPI and no GoogleTest.
#   scripts/gpu_check.sh [build] [tests] [bench] [train] [torch] [sanitizer]        none named: all, in this order
#     build      the programs that the other sections need, for this GPU alone
#     tests      the kernel tests, on the GPU
#     bench      every op beside what the GPU was measured to copy and to multiply (and beside PyTorch's times, when torch
#                is chosen), and the teaching ladders
#     train      training throughput
#     torch      PyTorch's times for bench's rows, before bench, and for training, where python3 can import torch
#     sanitizer  some of the tests under compute-sanitizer: memcheck, racecheck, synccheck
#   Variables: OUT (bench/results)  BUILD (build)  LIMIT_S (540: of the whole)  MODELS  DTYPES (bf16)  BATCH_TOKENS (131072)
#     GTEST_DIR  sources of GoogleTest, where it is not installed (Debian's libgtest-dev: /usr/src/googletest)
#     DEVICE     simt tries this script itself without a GPU
#     DEPS_DIR   headers and libraries that are not installed, as `scripts/deps.sh unpack DIR build test` leaves them
# Everything goes into one file, $OUT/gpu_check.json, which is whole at any time, even when this is cut off.
# Exit code 1 when a section failed.
set -uo pipefail
export LC_ALL=C
cd "$(dirname "$0")/.."
out=${OUT:-bench/results} build=${BUILD:-build} limit=${LIMIT_S:-540}
models=${MODELS:-gpt2-124m,gpt2-355m,gpt2-774m,gpt2-1558m,llama-1b,qwen2.5-7b}
all="build tests bench train torch sanitizer"
for word in "$@"; do
    case " $all " in *" $word "*) ;; *)
        echo "error: gpu_check: unknown section '$word'  hint: $all" >&2
        exit 2
        ;;
    esac
done
chosen=" ${*:-$all} "
mkdir -p "$out" || exit 2
work=$(mktemp -d)
start=$SECONDS
elapsed() { echo $((SECONDS - start)); }
say() { printf '[%3d s] %s\n' "$(elapsed)" "$*"; }

# ---- the one file of results ----------------------------------------------------------------------------------------
json_text() { # stdin as a JSON string
    tr -d '\000-\010\013-\037\177' | tr '\t' ' ' | sed 's/\\/\\\\/g; s/"/\\"/g' |
        awk 'BEGIN { printf "\"" } { printf "%s%s", (NR > 1 ? "\\n" : ""), $0 } END { printf "\"" }'
}
fact() { printf '  "%s": %s,\n' "$1" "$(printf '%s' "$2" | json_text)"; }
gpu=$(nvidia-smi --query-gpu=name,driver_version,memory.total,compute_cap,clocks.max.sm,power.limit --format=csv,noheader 2>/dev/null | head -n 1)
nvcc=${NVCC:-$(command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null || true)}
commit=$(git rev-parse HEAD 2>/dev/null || echo "${COMMIT:-unknown}")
sections=()
write_results() {
    {
        echo '{'
        fact kind gpu_check
        fact commit "$commit"
        fact gpu "${gpu:-none was found}"
        fact nvcc "$(${nvcc:-false} --version 2>/dev/null | tail -n 2 | tr '\n' ' ')"
        fact host "$(uname -srm), $(nproc) cores"
        fact date "$(date -u +%FT%TZ)"
        printf '  "seconds": %d,\n  "sections": [' "$(elapsed)"
        local separator=''
        for section in ${sections[@]+"${sections[@]}"}; do printf '%s\n    %s' "$separator" "$section"; separator=,; done
        [ -n "$running" ] && printf '%s\n    {"name": "%s", "status": "running"}' "$separator" "$running"
        printf '\n  ],\n  "lines": ['
        # Whole lines only: a program may have been stopped in the middle of its last.
        cat "$work"/*.jsonl 2>/dev/null | grep -E '^\{.*\}$' | sed '$!s/$/,/; s/^/    /; 1s/^/\n/'
        printf '\n  ]\n}\n'
    } >"$out/.gpu_check.json.tmp" && mv "$out/.gpu_check.json.tmp" "$out/gpu_check.json"
}
running=
failed=0
record() { # NAME STATUS SECONDS NOTE [LOG]
    local log_tail=''
    [ "$2" != ok ] && [ -f "${5:-}" ] && log_tail=$(tail -n 80 "$5")
    sections+=("{\"name\": \"$1\", \"status\": \"$2\", \"seconds\": $3, \"note\": $(printf '%s' "$4" | json_text), \"log\": $(
        printf '%s' "$log_tail" | json_text)}")
    case $2 in failed | cut\ off) failed=1 ;; esac
    write_results
}
finish() {
    trap - EXIT INT TERM HUP
    if [ -n "$running" ]; then
        local name=$running
        kill "$(cat "$work/pid")" 2>/dev/null
        running=
        record "$name" "cut off" "$(elapsed)" "gpu_check itself was stopped" "$work/$name.log"
    fi
    rm -rf "$work"
    exit "${1:-$failed}"
}
trap 'finish 1' INT TERM HUP
trap finish EXIT

# Runs a command with a limit, its lines with the time before them and in a log; records how it ended.
section() { # NAME LIMIT_S COMMAND...
    local name=$1 most=$2 status began
    shift 2
    local left=$((limit - $(elapsed) - 3))
    [ "$most" -gt "$left" ] && most=$left
    if [ "$most" -lt 1 ]; then
        say "$name: no time left"
        record "$name" skipped 0 "no time left of LIMIT_S=$limit"
        return 1
    fi
    began=$(elapsed) running=$name
    say "$name: begins, at most $most s"
    export work out build models
    # In the background, so that a signal to this script is seen at once.
    {
        timeout -k 5 "$most" "$@" &
        echo $! >"$work/pid"
        wait $!
        echo $? >"$work/status"
    } 2>&1 | {
        local written=$SECONDS line
        while IFS= read -r line; do
            printf '%s\n' "$line" >>"$work/$name.log"
            say "$name: ${line:0:240}"
            [ $((SECONDS - written)) -ge 10 ] && written=$SECONDS && write_results
        done
    } &
    wait $!
    status=$(cat "$work/status")
    running=
    local took=$(($(elapsed) - began)) note
    note=$(tail -n 1 "$work/$name.log" 2>/dev/null)
    case $status in
        0) say "$name: ok after $took s"; record "$name" ok "$took" "$note" ;;
        124 | 137) say "$name: CUT OFF after $took s"; record "$name" "cut off" "$took" "$note" "$work/$name.log" ;;
        *) say "$name: FAILED (exit code $status) after $took s"; record "$name" failed "$took" "$note" "$work/$name.log" ;;
    esac
    return "$status"
}
skip() { # NAME REASON
    say "$1: SKIPPED: $2"
    record "$1" skipped 0 "$2"
}
wanted() { case $chosen in *" $1 "*) ;; *) return 1 ;; esac; }

# ---- where headers, libraries and GoogleTest are -------------------------------------------------------------------
if [ -n "${DEPS_DIR:-}" ]; then
    libraries=$(find "$PWD/$DEPS_DIR/usr/lib" "$DEPS_DIR/usr/lib" -name 'libxxhash.*' -printf '%h\n' 2>/dev/null | head -n 1)
    root=${libraries%/usr/lib*}
    export CPATH=$root/usr/include${CPATH:+:$CPATH} LIBRARY_PATH=$libraries${LIBRARY_PATH:+:$LIBRARY_PATH}
    export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    [ -z "${GTEST_DIR:-}" ] && [ -d "$root/usr/src/googletest" ] && GTEST_DIR=$root/usr/src/googletest
fi
absent() { # HEADER:PACKAGE... -> the packages whose header the compiler does not find
    printf '%s\n' "$@" | sed 's/^\(.*\):\(.*\)$/#if !__has_include(<\1>)\nABSENT \2\n#endif/' |
        ${CXX:-g++} -E -P -x c++ - | sed -n 's/^ABSENT //p' | tr -d ' ' | tr '\n' ' '
}
missing=
wanted build && missing=$(absent CLI/CLI.hpp:libcli11-dev nlohmann/json.hpp:nlohmann-json3-dev simdjson.h:libsimdjson-dev \
    zstd.h:libzstd-dev xxhash.h:libxxhash-dev openssl/evp.h:libssl-dev gumbo.h:libgumbo-dev)
own_gtest=$(realpath -m "$build/gtest")
build_googletest() { # from sources, into $build/gtest
    local from=
    for place in "${GTEST_DIR:-}" /usr/src/googletest; do
        [ -n "$place" ] || continue
        [ -f "$place/src/gtest-all.cc" ] && from=$place
        [ -f "$place/googletest/src/gtest-all.cc" ] && from=$place/googletest
        [ -n "$from" ] && break
    done
    [ -n "$from" ] || return 1
    mkdir -p "$own_gtest"
    ln -sfn "$(realpath "$from/include")" "$own_gtest/include"
    [ -f "$own_gtest/libgtest_main.a" ] && return 0
    for part in gtest-all gtest_main; do
        ${CXX:-g++} -std=c++20 -O1 -pthread -I"$from/include" -I"$from" -c "$from/src/$part.cc" -o "$own_gtest/$part.o" || return 1
    done
    ar rcs "$own_gtest/libgtest.a" "$own_gtest/gtest-all.o" && ar rcs "$own_gtest/libgtest_main.a" "$own_gtest/gtest_main.o"
}
no_gtest=
if wanted tests || wanted sanitizer; then
    if [ -n "$(absent gtest/gtest.h:gtest)" ] || ! printf 'int main() {}' | ${CXX:-g++} -x c++ - -lgtest -o "$work/probe" 2>/dev/null; then
        if build_googletest; then
            export CPATH=$own_gtest/include${CPATH:+:$CPATH} LIBRARY_PATH=$own_gtest${LIBRARY_PATH:+:$LIBRARY_PATH}
        else
            no_gtest="GoogleTest is not here, so the kernel tests cannot be built: name its sources by GTEST_DIR=DIR (Debian's libgtest-dev has them in /usr/src/googletest)"
        fi
    fi
fi
# The tests that know devices.
tests=${TESTS:-$(grep -l 'gpus()' tests/test_*.cpp | sed 's|tests/\(.*\)\.cpp|\1|' | tr '\n' ' ')}

# ---- the sections ----------------------------------------------------------------------------------------------------
say "gpu: ${gpu:-none was found}; nvcc: ${nvcc:-none was found}; commit $commit; results: $out/gpu_check.json"
write_results
if wanted build; then
    if [ -z "$nvcc" ]; then
        skip build "no nvcc on the PATH or in /usr/local/cuda/bin"
        failed=1
    elif [ -n "$missing" ]; then
        skip build "headers are missing: ${missing}: install them, or on a machine with network: scripts/deps.sh unpack DIR build test, bring DIR here and set DEPS_DIR=DIR"
        failed=1
    else
        targets=
        wanted bench && targets="$build/bench/bench_gpu $build/bench/bench_ladder"
        { wanted torch && ! wanted bench; } && targets="$targets $build/bench/bench_gpu"
        wanted train && targets="$targets $build/bench/bench_train"
        if { wanted tests || wanted sanitizer; } && [ -z "$no_gtest" ]; then
            for test in $tests; do targets="$targets $build/tests/$test"; done
        fi
        capability=$(printf '%s' "$gpu" | awk -F', ' '{ gsub(/\./, "", $4); print $4 }')
        case $capability in 90 | 100 | 103 | 120) capability=${capability}a ;; esac
        gencode=${capability:+GENCODE=-gencode arch=compute_$capability,code=sm_$capability}
        section build 260 bash -c 'while sleep 20; do echo "$(find "$build" -name "*.o" | wc -l) objects"; done & beat=$!
            trap "kill $beat" EXIT; make -s -j"$(nproc)" BUILD="$build" COMMIT="$0" "$@"' "$commit" ${gencode:+"$gencode"} NVCC="$nvcc" $targets
    fi
fi

if wanted tests; then
    if [ -n "$no_gtest" ]; then
        skip tests "$no_gtest"
    else
        section tests 100 env INGOT_TEST_DEVICE="${DEVICE:-cuda}" scripts/test.sh "$work/tests" $(for test in $tests; do echo "$build/tests/$test"; done)
    fi
fi

has_torch=
if wanted torch; then
    if python3 -c 'import torch; assert torch.cuda.is_available()' >/dev/null 2>&1; then
        has_torch=1
        section torch_ops 60 bash -c '"$build/bench/bench_gpu" --list >"$work/rows" &&
            python3 -u scripts/reference/torch_train.py --ops "$work/rows" --limit-s 50 --json "$work/torch.jsonl"'
    else
        skip torch "python3 here cannot import torch, or torch sees no GPU"
    fi
fi

if wanted bench; then
    library=()
    [ -s "$work/torch.jsonl" ] && library=(--library "$work/torch.jsonl")
    section bench 130 bash -c '"$build/bench/bench_gpu" --device "$0" --limit-s 80 --json "$work/bench.jsonl" "$@"; code=$?
        [ ! -x "$build/bench/bench_ladder" ] || "$build/bench/bench_ladder" --device "$0" --json "$work/ladder.jsonl" || code=1
        exit $code' "${DEVICE:-cuda}" ${library[@]+"${library[@]}"}
fi

if wanted train; then
    section train 130 "$build/bench/bench_train" --device "${DEVICE:-cuda}" --models "$models" --dtypes "${DTYPES:-bf16}" \
        --batch-tokens "${BATCH_TOKENS:-131072}" --steps 5 --limit-s 15 --total-s 100 --json "$work/train.jsonl"
fi

if [ -n "$has_torch" ]; then
    section torch_train 150 bash -c 'python3 -u scripts/reference/torch_train.py --models "$models" --batch-tokens "$0" \
        --limit-s 120 --json "$work/torch.jsonl"' "${BATCH_TOKENS:-131072}"
fi

# The GPU's part of each test. memcheck sees global memory, racecheck shared memory, synccheck barriers.
run_sanitizer() { # TESTS SECONDS
    local bad=0 began=$SECONDS
    for test in $1; do
        for tool in memcheck racecheck synccheck; do
            [ -x "$build/tests/$test" ] || continue
            local left=$(($2 - SECONDS + began))
            if [ "$left" -lt 5 ]; then
                echo "$tool $test: no time left"
                continue
            fi
            if INGOT_TEST_DEVICE="${DEVICE:-cuda}" timeout "$left" compute-sanitizer --tool $tool --error-exitcode 99 \
                --print-limit 5 "$build/tests/$test" --gtest_brief=1 --gtest_filter='*Gpu*:*Ladder*' >"$work/sanitizer_one" 2>&1; then
                echo "$tool $test: clean"
            elif [ $? = 124 ]; then
                echo "$tool $test: stopped after $left s without a finding: $(grep -c '^\[' "$work/sanitizer_one") lines"
            else
                echo "$tool $test: FOUND"
                grep -E '=====|FAILED|error' "$work/sanitizer_one" | head -n 40
                bad=1
            fi
        done
    done
    return $bad
}
export -f run_sanitizer
if wanted sanitizer; then
    if [ -n "$no_gtest" ]; then
        skip sanitizer "$no_gtest"
    elif ! command -v compute-sanitizer >/dev/null; then
        skip sanitizer "compute-sanitizer is not on the PATH"
    else
        left=$((limit - $(elapsed) - 8))
        section sanitizer 150 bash -c 'run_sanitizer "$0" "$1"' \
            "${SANITIZER_TESTS:-test_gpu_wrappers test_gpu_wrappers_hopper test_attention test_matmul_gpu test_cross_entropy test_embedding test_layernorm test_ladder}" \
            $((left < 145 ? left : 145))
    fi
fi

running=
write_results
say "results: $out/gpu_check.json"
summary=$(printf '%s\n' ${sections[@]+"${sections[@]}"} | sed -n 's/^{"name": "\([a-z_]*\)", "status": "\([a-z ]*\)".*/\1 \2/p' | paste -sd, | sed 's/,/, /g')
echo "gpu_check: $([ "$failed" = 0 ] && echo ok || echo FAILED) seconds=$(elapsed) $summary"
