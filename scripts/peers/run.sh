#!/bin/bash
# Holds the programs in BUILD against other implementations of the same formats and models (transformers, tokenizers,
# tiktoken), in a private Python environment that is made once, in build/peers (about 6 GB, most of it torch).
#   scripts/peers/run.sh BUILD
# Every scripts/peers/test_*.py is called with BUILD and ends with `N passed, N failed, N skipped`; so does this.
set -uo pipefail
build=${1:?usage: scripts/peers/run.sh BUILD}
here=$(dirname "$0")
environment=build/peers
python=$environment/bin/python

is_ready() {
    [ -x "$python" ] && "$python" - <<'PYTHON'
import importlib.util
import sys
wanted = ("torch", "transformers", "tokenizers", "tiktoken", "safetensors", "numpy")
sys.exit(not all(importlib.util.find_spec(name) for name in wanted))
PYTHON
}

# Leaves the reason in `reason` when the environment cannot be had.
reason=""
make_environment() {
    is_ready && return 0
    local log=$environment.log
    mkdir -p "$(dirname "$environment")"
    command -v python3 >/dev/null || { reason="no python3"; return 1; }
    echo "peers: making $environment (log: $log)"
    if ! python3 -m venv "$environment" >"$log" 2>&1; then
        reason="python3 -m venv failed: $(tail -1 "$log")"
    elif ! "$python" -m pip install --quiet --no-input -r "$here/requirements.txt" >>"$log" 2>&1; then
        reason="pip install failed: $(grep -m1 -E '^(ERROR|error)' "$log" || tail -1 "$log")"
    elif ! is_ready; then
        reason="packages are missing after pip install"
    fi
    [ -z "$reason" ]
}

passed=0 failed=0 skipped=0
make_environment
for script in "$here"/test_*.py; do
    name=$(basename "$script")
    if [ -n "$reason" ]; then
        echo "SKIPPED $name: $reason"
        skipped=$((skipped + 1))
        continue
    fi
    echo "---- $name ----"
    log=$environment.$name.log
    "$python" "$script" "$build" 2>&1 | tee "$log"
    status=${PIPESTATUS[0]}
    if [[ $(tail -1 "$log") =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed,\ ([0-9]+)\ skipped$ ]]; then
        ok=${BASH_REMATCH[1]} bad=${BASH_REMATCH[2]} skip=${BASH_REMATCH[3]}
    else
        ok=0 bad=0 skip=0
    fi
    # Crashed before it could count, or ran no test at all.
    { [ "$status" != 0 ] && [ "$bad" = 0 ]; } || [ $((ok + bad + skip)) = 0 ] && bad=$((bad + 1))
    passed=$((passed + ok)) failed=$((failed + bad)) skipped=$((skipped + skip))
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
