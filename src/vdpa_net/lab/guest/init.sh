#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# First process of a lab guest. Words of the kernel command line that begin with "lab." say what it does:
#
#   lab.role=probe|idle|boot|traffic   what it is there for
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
    ping -c 20 -i 0.05 -W 2 -q "$(parameter peer)" | while read -r line; do say ping "$line"; done
    say ready iperf3
    # It stops listening between two clients: each has to wait for its line.
    iperf3 --server --forceflush 2>&1 | while read -r line; do
        case $line in
        *listening*) say listening iperf3 ;;
        *) say iperf3 "$line" ;;
        esac
    done &
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
