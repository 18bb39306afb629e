# QEMU inside the lab: an inner guest with the lab's own kernel boots, and its disk
# is the kernel's disk simulator seen through the whole stack.
#: about an inner guest boots under QEMU in the lab
#: pack qemu vdpa
#: memory 512
#: limit 360
. /lab/functions.sh

inner_init() {
    cat <<'INIT'
#!/lab/busybox sh
/lab/busybox mount -t proc proc /proc
/lab/busybox mount -t devtmpfs devtmpfs /dev
/lab/busybox echo "inner: kernel $(/lab/busybox uname -r)"
/lab/busybox echo "inner: disk $(/lab/busybox head -c 12 /dev/vda)"
/lab/busybox reboot -f
INIT
}
inner_init >/tmp/init
check "the inner guest's archive" inner_archive /tmp/inner.cpio /tmp/init

vdpa_add blk0 vdpasim_blk && vdpa_bind blk0 virtio_vdpa && disk=$(vdpa_disk blk0) || fatal "no disk"
printf 'hello inner\n' >/tmp/hello
dd if=/tmp/hello of="$disk" bs=512 count=1 conv=sync,fsync 2>/dev/null

inner_boot /tmp/inner.cpio -m 192M -serial file:/tmp/inner.log \
    -drive "file=$disk,format=raw,if=none,id=d" -device virtio-blk-pci,drive=d
check "the inner guest ends by itself" test $? = 0
cat /tmp/inner.log
check "the inner guest runs the lab's kernel" grep -q "inner: kernel $(uname -r)" /tmp/inner.log
check "the inner guest reads its disk" grep -q "inner: disk hello inner" /tmp/inner.log
