#!/bin/busybox sh
# The first process of the demo guest.
#
# What it does is chosen on the kernel's command line: linkspan.mode=shell gives
# a person a shell, check tests the disk against /check/plan, discard gives back
# the part of the disk that /check/discard names, probe only says that the machine
# runs, remote does what it is told on the second serial port, a line at a time.
# Reports go to that port too, one "LINKSPAN key=value" to a line, so that kernel
# messages, which go to the first, cannot tear them.
#
# linkspan.net=lease or linkspan.net=ADDRESS/BITS with linkspan.peer=ADDRESS is the
# guest's place in a network.

/bin/busybox mkdir -p /proc /sys /dev /tmp
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox --install -s /bin
export PATH=/bin HOME=/tmp TERM=linux

disk=/dev/vda

option() {
    sed -n "s/.*linkspan\.$1=\([^ ]*\).*/\1/p" /proc/cmdline
}

report() {
    echo "LINKSPAN $1=$2" >/dev/ttyS1
}

fail() {
    report problem "$1"
    sync
    poweroff -f
}

# Modules stand in the archive in the order in which they are needed.
load_modules() {
    for module in /modules/*.ko; do
        [ -e "$module" ] || continue
        insmod "$module" || report problem "insmod $module failed"
    done
}

await_disk() {
    tries=0
    while [ ! -b $disk ]; do
        tries=$((tries + 1))
        [ $tries -gt 100 ] && return 1
        usleep 100000
    done
}

queue_count() {
    ls -d /sys/block/vda/mq/*/ | wc -l
}

# Offsets count bytes: a place need not begin at a multiple of its block.

# Reads one place past the page cache, on the processor whose queue is meant.
read_place() { # name offset bytes block cpu
    taskset -c "$5" dd if=$disk iflag=skip_bytes,direct skip="$2" \
        bs="$4" count=$(($3 / $4)) status=none
}

write_place() { # name offset bytes block cpu direct|cached
    flags=seek_bytes
    [ "$6" = direct ] && flags=seek_bytes,direct
    taskset -c "$5" dd if="/check/$1" of=$disk oflag=$flags seek="$2" \
        bs="$4" count=$(($3 / $4)) conv=notrunc,fsync status=none
}

# Every byte, read from the device and not from the page cache.
hash_disk() {
    sync
    blockdev --flushbufs $disk
    sha256sum $disk | cut -d ' ' -f 1
}

compare_places() {
    while read -r name offset bytes block cpu how; do
        if read_place "$name" "$offset" "$bytes" "$block" "$cpu" | cmp -s - "/check/$name"; then
            report "same.$name" yes
        else
            report "same.$name" no
        fi
    done </check/plan
}

# The marker is the plan's last line, so it is there only after all writes.
marker_present() {
    tail -n 1 /check/plan >/tmp/marker
    read -r name offset bytes block cpu how </tmp/marker
    read_place "$name" "$offset" "$bytes" "$block" "$cpu" | cmp -s - "/check/$name"
}

# Takes the place in the network that the command line says; fails without one.
join_network() {
    place=$(option net)
    ip link set lo up
    ip link set eth0 up || return 1
    if [ "$place" = lease ]; then
        udhcpc -i eth0 -s /lease -n -q -t 20 -T 1 >/tmp/udhcpc.log 2>&1 || return 1
        peer=$(cat /tmp/router)
    else
        ip addr add "$place" dev eth0 || return 1
        peer=$(option peer)
    fi
}

own_address() {
    ip -4 -o addr show dev eth0 | sed -n 's/.*inet \([^/]*\).*/\1/p'
}

# A page, bytes without a pattern, and a place to say that nothing more is wanted.
serve_pages() {
    mkdir -p /tmp/www/cgi-bin
    echo "Hello from Linux $(uname -r) behind linkspan net." >/tmp/www/index.html
    head -c 262144 /dev/urandom >/tmp/www/payload
    printf '#!/bin/sh\ntouch /tmp/done\nprintf "Content-type: text/plain\\r\\n\\r\\n"\n' \
        >/tmp/www/cgi-bin/done
    chmod +x /tmp/www/cgi-bin/done
    httpd -p 80 -h /tmp/www
}

# Which transmit queue is used goes by the processor that sends.
check_network() {
    [ -n "$(option net)" ] || return 0
    join_network || report problem "no address in the network"
    report net.pairs "$(ls -d /sys/class/net/eth0/queues/rx-* | wc -l)"
    report net.address "$(own_address)"
    cpu=0
    while [ $cpu -lt "$(nproc)" ]; do
        if taskset -c $cpu ping -c 3 -i 0.1 -W 5 "$peer" | grep -q ' 3 packets received'; then
            report net.ping.$cpu yes
        else
            report net.ping.$cpu no
        fi
        cpu=$((cpu + 1))
    done
    serve_pages
    report net.sha256 "$(sha256sum /tmp/www/payload | cut -d ' ' -f 1)"
    report net.pinged "$peer"
    # Whoever is outside visits the first boot and not the second.
    [ "$1" = visited ] && [ "$(option net)" != lease ] || return 0
    tries=0
    until [ -e /tmp/done ]; do
        tries=$((tries + 1))
        [ $tries -gt 600 ] && return 0
        usleep 100000
    done
}

check() {
    if marker_present; then report boot 2; else report boot 1; fi
    report kernel "$(uname -r)"
    report cpus "$(nproc)"
    report queues "$(queue_count)"
    report bytes "$(blockdev --getsize64 $disk)"
    report sha256 "$(hash_disk)"
    if marker_present; then
        check_network
        compare_places
        report end poweroff
        sync
        poweroff -f
    fi
    check_network visited
    while read -r name offset bytes block cpu how; do
        write_place "$name" "$offset" "$bytes" "$block" "$cpu" "$how" ||
            report problem "writing $name failed"
    done </check/plan
    sync
    blockdev --flushbufs $disk
    compare_places
    report end reboot
    sync
    reboot -f
}

discard() {
    read -r offset bytes </check/discard
    for limit in discard_max_bytes discard_granularity write_zeroes_max_bytes \
        logical_block_size physical_block_size; do
        report $limit "$(cat /sys/block/vda/queue/$limit)"
    done
    if blkdiscard -o "$offset" -l "$bytes" $disk; then
        report discarded yes
    else
        report discarded no
    fi
    poweroff -f
}

network_banner() {
    place=$(option net)
    [ -n "$place" ] || return 0
    if ! join_network; then
        echo "  There is no network: see dmesg and /tmp/udhcpc.log."
        return 0
    fi
    own=$(own_address)
    serve_pages
    pairs=$(ls -d /sys/class/net/eth0/queues/rx-* | wc -l)
    cat <<TEXT

  The network card eth0 ($own, $pairs queue pairs) is served by linkspan net.

  Try:    ping $peer                    $(answerer "$place")
TEXT
    [ "$place" = lease ] || cat <<TEXT
          on your machine: ping $own, or open http://$own/
TEXT
    echo
}

answerer() { # place
    if [ "$1" = lease ]; then
        echo "the responder, which also gave the lease"
    else
        echo "your machine"
    fi
}

banner() {
    bytes=$(blockdev --getsize64 $disk)
    cat <<TEXT

  Linux $(uname -r). The disk $disk ($((bytes / 1048576)) MiB, $(queue_count) queues) is served by
  linkspan blk, an ordinary process on your machine, over vhost-user.

  Try:    hexdump -C $disk | head            what the disk holds
          dd if=$disk of=/dev/null bs=1M     read all of it
          sha256sum $disk                    compare it with the image file
TEXT
    network_banner
    cat <<TEXT
  Leave:  poweroff        (or Ctrl-A, then X, to cut the power)

TEXT
}

# What is on the screen of a guest that has one, and what is said of it.
show_screen() {
    cat <<TEXT
  The screen is served by linkspan gpu and shown on the page that was named above,
  with a shell of its own: click there and type.

  Try:    echo hello >/dev/tty1
          cat /dev/urandom >/dev/fb0

TEXT
    { clear && cat /tmp/banner; } >/dev/tty1
    # Who opens it first in a session of its own has it for a terminal.
    while :; do
        setsid sh -c 'exec sh -i <>/dev/tty1 >&0 2>&1'
    done &
}

# Runs each line and reports its status after what it printed. The port stays open,
# or what comes between two lines would be lost.
remote() {
    exec 3<>/dev/ttyS1
    stty raw -echo <&3
    report remote ready
    while read -r line <&3; do
        eval "$line" >/tmp/said 2>&1 3<&-
        status=$?
        cat /tmp/said >&3
        report status $status
    done
}

case "$(option mode)" in
probe)
    report probe ok
    poweroff -f
    ;;
check)
    load_modules
    await_disk || fail "no $disk after 10 s"
    check
    ;;
remote)
    load_modules
    remote
    ;;
discard)
    load_modules
    await_disk || fail "no $disk after 10 s"
    discard
    ;;
*)
    load_modules
    await_disk || echo "There is no $disk: see dmesg."
    banner >/tmp/banner
    cat /tmp/banner
    [ -e /sys/class/graphics/fb0 ] && show_screen
    setsid cttyhack sh
    sync
    poweroff -f
    ;;
esac
