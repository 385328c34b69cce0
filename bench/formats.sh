#!/bin/bash
# One and the same image in every format: what it takes from its reference to the first `ls /`, and to `python3 -c 'print(1)'`.
# bench/formats.sh [FORMAT...]: some of them.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
delay=20
made=$target/bench/formats
plain=$target/bench/image
tools=$target/converters/bin

# As their users have them first, then by how they are read.
all=(gzip gzip-index zstd zstdchunked-containers zstdchunked-stargz estargz soci nydus-v5 nydus-v6 nydus-zran overlaybd turbooci erofs)
(($#)) || set -- "${all[@]}"

# make_layout FORMAT: in $made/FORMAT, whole or not at all.
make_layout() {
    local format=$1 part=$made/$1.part
    [[ ! -e $made/$format ]] || return 0
    rm -rf "$part"
    mkdir -p "$made"
    case $format in
    zstd) make_zstd "$part" ;;
    overlaybd | turbooci) "$testkit" "$format" "$plain" "$part" ;;
    *)
        [[ -x $tools/converters ]] || "$top/scripts/converters" >&2
        TMPDIR=$work NYDUS_IMAGE=$tools/nydus-image MKFS_EROFS=$work/mkfs-erofs \
            "$tools/converters" "$format" "$plain" "$part" >"$work/converters.log" 2>&1 || die "$(tail -3 "$work/converters.log")"
        ;;
    esac
    mv "$part" "$made/$format"
}

make_zstd() {
    local digest tars=() blobs=$plain/blobs
    for digest in $(layers "$plain"); do
        tars+=("$work/${digest#sha256:}.tar")
        gzip -dc "$blobs/${digest/://}" >"${tars[-1]}"
    done
    "$testkit" layout "$1" "${tars[@]}" --compression zstd >/dev/null
    rm "${tars[@]}"
}

# layers LAYOUT: the digests of its image's layers.
layers() {
    local manifest
    manifest=$(jq -r '.manifests[0].digest' "$1/index.json")
    jq -r '.layers[].digest' "$1/blobs/${manifest/://}"
}

# Debian testing's mkfs.erofs, which reads tar archives, with the options of containerd's EROFS differ and the usual compression.
make_mkfs() {
    local root=${HOIST_CHROOTS:-$target/chroots}/forky
    "$top/scripts/chroots" forky
    cat >"$work/mkfs-erofs" <<END
#!/bin/sh
exec "$root/lib64/ld-linux-x86-64.so.2" --library-path "$root/usr/lib/x86_64-linux-gnu" "$root/usr/bin/mkfs.erofs" \
    --quiet --tar=f --aufs -Enoinline_data -zlz4hc -C65536 "\$2" "\$1"
END
    chmod +x "$work/mkfs-erofs"
}

# cold COMMAND...: seconds, requests and MB of it, from an empty store and cold caches.
cold() {
    local from seconds
    rm -rf "$work/store"
    drop_caches
    proxy_reset
    from=$(now)
    "$@" >/dev/null
    seconds=$(since "$from")
    echo "$seconds $(proxy_stats | jq .requests) $(megabytes "$(proxy_stats | jq .body_bytes)")"
}

look() {
    mounted=("$work/mnt")
    mount_image "$work/store" "$work/mnt"
    ls "$work/mnt"
}

start() { "$hoist" --root "$work/store" run --rm "$image" python3 -c 'print(1)'; }

[[ -e $plain/index.json ]] || "$top/scripts/make-big-image" "$plain"
make_mkfs
for format; do
    [[ $format == gzip* ]] || make_layout "$format"
done
[[ -z ${ONLY_MAKE:-} ]] || exit 0

echo "== one image in each format, from its reference to ls / and to python3 -c 'print(1)'; $delay ms, 1 Gbit/s"
row "" "stored MB" "ls: s" requests MB "python3: s" requests MB
for format; do
    layout=$made/$format
    [[ $format != gzip* ]] || layout=$plain
    serve_image "$layout" "$format"
    [[ $format != gzip-index ]] || index_image "$image"
    proxy_set "$delay" "$rate"
    cold look >"$work/took"
    read -ra ls <"$work/took"
    "$hoist" --root "$work/store" unmount "$work/mnt" >/dev/null
    mounted=()
    cold start >"$work/took"
    read -ra python <"$work/took"
    stored=$(find "$layout/blobs" -type f -printf '%s\n' | awk '{ sum += $1 } END { print sum }')
    proxy_set 0 0
    row "$format" "$(megabytes "$stored")" "${ls[@]}" "${python[@]}"
done
