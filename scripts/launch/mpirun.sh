#!/bin/bash
# build/train as ranks on the hosts of a hostfile, by Open MPI's mpirun over ssh. A job that breaks (a rank or a host dies) is
# started again and goes on from the newest checkpoint of --out.
#   scripts/launch/mpirun.sh [flags of build/train]
#   HOSTFILE=hosts scripts/launch/mpirun.sh --init gpt2-124m --train-data '/data/fineweb/*.bin' --out /scratch/run
#   Variables: HOSTFILE (scripts/launch/hostfile)   BUILD (build)
#     PLACE (--map-by numa --bind-to numa)         a rank a NUMA node, as far as a host has slots
#     RSH (ssh -o BatchMode=yes -o ConnectTimeout=5)  brings a command to a host: RSH HOST COMMAND
#     WAIT_S (10)     how long hosts may take to answer
#     RESTARTS (3)    how often a job that broke is started again
#     MPIRUN (mpirun --quiet)
# SIGUSR1 and SIGTERM let the run save itself and exit with 75, Ctrl-C with 130. 0: done. 2: wrong input, or a host that does
# not answer. Settings of Open MPI go by its own variables, OMPI_MCA_...
set -uo pipefail
hostfile=${HOSTFILE:-scripts/launch/hostfile} train=$(realpath -m "${BUILD:-build}/train")
rsh=${RSH:-ssh -o BatchMode=yes -o ConnectTimeout=5} wait_s=${WAIT_S:-10} restarts=${RESTARTS:-3}
read -ra place <<<"${PLACE:---map-by numa --bind-to numa}"
read -ra mpirun <<<"${MPIRUN:-mpirun --quiet}"
fail() {
    echo "error: mpirun.sh: $*" >&2
    exit 2
}
command -v "${mpirun[0]}" >/dev/null || fail "there is no ${mpirun[0]}  hint: scripts/deps.sh build"
[ -x "$train" ] || fail "$train is not there  hint: make, or BUILD=DIR"
[ -r "$hostfile" ] || fail "$hostfile cannot be read  hint: HOSTFILE=FILE, made as scripts/launch/hostfile"
hosts=$(sed 's/#.*//' "$hostfile" | awk 'NF { print $1 }')
[ -n "$hosts" ] || fail "$hostfile names no host  hint: a line of it is as: node1 slots=2"

asked='' job=''
on_signal() {
    local signal=USR1  # not SIGTERM: mpirun kills its ranks a second after that
    [ "$asked $1" = "130 130" ] && signal=TERM  # who types Ctrl-C twice does not want to wait for a checkpoint
    asked=$1
    [ -n "$job" ] && kill -"$signal" "$job" 2>/dev/null
}
trap 'on_signal 75' USR1 TERM
trap 'on_signal 130' INT HUP

# Open MPI's own words for a host that is not there are many and do not name it.
here=" localhost 127.0.0.1 $(hostname) $(hostname -f 2>/dev/null) $(hostname -I) "
require_hosts() {
    local host said deadline=$((SECONDS + wait_s))
    for host in $hosts; do
        case $here in *" $host "*) continue ;; esac
        until said=$($rsh "$host" test -x "$train" 2>&1 </dev/null); do
            [ -n "$asked" ] && exit "$asked"
            [ "$SECONDS" -lt "$deadline" ] || fail "$host has not answered or has no $train after $wait_s s:" \
                "${said//[$'\r\n']/ }  hint: try $rsh $host ls $train; WAIT_S=SECONDS for hosts that are still starting"
            sleep 1
        done
    done
}

for ((start = 0; ; start++)); do
    job=''
    require_hosts
    [ -n "$asked" ] && exit "$asked"
    # A session of its own: a terminal's Ctrl-C must reach this script alone.
    setsid "${mpirun[@]}" --hostfile "$hostfile" --mca plm_rsh_agent "$rsh" "${place[@]}" "$train" "$@" </dev/null &
    job=$!
    # A trap ends a wait before its time.
    while kill -0 "$job" 2>/dev/null; do wait "$job"; done
    wait "$job"
    code=$?
    case $code in
        75 | 138) exit "${asked:-75}" ;;  # 138: SIGUSR1, when nobody listened yet
        0 | 2) exit "$code" ;;
    esac
    if [ -n "$asked" ] || [ "$start" -ge "$restarts" ]; then
        echo "error: mpirun.sh: the job broke with exit code $code  hint: MPIRUN=mpirun for what Open MPI has to say" >&2
        exit "$code"
    fi
    echo "mpirun.sh: the job broke with exit code $code; restart $((start + 1)) of $restarts" >&2
done
