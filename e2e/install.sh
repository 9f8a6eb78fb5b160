#!/bin/bash
# Installs the Debian packages that building and `make demo` need; with `--machine` also the virtual machine of `make test`
# and `make bench`, and the kernel it boots. Does nothing when all is there.
set -euo pipefail

# curl: to ask the proxy; gcc, libc6-dev, make: to link and to build the allocator; conntrack, iptables, nftables: to look at
# rules, sets and flows from outside; strace, util-linux (setpriv, unshare): to watch and confine the proxy; iproute2, procps
# (sysctl): network namespaces; python3: the demo's pods and e2e/same-rules.
packages=(conntrack curl gcc libc6-dev iproute2 ipset iptables make nftables procps python3 strace util-linux)
# For e2e/vmrun, and to look at virtual servers in it.
machine_packages=(ipvsadm qemu-system-x86 xz-utils)

missing_packages() {
    local package
    for package in "${packages[@]}"; do
        dpkg-query --show --showformat='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || echo "$package"
    done
}

install_packages() {
    export DEBIAN_FRONTEND=noninteractive
    apt-get update --quiet=2
    apt-get install --quiet=2 --yes --no-install-recommends "$@"
}

# The tests read rules with the iptables that works on nf_tables, as Debian's does unless told otherwise.
check_iptables() {
    local version
    version=$(PATH=$PATH:/usr/sbin iptables --version)
    if [[ $version != *nf_tables* ]]; then
        echo "error: $version; wanted: nf_tables (update-alternatives --set iptables /usr/sbin/iptables-nft)" >&2
        exit 1
    fi
}

# The kernel of the virtual machine: 71 MB, once.
fill_machine() {
    local here
    here=$(dirname "${BASH_SOURCE[0]}")
    if ((EUID == 0)) && [[ ! -f ${XDG_CACHE_HOME:-$HOME/.cache}/vmrun/kernel/version ]]; then
        "$here/vmrun" --setup
    fi
}

main() {
    local missing machine=${1:-}
    case $machine in
    '') ;;
    --machine) packages+=("${machine_packages[@]}") ;;
    *)
        echo "error: $machine: the only argument is --machine" >&2
        exit 2
        ;;
    esac
    if ! command -v dpkg-query >/dev/null; then
        echo "note: not a Debian machine; needed here: ${packages[*]}" >&2
        return
    fi
    mapfile -t missing < <(missing_packages)
    if ((${#missing[@]} > 0)); then
        if ((EUID != 0)); then
            echo "error: these Debian packages are missing and only root can install them: ${missing[*]}" >&2
            echo "       run: sudo apt-get install ${missing[*]}" >&2
            exit 1
        fi
        install_packages "${missing[@]}"
    fi
    check_iptables
    if [[ $machine ]]; then
        fill_machine
    fi
}

main "$@"
