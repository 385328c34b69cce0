#!/bin/bash
# Cold starts, lazily, at several round trips: seconds, requests, bytes. And the full pull, and reading all.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
big_image
index_image "$image"

# cold NAME DELAY_MS COMMAND...: from an empty store and cold caches.
cold() {
    local name=$1 delay=$2 from seconds
    shift 2
    rm -rf "$work/store"
    drop_caches
    proxy_set "$delay" "$rate"
    proxy_reset
    from=$(now)
    "$@" >/dev/null
    seconds=$(since "$from")
    row "$name, $delay ms" "$seconds" "$(proxy_stats | jq .requests)" "$(megabytes "$(proxy_stats | jq .body_bytes)")"
}

run() { "$hoist" --root "$work/store" run --rm "$image" "$@"; }
pull_and_run() {
    "$hoist" --root "$work/store" pull "$image" && run "$@"
}
read_all() { run sh -c 'find / -xdev -type f -exec cat {} + >/dev/null'; }
science='import numpy, scipy.linalg, scipy.optimize'

echo "== from nothing to exit; 1 Gbit/s (aims at 20 ms: hello 0.6 s, scipy 2.5 s, full pull 5 s, everything 5 s)"
row "" seconds requests MB
for delay in 0 20 100; do
    cold "python3 -c 'print(1)'" "$delay" run python3 -c 'print(1)'
done
cold "import numpy, scipy" 20 run python3 -c "$science"
cold "full pull, python3 -c 'print(1)'" 20 pull_and_run python3 -c 'print(1)'
cold "read every file" 20 read_all
