#!/bin/bash
# Do the sanitizers find, through the emulator, the bugs planted in tests/simt_planted.cu, and nothing in the correct
# kernels? Builds one program for each sanitizer into DIR (build/simt_planted) and runs every kernel.
#   scripts/simt_planted.sh [DIR]
set -uo pipefail
cd "$(dirname "$0")/.."
dir=${1:-build/simt_planted}
common="-std=c++20 -O1 -g -fno-strict-aliasing -I. -isystem kernels/simt/include"
problems=0 skipped=0 checked=0
problem() { echo "simt_planted: $*"; problems=$((problems + 1)); }

# What each must say of a bug, as a pattern; "wrong" is the program's own verdict, "-" is not looked for.
expected='
bug                        asan                   tsan         msan
no_first_barrier           wrong                  race         uninitialized
no_second_barrier          wrong                  race         wrong
divergent_barrier          divergent              divergent    divergent
no_wait_for_previous       wait_for_previous      wait_for_previous  wait_for_previous
host_pointer               argument               argument     argument
read_past_end              heap-buffer-overflow   wrong        wrong
write_past_end             heap-buffer-overflow   past         past
unset_memory               wrong                  wrong        uninitialized
misaligned                 aligned                aligned      aligned
shared_past_end            use-after-poison       past         past
no_zero                    wrong                  wrong        wrong
blocks_overlap             -                      race         -
no_fence                   -                      race         -
no_syncwarp                wrong                  race         uninitialized
wait_too_few               use-after-poison       wrong        uninitialized
no_barrier_after_wait      use-after-poison       race         uninitialized
no_barrier_before_reuse    use-after-poison       race         uninitialized
no_syncwarp_after_stmatrix wrong                  race         uninitialized
no_empty_wait              use-after-poison\|arrived  race\|arrived uninitialized\|arrived
no_syncwarp_before_arrive  -                      race         -
pinned_reused              wrong                  wrong        wrong
read_on_host               use-after-poison       -            -
never_freed                LeakSanitizer          -            -
'
correct="reduce shift histogram reverse matmul ring two_streams pinned_copy"

# build NAME COMPILER FLAGS EMULATOR_FLAGS: the program DIR/NAME. ThreadSanitizer must not instrument the emulator.
build() {
    local name=$1 compiler=$2 flags=$3 emulator=$4 source object
    mkdir -p "$dir/$name.o"
    for source in kernels/simt/*.cpp tests/simt_planted.cu tests/simt_planted_main.cpp; do
        object=$dir/$name.o/$(basename "$source").o
        [ "$object" -nt "$source" ] && [ -z "$(find kernels core tests -name '*.h' -newer "$object" -print -quit)" ] && continue
        case $source in
            kernels/*) echo "$common $emulator -c $source -o $object" ;;
            *) echo "$common $flags -x c++ -c $source -o $object" ;;
        esac
    done | xargs -P "${JOBS:-$(nproc)}" -I {} sh -c "$compiler {}" || return
    $compiler $flags "$dir/$name.o"/*.o -o "$dir/$name"
}

# ThreadSanitizer wants the addresses where they always are.
fixed_addresses=""
setarch -R true 2>/dev/null && fixed_addresses="setarch -R"

check() {  # NAME COLUMN
    local name=$1 column=$2 kernel output code bug pattern
    for kernel in $correct; do
        output=$($fixed_addresses "$dir/$name" "$kernel" 2>&1)
        code=$?
        checked=$((checked + 1))
        [ $code = 0 ] && [ -z "$output" ] && continue
        problem "$name: $kernel is correct, but (exit $code): $(echo "$output" | head -n 20)"
    done
    while read -r bug pattern; do
        [ "$bug" = bug ] || [ -z "$bug" ] || [ "$pattern" = - ] && continue
        output=$($fixed_addresses "$dir/$name" "$bug" 2>&1)
        code=$?
        checked=$((checked + 1))
        if [ $code = 0 ]; then
            problem "$name: $bug was not found"
        elif ! echo "$output" | grep -q -e "$pattern"; then
            problem "$name: $bug: expected \"$pattern\", got (exit $code): $(echo "$output" | head -n 20)"
        fi
    done < <(echo "$expected" | awk -v column="$column" '{ print $1, $column }')
}

run() {  # NAME COLUMN COMPILER FLAGS EMULATOR_FLAGS
    if ! command -v "$3" >/dev/null; then
        echo "simt_planted: SKIPPED $1: $3 is missing"
        skipped=$((skipped + 1))
    elif build "$1" "$3" "$4" "$5"; then
        check "$1" "$2"
    else
        problem "$1: does not build"
    fi
}
asan="-fsanitize=address,undefined -fno-sanitize-recover=undefined"
run asan 2 g++ "$asan" "$asan"
run tsan 3 g++ "-fsanitize=thread" "-O2 -DSIMT_TSAN"
run msan 4 clang++ "-fsanitize=memory" "-fsanitize=memory"

echo "simt_planted: $checked checked, $problems problems, $skipped sanitizers skipped"
[ "$problems" = 0 ]
