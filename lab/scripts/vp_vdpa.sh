# Virtio PCI devices of QEMU as devices of the vDPA bus: how a test gets a device of a
# type that the simulators do not have.
#: about virtio PCI devices of QEMU become vDPA devices: entropy, disk, network
#: pack vdpa
#: limit 180
#: machine q35,kernel-irqchip=split
#: qemu -device intel-iommu,snoop-control=on
#: qemu -device virtio-rng-pci,iommu_platform=on,disable-legacy=on
#: qemu -blockdev driver=null-co,size=67108864,node-name=n,read-zeroes=on
#: qemu -device virtio-blk-pci,drive=n,iommu_platform=on,disable-legacy=on,num-queues=4
#: qemu -netdev hubport,id=h,hubid=0 -device virtio-net-pci,netdev=h,iommu_platform=on,disable-legacy=on
#: append intel_iommu=on
. /lab/functions.sh

character_device() { # NAME TYPE
    vp_vdpa_add "$1" "$2" && vdpa_bind "$1" vhost_vdpa && test -c "$(vdpa_char "$1")"
}
# QEMU's first entropy device is the lab's own.
check "the kernel has entropy of its own" test -s /sys/class/misc/hw_random/rng_available
check "entropy becomes a character device" character_device rng0 4
check "a disk becomes a character device" character_device blk0 2
check "a network card becomes a character device" character_device net0 1
vdpa dev show
check "the disk has 4 queues" sh -c 'vdpa dev show blk0 | grep -q "max_vqs 4"'
