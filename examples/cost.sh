#!/bin/sh
# What links cost: the figures of docs/scale.md.
#
#   examples/cost.sh PROGRAM blk|net LINKS QUEUES SECONDS
#
# Runs a plane of so many links that wait for their guests, and prints what one of them has of
# memory, threads and descriptors, and the processor time of all of them and of their supervisor
# while nothing happens. Of disks one is then driven, with all its queues, and what that takes is
# printed as well. Everything is in a folder that goes with the script.
set -eu
[ $# -eq 5 ] || { sed -n '2,4s/^# \{0,1\}//p' "$0" >&2; exit 2; }
program=$1 kind=$2 links=$3 queues=$4 seconds=$5
folder=$(mktemp -d)
supervisor=
clean() {
    [ -z "$supervisor" ] || { kill "$supervisor" && wait "$supervisor"; } 2>/dev/null || true
    rm -rf "$folder"
}
trap clean EXIT
trap 'exit 1' INT TERM

{
    printf '[plane]\ncontrol = "%s/control.sock"\n' "$folder"
    link=0
    while [ $link -lt "$links" ]; do
        printf '[link.l%d]\ncommand = "%s"\n' $link "$kind"
        case $kind in
        blk) printf 'socket-path = "%d.sock"\nimage = "mem:64M"\nqueues = %d\n' $link "$queues" ;;
        net) printf 'port = ["vhost-user:%d.sock,queues=%d", "responder"]\n' $link "$queues" ;;
        *) echo "blk or net" >&2; exit 2 ;;
        esac
        link=$((link + 1))
    done
} >"$folder/plane.toml"

"$program" up "$folder/plane.toml" 2>"$folder/log" &
supervisor=$!
link=0
while [ $link -lt "$links" ]; do
    [ -S "$folder/$link.sock" ] && link=$((link + 1)) || sleep 0.1
    kill -0 $supervisor 2>/dev/null || { cat "$folder/log" >&2; exit 1; }
done
# Processes of links: the children of the supervisor.
pids=$(cat /proc/$supervisor/task/$supervisor/children)
first=${pids%% *}

# KiB of these processes on average, by the name of a line of smaps_rollup.
kib() {
    name=$1
    shift
    count=$#
    for pid; do cat "/proc/$pid/smaps_rollup"; done |
        awk -v name="$name:" -v count=$count '$1 == name { sum += $2 } END { printf "%d", sum / count }'
}
private() { echo $(($(kib Private_Dirty "$@") + $(kib Private_Clean "$@"))); }
# Ticks of a hundredth of a second that these processes have had.
ticks() { for pid; do cut -d ' ' -f 14,15 "/proc/$pid/stat"; done | awk '{ sum += $1 + $2 } END { print sum }'; }

# What starts has settled when a second goes by without work.
before=0 now=1
while [ "$now" -ne "$before" ]; do
    before=$now
    sleep 1
    now=$(ticks $pids)
done
begin=$now supervised=$(ticks $supervisor)
sleep "$seconds"
echo "$kind: $links links with $queues queues, idle for $seconds s"
echo "private memory of a link: $(private $pids) KiB"
echo "its share of all memory (PSS): $(kib Pss $pids) KiB"
echo "threads of a link: $(ls /proc/$first/task | wc -l), descriptors: $(ls /proc/$first/fd | wc -l)"
echo "processor time of all links: $((($(ticks $pids) - begin) * 10)) ms"
echo "supervisor: $(private $supervisor) KiB private, $((($(ticks $supervisor) - supervised) * 10)) ms"
echo "its metrics: $("$program" inspect --metrics --control "$folder/control.sock" | wc -c) bytes"

[ "$kind" = blk ] || exit 0
pid=$("$program" link list --control "$folder/control.sock" | awk '$1 == "l0" { print $3 }')
begin=$(ticks "$pid")
"$program" driver blk --socket-path "$folder/0.sock" bench --queues "$queues" --seconds "$seconds" \
    --json >"$folder/bench" &
bench=$!
sleep 1
echo "private memory of a disk that is driven: $(private "$pid") KiB"
wait $bench
used=$((($(ticks "$pid") - begin) * 10))
echo "its processor time: $used ms"
cat "$folder/bench"
