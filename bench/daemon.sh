#!/bin/bash
# What the daemon takes: memory with 100 images mounted, before and after all of them are read, also when that was a while
# ago, and with 1,000 mounts;
# what it does at rest.
# bench/daemon.sh [DRIVER]
set -euo pipefail
source "$(dirname "$0")/setup.sh"
export HOIST_DRIVER=${1:-${HOIST_DRIVER:-erofs}}
images=${IMAGES:-100} mounts=${MOUNTS:-1000}

# One layer that all have, of 10,000 files, and one of 500 files that each has for itself.
files() {
    mkdir -p "$work/tree"
    (cd "$work/tree" && seq "$2" | awk -v of="$1" '{ d = of "-" int($1 / 500); if (d != last) system("mkdir -p " d); last = d
        f = d "/file-" $1; for (i = 0; i < 60; i++) print "file", $1, "of", of, i * $1 > f; close(f) }')
    layer_tar "$work/tree" "$3"
    rm -rf "$work/tree"
}
files base 10000 "$work/base.tar"
names=()
for i in $(seq "$images"); do
    files "own$i" 500 "$work/own.tar"
    "$testkit" layout "$work/layout" "$work/base.tar" "$work/own.tar" >/dev/null
    serve_image "$work/layout" "image$i"
    "$hoist" --root "$work/index" index --push "$image" >/dev/null
    names+=("$image")
    rm -rf "$work/layout" "$work/own.tar"
done
rm -rf "$work/index"

"$hoist" --root "$work/store" --log warn daemon 2>"$work/log" &
daemon=$!
started+=("$daemon")
wait_socket() {
    local tries
    for ((tries = 0; tries < 600; tries++)); do
        [[ -S $work/store/hoist.sock ]] && return
        sleep 0.05
    done
    die "the daemon did not start: see $work/log"
}
wait_socket

# mount_all FROM TO: mounts number FROM to TO, of the images in turn.
mount_all() {
    local i
    for ((i = $1; i <= $2; i++)); do
        mkdir "$work/mnt-$i"
        "$hoist" --root "$work/store" mount "${names[i % images]}" "$work/mnt-$i" >/dev/null
        mounted+=("$work/mnt-$i")
    done
}
rss() { awk '/^VmRSS/ { printf "%.1f", $2 / 1024 }' "/proc/$1/status"; }
keeper() { "$hoist" --root "$work/store" status --json | jq -r .daemon.keeper_pid; }
threads() { awk '/^Threads/ { print $2 }' "/proc/$1/status"; }
# Tables that nobody uses are put away after 40 s at most, and idle threads end before.
a_while() { sleep 45; }
memory() {
    local a b
    a=$(rss "$daemon") b=$(rss "$(keeper)")
    row "$1" "$a" "$b" "$(awk -v a="$a" -v b="$b" 'BEGIN { printf "%.1f", a + b }')" "$(threads "$daemon")"
}
# Of all threads of daemon and keeper: context switches, and CPU time in milliseconds.
switches() { cat /proc/{"$daemon","$(keeper)"}/task/*/status | awk '/ctxt_switches/ { n += $2 } END { print n }'; }
cpu() { cat /proc/{"$daemon","$(keeper)"}/stat | awk '{ n += $14 + $15 } END { print n * 10 }'; }
at_rest() {
    local s c
    # Asking who the keeper is wakes the daemon.
    kept=$(keeper)
    keeper() { echo "$kept"; }
    a_while
    s=$(switches) c=$(cpu)
    sleep 10
    row "$1" "$(($(switches) - s))" "$(($(cpu) - c))"
}

echo "== memory, MB (RSS), driver $HOIST_DRIVER: aim <= 60 together with $images images"
row "" daemon keeper together threads
from=$(now)
mount_all 1 "$images"
took_first=$(since "$from")
memory "$images images, not read"
for ((i = 1; i <= images; i++)); do cat "$work/mnt-$i"/own*-0/file-1 "$work/mnt-$i/base-0/file-1" >/dev/null; done
memory "$images images, of each layer one file read"
a_while
memory "the same, a while later"
for ((i = 1; i <= images; i++)); do cat "$work/mnt-$i"/*/* | sha256sum >/dev/null; done
memory "$images images, all read"
a_while
memory "the same, a while later"
from=$(now)
mount_all "$((images + 1))" "$mounts"
took=$(since "$from")
memory "$mounts mounts"
echo
echo "== at rest, in 10 s"
row "" "switches" "CPU ms"
at_rest "$mounts mounts"
echo
row "mounting, ms each" "first $images" "the others"
row "" "$(awk -v t="$took_first" -v n="$images" 'BEGIN { printf "%.1f", t * 1000 / n }')" \
    "$(awk -v t="$took" -v n="$((mounts - images))" 'BEGIN { printf "%.1f", t * 1000 / n }')"
for ((i = ${#mounted[@]} - 1; i >= 0; i--)); do umount "${mounted[i]}"; done
mounted=()
