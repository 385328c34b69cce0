#!/bin/bash
# A filler that is killed again and again while an image is read: KILLS times (1000), aim 0 wrong or failed reads. Then
# one that is stopped for STOPPED seconds (30) in the midst of it, and one that is replaced by an upgrade, UPGRADES
# times (10): the longest read, aim 100 ms.
# bench/takeover.sh [DRIVER]    about five minutes
set -euo pipefail
source "$(dirname "$0")/setup.sh"
kills=${KILLS:-1000} stopped=${STOPPED:-30} upgrades=${UPGRADES:-10}
export HOIST_DRIVER=${1:-${HOIST_DRIVER:-erofs}}

mkdir -p "$work/tree"
for i in $(seq 400); do
    head -c 500000 /dev/urandom >"$work/tree/file-$i"
done
(cd "$work/tree" && sha256sum file-* >"$work/sums")
layer_tar "$work/tree" "$work/tree.tar"
"$testkit" layout "$work/layout" "$work/tree.tar" >/dev/null
rm -rf "$work/tree" "$work/tree.tar"
# Slow enough that much is absent whenever the filler dies.
rate=40000000
serve_image "$work/layout" takeover
index_image "$image"
proxy_set 0 "$rate"

filler() { cat "$work"/store/mounts/*.lease 2>/dev/null | jq -r .filler_pid 2>/dev/null || true; }

killed=0 rounds=0 bad=0
: >"$work/took"
while ((killed < kills)); do
    rm -rf "$work/store"
    mount_image "$work/store" "$work/mnt"
    (cd "$work/mnt" && sha256sum --quiet -c "$work/sums" 2>&1) >"$work/said" &
    reader=$!
    while kill -0 "$reader" 2>/dev/null && ((killed < kills)); do
        pid=$(filler)
        from=$(now)
        kill -9 "$pid"
        until next=$(filler) && [[ -n $next && $next != "$pid" ]]; do sleep 0.001; done
        since "$from" >>"$work/took"
        echo >>"$work/took"
        killed=$((killed + 1))
        # Some die at once, others in the midst of their work.
        sleep "0.0$((RANDOM % 10))"
    done
    wait "$reader" || bad=$((bad + $(grep -c FAILED "$work/said")))
    "$hoist" --root "$work/store" unmount "$work/mnt" >/dev/null
    rounds=$((rounds + 1))
done
echo "== a filler killed while all of a 200 MB image is read and checked, driver $HOIST_DRIVER"
row "" kills "times read" "bad files" "median ms" "worst ms"
ms() { awk '{ printf "%.1f", $1 * 1000 }'; }
row "until a successor serves" "$killed" "$rounds" "$bad" "$(median <"$work/took" | ms)" \
    "$(sort -g "$work/took" | tail -1 | ms)"

# Nobody takes its place meanwhile.
rm -rf "$work/store"
mount_image "$work/store" "$work/mnt"
(cd "$work/mnt" && sha256sum --quiet -c "$work/sums" 2>&1) >"$work/said" &
reader=$!
sleep 1
pid=$(filler)
kill -STOP "$pid"
sleep "$stopped"
kill -0 "$reader" 2>/dev/null || die "it was read while nobody could answer"
kill -CONT "$pid"
failed=0
wait "$reader" || failed=$(grep -c FAILED "$work/said")
[[ $(filler) == "$pid" ]] || die "another process serves"
"$hoist" --root "$work/store" unmount "$work/mnt" >/dev/null
echo
row "stopped, seconds" "$stopped" "bad files" "$failed"

# longest_read UPGRADE: of all reads of the whole image, none of it here before, in milliseconds.
longest_read() {
    local reader pid tries
    rm -rf "$work/store"
    mount_image "$work/store" "$work/mnt"
    drop_caches
    pid=$(filler)
    "$testkit" read sequential "$work/mnt" >"$work/said" &
    reader=$!
    sleep 0.4
    if [[ $1 == yes ]]; then
        kill -USR2 "$pid"
        for ((tries = 0; tries < 1000; tries++)); do
            [[ $(filler) != "$pid" ]] && break
            sleep 0.01
        done
        [[ $(filler) != "$pid" ]] || die "it was not replaced"
    fi
    kill -0 "$reader" 2>/dev/null || die "all was read before the upgrade"
    wait "$reader" || die "a read failed"
    "$hoist" --root "$work/store" unmount "$work/mnt" >/dev/null
    cut -d' ' -f4 "$work/said"
}
proxy_set 0 125000000
for upgrade in no yes; do
    for ((i = 0; i < upgrades; i++)); do longest_read "$upgrade"; done >"$work/longest.$upgrade"
done
echo
row "longest read of all, ms" "" times median worst
for upgrade in no yes; do
    words="without an upgrade"
    [[ $upgrade == no ]] || words="while it is upgraded"
    row "$words" "" "$upgrades" "$(median <"$work/longest.$upgrade" | ms)" "$(sort -g "$work/longest.$upgrade" | tail -1 | ms)"
done
((bad + failed == 0))
