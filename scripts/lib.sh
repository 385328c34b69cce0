# Shared by the image builders, the demo and the benches. To be sourced.
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target=${CARGO_TARGET_DIR:-$top/target}
hoist=${HOIST:-$target/release/hoist}
testkit=${TESTKIT:-$target/release/hoist-testkit}
PATH=$PATH:/usr/sbin:/sbin

die() {
    echo "error: $*" >&2
    exit 1
}

need_root() {
    ((EUID == 0)) || die "this mounts file systems and needs root"
}

# The mirror of the machine's own apt, which is the one that works here.
debian_mirror() {
    echo "${DEBIAN_MIRROR:-http://deb.debian.org/debian}"
}

# base_tree DIR: a minimal Debian 12.
base_tree() {
    debootstrap --variant=minbase bookworm "$1" "$(debian_mirror)" >"$1.log" 2>&1 ||
        die "debootstrap failed: see $1.log"
    rm -rf "$1"/var/cache/apt/archives/*.deb "$1"/var/lib/apt/lists/*
}

# package_tree BASE DIR PACKAGE...: the packages and all they need beyond BASE, unpacked into DIR.
package_tree() {
    local base=$1 dir=$2 cache=$2.debs
    shift 2
    mkdir -p "$dir" "$cache/partial"
    [[ -n $(ls /var/lib/apt/lists/*_Packages* 2>/dev/null) ]] || apt-get update -qq
    apt-get install -y -qq --download-only --no-install-recommends \
        -o Dir::State::status="$base/var/lib/dpkg/status" -o Dir::Cache::archives="$cache" \
        -o Debug::NoLocking=1 "$@" >"$dir.log" 2>&1 || die "apt-get failed: see $dir.log"
    local deb
    for deb in "$cache"/*.deb; do
        dpkg-deb -x "$deb" "$dir"
    done
    usr_merge "$dir"
}

# A package that still ships /lib or /bin as a folder would shadow the base's link.
usr_merge() {
    local name
    for name in bin sbin lib lib32 lib64 libx32; do
        if [[ -d $1/$name && ! -L $1/$name ]]; then
            mkdir -p "$1/usr/$name"
            cp -a "$1/$name/." "$1/usr/$name/"
            rm -rf "${1:?}/$name"
        fi
    done
}

# layer_tar DIR FILE: an ordinary layer, made by GNU tar.
layer_tar() {
    tar --create --file "$2" --directory "$1" --numeric-owner --sort=name --xattrs --xattrs-include='*' .
}

# wait_file FILE PID: until a daemon of ours has written it.
wait_file() {
    local tries
    for ((tries = 0; tries < 600; tries++)); do
        [[ -s $1 ]] && return
        kill -0 "$2" 2>/dev/null || die "the process that was to write $1 ended"
        sleep 0.05
    done
    die "$1 did not appear within 30 s"
}

started=()

# start_registry NAME: sets registry_port.
start_registry() {
    "$testkit" registry --port-file "$work/registry.port" &
    started+=($!)
    wait_file "$work/registry.port" $!
    registry_port=$(<"$work/registry.port")
}

# start_proxy DELAY_MS RATE: sets proxy to address:port.
start_proxy() {
    rm -f "$work/proxy.port"
    "$testkit" proxy --upstream "127.0.0.1:$registry_port" --delay-ms "$1" --rate "$2" \
        --port-file "$work/proxy.port" &
    started+=($!)
    wait_file "$work/proxy.port" $!
    proxy=127.0.0.1:$(<"$work/proxy.port")
}

proxy_set() { "$testkit" proxy-ctl "$proxy" "set?delay_ms=$1&rate=$2" >/dev/null; }
proxy_reset() { "$testkit" proxy-ctl "$proxy" reset >/dev/null; }
proxy_stats() { "$testkit" proxy-ctl "$proxy" stats; }

# start_containerd DIR: with stores of its own; sets ctr_sock.
start_containerd() {
    mkdir -p "$1"
    cat >"$1/config.toml" <<EOF
version = 2
root = "$1/root"
state = "$1/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
address = "$1/sock"
[ttrpc]
address = "$1/sock.ttrpc"
EOF
    containerd --config "$1/config.toml" >/dev/null 2>"$1/log" &
    started+=($!)
    ctr_sock=$1/sock
    local tries
    for ((tries = 0; tries < 600; tries++)); do
        ctr -a "$ctr_sock" version >/dev/null 2>&1 && return
        sleep 0.05
    done
    die "containerd did not answer: see $1/log"
}

# Ends what was started here, newest first, by its pid.
stop_all() {
    local i
    for ((i = ${#started[@]} - 1; i >= 0; i--)); do
        kill "${started[i]}" 2>/dev/null || true
        wait "${started[i]}" 2>/dev/null || true
    done
    started=()
}

now() { date +%s.%N; }
# since T: seconds with three digits.
since() { awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.3f", b - a }'; }

drop_caches() {
    sync
    echo 3 >/proc/sys/vm/drop_caches
}
