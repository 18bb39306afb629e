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

# Makes an archive with busybox and an init (whose first line is #!/lab/busybox sh),
# and whatever else is named.
inner_archive() { # ARCHIVE INIT [FILES...]
    inner_dir=$(mktemp -d) inner_to=$1
    mkdir "$inner_dir/lab" "$inner_dir/proc" "$inner_dir/sys" "$inner_dir/dev" "$inner_dir/tmp"
    cp /lab/busybox "$inner_dir/lab/"
    cp "$2" "$inner_dir/init"
    chmod +x "$inner_dir/init"
    mknod "$inner_dir/dev/console" c 5 1
    shift 2
    [ $# = 0 ] || cp "$@" "$inner_dir/"
    (cd "$inner_dir" && find . | cpio -o -H newc 2>/dev/null) >"$inner_to"
    inner_status=$?
    rm -r "$inner_dir"
    return $inner_status
}

# Boots the lab's kernel with an archive; a panic ends it, and so does `reboot -f`. More
# options follow, such as -m 192M -serial file:/tmp/inner.log. Without ACPI a third of
# the time is saved.
inner_boot() { # ARCHIVE [OPTIONS...]
    inner_from=$1
    shift
    "${INNER_QEMU:-qemu-system-x86_64}" -nodefaults -no-user-config -no-reboot -display none \
        -machine pc -accel tcg -cpu max,-erms,-fsrm -kernel /lab/bzImage -initrd "$inner_from" \
        -append "console=ttyS0 loglevel=5 panic=-1 oops=panic acpi=off tsc=reliable $INNER_APPEND" "$@"
}
