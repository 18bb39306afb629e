# vDPA devices passed on by `linkspan vdpa serve` to programs that are not ours: QEMU with
# a guest in it, which is paused under load and sees a disk grow, and DPDK.
#: about vDPA devices passed on to QEMU, which pauses its guest, and to DPDK
#: pack linkspan qemu vdpa dpdk-testpmd
#: memory 768
#: limit 600
. /lab/functions.sh

# Not by `check`, whose subshell would have the process.
serve() { # NODE SOCKET LOG
    linkspan vdpa serve "$1" --socket-path "$2" 2>"$3" &
    serve_pid=$!
}

# --- QEMU: a simulated disk, and one of ours, which cannot be suspended

vdpa_add blk0 vdpasim_blk && vdpa_bind blk0 virtio_vdpa && disk=$(vdpa_disk blk0) || fatal "no disk"
printf 'hello bridge\n' >/tmp/hello
dd if=/tmp/hello of="$disk" bs=512 count=1 conv=sync,fsync 2>/dev/null
vdpa_bind blk0 vhost_vdpa && node=$(vdpa_char blk0) || fatal "no character device"
serve "$node" /tmp/disk.sock /tmp/disk.log
disk_pid=$serve_pid

truncate -s 8M /tmp/ours.img
linkspan blk --vduse disk0 --image /tmp/ours.img 2>/tmp/blk.log &
blk=$!
await 20 test -c /dev/vduse/disk0 && vdpa_add disk0 vduse || fatal "no disk of ours"
vdpa_bind disk0 vhost_vdpa && node=$(vdpa_char disk0) || fatal "no character device"
serve "$node" /tmp/ours.sock /tmp/ours.log
ours_pid=$serve_pid

check "the disks are passed on" await 20 test -S /tmp/disk.sock -a -S /tmp/ours.sock
cat >/tmp/inner.sh <<'INNER'
echo "inner: disk $(head -c 13 /dev/vda)"
printf 'hello from inside\n' | dd of=/dev/vda bs=512 seek=8 conv=sync,fsync
dd if=/dev/vda of=/dev/null bs=64k count=64 && echo "inner: read"
# A load, until our disk is another one.
first= round=0
while read -r size </sys/block/vdb/size && [ "$size" = 16384 ]; do
    sum=$(dd if=/dev/vda iflag=direct bs=4k count=64 2>/dev/null | md5sum)
    [ "${first:=$sum}" = "$sum" ] || echo "inner: wrong"
    round=$((round + 1))
    echo "inner: round $round"
done
echo "inner: grown to $size: $(dd if=/dev/vdb bs=1M skip=12 count=1 2>/dev/null | head -c 6)"
INNER

seen() { # LINE
    await 120 grep -qF "inner: $1" /tmp/inner.log
}
# A machine that is paused stops its rings, asks where they are, and starts them there.
through_qemu() {
    inner_wake /tmp/inner.log /tmp/inner.sh \
        "vhost-user-blk-pci,chardev=c vhost-user-blk-pci,chardev=o" \
        -chardev socket,id=c,path=/tmp/disk.sock -chardev socket,id=o,path=/tmp/ours.sock || return 1
    for round in 1 2 3; do
        seen "round $round" || return 1
        inner_say '{"execute":"stop"}{"execute":"cont"}'
    done
    seen "round 5" || return 1
    truncate -s 16M /tmp/ours.img
    printf 'behind' | dd of=/tmp/ours.img bs=1M seek=12 conv=notrunc 2>/dev/null
    kill -HUP $blk
    inner_end
}
check "QEMU takes the disks" through_qemu
cat /tmp/inner.log
said() { # LINE
    grep -qF "inner: $1" /tmp/inner.log
}
check "its guest reads what was there" said "disk hello bridge"
check "its guest reads more" said "read"
check "it was paused three times under load" test "$(grep -c '"event": "RESUME"' /tmp/inner.out)" = 4
check "its guest read the same before and after each pause" sh -c '! grep -q "inner: wrong" /tmp/inner.log'
check "its guest sees that our disk has grown, and what is there" said "grown to 32768: behind"

# The bridge is there for the next one.
linkspan driver blk --socket-path /tmp/disk.sock read --length 8192 --to /tmp/read
check "what the guest wrote is read through the bridge" grep -q "hello from inside" /tmp/read
cat /tmp/disk.log /tmp/ours.log
check "nothing was refused" sh -c '! grep -q "ERROR\|WARN" /tmp/disk.log && ! grep -q ERROR /tmp/ours.log /tmp/blk.log'
kill $disk_pid $ours_pid
wait $disk_pid
check "the bridge ends in order" test $? = 0
wait $ours_pid
check "the bridge of our disk ends in order" test $? = 0
vdpa_del disk0
kill $blk
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
