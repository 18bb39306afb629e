# What `cargo xtask bench vdpa` runs. The kernel's command line gives rounds, seconds,
# a part of rows' names, and the loop that measures a disk of the kernel. Lines:
#   turn ROW WHO TICKS JSON     one turn; TICKS of 10 ms are of the serving process
#   calls WHAT COUNT SLEEPS REQUESTS
# With `bench_by` only the rows of simulated disks, with that behind their names.
#: about figures: vDPA drivers, the bridge, VDUSE disks
#: pack linkspan vdpa qemu-storage-daemon
#: memory 768
#: limit 420
. /lab/functions.sh

rounds=${bench_rounds:-3} seconds=${bench_seconds:-1} only=$bench_only loop=$bench_loop by=$bench_by

wanted() { # ROW
    case $1 in
    *"$only"*) return 0 ;;
    *) return 1 ;;
    esac
}

# The words, begun with another one in each round.
rotated() { # ROUND WORDS...
    left=$(($1 % ($# - 1)))
    shift
    while [ $left -gt 0 ]; do
        first=$1
        shift
        set -- "$@" "$first"
        left=$((left - 1))
    done
    echo "$@"
}

# Processor time of a process, of its user's side and the kernel's.
ticks() { # PID
    awk '{ print $14 + $15 }' "/proc/$1/stat"
}

# Measures by a command that takes seconds at its end, after a short turn to warm up.
turn() { # ROW WHO PID COMMAND...
    turn_row=$1 turn_who=$2 turn_pid=$3
    shift 3
    "$@" 0.2 >/dev/null || fatal "$* 0.2"
    turn_before=$(ticks "$turn_pid")
    turn_said=$("$@" "$seconds") || fatal "$* $seconds"
    turn_after=$(ticks "$turn_pid")
    echo "turn $turn_row $turn_who $((turn_after - turn_before)) $(echo "$turn_said" | tr -d '\n')"
}

# A disk of the kernel, without a scheduler before it.
plain_disk() { # NAME
    vdpa_bind "$1" virtio_vdpa && plain=$(vdpa_disk "$1") || fatal "no disk $1"
    echo none >"/sys/block/${plain##*/}/queue/scheduler"
}

# --- one simulated disk under our driver and the kernel's

driver_turn() { # WHO DEPTH
    case $1 in
    kernel)
        plain_disk blk0
        turn "driver-$2$by" "$1" $$ "$loop" direct "$plain" "$2"
        ;;
    *)
        poll=
        [ "$1" = polls ] && poll=--poll
        vdpa_bind blk0 vhost_vdpa && node=$(vdpa_char blk0) || fatal "no character device"
        # shellcheck disable=SC2086
        turn "driver-$2$by" "$1" $$ linkspan driver blk --vdpa "$node" bench --json $poll --depth "$2" --seconds
        ;;
    esac
}

vdpa_add blk0 vdpasim_blk || fatal "no simulated disk"
for depth in 1 32; do
    wanted "driver-$depth$by" || continue
    for round in $(seq "$rounds"); do
        for who in $(rotated "$round" sleeps polls kernel); do
            driver_turn "$who" "$depth"
        done
    done
done

# --- system calls of the bridge

tracing=/sys/kernel/tracing

# How many system calls the threads have made since `watch`.
calls() {
    cat $tracing/per_cpu/cpu*/stats | awk '/^(entries|overrun|dropped events):/ { sum += $NF } END { print sum + 0 }'
}

# How often the threads went to sleep.
sleeps() {
    cat /proc/$bridge/task/*/status | awk '/^voluntary_ctxt/ { sum += $2 } END { print sum + 0 }'
}

watch() {
    echo 0 >$tracing/events/raw_syscalls/sys_enter/enable
    echo 1 >$tracing/options/event-fork
    ls /proc/$bridge/task >$tracing/set_event_pid
    echo >$tracing/trace
    echo 1 >$tracing/events/raw_syscalls/sys_enter/enable
}

# Makes requests over a connection for so long.
requests() { # SECONDS [OPTIONS...]
    length=$1
    shift
    linkspan driver blk --socket-path /tmp/bridge bench --json --depth 32 --seconds "$length" "$@" |
        sed -n 's/.*"operations": *\([0-9]*\).*/\1/p'
}

# Connections of so many seconds each, until there were enough requests.
counted() { # WHAT LEAST SECONDS
    sum=0 connections=0
    watch
    slept=$(sleeps)
    while [ $sum -lt "$2" ] || [ $connections = 0 ]; do
        made=$(requests "$3") && [ "${made:-0}" -gt 0 ] || fatal "no requests through the bridge"
        sum=$((sum + made)) connections=$((connections + 1))
    done
    # The bridge has put the device back before the next one can connect.
    linkspan driver blk --socket-path /tmp/bridge info >/dev/null || fatal "the bridge is gone"
    echo "calls $1 $(calls) $(($(sleeps) - slept)) $sum $connections"
}

if [ -n "$by" ]; then
    ok "the rows of simulated disks were measured"
    exit 0
fi

if wanted serve; then
    vdpa_bind blk0 vhost_vdpa && node=$(vdpa_char blk0) || fatal "no character device"
    LINKSPAN_LOG=warn linkspan vdpa serve "$node" --socket-path /tmp/bridge &
    bridge=$!
    await 20 test -S /tmp/bridge || fatal "no bridge"
    requests 0.2 >/dev/null
    counted short 1 0.05
    counted long 100000 20
    kill $bridge
    wait $bridge
fi
vdpa_del blk0

# --- VDUSE disks of ours and of qemu-storage-daemon

image() { # FILE
    yes 'a line of the image' | head -c 67108864 >"$1"
}

if wanted vduse-1 || wanted vduse-32; then
    image /tmp/ours.img && cp /tmp/ours.img /tmp/peer.img && cp /tmp/ours.img /tmp/plain.img
    LINKSPAN_LOG=warn linkspan blk --vduse ours0 --image /tmp/ours.img --queues 1 &
    ours=$!
    # Its fast form: a thread of its own that polls, and io_uring.
    qemu-storage-daemon --object iothread,id=io,poll-max-ns=1000000 \
        --blockdev driver=file,aio=io_uring,node-name=f,filename=/tmp/peer.img \
        --export type=vduse-blk,id=e,node-name=f,name=peer0,num-queues=1,queue-size=256,writable=on,iothread=io &
    peer=$!
    # As it comes.
    qemu-storage-daemon --blockdev driver=file,node-name=f,filename=/tmp/plain.img \
        --export type=vduse-blk,id=e,node-name=f,name=plain0,num-queues=1,queue-size=256,writable=on &
    default=$!
    for name in ours0 peer0 plain0; do
        await 60 test -c /dev/vduse/$name && vdpa_add $name vduse || fatal "no device $name"
        plain_disk $name
        eval "disk_$name=$plain"
    done
    for depth in 1 32; do
        wanted "vduse-$depth" || continue
        for round in $(seq "$rounds"); do
            for who in $(rotated "$round" ours polls default); do
                case $who in
                ours) pid=$ours disk=$disk_ours0 ;;
                polls) pid=$peer disk=$disk_peer0 ;;
                default) pid=$default disk=$disk_plain0 ;;
                esac
                turn "vduse-$depth" "$who" $pid "$loop" direct "$disk" "$depth"
            done
        done
    done
    for name in ours0 peer0 plain0; do
        vdpa_del $name
    done
    kill $ours $peer $default
fi
ok "everything was measured"
