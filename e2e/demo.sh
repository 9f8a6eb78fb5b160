#!/bin/bash
# Shows sluice at work on two "nodes" with pods and an outside client, each a network namespace of this machine:
#
#     e2e/demo.sh PATH-OF-SLUICE
#
# Says at each step what is as it should be and what is not; ends with 1 if anything is not. Needs root, takes some
# seconds, and removes all it made.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
scratch=
children=()
wrong=0

namespace() { echo "sluice-demo-$$-$1"; }

inside() { ip netns exec "$(namespace "$1")" "${@:2}"; }

# Starts a program in a namespace; $! is the program's own id, as nothing is left between it and this script.
begin() {
    { exec ip netns exec "$(namespace "$1")" "${@:2}"; } &
    children+=($!)
}

links() { ip -n "$(namespace "$1")" -batch -; }

# One line of output for a thing that was looked at: check WHAT COMMAND...
check() {
    if "${@:2}"; then
        echo "   ok: $1"
    else
        echo "   WRONG: $1"
        wrong=1
    fi
}

# Waits for a terminated program, and kills it after two seconds.
end() {
    local try
    for ((try = 0; try < 40; try++)); do
        kill -0 "$1" 2>/dev/null || return 0
        sleep 0.05
    done
    kill -9 "$1" 2>/dev/null || true
}

clean_up() {
    trap - EXIT
    local child name
    for child in "${children[@]}"; do
        kill "$child" 2>/dev/null || true
    done
    for child in "${children[@]}"; do
        end "$child"
    done
    ip netns list | while read -r name _; do
        if [[ $name == "sluice-demo-$$-"* ]]; then
            ip netns del "$name"
        fi
    done
    if [[ -n $scratch ]]; then
        rm -rf "$scratch"
    fi
}

# Joins the eth0 of a namespace to a bridge of another: plug BRIDGE-OWNER BRIDGE NAMESPACE
plug() {
    links "$1" <<EOF
link add name $3 type veth peer name eth0 netns $(namespace "$3")
link set dev $3 master $2
link set dev $3 type bridge_slave hairpin on
link set dev $3 up
EOF
}

make_namespace() {
    ip netns add "$(namespace "$1")"
    inside "$1" sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 \
        net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.default.send_redirects=0 \
        net.ipv6.conf.default.accept_redirects=0 net.ipv6.conf.default.accept_dad=0
    links "$1" <<<"link set lo up"
}

# A machine on the wire: make_host NAME LAST-PART-V4 LAST-PART-V6 VIA-V4 VIA-V6
make_host() {
    make_namespace "$1"
    plug wire br0 "$1"
    links "$1" <<EOF
link set eth0 up
address add 172.31.0.$2/24 dev eth0
address add fd31::$3/64 dev eth0 nodad
route add default via 172.31.0.$4
route add default via fd31::$5
EOF
}

# A node's own part: make_node NAME POD-RANGE-V4 POD-RANGE-V6
make_node() {
    inside "$1" sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
    links "$1" <<EOF
link add name cni0 type bridge
link set cni0 up
address add 10.244.$2.1/24 dev cni0
address add fd00:10:244:$3::1/64 dev cni0 nodad
EOF
}

# make_pod NAME NODE POD-RANGE-V4 POD-RANGE-V6 LAST-PART
make_pod() {
    make_namespace "$1"
    plug "$2" cni0 "$1"
    links "$1" <<EOF
link set eth0 up
address add 10.244.$3.$5/32 dev eth0
address add fd00:10:244:$4::$5/128 dev eth0 nodad
route add 10.244.$3.1 dev eth0
route add fd00:10:244:$4::1 dev eth0
route add default via 10.244.$3.1
route add default via fd00:10:244:$4::1
EOF
}

make_cluster() {
    make_namespace wire
    links wire <<<$'link add name br0 type bridge\nlink set br0 up'
    make_host node-a 11 b 100 64
    make_host node-b 12 c 100 64
    make_host outside 100 64 11 b
    make_node node-a 11 b
    make_node node-b 12 c
    links node-a <<<$'route add 10.244.12.0/24 via 172.31.0.12\nroute add fd00:10:244:c::/64 via fd31::c'
    links node-b <<<$'route add 10.244.11.0/24 via 172.31.0.11\nroute add fd00:10:244:b::/64 via fd31::b'
    make_pod pod-a1 node-a 11 b 21
    make_pod pod-a2 node-a 11 b 22
    make_pod pod-b1 node-b 12 c 21
    make_pod pod-client node-a 11 b 30
}

start_pods() {
    local pod
    for pod in pod-a1 pod-a2 pod-b1; do
        begin "$pod" python3 "$here/demo/backend.py" "$pod" 8080
    done
}

start_sluice() {
    local node
    mkdir "$scratch/manifests"
    cp "$here"/demo/*.yaml "$scratch/manifests"
    for node in node-a node-b; do
        begin "$node" "$sluice" --mode=iptables --manifests="$scratch/manifests" --hostname-override="$node" \
            --cluster-cidr=10.244.0.0/16,fd00:10:244::/56 2>"$scratch/$node.log"
    done
}

# Tries a command until it succeeds: wait_for WHAT COMMAND...
wait_for() {
    local deadline=$((SECONDS + 10))
    until "${@:2}"; do
        if ((SECONDS >= deadline)); then
            echo "error: not within 10 s: $1" >&2
            tail -n 5 "$scratch"/*.log >&2
            exit 1
        fi
        sleep 0.05
    done
}

rules_in_force() {
    local node tool
    for node in node-a node-b; do
        for tool in iptables-save ip6tables-save; do
            inside "$node" "$tool" -t nat | grep '^-A PREROUTING.*-j KUBE-SERVICES' >/dev/null || return 1
        done
    done
}

pod_answers() { inside "$1" python3 "$here/demo/client.py" "http://localhost:8080" 1 | grep -q " $1 "; }

pod_is_out() {
    local node
    for node in node-a node-b; do
        if { inside "$node" iptables-save; inside "$node" ip6tables-save; } | grep -F -e "10.244.11.22:" -e "fd00:10:244:b::22]" >/dev/null; then
            return 1
        fi
    done
}

# Asks URL COUNT times from a namespace and leaves the outcomes in $scratch/answers: ask_from NAMESPACE URL COUNT
ask_from() {
    inside "$1" python3 "$here/demo/client.py" "$2" "$3" | cut -d' ' -f2- >"$scratch/answers"
    echo "   $3 x $1 to $2: $(count_answers)"
}

count_answers() {
    cut -d' ' -f1 "$scratch/answers" | sort | uniq -c | awk '{ printf "%s%s %d", separator, $2, $1; separator = ", " }'
}

# Whether the answers are from just these pods (or are just this outcome).
answers_are() {
    [[ $(cut -d' ' -f1 "$scratch/answers" | sort -u | xargs) == "$*" ]]
}

seen_as() { awk -v address="$1" '$3 != address { exit 1 }' "$scratch/answers"; }

show_cluster_ip() {
    echo "1. A cluster IP leads to each of its pods, and they see the client's own address"
    local url
    for url in "http://10.96.0.10" "http://[fd00:10:96::10]"; do
        ask_from pod-client "$url" 60
        check "all three pods answered" answers_are pod-a1 pod-a2 pod-b1
    done
    check "they saw fd00:10:244:b::30" seen_as fd00:10:244:b::30
}

show_node_port() {
    echo "2. A node port leads there from outside, on either node"
    local url
    for url in "http://172.31.0.11:30080" "http://172.31.0.12:30080" "http://[fd31::c]:30080"; do
        ask_from outside "$url" 40
        check "all three pods answered" answers_are pod-a1 pod-a2 pod-b1
    done
}

one_pod_answered() { [[ $(cut -d' ' -f1 "$scratch/answers" | sort -u) == pod-?? ]]; }

show_affinity() {
    echo "3. With session affinity a client stays with its pod"
    local client
    for client in pod-client outside; do
        ask_from "$client" "http://10.96.0.30" 20
        check "one pod answered" one_pod_answered
    done
}

show_refusal() {
    echo "4. A Service without endpoints refuses at once"
    ask_from pod-client "http://10.96.0.40" 1
    check "refused" answers_are refused
    ask_from outside "http://[fd00:10:96::40]" 1
    check "refused" answers_are refused
}

# Takes the endpoints of pod-a2 out of the manifests; the file changes at once, by renaming.
remove_endpoint() {
    sed '/name: pod-a2}/d' "$here/demo/endpoints.yaml" >"$scratch/endpoints.yaml"
    mv "$scratch/endpoints.yaml" "$scratch/manifests/endpoints.yaml"
}

# On a busy machine a second may be too short for each pod to have its turn.
has_requests() { (($(wc -l <"$scratch/stream") >= $1)); }

show_change() {
    echo "5. pod-a2 leaves while requests run, and is stopped once the rules are without it"
    local url updated clients=()
    for url in "http://10.96.0.10" "http://[fd00:10:96::10]"; do
        begin pod-client python3 "$here/demo/client.py" "$url" >>"$scratch/stream"
        clients+=("$!")
    done
    wait_for "sixty requests" has_requests 60
    remove_endpoint
    wait_for "rules without pod-a2" pod_is_out
    updated=$EPOCHREALTIME
    kill "${children[1]}"
    sleep 1
    kill "${clients[@]}"
    wait "${clients[@]}" 2>/dev/null || true

    # Half a line may be the last; a request begun before the update may end after it.
    awk -v updated="$updated" 'NF > 1 && $1 < updated { print $2, $3, $4 }' "$scratch/stream" >"$scratch/answers"
    echo "   before: $(wc -l <"$scratch/answers") requests: $(count_answers)"
    check "all three pods answered" answers_are pod-a1 pod-a2 pod-b1
    awk -v updated="$updated" 'NF > 1 && $1 >= updated { print $2, $3, $4 }' "$scratch/stream" >"$scratch/answers"
    echo "   after:  $(wc -l <"$scratch/answers") requests: $(count_answers), $(grep -cv '^pod-' "$scratch/answers" || true) failed"
    check "the two others answered, no request failed" answers_are pod-a1 pod-b1
}

has_rule_for_web() { grep 'demo/web:http cluster IP' "$scratch/rules" >/dev/null; }

show_rules() {
    echo "6. The rules are those kube-proxy would have made; node-a's for demo/web:http, from iptables-save -t nat:"
    inside node-a iptables-save -t nat >"$scratch/rules"
    grep 'demo/web:http' "$scratch/rules" | sed 's/^/   /'
    echo "   ... of $(grep -c '^-A KUBE-' "$scratch/rules") rules in $(grep -c '^:KUBE-' "$scratch/rules") KUBE- chains"
    check "the cluster IP is among them" has_rule_for_web
}

main() {
    if (($# != 1)); then
        echo "usage: $0 PATH-OF-SLUICE" >&2
        exit 2
    fi
    if ((EUID != 0)); then
        echo "error: the demo makes network namespaces; run it as root" >&2
        exit 1
    fi
    sluice=$(realpath "$1")
    trap clean_up EXIT
    trap 'exit 130' INT TERM
    scratch=$(mktemp -d)

    echo "Two nodes with sluice, four pods and an outside client, each a network namespace"
    make_cluster
    start_pods
    start_sluice
    wait_for "an answer of pod-a1" pod_answers pod-a1
    wait_for "an answer of pod-a2" pod_answers pod-a2
    wait_for "an answer of pod-b1" pod_answers pod-b1
    wait_for "rules on both nodes" rules_in_force
    show_cluster_ip
    show_node_port
    show_affinity
    show_refusal
    show_change
    show_rules
    if ((wrong)); then
        echo "Something is WRONG above; the logs of sluice end with:"
        tail -n 5 "$scratch"/*.log
        exit 1
    fi
    echo "All as it should be; took $SECONDS s"
}

main "$@"
