# Another provider of VDUSE devices: a disk of qemu-storage-daemon under the kernel's
# driver, and under ours.
#: about a disk of qemu-storage-daemon, through VDUSE, under the kernel's driver and ours
#: pack linkspan vdpa qemu-storage-daemon
#: limit 120
. /lab/functions.sh

truncate -s 16M /tmp/peer.img
printf 'hello peer\n' | dd of=/tmp/peer.img conv=notrunc 2>/dev/null
qemu-storage-daemon --blockdev driver=file,node-name=f,filename=/tmp/peer.img \
    --export type=vduse-blk,id=e,node-name=f,name=peer0,num-queues=2,writable=on &
daemon=$!
await 20 test -c /dev/vduse/peer0 || fatal "there is no device of qemu-storage-daemon"
check "the vDPA bus takes the peer's disk" vdpa_add peer0 vduse

under_the_kernel() {
    vdpa_bind peer0 virtio_vdpa && disk=$(vdpa_disk peer0) &&
        [ "$(head -c 10 "$disk")" = "hello peer" ]
}
check "the kernel reads the peer's disk" under_the_kernel

under_us() {
    vdpa_bind peer0 vhost_vdpa && node=$(vdpa_char peer0) &&
        linkspan driver blk --vdpa "$node" verify --seconds 2 --overwrite
}
check "our driver verifies the peer's disk" under_us

vdpa_del peer0
kill $daemon
