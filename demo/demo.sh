#!/bin/bash
# One image, started from nothing three ways over the same slow line: what each took.
# Called by `make demo`, which builds what it needs.
set -euo pipefail
source "$(dirname "$0")/../scripts/lib.sh"
need_root
[[ -x $hoist && -x $testkit ]] || die "build first: make build"

# 20 ms for each request and 1 Gbit/s.
delay_ms=${DEMO_DELAY_MS:-20}
rate=${DEMO_RATE:-125000000}
work=$(mktemp -d /var/tmp/hoist-demo.XXXXXX)
layout=$target/demo/image
command=(python3 -c 'print(1)')
trap 'stop_all; rm -rf "$work"' EXIT

say() { echo "-- $*"; }

rows=()
# way NAME COMMAND...: runs it from cold caches and notes seconds, requests, bytes.
way() {
    local name=$1 from seconds answer
    shift
    say "$name"
    drop_caches
    proxy_reset
    from=$(now)
    answer=$("$@")
    seconds=$(since "$from")
    [[ ${answer##*$'\n'} == 1 ]] || die "$name did not print 1 but: $answer"
    rows+=("$(proxy_stats | jq -r --arg name "$name" --arg seconds "$seconds" \
        '[$name, $seconds, .requests, (.body_bytes / 1e6 * 100 | round / 100)] | @tsv')")
}

plain_containerd() {
    ctr -a "$ctr_sock" images pull --plain-http --snapshotter overlayfs "$image" >"$work/pull.log" 2>&1 ||
        die "ctr pull failed: $(tail -3 "$work/pull.log")"
    ctr -a "$ctr_sock" run --rm --snapshotter overlayfs "$image" demo "${command[@]}"
}

hoist_full() {
    "$hoist" --root "$work/full" pull "$image" >/dev/null
    "$hoist" --root "$work/full" run --rm "$image" "${command[@]}"
}

hoist_lazy() {
    "$hoist" --root "$work/lazy" run --rm "$image" "${command[@]}"
}

say "an image of Debian packages (built the first time, then kept)"
"$top/scripts/make-image" "$layout"
say "a registry on loopback, and before it a line of $delay_ms ms per request and $((rate / 125000)) Mbit/s"
start_registry
start_proxy 0 0
image=$proxy/demo:latest
"$testkit" push "$layout" "127.0.0.1:$registry_port/demo:latest" >/dev/null
say "hoist index --push: once per image, wherever it is built"
from=$(now)
"$hoist" --root "$work/index" index --push "$image"
say "indexed and published in $(since "$from") s"
start_containerd "$work/containerd"
proxy_set "$delay_ms" "$rate"

way "containerd: pull, run" plain_containerd
way "hoist: pull, run" hoist_full
way "hoist: run, lazily" hoist_lazy

size=$(du -sm "$layout/" | cut -f1)
echo
echo "${command[*]} from nothing; image of $size MB compressed; $delay_ms ms per request, $((rate / 125000)) Mbit/s"
{
    printf 'way\tseconds\trequests\tMB\n'
    printf '%s\n' "${rows[@]}"
} | awk -F'\t' '{ printf "%-26s %9s %10s %9s\n", $1, $2, $3, $4 }'
