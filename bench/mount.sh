#!/bin/bash
# Mount time once the index is local, for a small image and one of 50,000 files (aim <= 5 ms, both the same).
set -euo pipefail
source "$(dirname "$0")/setup.sh"

# files_image COUNT: serves an image of that many small files.
files_image() {
    mkdir -p "$work/tree"
    (cd "$work/tree" && seq "$1" | awk '{ d = "d" int($1 / 500); if (d != last) system("mkdir -p " d); last = d
        f = d "/file-" $1; print "file", $1 > f; close(f) }')
    layer_tar "$work/tree" "$work/tree.tar"
    "$testkit" layout "$work/layout-$1" "$work/tree.tar" >/dev/null
    rm -rf "$work/tree" "$work/tree.tar"
    serve_image "$work/layout-$1" "files$1"
}

echo "== mount time with the index local (aim <= 5 ms, whatever the size)"
row files "median ms" "best ms" "whole cmd ms"
for count in 50 50000; do
    files_image "$count"
    index_image "$image"
    # Once, so that the index is here.
    mount_image "$work/store" "$work/mnt"
    "$hoist" --root "$work/store" unmount "$work/mnt" >/dev/null
    : >"$work/times" >"$work/whole"
    for _ in $(seq 15); do
        from=$(now)
        mount_image "$work/store" "$work/mnt" --stats "$work/stats.json"
        since "$from" >>"$work/whole"
        echo >>"$work/whole"
        "$hoist" --root "$work/store" unmount "$work/mnt" >/dev/null
        jq .seconds_to_mount "$work/stats.json" >>"$work/times"
    done
    ms() { awk '{ printf "%.2f", $1 * 1000 }'; }
    row "$count" "$(median <"$work/times" | ms)" "$(sort -g "$work/times" | head -1 | ms)" \
        "$(median <"$work/whole" | ms)"
done
