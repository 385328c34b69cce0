#!/bin/bash
# From nothing to a program's end through containerd 2.1: its overlayfs and its EROFS snapshotter, and hoist, which has all
# of the image first or mounts it before it is here. One image, one line, one run.
# bench/containerd.sh [DELAY_MS]
set -euo pipefail
source "$(dirname "$0")/setup.sh"
delay=${1:-20}
"$top/scripts/chroots" forky
big_image
index_image "$image"

"$testkit" system forky --file "$work/system" &
started+=($!)
wait_file "$work/system" $!
read -r keeper root <"$work/system"
data=$root/data
# No function where it is put in the background: then its process would be a shell's, not the program's.
there=(env TMPDIR=/tmp PATH=/usr/sbin:/usr/bin nsenter --mount="/proc/$keeper/ns/mnt")
inside() { "${there[@]}" "$@"; }
ctr() { inside ctr --address /data/run/sock "$@"; }

# start_node POLICY: containerd and hoist with empty stores.
start_node() {
    mkdir -p "$data/run"
    echo "containerd_images = \"$1\"" >"$data/run/hoist.toml"
    "$hoist" --root "$data/run/store" daemon --config "$data/run/hoist.toml" \
        --snapshotter-socket "$data/run/hoist.sock" 2>"$work/hoist.log" &
    daemon=$!
    sed -e "s|/run/hoist/snapshotter.sock|$data/run/hoist.sock|" -e "s|/var/lib/hoist|$data/run/store|" \
        "$top/deploy/containerd-2.toml" - >"$data/run/config.toml" <<'END'
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux"
snapshotter = "erofs"
differ = "erofs"
END
    "${there[@]}" containerd --config /data/run/config.toml --root /data/run/root --state /data/run/state \
        --address /data/run/sock 2>"$work/containerd.log" &
    containerd=$!
    started+=("$daemon" "$containerd")
    local tries
    for ((tries = 0; tries < 600; tries++)); do
        ctr version >/dev/null 2>&1 && [[ -S $data/run/hoist.sock ]] && return
        sleep 0.05
    done
    die "containerd or hoist did not start: $(tail -3 "$work/containerd.log" "$work/hoist.log")"
}

stop_node() {
    local point
    kill "$containerd" && wait "$containerd" || true
    while read -r point; do
        umount -l "$point"
    done < <(awk -v dir="$data/run/" 'index($5, dir) == 1 { print $5 }' /proc/self/mountinfo | tac)
    kill "$daemon" && wait "$daemon" || true
    rm -rf --one-file-system "$data/run"
}

# CPU seconds of containerd, hoist, its keeper, and all that they have started and waited for.
cpu() {
    local pid
    for pid in "$containerd" "$daemon" $(pgrep -f "$data/run/store" || true); do
        cat "/proc/$pid/stat" 2>/dev/null || true
    done | sort -u | awk -v hz="$(getconf CLK_TCK)" '{ sub(/.*\) /, ""); s += $12 + $13 + $14 + $15 } END { printf "%.2f", s / hz }'
}

# start NAME SNAPSHOTTER POLICY COMMAND...
start() {
    local name=$1 snapshotter=$2 policy=$3 from pulled before
    shift 3
    start_node "$policy"
    drop_caches
    proxy_set "$delay" "$rate"
    proxy_reset
    before=$(cpu)
    from=$(now)
    ctr images pull --plain-http --snapshotter "$snapshotter" "$image" >"$work/pull.log" 2>&1 || die "$(tail -3 "$work/pull.log")"
    pulled=$(since "$from")
    ctr run --rm --snapshotter "$snapshotter" "$image" bench "$@" >/dev/null
    row "$name" "$pulled" "$(since "$from")" "$(awk -v a="$before" -v b="$(cpu)" 'BEGIN { printf "%.1f", b - a }')" \
        "$(proxy_stats | jq .requests)" "$(megabytes "$(proxy_stats | jq .body_bytes)")"
    stop_node
}

each() {
    start "overlayfs, $1" overlayfs lazy "${@:2}"
    start "EROFS snapshotter, $1" erofs lazy "${@:2}"
    start "hoist full, $1" hoist full "${@:2}"
    start "hoist lazy, $1" hoist lazy "${@:2}"
}

echo "== through containerd, from nothing to exit; $delay ms, 1 Gbit/s (aims at 20 ms: lazy hello 0.6 s, lazy scipy 2.5 s, full hello 5 s and 6 CPU s)"
inside containerd --version
row "" pulled exit "CPU s" requests MB
each hello python3 -c 'print(1)'
each scipy python3 -c 'import numpy, scipy.linalg, scipy.optimize'
