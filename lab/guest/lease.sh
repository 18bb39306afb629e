#!/bin/busybox sh
# What udhcpc calls when it has, or no longer has, a lease.

case "$1" in
deconfig)
    ip addr flush dev "$interface"
    ;;
bound | renew)
    ip addr add "$ip/$mask" dev "$interface"
    [ -z "$mtu" ] || ip link set "$interface" mtu "$mtu"
    # Only the first router is of use.
    [ -z "$router" ] || ip route replace default via "${router%% *}"
    echo "$ip/$mask" >/tmp/lease
    echo "${router%% *}" >/tmp/router
    ;;
esac
