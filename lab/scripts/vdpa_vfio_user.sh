# vDPA devices as PCI devices by `linkspan vdpa serve --vfio-user`, under QEMU's
# `vfio-user-pci`: a simulated disk, and a disk and a network card of ours through VDUSE.
# One guest uses all three with the kernel's own virtio-pci driver.
#: about vDPA devices as PCI devices over vfio-user, in a guest of QEMU: simulated, and ours
#: pack linkspan later-qemu vdpa
#: memory 768
#: limit 600
. /lab/functions.sh
INNER_QEMU=/opt/later-qemu/qemu-system-x86_64

hash_at() { # FILE MIB
    dd if="$1" bs=1M skip="$2" count=1 2>/dev/null | sha256sum | cut -c1-64
}

# The first MiB of each disk is known; the guest copies it to the other one's fifth.
vdpa_add blk0 vdpasim_blk && vdpa_bind blk0 virtio_vdpa && disk=$(vdpa_disk blk0) || fatal "no disk"
head -c 1048576 /dev/urandom >/tmp/first
dd if=/tmp/first of="$disk" bs=1M conv=fsync 2>/dev/null
simulated=$(hash_at "$disk" 0)
vdpa_bind blk0 vhost_vdpa && blk0_node=$(vdpa_char blk0) || fatal "no character device"

head -c 16777216 /dev/urandom >/tmp/ours.img
ours=$(hash_at /tmp/ours.img 0)
linkspan blk --vduse disk0 --image /tmp/ours.img --queues 2 2>/tmp/blk.log &
blk=$!
linkspan net --port vduse:card0,mac=52:54:00:12:34:56 --port responder 2>/tmp/net.log &
net=$!
for name in disk0 card0; do
    await 20 test -c /dev/vduse/$name && vdpa_add $name vduse || fatal "no $name"
    vdpa_bind $name vhost_vdpa && node=$(vdpa_char $name) || fatal "no character device of $name"
    eval "${name}_node=$node"
done

serving=
for name in blk0 disk0 card0; do
    eval "node=\$${name}_node"
    linkspan vdpa serve "$node" --vfio-user /tmp/$name.sock 2>/tmp/$name.log &
    serving="$serving $!"
done
for name in blk0 disk0 card0; do
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
one() { # FROM
    dd if=$1 bs=1M count=1 2>/dev/null
}
for disk in vda vdb; do
    echo "inner: $disk $(one /dev/$disk | sha256sum | cut -c1-64)"
    echo "inner: $disk has $(cat /sys/block/$disk/size) sectors"
done
one /dev/vda | dd of=/dev/vdb bs=1M seek=4 conv=fsync iflag=fullblock
one /dev/vdb | dd of=/dev/vda bs=1M seek=4 conv=fsync iflag=fullblock
echo "inner: queues of vdb $(ls /sys/block/vdb/mq | wc -l)"
cat /proc/interrupts
grep -q "MSI.*virtio.*-req" /proc/interrupts && echo "inner: interrupts by MSI-X"
echo "inner: address $(cat /sys/class/net/eth0/address)"
ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up
ping -c 5 -s 1400 10.0.2.2 && echo "inner: answered"
# Another driver of the same devices finds them as new.
for slot in /sys/bus/virtio/drivers/virtio_blk/virtio*; do
    name=${slot##*/}
    echo $name >/sys/bus/virtio/drivers/virtio_blk/unbind
    echo $name >/sys/bus/virtio/drivers/virtio_blk/bind
done
echo "inner: again $(one /dev/vda | sha256sum | cut -c1-64)"
reboot -f
INIT
}
inner_init >/tmp/init
check "the inner guest's archive" inner_archive /tmp/inner.cpio /tmp/init

function_of() { # NAME
    echo "{\"driver\":\"vfio-user-pci\",\"socket\":{\"type\":\"unix\",\"path\":\"/tmp/$1.sock\"}}"
}
through_qemu() {
    INNER_APPEND=quiet inner_boot /tmp/inner.cpio -serial file:/tmp/inner.log \
        -object memory-backend-memfd,id=m,size=192M,share=on -m 192M -machine memory-backend=m \
        -device "$(function_of blk0)" -device "$(function_of disk0)" -device "$(function_of card0)"
}
"$INNER_QEMU" --version
check "QEMU takes all three devices" through_qemu
cat /tmp/inner.log
said() { # LINE
    grep -qF "inner: $1" /tmp/inner.log
}
check "its guest reads the simulated disk" said "vda $simulated"
check "its guest reads our disk" said "vdb $ours"
check "its guest knows the size of our disk" said "vdb has 32768 sectors"
check "its guest is interrupted by MSI-X" said "interrupts by MSI-X"
check "its guest has the address of our card" said "address 52:54:00:12:34:56"
check "its guest is answered through our card" said "answered"
check "a driver that comes again reads the disk" said "again $simulated"
check "what it wrote is in our image" test "$(hash_at /tmp/ours.img 4)" = "$simulated"
for pid in $serving; do
    kill $pid
    wait $pid
    check "a server ends in order" test $? = 0
done
vdpa_bind blk0 virtio_vdpa && disk=$(vdpa_disk blk0)
check "what it wrote is on the simulated disk" test "$(hash_at "$disk" 4)" = "$ours"

cat /tmp/blk0.log /tmp/disk0.log /tmp/card0.log /tmp/blk.log /tmp/net.log
check "nothing was broken" sh -c '! grep -q "WARN\|ERROR" /tmp/blk0.log /tmp/disk0.log /tmp/card0.log /tmp/blk.log /tmp/net.log'
vdpa_del disk0
vdpa_del card0
kill $blk $net
wait $blk
check "the disk ends in order" test $? = 0
wait $net
check "the card ends in order" test $? = 0
