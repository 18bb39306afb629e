# A simulated vDPA device passed on by `linkspan vdpa serve` to programs that are not
# ours: QEMU with a guest in it, and DPDK.
#: about vDPA devices passed on to QEMU and DPDK
#: pack linkspan qemu vdpa dpdk-testpmd
#: memory 1024
#: limit 900
. /lab/functions.sh

# Not by `check`, whose subshell would have the process.
serve() { # NODE SOCKET LOG
    linkspan vdpa serve "$1" --socket-path "$2" 2>"$3" &
    serve_pid=$!
}

# --- QEMU

vdpa_add blk0 vdpasim_blk && vdpa_bind blk0 virtio_vdpa && disk=$(vdpa_disk blk0) || fatal "no disk"
printf 'hello bridge\n' >/tmp/hello
dd if=/tmp/hello of="$disk" bs=512 count=1 conv=sync,fsync 2>/dev/null
vdpa_bind blk0 vhost_vdpa && node=$(vdpa_char blk0) || fatal "no character device"

inner_init() {
    cat <<'INIT'
#!/lab/busybox sh
/lab/busybox mount -t proc proc /proc
/lab/busybox mount -t devtmpfs devtmpfs /dev
/lab/busybox echo "inner: disk $(/lab/busybox head -c 13 /dev/vda)"
/lab/busybox printf 'hello from inside\n' | /lab/busybox dd of=/dev/vda bs=512 seek=8 conv=sync,fsync
/lab/busybox dd if=/dev/vda of=/dev/null bs=64k count=64 && /lab/busybox echo "inner: read"
/lab/busybox reboot -f
INIT
}
inner_init >/tmp/init
check "the inner guest's archive" inner_archive /tmp/inner.cpio /tmp/init
serve "$node" /tmp/disk.sock /tmp/disk.log
check "the disk is passed on" await 20 test -S /tmp/disk.sock

through_qemu() { # LOG
    INNER_APPEND=quiet inner_boot /tmp/inner.cpio -serial "file:$1" \
        -object memory-backend-memfd,id=m,size=192M,share=on -m 192M -machine memory-backend=m \
        -chardev socket,id=c,path=/tmp/disk.sock -device vhost-user-blk-pci,chardev=c
}
check "QEMU takes the disk" through_qemu /tmp/inner1.log
cat /tmp/inner1.log
check "the inner guest reads what was there" grep -q "inner: disk hello bridge" /tmp/inner1.log
check "the inner guest reads more" grep -q "inner: read" /tmp/inner1.log
# The next front end is not a second guest, whose start takes more than a minute here.
linkspan driver blk --socket-path /tmp/disk.sock read --length 8192 --to /tmp/read
check "the next front end reads what the guest wrote" grep -q "hello from inside" /tmp/read
cat /tmp/disk.log
check "nothing was refused" sh -c '! grep -q "WARN\|ERROR" /tmp/disk.log'
kill $serve_pid
wait $serve_pid
check "the bridge ends in order" test $? = 0
vdpa_bind blk0 virtio_vdpa && disk=$(vdpa_disk blk0)
check "what the guest wrote is on the device" sh -c "dd if=$disk bs=512 skip=8 count=1 2>/dev/null | grep -q 'hello from inside'"

# --- DPDK

vdpa_add net0 vdpasim_net mac 52:54:00:00:00:01 && vdpa_bind net0 vhost_vdpa && node=$(vdpa_char net0) || fatal "no card"
serve "$node" /tmp/net.sock /tmp/net.log
check "the card is passed on" await 20 test -S /tmp/net.sock
mkdir -p /dev/hugepages
if echo 128 >/proc/sys/vm/nr_hugepages && mount -t hugetlbfs nodev /dev/hugepages; then
    testpmd() {
        (sleep 8; echo "stop"; sleep 1; echo "show port stats 0"; echo quit) | dpdk-testpmd \
            --lcores 0@0,1@1 -m 128 --no-pci --file-prefix=vu --single-file-segments \
            --vdev net_virtio_user0,path=/tmp/net.sock,queues=1,queue_size=256 -- \
            -i --nb-cores=1 --forward-mode=txonly --auto-start --total-num-mbufs=4096 >/tmp/testpmd.log 2>&1
    }
    testpmd
    tail -40 /tmp/testpmd.log
    check "DPDK sends through the bridge" sh -c 'grep -q "TX-packets: [1-9]" /tmp/testpmd.log'
else
    skip "DPDK sends through the bridge" "no huge pages in this kernel"
fi
cat /tmp/net.log
kill $serve_pid
wait $serve_pid
check "the bridge of the card ends in order" test $? = 0
