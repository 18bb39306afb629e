# What the lab's kernel carries: each peer by a check of its own.
#: about each peer that the lab kernel carries is there
#: pack vdpa rdma ip
#: limit 120
#: quick
. /lab/functions.sh

vdpa_simulator() { # TYPE
    vdpa_add "$1"0 "vdpasim_$1" && vdpa_bind "$1"0 vhost_vdpa && test -c "$(vdpa_char "$1"0)"
}
check "vdpasim_blk becomes a character device" vdpa_simulator blk
check "vdpasim_net becomes a character device" vdpa_simulator net

vdpa_disk_of_the_kernel() {
    vdpa_bind blk0 virtio_vdpa || return 1
    disk=$(vdpa_disk blk0) && dd if="$disk" of=/dev/null bs=4k count=1
}
check "vdpasim_blk becomes a disk" vdpa_disk_of_the_kernel

vdpa_interface_of_the_kernel() {
    vdpa_bind net0 virtio_vdpa && ip link show "$(vdpa_interface net0)"
}
check "vdpasim_net becomes an interface" vdpa_interface_of_the_kernel

check "a device goes away" vdpa_del blk0
check "VDUSE has its control device" test -c /dev/vduse/control
check "VDUSE is a manager of vDPA devices" sh -c 'vdpa mgmtdev show | grep -q "^vduse:"'

rdma_over() { # NAME TYPE
    ip link add "dummy_$1" type dummy && ip addr add "$3/24" dev "dummy_$1" &&
        rdma_add "$1" "$2" "dummy_$1" && rdma link show "$1/1"
}
check "siw on an interface" rdma_over siw0 siw 192.0.2.1
check "rxe on an interface" rdma_over rxe0 rxe 198.51.100.1

vfio_display() { # PARENT TYPE
    uuid=$(mdev_create "$1" "$2") &&
        await 30 ls /dev/vfio/devices/vfio0 && ls /dev/vfio/[0-9]* && mdev_remove "$uuid"
}
check "mdpy makes a display" vfio_display mdpy mdpy-vga
check "mbochs makes a display" vfio_display mbochs mbochs-small
check "udmabuf" test -c /dev/udmabuf
check "the system's heap of dma-bufs" test -c /dev/dma_heap/system
check "vgem" test -c /dev/dri/card0
check "iommufd" test -c /dev/iommu

check "FUSE" test -c /dev/fuse

# The kernel's first request to a file system says what it can: flags2 is at byte 56,
# and pass-through is its bit 5.
fuse_passthrough() {
    mkdir -p /tmp/fuse
    exec 4<>/dev/fuse
    mount -t fuse -o fd=4,rootmode=40000,user_id=0,group_id=0 lab /tmp/fuse || return 1
    dd bs=64k count=1 <&4 >/tmp/fuse.init || return 1
    byte=$(hexdump -s 56 -n 1 -e '1/1 "%u"' /tmp/fuse.init)
    umount -l /tmp/fuse
    [ $((byte & 32)) != 0 ]
}
check "FUSE offers pass-through" fuse_passthrough
check "CUSE" test -c /dev/cuse
check "ksmbd" test -d /sys/class/ksmbd-control
check "cifs" grep -qw cifs /proc/filesystems
check "tap interfaces" test -c /dev/net/tun
check "vhost-net" test -c /dev/vhost-net
check "vhost-vsock" test -c /dev/vhost-vsock
check "uio_hv_generic waits for a VMBus" grep -q hv_uio_probe /proc/kallsyms
check "io_uring" grep -q io_uring_setup /proc/kallsyms
check "huge pages" sh -c 'echo 4 >/proc/sys/vm/nr_hugepages && grep -q "HugePages_Total:  *4" /proc/meminfo'
check "user namespaces" unshare --user --map-root-user true
check "Landlock" grep -q landlock /sys/kernel/security/lsm
check "system calls can be counted" test -d /sys/kernel/tracing/events/syscalls
