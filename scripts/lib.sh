# shellcheck shell=bash
# Shared by scripts/run and scripts/test: what a machine must have, and how to get it. Sourced by bash.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
rust_floor=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml")
target_dir=${CARGO_TARGET_DIR:-$root/target}
bin_dir=$target_dir/e2e

say() { printf '%s\n' "$*"; }
die() { printf '%s\n' "$*" >&2; exit 1; }
has() { command -v "$1" >/dev/null 2>&1; }

# A Rust toolchain is the one thing that is never installed for you. Arguments: further cargo components needed.
need_rust() {
    local have part
    has cargo && has rustc || die "Culvert needs a Rust toolchain, $rust_floor or newer (https://rustup.rs): none was found."
    have=$(rustc --version | cut -d' ' -f2)
    [ "$(printf '%s\n%s\n' "$rust_floor" "$have" | sort -V | head -n1)" = "$rust_floor" ] ||
        die "Culvert needs Rust $rust_floor or newer: this machine has $have (rustup update stable)."
    for part in "$@"; do
        cargo "$part" --version >/dev/null 2>&1 || die "Culvert's tests need cargo $part (rustup component add clippy rustfmt)."
    done
}

# Prints the Debian packages that are missing, of those given as COMMAND:PACKAGE or FILE:PACKAGE. Servers are found
# where an ordinary user's PATH does not lead.
missing_packages() {
    local pair PATH=$PATH:/usr/sbin
    for pair in "$@"; do has "${pair%%:*}" || [ -f "${pair%%:*}" ] || printf '%s\n' "${pair#*:}"; done | sort -u
}

# install_packages COMMAND:PACKAGE…: as root installs those that are missing, else names them.
install_packages() {
    local missing log
    missing=$(missing_packages "$@")
    [ -n "$missing" ] || return 0
    if [ "$(id -u)" -eq 0 ] && has apt-get; then
        say "Installing:" $missing
        log=$(mktemp)
        # shellcheck disable=SC2086  # one word each
        { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $missing; } \
            >"$log" 2>&1 || { tail -n 5 "$log"; say "apt-get failed: going on without"; }
        rm -f "$log"
        missing=$(missing_packages "$@")
    fi
    [ -z "$missing" ] || say "This machine lacks:" $missing
}
