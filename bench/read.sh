#!/bin/bash
# A fully present hoist mount against a plain local EROFS of the same tree and against ext4; page cache held.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
big_image
rounds=${BENCH_ROUNDS:-5}

"$hoist" --root "$work/store" pull "$image" >/dev/null
mount_image "$work/store" "$work/hoist"
mounted+=("$work/hoist")

mkfs.erofs --quiet "$work/erofs.img" "$work/hoist" >/dev/null
mkdir "$work/erofs"
"$testkit" mount-erofs "$work/erofs.img" "$work/erofs"
mounted+=("$work/erofs")

megs=$(($(du -sm --apparent-size "$work/hoist" | cut -f1) * 3 / 2 + 200))
truncate -s "${megs}M" "$work/ext4.img"
mkfs.ext4 -q -F "$work/ext4.img"
mkdir "$work/ext4"
mount -o loop "$work/ext4.img" "$work/ext4"
mounted+=("$work/ext4")
cp -a "$work/hoist/." "$work/ext4/"
mount -o remount,ro "$work/ext4"

# timed HOW WHERE: seconds from cold caches.
timed() {
    drop_caches
    "$testkit" read "$1" "$work/$2" | cut -d' ' -f1
}

echo "== reads from cold caches: median of $rounds rounds, taken in turns"
echo "   speed of hoist / speed of the other (aims: EROFS >= 0.98, ext4 >= 1)"
row "" "hoist s" "erofs s" "ext4 s" "/ erofs" "/ ext4"
for how in walk sequential random; do
    rm -f "$work"/times.*
    for _ in $(seq "$rounds"); do
        for where in hoist erofs ext4; do
            timed "$how" "$where" >>"$work/times.$where"
        done
    done
    h=$(median <"$work/times.hoist") e=$(median <"$work/times.erofs") x=$(median <"$work/times.ext4")
    row "$how" "$h" "$e" "$x" "$(ratio "$e" "$h")" "$(ratio "$x" "$h")"
done

cached() { awk '/^(Cached|Buffers):/ { n += $2 } END { printf "%d\n", n * 1024 }' /proc/meminfo; }
echo
echo "== page cache held / bytes read (aim <= 1.1)"
row "" "read MB" "held MB" "held / read"
for where in hoist erofs ext4; do
    drop_caches
    before=$(cached)
    bytes=$("$testkit" read sequential "$work/$where" | cut -d' ' -f3)
    held=$(($(cached) - before))
    row "$where" "$(megabytes "$bytes")" "$(megabytes "$held")" "$(ratio "$held" "$bytes")"
done

# The same while the data is still arriving, when both the mount and the data file are read.
echo
"$hoist" --root "$work/store" unmount "$work/hoist" >/dev/null
rm -rf "$work/store"
index_image "$image"
mount_image "$work/store" "$work/hoist"
drop_caches
before=$(cached)
bytes=$("$testkit" read sequential "$work/hoist" | cut -d' ' -f3)
held=$(($(cached) - before))
row "hoist, read lazily" "$(megabytes "$bytes")" "$(megabytes "$held")" "$(ratio "$held" "$bytes")"
