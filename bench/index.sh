#!/bin/bash
# What an index costs: time against inflating the same layer, size against the layer, bytes before `ls /`.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
big_image

echo "== index build time / time to inflate the same layer with the same library (aim <= 1.25)"
manifest=$(curl -fsS -H 'Accept: application/vnd.oci.image.manifest.v1+json' \
    "http://127.0.0.1:$registry_port/v2/big/manifests/latest")
layers=$(jq -r '.layers[].digest' <<<"$manifest")
for digest in $layers; do
    cargo run --quiet --release --manifest-path "$top/Cargo.toml" -p hoist-engine --example inflate_ratio -- \
        "$target/bench/image/blobs/${digest/://}"
done

echo
echo "== index size / layer size (aim <= 1 %), and its bytes before the first ls / (aim <= 0.2 %)"
from=$(now)
"$hoist" --root "$work/index" index --push "$image" >/dev/null
row "hoist index --push, all layers: seconds" "$(since "$from")"
rm -rf "$work/index"
# Debian's registry has no referrers API: the fallback tag lists them.
accept='Accept: application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json'
subject=$(jq -r '.manifests[0].digest' "$target/bench/image/index.json")
index_bytes=0
for referrer in $(curl -fsS -H "$accept" "http://127.0.0.1:$registry_port/v2/big/manifests/${subject/:/-}" |
    jq -r '.manifests[].digest'); do
    size=$(curl -fsS -H "$accept" "http://127.0.0.1:$registry_port/v2/big/manifests/$referrer" |
        jq '[.layers[].size] | add')
    index_bytes=$((index_bytes + size))
done
layer_bytes=$(jq '[.layers[].size] | add' <<<"$manifest")
proxy_reset
mount_image "$work/store" "$work/mnt"
mounted+=("$work/mnt")
ls "$work/mnt" >/dev/null
first=$(proxy_stats)
row "" "bytes" "% of layers"
row "layers" "$layer_bytes" 100
percent() { awk -v a="$1" -v b="$layer_bytes" 'BEGIN { printf "%.3f", a * 100 / b }'; }
row "index" "$index_bytes" "$(percent "$index_bytes")"
bytes=$(jq .body_bytes <<<"$first")
row "before ls / ($(jq .requests <<<"$first") requests)" "$bytes" "$(percent "$bytes")"
