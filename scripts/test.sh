#!/bin/bash
# Runs test programs, two at a time, and sums them up; the last line is `N passed, N failed, N skipped`.
#   scripts/test.sh LOG_DIR PROGRAM...
# A program that crashes counts as one failure more. Skips are printed with their reason.
set -uo pipefail
export LC_ALL=C  # awk's numbers
logs=$1
shift
mkdir -p "$logs"

run_one() {
    local program=$1 log=$2/$(basename "$1").log start end status
    start=$(date +%s.%N)
    "$program" --gtest_color=no >"$log" 2>&1
    status=$?
    end=$(date +%s.%N)
    echo "exit status $status" >>"$log"
    printf '%-34s %6.1f s  %s\n' "$(basename "$program")" "$(echo "$start $end" | awk '{print $2 - $1}')" \
        "$([ $status -eq 0 ] && echo ok || echo FAILED)"
}
export -f run_one
printf '%s\n' "$@" | xargs -P "$(nproc)" -I{} bash -c 'run_one {} '"$logs"

passed=0 failed=0 skipped=0
for program in "$@"; do
    log=$logs/$(basename "$program").log
    ok=$(grep -c '^\[       OK \]' "$log")
    bad=$(grep -cE '^\[  FAILED  \] .*\([0-9]+ ms\)$' "$log")
    skip=$(grep -cE '^\[  SKIPPED \] .*\([0-9]+ ms\)$' "$log")
    status=$(sed -n 's/^exit status //p' "$log" | tail -1)
    # Crashed, or exited non-zero without saying which test failed.
    [ "${status:-1}" != 0 ] && [ "$bad" = 0 ] && bad=1
    # A program without a single test has been emptied by mistake.
    [ $((ok + bad + skip)) = 0 ] && bad=1
    if [ "$bad" != 0 ]; then
        echo "---- $(basename "$program") ----"
        grep -vE '^\[ RUN      \]|^\[       OK \]' "$log" | tail -60
    fi
    [ "$skip" != 0 ] && grep -B3 '^\[  SKIPPED \] .*ms)$' "$log"
    passed=$((passed + ok)) failed=$((failed + bad)) skipped=$((skipped + skip))
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
