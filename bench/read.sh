#!/bin/bash
# A fully present hoist mount against a plain local EROFS of the same tree and against ext4; page cache held.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
big_image
rounds=${BENCH_ROUNDS:-5}
# Random reads are short and differ by a tenth from round to round, so it takes many of them to see a hundredth.
declare -A turns=([walk]=$rounds [sequential]=$rounds [random]=$((rounds * 12)))
pages=8000

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
    local some=()
    [[ $1 != random ]] || some=(--count "$pages")
    drop_caches
    "$testkit" read "$1" "$work/$2" "${some[@]}" | cut -d' ' -f1
}

# of_rounds FILE: the median of a ratio in each line, and between what it lies with 95 % certainty (order statistics).
of_rounds() {
    sort -g "$1" | awk '{ a[NR] = $1 } END {
        from = int(NR / 2 - sqrt(NR)); if (from < 1) from = 1
        printf "%.3f (%.3f-%.3f)", (a[int((NR + 1) / 2)] + a[int(NR / 2) + 1]) / 2, a[from], a[NR + 1 - from] }'
}

echo "== reads from cold caches, in turns, each round beginning with another"
echo "   speed of hoist / speed of the other in the same round: median, and its 95 % interval (aims: EROFS >= 0.98, ext4 >= 1)"
row "" rounds "hoist s" "erofs s" "ext4 s" "/ erofs" "/ ext4"
names=(hoist erofs ext4)
for how in walk sequential random; do
    rm -f "$work"/times.* "$work"/ratios.*
    for ((i = 0; i < turns[$how]; i++)); do
        declare -A took=()
        for ((k = 0; k < 3; k++)); do
            where=${names[(i + k) % 3]}
            took[$where]=$(timed "$how" "$where")
            echo "${took[$where]}" >>"$work/times.$where"
        done
        for other in erofs ext4; do
            awk -v a="${took[$other]}" -v b="${took[hoist]}" 'BEGIN { print a / b }' >>"$work/ratios.$other"
        done
    done
    row "$how" "${turns[$how]}" "$(median <"$work/times.hoist")" "$(median <"$work/times.erofs")" \
        "$(median <"$work/times.ext4")" "$(of_rounds "$work/ratios.erofs")" "$(of_rounds "$work/ratios.ext4")"
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
