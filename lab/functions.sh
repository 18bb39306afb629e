# Functions for scripts of the lab: `. /lab/functions.sh` in their first lines.

# --- results: one line each, which the host counts

ok() { # NAME
    echo "ok $1"
}

not_ok() { # NAME REASON
    echo "not ok $1: $2"
}

skip() { # NAME REASON
    echo "skip $1: $2"
}

# Runs a command as a check. What it prints is shown if it fails.
check() { # NAME COMMAND...
    check_name=$1
    shift
    # A subshell, so that a failing `set -e` or `exit` ends the check alone.
    if ("$@") >/tmp/check.log 2>&1; then
        ok "$check_name"
    else
        check_status=$?
        sed 's/^/    /' /tmp/check.log
        not_ok "$check_name" "\`$*\` ended with status $check_status"
        return 1
    fi
}

# Gives up the script: nothing after this makes sense.
fatal() { # REASON
    not_ok script "$1"
    exit 1
}

# Waits until a command succeeds, at most so long. To look takes a processor of the guest,
# which others may want: after a second it is done less often.
await() { # SECONDS COMMAND...
    await_left=$(($1 * 50)) await_pause=1
    await_soon=$((await_left - 50))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $await_left -gt $await_soon ] || await_pause=15
        await_left=$((await_left - await_pause))
        if [ $await_left -lt 0 ]; then
            echo "waited in vain for: $*" >&2
            return 1
        fi
        usleep $((await_pause * 20000))
    done
}

# --- vDPA; needs `pack vdpa`

# Adds a device: vdpa_add blk0 vdpasim_blk; vdpa_add net0 vdpasim_net mac 52:54:00:00:00:01
vdpa_add() { # NAME MANAGER [OPTIONS...]
    vdpa_name=$1 vdpa_manager=$2
    shift 2
    vdpa dev add name "$vdpa_name" mgmtdev "$vdpa_manager" "$@"
}

# Gives a device to the driver vhost_vdpa (a character device for programs) or
# virtio_vdpa (the kernel's own drivers).
vdpa_bind() { # NAME DRIVER
    vdpa_dir=/sys/bus/vdpa/devices/$1
    [ "$(basename "$(readlink "$vdpa_dir/driver")")" = "$2" ] && return 0
    echo "$2" >"$vdpa_dir/driver_override" || return 1
    if [ -e "$vdpa_dir/driver" ]; then
        echo "$1" >"$vdpa_dir/driver/unbind" || return 1
    fi
    echo "$1" >"/sys/bus/vdpa/drivers/$2/bind"
}

# Waits for the first path that fits, since drivers take their time, and prints it.
vdpa_path() { # PATTERN
    # shellcheck disable=SC2016,SC2086
    await 30 sh -c 'for path in '"$1"'; do test -e "$path" && exit; done; exit 1' || return 1
    for vdpa_found in $1; do
        echo "$vdpa_found"
        return 0
    done
}

# Prints the character device of a device that vhost_vdpa has.
vdpa_char() { # NAME
    vdpa_node=$(vdpa_path "/sys/bus/vdpa/devices/$1/vhost-vdpa-*") || return 1
    vdpa_node=/dev/${vdpa_node##*/}
    await 30 test -c "$vdpa_node" && echo "$vdpa_node"
}

# Prints the disk or interface of a device that virtio_vdpa has.
vdpa_disk() { # NAME
    vdpa_node=$(vdpa_path "/sys/bus/vdpa/devices/$1/virtio*/block/*") || return 1
    vdpa_node=/dev/${vdpa_node##*/}
    await 30 test -b "$vdpa_node" && echo "$vdpa_node"
}
vdpa_interface() { # NAME
    vdpa_node=$(vdpa_path "/sys/bus/vdpa/devices/$1/virtio*/net/*") || return 1
    echo "${vdpa_node##*/}"
}

vdpa_del() { # NAME
    vdpa dev del "$1"
}

# Makes a virtio PCI device a device of the vDPA bus, given its virtio type (1 net, 2 disk,
# 4 entropy): vp_vdpa_add rng0 4. Needs `qemu -device intel-iommu,snoop-control=on`,
# `append intel_iommu=on` and a device with `iommu_platform=on,disable-legacy=on`.
vp_vdpa_add() { # NAME TYPE
    vp_id=$(printf '0x%04x' $((0x1040 + $2)))
    for vp_dir in /sys/bus/pci/devices/*; do
        [ "$(cat "$vp_dir/vendor" "$vp_dir/device" | tr '\n' ' ')" = "0x1af4 $vp_id " ] || continue
        vp_slot=${vp_dir##*/}
        # One that was given away already belongs to another name.
        [ -e "$vp_dir/driver_override" ] && grep -qx vp-vdpa "$vp_dir/driver_override" && continue
        echo vp-vdpa >"$vp_dir/driver_override" || return 1
        if [ -e "$vp_dir/driver" ]; then
            echo "$vp_slot" >"$vp_dir/driver/unbind" || return 1
        fi
        echo "$vp_slot" >/sys/bus/pci/drivers/vp-vdpa/bind || return 1
        vdpa_add "$1" "pci/$vp_slot"
        return
    done
    echo "no virtio PCI device of type $2 is left" >&2
    return 1
}

# --- RDMA; needs `pack rdma`

# Puts a software iWARP or RoCE device on an interface: rdma_add siw0 siw eth0
rdma_add() { # NAME siw|rxe INTERFACE
    ip link set "$3" up && rdma link add "$1" type "$2" netdev "$3"
}

# --- VFIO displays

# Makes a mediated device and prints its UUID: mdev_create mdpy mdpy-vga
mdev_create() { # PARENT TYPE
    mdev_uuid=$(cat /proc/sys/kernel/random/uuid)
    echo "$mdev_uuid" >"/sys/class/mdev_bus/$1/mdev_supported_types/$2/create" || return 1
    echo "$mdev_uuid"
}

mdev_remove() { # UUID
    echo 1 >"/sys/bus/mdev/devices/$1/remove"
}

# --- inner guests; needs `pack qemu`, or `pack later-qemu` and
# INNER_QEMU=/opt/later-qemu/qemu-system-x86_64

# Says one thing to QEMU's monitor: inner_say '{"execute":"stop"}'
inner_say() {
    echo "$1" >&5
}

# Wakes the guest that sleeps in the image, with these devices, as QEMU's -device has
# them. It executes SCRIPT, whose words are in LOG, and ends. `inner_end` waits for that.
# Options are of QEMU, such as -chardev and -netdev.
inner_wake() { # LOG SCRIPT DEVICES [OPTIONS...]
    inner_log=$1 inner_devices=$3 inner_asleep=/lab/asleep
    [ -z "$INNER_QEMU" ] || inner_asleep=${INNER_QEMU%/*}/asleep
    # A disk has whole sectors.
    dd if="$2" of=/tmp/inner.script bs=4096 conv=sync 2>/dev/null || return 1
    shift 3
    rm -f /tmp/inner.in
    mkfifo /tmp/inner.in && exec 5<>/tmp/inner.in || return 1
    : >"$inner_log"
    # shellcheck disable=SC2046
    "${INNER_QEMU:-qemu-system-x86_64}" $(cat /lab/inner.options) -serial "file:$inner_log" \
        -chardev stdio,id=qmp,signal=off -mon qmp,mode=control -incoming defer \
        -blockdev driver=file,filename=/tmp/inner.script,node-name=script "$@" \
        <&5 >/tmp/inner.out 2>&1 &
    inner_pid=$!
    inner_say '{"execute":"qmp_capabilities"}
        {"execute":"migrate-set-capabilities","arguments":{"capabilities":[{"capability":"events","state":true}]}}
        {"execute":"migrate-incoming","arguments":{"uri":"exec:cat '"$inner_asleep"'"}}'
    if ! await 60 grep -q '"completed"' /tmp/inner.out; then
        cat /tmp/inner.out
        kill $inner_pid
        return 1
    fi
    for inner_device in $inner_devices virtio-blk-pci,drive=script,serial=script; do
        inner_say '{"execute":"human-monitor-command","arguments":{"command-line":"device_add '"$inner_device"'"}}'
    done
    inner_say '{"execute":"cont"}'
}

# Waits until the guest has ended, and fails if a device was not taken.
inner_end() {
    wait $inner_pid && ! grep '"return": "[^"]' /tmp/inner.out
}
