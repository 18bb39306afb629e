# What `cargo xtask bench smb` runs in the lab: ksmbd has SMB Direct and TCP without a relay, over the
# same cable. The kernel's command line gives rounds, seconds, a part of rows' names, and two
# programs. Lines:
#   turn ROW WHO TICKS JSON     one turn; TICKS of 10 ms are those of all processors of the guest
#: about figures: SMB Direct and TCP to ksmbd, and a disk on its share
#: pack linkspan ip rdma ksmbd mount.cifs
#: memory 768
#: limit 460
. /lab/functions.sh

rounds=${bench_rounds:-3} seconds=${bench_seconds:-1} only=$bench_only
stream=$bench_stream loop=$bench_loop
server=10.9.0.1 socket=/tmp/disk.sock

# The shell has one of its own, which does not know of network namespaces.
ip() {
    /usr/bin/ip "$@"
}

wanted() { # ROW
    case $1 in
    *"$only"*) return 0 ;;
    *) return 1 ;;
    esac
}

# As tests of the lab have it: siw at both ends of a cable between two network namespaces.
cable() {
    ip netns add peer
    # siw makes a frame of at most a packet, in software; cards that do RDMA do not send packets of
    # 1,500 bytes by the processor, nor does TCP here, which sends 64 KiB as one.
    ip link add vkernel mtu 65535 type veth peer name vpeer netns peer mtu 65535
    ip addr add $server/24 dev vkernel
    ip link set vkernel up
    ip -n peer addr add 10.9.0.2/24 dev vpeer
    ip -n peer link set vpeer up
    rdma link add siw0 type siw netdev vkernel
    ip netns exec peer rdma link add siw1 type siw netdev vpeer
}

serve() {
    mkdir -p /etc/ksmbd /run/lock /tmp/share /tmp/mnt
    cat >/etc/ksmbd/ksmbd.conf <<'END'
[global]
guest account = root
map to guest = bad user
[share]
path = /tmp/share
guest ok = yes
read only = no
END
    ksmbd.mountd && await 30 sh -c 'rdma resource show cm_id | grep LISTEN | grep -q :5445'
}

there() { # COMMAND...
    ip netns exec peer "$@"
}

busy() {
    awk '/^cpu / { print $2 + $3 + $4 + $7 + $8 }' /proc/stat
}

turn() { # ROW WHO COMMAND...
    turn_row=$1 turn_who=$2
    shift 2
    turn_before=$(busy)
    turn_said=$("$@") || fatal "$*"
    turn_after=$(busy)
    echo "turn $turn_row $turn_who $((turn_after - turn_before)) $(echo "$turn_said" | tr -d '\n')"
}

stream_turn() { # WAY WHO
    case $2 in
    rdma) port=5445 ;;
    tcp) port=445 ;;
    esac
    turn "$1" "$2" there "$stream" "$1" "$2" "$server:$port" share file "$seconds"
}

# A disk of ours, under our driver.
ours() { # TRANSPORT PORT
    rm -f $socket
    # Not by `there`: a function in the background is a shell of its own, and would be killed alone.
    /usr/bin/ip netns exec peer linkspan blk --socket-path $socket --transport "$1" \
        --image "smb://$server:$2/share/disk.img" >/tmp/blk.log 2>&1 &
    blk=$!
    await 20 test -S $socket || fatal "no disk: $(cat /tmp/blk.log)"
    turn disk "ours-$1" linkspan driver blk --socket-path $socket bench --op randread --json --depth 32 --seconds "$seconds"
    kill $blk
    wait $blk || fatal "the disk ended badly: $(cat /tmp/blk.log)"
}

# The kernel's mount, under a loop of O_DIRECT; in one shell, since its mounts are its own. By TCP
# alone: for RDMA the kernel's client is in its first network always, as its server is, and
# neither finds itself there.
kernel() { # TRANSPORT OPTIONS
    # shellcheck disable=SC2016
    turn disk "kernel-$1" there sh -c '
        mount.cifs "//$0/share" /tmp/mnt -o "guest,vers=3.0,cache=none,$1" >&2 || exit 1
        "$2" direct /tmp/mnt/disk.img 32 "$3"
        status=$?
        umount /tmp/mnt
        exit $status' "$server" "$2" "$loop" "$seconds"
}

cable || fatal "no cable"
serve || fatal "no server"
dd if=/dev/zero of=/tmp/share/file bs=1M count=32 2>/dev/null
dd if=/dev/zero of=/tmp/share/disk.img bs=1M count=32 2>/dev/null

for way in read write; do
    wanted "ksmbd-$way" || continue
    for round in $(seq "$rounds"); do
        # Each begins as often as the other.
        order="rdma tcp"
        [ $((round % 2)) = 0 ] && order="tcp rdma"
        for who in $order; do
            stream_turn $way "$who"
        done
    done
done
if wanted ksmbd-disk; then
    for round in $(seq "$rounds"); do
        ours rdma 5445
        kernel tcp port=445
        ours tcp 445
    done
fi
ok "all turns were taken"
