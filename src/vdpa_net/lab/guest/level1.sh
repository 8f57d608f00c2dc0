#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# First process of a level-1 guest: puts its root together and hands over to the lab's agent.
#
# The root is the lab image over 9p, read-only, with a tmpfs on top. The host's shares are under /run/lab: the
# package, what level-2 guests boot (guests), and a directory for logs (logs).

say() { echo "LAB $*"; }

fail() {
    say "failed $*"
    poweroff -f
}

load_modules() {
    while read -r module; do
        insmod "/modules/$module" || fail "module $module"
    done </modules/order
}

# 9p without a cache would ask the host for each page of each program again.
share() {
    mkdir -p "$2"
    mount -t 9p -o "trans=virtio,version=9p2000.L,msize=512000,$3" "$1" "$2" || fail "share $1"
}

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
say up "$(uname -r)"
load_modules
share root /lower ro,cache=loose
mkdir -p /over /new
mount -t tmpfs tmpfs /over
mkdir -p /over/upper /over/work
mount -t overlay -o lowerdir=/lower,upperdir=/over/upper,workdir=/over/work overlay /new || fail "overlay"
mount -t tmpfs tmpfs /new/run
share package /new/run/lab/package ro,cache=loose
share guests /new/run/lab/guests ro,cache=loose
share logs /new/run/lab/logs rw
for name in proc sys dev; do
    mount -o move "/$name" "/new/$name"
done
mkdir -p /new/dev/hugepages /new/dev/shm
mount -t hugetlbfs hugetlbfs /new/dev/hugepages
mount -t tmpfs tmpfs /new/dev/shm
export PYTHONPATH=/run/lab/package
exec switch_root /new /usr/bin/python3 -m vdpa_net.lab.nested.agent
