# What others wrote and tests use in the lab, each started once: what it needs was packed.
#: about programs of others start in the lab
#: pack ksmbd dpdk-testpmd qemu-storage-daemon fio mkfs.ext4 e2fsck ip rdma vdpa
#: memory 768
#: limit 300
. /lab/functions.sh

share() {
    mkdir -p /etc/ksmbd /run/lock /tmp/share
    cat >/etc/ksmbd/ksmbd.conf <<'CONF'
[global]
guest account = root
map to guest = bad user
[share]
path = /tmp/share
guest ok = yes
read only = no
CONF
    ksmbd.mountd && await 60 sh -c 'netstat -ltn | grep -q ":445 "'
}
server_on_siw() {
    # The kernel has made dummy0.
    ip addr add 192.0.2.1/24 dev dummy0 && rdma_add siw0 siw dummy0
}
check "an interface with siw" server_on_siw
check "ksmbd listens on 445" share
check "ksmbd listens on siw too" sh -c 'rdma resource show cm_id; rdma resource show cm_id | grep -q "LISTEN.*:5445"'

testpmd() {
    dpdk-testpmd --lcores 0@0,1@1 -m 64 --no-huge --no-pci \
        --vdev net_vhost0,iface=/tmp/vhost,queues=1 -- \
        --total-num-mbufs=2048 --stats-period 1 --tx-first </dev/null >/tmp/testpmd.log 2>&1 &
    daemon=$!
    await 60 test -S /tmp/vhost || { grep EAL: /tmp/testpmd.log; return 1; }
    kill $daemon
}
check "dpdk-testpmd serves a vhost-user socket" testpmd

vduse() {
    truncate -s 64M /tmp/disk.img
    mkfs.ext4 -q /tmp/disk.img
    qemu-storage-daemon --blockdev driver=file,node-name=f,filename=/tmp/disk.img \
        --export type=vduse-blk,id=e,node-name=f,name=qsd,num-queues=2,writable=on &
    daemon=$!
    await 60 test -c /dev/vduse/qsd || return 1
    vdpa_add qsd vduse && vdpa_bind qsd virtio_vdpa && disk=$(vdpa_disk qsd) || return 1
    mkdir -p /tmp/mnt
    mount -t ext4 "$disk" /tmp/mnt || return 1
    fio --name=a --directory=/tmp/mnt --rw=randwrite --bs=4k --size=4M --verify=crc32c --end_fsync=1 || return 1
    umount /tmp/mnt && e2fsck -fn "$disk" && vdpa_del qsd || return 1
    kill $daemon
    wait $daemon
}
check "qemu-storage-daemon's VDUSE disk carries ext4 under fio" vduse
