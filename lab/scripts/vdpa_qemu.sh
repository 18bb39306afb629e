# A network card of ours, a vDPA device of the kernel through VDUSE, under QEMU's own
# driver for vhost-vdpa, with a guest that uses it.
#: about our VDUSE card under QEMU's vhost-vdpa, with a guest behind it
#: pack linkspan qemu vdpa
#: memory 768
#: limit 600
. /lab/functions.sh

linkspan net --port vduse:card0,mac=52:54:00:12:34:56 --port responder 2>/tmp/net.log &
net=$!
await 20 test -c /dev/vduse/card0 && vdpa_add card0 vduse || fatal "no card"
vdpa_bind card0 vhost_vdpa && node=$(vdpa_char card0) || fatal "no character device"

inner_init() {
    cat <<'INIT'
#!/lab/busybox sh
/lab/busybox mount -t proc proc /proc
/lab/busybox mount -t sysfs sysfs /sys
/lab/busybox echo "inner: address $(/lab/busybox cat /sys/class/net/eth0/address)"
/lab/busybox ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up
/lab/busybox ping -c 5 -s 1400 10.0.2.2 && /lab/busybox echo "inner: answered"
/lab/busybox reboot -f
INIT
}
inner_init >/tmp/init
check "the inner guest's archive" inner_archive /tmp/inner.cpio /tmp/init

# QEMU shares its memory by addresses of its own, which VDUSE takes as files.
through_qemu() {
    INNER_APPEND=quiet inner_boot /tmp/inner.cpio -serial file:/tmp/inner.log \
        -object memory-backend-memfd,id=m,size=192M,share=on -m 192M -machine memory-backend=m \
        -netdev "vhost-vdpa,id=n,vhostdev=$node" -device virtio-net-pci,netdev=n,romfile=
}
check "QEMU takes the card" through_qemu
cat /tmp/inner.log
check "its guest has our address" grep -q "inner: address 52:54:00:12:34:56" /tmp/inner.log
check "its guest is answered" grep -q "inner: answered" /tmp/inner.log
cat /tmp/net.log
check "nothing was broken" sh -c '! grep -q "WARN\|ERROR" /tmp/net.log'
vdpa_del card0
kill $net
wait $net
check "the card ends in order" test $? = 0
