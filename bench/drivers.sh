#!/bin/bash
# A lazy first read of everything by each driver; reads of what is here by then, while the driver still serves it; and of the
# same image pulled, beside the same tree as a plain folder.
# bench/drivers.sh [ROUNDS]    default: 3, about six minutes
set -euo pipefail
source "$(dirname "$0")/setup.sh"
big_image
rounds=${1:-${BENCH_ROUNDS:-3}}
drivers=(erofs erofs-fuse fuse)

mount_all() {
    local driver
    for driver in "${drivers[@]}"; do
        mkdir -p "$work/$driver"
        HOIST_DRIVER=$driver "$hoist" --root "$work/store-$driver" mount "$image" "$work/$driver" >/dev/null
        mounted+=("$work/$driver")
    done
}

unmount_all() {
    local driver
    for driver in "${drivers[@]}"; do
        "$hoist" --root "$work/store-$driver" unmount "$work/$driver" >/dev/null
    done
    mounted=()
}

timed() {
    drop_caches
    "$testkit" read "$1" "$work/$2" | cut -d' ' -f1
}

# table ROUNDS HOW...: medians of reads from cold caches, taken in turns.
table() {
    local n=$1 how where seconds ratios
    shift
    row "" "plain s" "${drivers[@]/%/ s}" "${drivers[@]}"
    for how; do
        rm -f "$work"/times.*
        for _ in $(seq "$n"); do
            for where in plain "${drivers[@]}"; do
                timed "$how" "$where" >>"$work/times.$where"
            done
        done
        seconds=() ratios=()
        for where in plain "${drivers[@]}"; do
            seconds+=("$(median <"$work/times.$where")")
            [[ $where == plain ]] || ratios+=("$(ratio "${seconds[0]}" "${seconds[-1]}")")
        done
        row "$how" "${seconds[@]}" "${ratios[@]}"
    done
}

index_image "$image"
proxy_set 0 "$rate"
mkdir "$work/plain"
mount_all
echo "== first read of everything, lazily, no delay, 1 Gbit/s"
row "" seconds
for driver in "${drivers[@]}"; do
    row "$driver" "$(timed sequential "$driver")"
done
cp -a "$work/erofs/." "$work/plain/"

# Two of the three layers pass their check by themselves. Of the largest, other layers had more than a mebibyte: it stays
# watched until it is pulled.
echo
echo "== reads from cold caches of what came so, the largest layer still served by hoist: median of $rounds; speed / plain folder's"
table "$rounds" walk sequential random

unmount_all
proxy_set 0 0
for driver in "${drivers[@]}"; do
    "$hoist" --root "$work/store-$driver" pull "$image" >/dev/null
done
mount_all
echo
echo "== the same of the image as it was pulled and checked: only fuse serves it still"
table "$rounds" walk sequential random

echo
echo "== the same from warm caches"
for how in walk sequential random; do
    seconds=() ratios=()
    for where in plain "${drivers[@]}"; do
        "$testkit" read "$how" "$work/$where" >/dev/null
        seconds+=("$("$testkit" read "$how" "$work/$where" | cut -d' ' -f1)")
        [[ $where == plain ]] || ratios+=("$(ratio "${seconds[0]}" "${seconds[-1]}")")
    done
    row "$how" "${seconds[@]}" "${ratios[@]}"
done
unmount_all
