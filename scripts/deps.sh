#!/bin/bash
# Installs what is missing from the distribution's packages and says what for; does nothing when all is there.
#   scripts/deps.sh build|test|test-full|bench|lint|demo|peers ...     each word adds its packages
#   scripts/deps.sh unpack DIR build|test|bench ...          installs nothing: headers and libraries into DIR, for a
#                                                            machine without network (DEPS_DIR of scripts/gpu_check.sh)
set -euo pipefail
export LC_ALL=C

packages() {
    case $1 in
        build) cat <<'LIST'
g++                  the compiler
binutils             ld and objcopy: one relocatable object per instruction set
libcli11-dev         flags and TOML configuration
nlohmann-json3-dev   config.json, tokenizer.json, manifests
libsimdjson-dev      reading JSONL documents
libzstd-dev          .jsonl.zst documents
libxxhash-dev        deduplication keys, hashes of weights
libssl-dev           SHA-256 of files
libgumbo-dev         HTML
libopenmpi-dev       ranks (MPICH does as well)
openmpi-bin          mpirun
LIST
            ;;
        test) cat <<'LIST'
libgtest-dev         GoogleTest
slurmctld            a Slurm of two nodes, which the tests start and stop
slurmd               its nodes
slurm-client         sbatch, srun, scontrol
munge                who is who in it
iproute2             two hosts on one machine: network namespaces
LIST
            ;;
        test-full) cat <<'LIST'
clang                MemorySanitizer
googletest           GoogleTest's sources, to be built with it
LIST
            ;;
        bench) cat <<'LIST'
libbenchmark-dev     Google Benchmark
LIST
            ;;
        lint) cat <<'LIST'
clang-format         format check
git                  which files are ours
LIST
            ;;
        demo) cat <<'LIST'
xz-utils             the yardstick: xz -9e on the held-out text
LIST
            ;;
        peers) cat <<'LIST'
python3-venv         the other implementations live in a Python environment of their own
LIST
            ;;
        *) return 2 ;;
    esac
}

unpack_into=
if [ "${1:-}" = unpack ]; then
    [ $# -ge 3 ] || {
        echo "error: deps: unpack needs a directory and groups  hint: scripts/deps.sh unpack DIR build test" >&2
        exit 2
    }
    unpack_into=$2
    shift 2
fi
for group in "$@"; do
    packages "$group" >/dev/null || {
        echo "error: deps: unknown group '$group'  hint: build, test, test-full, bench, lint, demo or peers" >&2
        exit 2
    }
done
if [ -n "$unpack_into" ]; then
    names=()
    for group in "$@"; do
        while read -r name why; do
            case $name in
                # Programs, not libraries.
                g++ | binutils | git | clang-format | python3-venv | xz-utils | slurm* | munge | iproute2) continue ;;
                *openmpi*) continue ;;  # its mpicc would not be in the PATH there: that build has one rank
            esac
            names+=("$name")
            # The shared libraries behind the headers.
            while read -r dependency; do names+=("$dependency"); done < <(apt-cache depends "$name" |
                sed -n 's/^ *Depends: \([a-z][a-z0-9.+-]*\)$/\1/p' | grep -vE '^(libc6|libgcc|libstdc)' || true)
        done < <(packages "$group")
    done
    mkdir -p "$unpack_into"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    if ! (cd "$work" && apt-get -qq download "${names[@]}" >log 2>&1); then
        tail -n 3 "$work/log" >&2
        echo "error: deps: apt-get could not download: ${names[*]}  hint: apt-get update" >&2
        exit 1
    fi
    for deb in "$work"/*.deb; do dpkg-deb -x "$deb" "$unpack_into"; done
    rm -rf "$unpack_into"/usr/share/doc "$unpack_into"/usr/share/man
    echo "deps: ${#names[@]} packages unpacked into $unpack_into"
    exit 0
fi
if ! command -v dpkg-query >/dev/null; then
    echo "deps: no dpkg here: the packages of this system must bring what scripts/deps.sh lists for: $*" >&2
    exit 0
fi
missing=()
for group in "$@"; do
    while read -r name why; do
        # Any MPI will do.
        case $name in *openmpi*) command -v mpicc >/dev/null && command -v mpirun >/dev/null && continue ;; esac
        if [ "$(dpkg-query -W -f='${db:Status-Status}' "$name" 2>/dev/null)" != installed ]; then
            missing+=("$name")
            echo "deps: $name is missing ($why)"
        fi
    done < <(packages "$group")
done
[ ${#missing[@]} -eq 0 ] && exit 0

as_root=()
if [ "$(id -u)" != 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "error: packages are missing and this is not root  hint: as root: apt-get install ${missing[*]}  (installed otherwise: make programs)" >&2
        exit 2
    fi
    as_root=(sudo)
fi
echo "deps: installing with apt-get: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
install() { "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >"$log" 2>&1; }
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# The package lists of a bare machine are empty or old: refresh them only when the install needs it.
if ! install; then
    "${as_root[@]}" apt-get update -qq >>"$log" 2>&1 || true
    if ! install; then
        cat "$log" >&2
        echo "error: apt-get could not install: ${missing[*]}" >&2
        exit 1
    fi
fi
echo "deps: done"
