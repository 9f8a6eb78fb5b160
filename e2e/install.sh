#!/bin/bash
# Installs the Debian packages that building and `make demo` need; with `--machine` also what `make test`, `make bench` and
# `make lint` need: the virtual machine and the kernel it boots, Prometheus, Helm's engine, shellcheck, podman; with `--image`
# what `make image` needs. Does nothing when all is there.
set -euo pipefail

# curl: to ask the proxy; gcc, libc6-dev, make: to link and to build the allocator; conntrack, iptables, nftables: to look at
# rules, sets and flows from outside; strace, util-linux (setpriv, unshare): to watch and confine the proxy; iproute2, procps
# (sysctl): network namespaces; python3: the demo's pods and e2e/same-rules.
packages=(conntrack curl gcc libc6-dev iproute2 ipset iptables make nftables procps python3 strace util-linux)
# For e2e/vmrun, and to look at virtual servers in it; prometheus: to scrape the proxy and to check its metrics and alerts;
# g++: for fuzz/; podman, runc: for e2e/image-test; python3-venv: for fill_python; shellcheck: for `make lint`.
machine_packages=(g++ ipvsadm podman prometheus python3-venv qemu-system-x86 runc shellcheck xz-utils)

missing_packages() {
    local package
    for package in "${packages[@]}"; do
        dpkg-query --show --showformat='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || echo "$package"
    done
}

# Only programs are wanted: no service of theirs starts, now or at the next boot.
install_packages() {
    local policy=/usr/sbin/policy-rc.d
    export DEBIAN_FRONTEND=noninteractive
    if [[ ! -e $policy ]]; then
        # shellcheck disable=SC2064  # the name is a local one: at the end there is none
        trap "rm -f $policy" EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
    fi
    apt-get update --quiet=2
    apt-get install --quiet=2 --yes --no-install-recommends "$@"
    if [[ " $* " == *' prometheus '* ]] && command -v systemctl >/dev/null; then
        systemctl disable --quiet prometheus
    fi
}

# A client of docker without its daemon cannot.
can_build_images() { command -v podman || command -v buildah || docker info; } >/dev/null 2>&1

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

# Python's packages for the chart's tests, apart from the system's (e2e/python uses them): 390 MB, again when the list changes.
fill_python() {
    local list python=${XDG_CACHE_HOME:-$HOME/.cache}/sluice/python
    list=$(dirname "${BASH_SOURCE[0]}")/requirements.txt
    if [[ $(uname -m) != x86_64 ]]; then
        echo "note: Helm's engine comes for x86_64 only: the chart is not tested on $(uname -m)" >&2
        return
    fi
    if cmp --quiet "$list" "$python/requirements.txt"; then
        return
    fi
    rm -rf "$python"
    python3 -m venv "$python"
    "$python/bin/pip" install --quiet --disable-pip-version-check --no-deps --only-binary :all: --requirement "$list"
    cp "$list" "$python/"
}

main() {
    local missing wanted=${1:-}
    case $wanted in
    '') ;;
    --machine) packages+=("${machine_packages[@]}") ;;
    --image) can_build_images || packages+=(podman runc) ;;
    *)
        echo "error: $wanted: it takes --machine or --image" >&2
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
    if [[ $wanted == --machine ]]; then
        fill_machine
        fill_python
    fi
}

main "$@"
