#!/bin/bash
# All benches, or those named: bench/run.sh [index] [mount] [read] [drivers] [start] [containerd] [daemon] [takeover] [formats]. `make bench` builds and calls it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
(($#)) || set -- index mount read drivers start containerd daemon takeover formats
echo "$(uname -sr), $(nproc) CPUs, $(awk '/MemTotal/ { printf "%.0f", $2 / 1048576 }' /proc/meminfo) GiB, $(date -u +%F)"
failed=()
for name; do
    echo
    # One bench that fails must not hide the figures of the others.
    "$here/$name.sh" || failed+=("$name")
done
if ((${#failed[@]})); then
    echo "error: failed: ${failed[*]}" >&2
    exit 1
fi
