#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# First process of a lab guest. Words of the kernel command line that begin with "lab." say what it does:
#
#   lab.role=probe|idle|boot|awkward|testpmd|shell|traffic
#                                      what it is there for
#   lab.address=10.87.0.2/24           its address
#   lab.peer=10.87.0.1                 the lab's address
#   lab.peer_mac=02:...                ... whose link address it need not ask for
#   lab.port=7000                      UDP port of the traffic on both sides (role traffic)
#   lab.agent=WORDS,WITH,COMMAS        more arguments of the agent, commas instead of spaces (role traffic)
#
# It tells the console what it has come to, one line each: "LAB <what> <value>". In the role traffic it takes orders
# from there: reboot, rebind, reset, channels N.

say() { echo "LAB $*"; }

fail() {
    say "failed $*"
    poweroff -f
}

parameter() {
    for word in $(cat /proc/cmdline); do
        case $word in lab."$1"=*) echo "${word#*=}"; return ;; esac
    done
}

load_modules() {
    while read -r module; do
        insmod "/modules/$module" || fail "module $module"
    done </modules/order
}

wait_for_nic() {
    tries=0
    until [ -e /sys/class/net/eth0 ]; do
        tries=$((tries + 1))
        [ $tries -gt 100 ] && fail "no network device"
        usleep 100000
    done
}

set_up_network() {
    # Bursts (the end of a migration) must not be lost in the guest's own sockets.
    echo 8388608 >/proc/sys/net/core/rmem_default
    echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6
    # fq_codel, the usual one, drops packets of its own accord when the NIC is slow.
    echo pfifo_fast >/proc/sys/net/core/default_qdisc
    ip link set lo up
    ip link set eth0 up
    ip address add "$(parameter address)" dev eth0
    mac=$(parameter peer_mac)
    [ -z "$mac" ] || arp -s "$(parameter peer)" "$mac"
}

describe_nic() {
    device=$(readlink -f /sys/class/net/eth0/device)
    say driver "$(basename "$(readlink -f "$device/driver")")"
    say mac "$(cat /sys/class/net/eth0/address)"
    say features "$(cat "$device/features")"
    channels=$(ethtool -l eth0 2>/dev/null | sed -n 's/^Combined:[^0-9]*//p' | tail -n 1)
    say queues "${channels:-1}"
    say iommu "$(ls /sys/class/iommu 2>/dev/null | tr '\n' ' ')"
}

virtio_device() { basename "$(readlink -f /sys/class/net/eth0/device)"; }

rebind() {
    device=$(virtio_device)
    echo "$device" >/sys/bus/virtio/drivers/virtio_net/unbind && echo "$device" >/sys/bus/virtio/drivers/virtio_net/bind
}

# Behind the driver's back; it finds a device that has lost its rings, and starts it anew when it is bound again.
reset_function() {
    pci=$(readlink -f /sys/class/net/eth0/device/..)
    echo 1 >"$pci/reset" && echo "${pci##*/}" >/sys/bus/pci/drivers/virtio-pci/unbind &&
        echo "${pci##*/}" >/sys/bus/pci/drivers/virtio-pci/bind
}

# What the lab types on the console while the guest is being migrated.
obey() {
    while read -r order argument; do
        case $order in
        reboot) reboot -f ;;
        rebind) rebind || fail rebind ;;
        reset) reset_function || fail reset ;;
        channels) ethtool -L eth0 combined "$argument" || fail channels ;;
        *) continue ;;
        esac
        if [ "$order" != channels ]; then
            wait_for_nic
            set_up_network
        fi
        say done "$order"
    done
}

ping_peer() {
    ping -c 20 -i 0.05 -W 2 -q "$(parameter peer)" | while read -r line; do say ping "$line"; done
}

serve_iperf() {
    # It stops listening between two clients: each has to wait for its line.
    iperf3 --server --forceflush 2>&1 | while read -r line; do
        case $line in
        *listening*) say listening iperf3 ;;
        *) say iperf3 "$line" ;;
        esac
    done &
}

# Whether packets come and go after something was done to the NIC.
step() {
    line=$(ping -c 5 -i 0.05 -W 2 -q "$(parameter peer)" | grep transmitted)
    say step "$1: $line"
}

# What drivers do to a NIC that others are using: unbind and bind again, change ring sizes and channels.
shake() {
    ping -i 0.01 -q "$(parameter peer)" >/dev/null 2>&1 &
    for _ in 1 2 3; do
        rebind || fail rebind
        wait_for_nic
        set_up_network
    done
    step rebind
    for size in 64 256 128; do ethtool -G eth0 rx "$size" tx "$size" || fail "ethtool -G $size"; done
    step "ring sizes"
    for count in 1 "$channels" 1 "$channels"; do ethtool -L eth0 combined "$count" 2>/dev/null; done
    step channels
    kill %1
}

# The device to VFIO, and DPDK's net_virtio on it: frames go back with their addresses swapped. Statistics make it
# flush what it prints, and keep it from waiting for its input.
run_testpmd() {
    address=$(basename "$(readlink -f /sys/class/net/eth0/device/..)")
    function=/sys/bus/pci/devices/$address
    ip link set eth0 down
    echo "$address" >"$function/driver/unbind"
    echo vfio-pci >"$function/driver_override"
    echo "$address" >/sys/bus/pci/drivers_probe
    say bound "$(basename "$(readlink -f "$function/driver")")"
    mkdir -p /dev/hugepages /var/run /tmp
    # DPDK loads nothing from below a directory that anybody may write to.
    chmod 755 / /lib
    mount -t hugetlbfs hugetlbfs /dev/hugepages
    dpdk-testpmd -l 0-1 --iova-mode=va -m 64 -a "$address" \
        -d /lib/librte_bus_pci.so.25 -d /lib/librte_bus_vdev.so.25 \
        -d /lib/librte_mempool_ring.so.25 -d /lib/librte_net_virtio.so.25 \
        -- --forward-mode=macswap --port-topology=loop --auto-start --total-num-mbufs=4096 \
        --stats-period 2 2>&1 |
        while read -r line; do say testpmd "$line"; done
    fail "testpmd ended"
}

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
role=$(parameter role)
say up "$(uname -r)"
[ "$role" = probe ] && poweroff -f
load_modules
wait_for_nic
set_up_network
describe_nic
case $role in
boot)
    ping_peer
    say ready iperf3
    serve_iperf
    ;;
awkward)
    ping_peer
    shake
    say ready iperf3
    serve_iperf
    obey
    ;;
testpmd)
    run_testpmd
    ;;
shell)
    say ready shell
    while :; do setsid cttyhack sh; done
    ;;
traffic)
    address=$(parameter address)
    port=$(parameter port)
    agent traffic --bind "${address%/*}:$port" --peer "$(parameter peer):$port" \
        $(parameter agent | tr ',' ' ') || fail "agent ended with $?" &
    obey
    ;;
*)
    say ready idle
    ;;
esac
while :; do sleep 3600; done
