#!/bin/bash
# Mount time once the index is local, for a small image and one of 50,000 files (aim <= 5 ms, both the same): by
# digest, which asks nobody, and by tag, about which the registry is asked once.
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

# times NAME: seconds_to_mount of 15 mounts to $work/times, of the whole commands to $work/whole.
times() {
    : >"$work/times" >"$work/whole"
    for _ in $(seq 15); do
        local from
        from=$(now)
        "$hoist" --root "$work/store" mount --stats "$work/stats.json" "$1" "$work/mnt" >/dev/null
        since "$from" >>"$work/whole"
        echo >>"$work/whole"
        "$hoist" --root "$work/store" unmount "$work/mnt" >/dev/null
        jq .seconds_to_mount "$work/stats.json" >>"$work/times"
    done
}
ms() { awk '{ printf "%.2f", $1 * 1000 }'; }

echo "== mount time with the index local (aim <= 5 ms, whatever the size)"
row files "median ms" "best ms" "whole cmd ms"
for count in 50 50000; do
    files_image "$count"
    index_image "$image"
    # Once, so that the index is here.
    mount_image "$work/store" "$work/mnt"
    "$hoist" --root "$work/store" unmount "$work/mnt" >/dev/null
    digest=$(jq -r '.manifests[0].digest' "$work/layout-$count/index.json")
    for name in "${image%:*}@$digest" "$image"; do
        times "$name"
        [[ $name == *@* ]] && how="by digest" || how="by tag, one request"
        row "$count, $how" "$(median <"$work/times" | ms)" "$(sort -g "$work/times" | head -1 | ms)" \
            "$(median <"$work/whole" | ms)"
    done
done
