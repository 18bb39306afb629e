# The screen of a running virtual machine, seen through its monitor: a QEMU that has the
# kernel's sample mdpy as a VFIO device.
#: about the screen of a running QEMU that has mdpy, by pid:N
#: pack linkspan qemu
#: memory 512
#: limit 240
. /lab/functions.sh

uuid=$(mdev_create mdpy mdpy-vga) || fatal "no mdpy"
await 20 test -e "/sys/bus/mdev/devices/$uuid/iommu_group" || fatal "no group"
check "its picture without a machine" linkspan display shot "$uuid" -o /tmp/direct.png

# Stopped before its first instruction: the device is open and its memory mapped.
qemu-system-x86_64 -nodefaults -no-user-config -display none -machine pc -accel tcg -m 32M -S \
    -device "vfio-pci,sysfsdev=/sys/bus/mdev/devices/$uuid,display=off" 2>/tmp/qemu.log &
qemu=$!
listed() {
    linkspan display list | grep -q "^pid:$qemu .*devices [0-9]"
}
check "the machine has the device" await 60 listed
cat /tmp/qemu.log
linkspan display list
linkspan display shot "$uuid" -o /tmp/never.png 2>/tmp/busy.log
check "nobody else can open it" test $? = 3
check "it is shown through the machine" linkspan display show "pid:$qemu"
check "its picture through the machine" linkspan display shot "pid:$qemu" -o /tmp/through.png
check "both pictures are the same" cmp /tmp/direct.png /tmp/through.png

linkspan display vnc "pid:$qemu" --listen 127.0.0.1:5901 2>/tmp/vnc.log &
vnc=$!
check "a viewer may come" await 60 grep -q "listening at" /tmp/vnc.log
check "the viewer has the picture" await 60 sh -c "nc 127.0.0.1 5901 </dev/null | grep -q RFB"
kill $qemu
wait $qemu
# Nobody looks through it by now.
wait $vnc
status=$?
cat /tmp/vnc.log
check "the viewer ends with the machine" test $status = 3
check "and says why" grep -q "the process that has the device has ended" /tmp/vnc.log
check "the device is free again" linkspan display shot "$uuid" -o /tmp/again.png
mdev_remove "$uuid"
