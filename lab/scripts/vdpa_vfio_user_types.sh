# Device types that the simulators do not have: entropy, and 9P, a share of files for which
# QEMU has no front end of vhost-user. Virtio PCI devices of the lab's QEMU become vDPA
# devices, `linkspan vdpa serve --vfio-user` makes PCI devices of them again, and a guest of
# an inner QEMU uses them with its kernel's own drivers: with MSI-X, and entropy without it.
#: about entropy and 9P as PCI devices over vfio-user, in a guest of QEMU, with MSI-X and by the line
#: pack linkspan later-qemu vdpa
#: memory 1024
#: limit 1200
#: machine q35,kernel-irqchip=split
#: qemu -device intel-iommu,snoop-control=on
#: qemu -device virtio-rng-pci,iommu_platform=on,disable-legacy=on
#: qemu -fsdev local,id=f,path=lab,readonly=on,security_model=none
#: qemu -device virtio-9p-pci,fsdev=f,mount_tag=share,iommu_platform=on,disable-legacy=on
#: append intel_iommu=on no_timer_check
. /lab/functions.sh
# What hardware reaches behind an IOMMU is pinned, all of the inner guest's memory, and the
# kernel takes no more than 2048 pieces that are contiguous: these are of huge pages.
ulimit -l unlimited
echo 100 >/proc/sys/vm/nr_hugepages
grep -q "HugePages_Free:  *100" /proc/meminfo || fatal "no huge pages"
INNER_QEMU=/opt/later-qemu/qemu-system-x86_64

vp_vdpa_add rng0 4 && vdpa_bind rng0 vhost_vdpa && rng0_node=$(vdpa_char rng0) || fatal "no entropy"
vp_vdpa_add share0 9 && vdpa_bind share0 vhost_vdpa && share0_node=$(vdpa_char share0) || fatal "no share"
vdpa_add blk0 vdpasim_blk && vdpa_bind blk0 virtio_vdpa && disk=$(vdpa_disk blk0) || fatal "no disk"
head -c 1048576 /dev/urandom >/tmp/first
dd if=/tmp/first of="$disk" bs=1M conv=fsync 2>/dev/null
first=$(sha256sum </tmp/first | cut -c1-64)
vdpa_bind blk0 vhost_vdpa && blk0_node=$(vdpa_char blk0) || fatal "no character device"
linkspan vdpa show "$rng0_node"
linkspan vdpa show "$share0_node"

serving=
for name in rng0 share0 blk0; do
    eval "node=\$${name}_node"
    linkspan vdpa serve "$node" --vfio-user /tmp/$name.sock 2>/tmp/$name.log &
    serving="$serving $!"
done
for name in rng0 share0 blk0; do
    check "$name is served" await 20 test -S /tmp/$name.sock
done

inner_init() {
    cat <<'INIT'
#!/lab/busybox sh
/lab/busybox mkdir /bb
/lab/busybox --install -s /bb
export PATH=/bb
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for device in /sys/bus/pci/devices/*; do
    [ "$(cat $device/vendor)" = 0x1af4 ] && echo "inner: function $(cat $device/device $device/class | tr '\n' ' ')"
done
echo "inner: entropy from $(cat /sys/class/misc/hw_random/rng_current)"
for _ in 1 2 3 4 5 6 7 8; do
    dd if=/dev/hwrng bs=64 count=1 iflag=fullblock 2>/dev/null | hexdump -v -e '64/1 "%02x" "\n"'
done >/tmp/bytes
echo "inner: $(sort -u /tmp/bytes | grep -c '^[0-9a-f]\{128\}$') reads of 64 bytes that differ"
mkdir /share
mount -t 9p -o trans=virtio,version=9p2000.L,ro share /share &&
    echo "inner: share $(sha256sum </share/functions.sh | cut -c1-64)"
[ -b /dev/vda ] && echo "inner: disk $(dd if=/dev/vda bs=1M count=1 2>/dev/null | sha256sum | cut -c1-64)"
cat /proc/interrupts
grep -q "MSI.*virtio.*-input" /proc/interrupts && echo "inner: interrupts by MSI-X"
awk '/virtio/ && !/MSI/ { for (i = 2; i <= NF && $i ~ /^[0-9]+$/; i++) sum += $i } END { print "inner: line " (sum > 0 ? "used" : "idle") }' /proc/interrupts
reboot -f
INIT
}
inner_init >/tmp/init
check "the inner guest's archive" inner_archive /tmp/inner.cpio /tmp/init

function_of() { # NAME
    echo "{\"driver\":\"vfio-user-pci\",\"socket\":{\"type\":\"unix\",\"path\":\"/tmp/$1.sock\"}}"
}
through_qemu() { # LOG APPEND NAMES...
    through_log=$1 INNER_APPEND=$2
    shift 2
    for name in "$@"; do
        set -- "$@" -device "$(function_of "$name")"
        shift
    done
    inner_boot /tmp/inner.cpio -serial "file:$through_log" \
        -object memory-backend-memfd,id=m,size=192M,share=on,hugetlb=on,hugetlbsize=2M -m 192M -machine memory-backend=m "$@"
}
said() { # LOG LINE
    grep -qF "inner: $2" "$1"
}
"$INNER_QEMU" --version

check "QEMU takes entropy and the share" through_qemu /tmp/msix.log "quiet no_timer_check" rng0 share0
cat /tmp/msix.log
check "its guest sees entropy, modern, as a class of its own" said /tmp/msix.log "function 0x1044 0xff0000"
check "its guest sees the share" said /tmp/msix.log "function 0x1049 0x018000"
check "its guest reads a file of the share" said /tmp/msix.log "share $(sha256sum </lab/functions.sh | cut -c1-64)"
check "its guest has entropy of it alone" said /tmp/msix.log "entropy from virtio_rng.0"
check "its guest reads /dev/hwrng" said /tmp/msix.log "8 reads of 64 bytes that differ"
check "its guest is interrupted by MSI-X" said /tmp/msix.log "interrupts by MSI-X"

# Without MSI the guest has the line alone, which two functions may share.
check "QEMU takes entropy and disk" through_qemu /tmp/line.log "quiet no_timer_check pci=nomsi" rng0 blk0
cat /tmp/line.log
check "a guest without MSI reads /dev/hwrng" said /tmp/line.log "8 reads of 64 bytes that differ"
check "a guest without MSI reads the disk" said /tmp/line.log "disk $first"
check "a guest without MSI is interrupted by the line" said /tmp/line.log "line used"
check "a guest without MSI has no MSI" sh -c '! grep -q "inner: interrupts by MSI-X" /tmp/line.log'

for pid in $serving; do
    kill "$pid"
    wait "$pid"
    check "a server ends in order" test $? = 0
done
cat /tmp/rng0.log /tmp/share0.log /tmp/blk0.log
check "nothing was broken" sh -c '! grep -q "WARN\|ERROR" /tmp/rng0.log /tmp/share0.log /tmp/blk0.log'
