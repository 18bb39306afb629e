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

# Waits until a command succeeds, at most so long.
await() { # SECONDS COMMAND...
    await_left=$(($1 * 50))
    shift
    until "$@" >/dev/null 2>&1; do
        await_left=$((await_left - 1))
        if [ $await_left -lt 0 ]; then
            echo "waited in vain for: $*" >&2
            return 1
        fi
        usleep 20000
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

# Prints the character device of a device that vhost_vdpa has.
vdpa_char() { # NAME
    for vdpa_node in "/sys/bus/vdpa/devices/$1"/vhost-vdpa-*; do
        vdpa_node=/dev/${vdpa_node##*/}
        await 5 test -c "$vdpa_node" || return 1
        echo "$vdpa_node"
        return 0
    done
    return 1
}

# Prints the disk or interface of a device that virtio_vdpa has.
vdpa_disk() { # NAME
    for vdpa_node in "/sys/bus/vdpa/devices/$1"/virtio*/block/*; do
        vdpa_node=/dev/${vdpa_node##*/}
        await 5 test -b "$vdpa_node" || return 1
        echo "$vdpa_node"
        return 0
    done
    return 1
}
vdpa_interface() { # NAME
    for vdpa_node in "/sys/bus/vdpa/devices/$1"/virtio*/net/*; do
        [ -e "$vdpa_node" ] || return 1
        echo "${vdpa_node##*/}"
        return 0
    done
}

vdpa_del() { # NAME
    vdpa dev del "$1"
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
