#!/bin/bash
# A lazy first read of everything by each driver; then reads of what is present, beside the same tree as a plain
# folder.
# bench/drivers.sh [ROUNDS]
set -euo pipefail
source "$(dirname "$0")/setup.sh"
big_image
rounds=${1:-${BENCH_ROUNDS:-3}}
drivers=(erofs erofs-fuse fuse)

index_image "$image"
proxy_set 0 "$rate"
mkdir "$work/plain"
for driver in "${drivers[@]}"; do
    mkdir "$work/$driver"
    HOIST_DRIVER=$driver "$hoist" --root "$work/store-$driver" mount "$image" "$work/$driver" >/dev/null
    mounted+=("$work/$driver")
done

# What was fetched is checked against the image's digests; then only `fuse` still serves it itself.
wait_checked() {
    local tries state
    for ((tries = 0; tries < 1200; tries++)); do
        state=0
        for layer in "$work"/store-*/layers/*; do
            jq -e .verified "$layer/state.json" >/dev/null 2>&1 || state=1
        done
        ((state == 0)) && return
        sleep 0.1
    done
    die "the layers were not checked within 120 s"
}

timed() {
    drop_caches
    "$testkit" read "$1" "$work/$2" | cut -d' ' -f1
}

echo "== first read of everything, lazily, no delay, 1 Gbit/s"
row "" seconds
for driver in "${drivers[@]}"; do
    row "$driver" "$(timed sequential "$driver")"
done
cp -a "$work/erofs/." "$work/plain/"
wait_checked

echo
echo "== reads from cold caches, all present and checked: median of $rounds rounds, taken in turns; speed / plain folder's"
row "" "plain s" "${drivers[@]/%/ s}" "${drivers[@]}"
for how in walk sequential random; do
    rm -f "$work"/times.*
    for _ in $(seq "$rounds"); do
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
for driver in "${drivers[@]}"; do
    "$hoist" --root "$work/store-$driver" unmount "$work/$driver" >/dev/null
done
mounted=()
