# What every bench needs: a registry, a line before it, a place that goes away. To be sourced.
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/lib.sh"
need_root
[[ -x $hoist && -x $testkit ]] || die "build first: make build"

work=$(mktemp -d /var/tmp/hoist-bench.XXXXXX)
mounted=()

finish() {
    local i
    for ((i = ${#mounted[@]} - 1; i >= 0; i--)); do
        "$hoist" --root "$work/store" unmount "${mounted[i]}" >/dev/null 2>&1 || umount "${mounted[i]}" || true
    done
    stop_all
    rm -rf "$work"
}
trap finish EXIT

# Over this line unless a bench says otherwise: 1 Gbit/s.
rate=125000000

# serve_image LAYOUT NAME: sets image, as the proxy serves it.
serve_image() {
    [[ -n ${registry_port:-} ]] || { start_registry && start_proxy 0 0; }
    "$testkit" push "$1" "127.0.0.1:$registry_port/$2:latest" >/dev/null
    image=$proxy/$2:latest
}

index_image() {
    "$hoist" --root "$work/index" index --push "$1" >/dev/null
    rm -rf "$work/index"
}

big_image() {
    "$top/scripts/make-big-image" "$target/bench/image"
    serve_image "$target/bench/image" big
}

# mount_image ROOT DIR [OPTION...]
mount_image() {
    local root=$1 dir=$2
    shift 2
    mkdir -p "$dir"
    "$hoist" --root "$root" mount "$@" "$image" "$dir" >/dev/null
}

median() { sort -g | awk '{ a[NR] = $1 } END { print a[int((NR + 1) / 2)] }'; }
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { if (b + 0 == 0) print "-"; else printf "%.3f", a / b }'; }
megabytes() { awk -v n="$1" 'BEGIN { printf "%.2f", n / 1e6 }'; }
row() { printf '%-44s' "$1"; shift; printf ' %12s' "$@"; echo; }
