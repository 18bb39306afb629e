#!/lab/busybox sh
# The first process of a lab guest. It runs /lab/run, whose output goes to the
# port "report", line by line; the last line is "lab end STATUS". With "lab.shell"
# on the kernel's command line a person gets a shell instead.

/lab/busybox mkdir -p /bb
/lab/busybox --install -s /bb
# What was packed comes before busybox.
export PATH=/usr/sbin:/usr/bin:/bb
export HOME=/root TERM=linux TMPDIR=/tmp
# Tests see by this that they are in the lab.
export LINKSPAN_LAB=1 RUST_BACKTRACE=1

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm /dev/hugepages
mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t hugetlbfs hugetlbfs /dev/hugepages
mount -t debugfs debugfs /sys/kernel/debug
mount -t tracefs tracefs /sys/kernel/tracing
mount -t configfs configfs /sys/kernel/config
mount -t securityfs securityfs /sys/kernel/security
ln -sf /proc/self/fd /dev/fd
ln -sf /proc/mounts /etc/mtab
ip link set lo up
hostname lab
cd /root

if grep -qw lab.shell /proc/cmdline; then
    cat <<TEXT

  Linux $(uname -r), the lab. Helpers: . /lab/functions.sh
  What would run here: sh /lab/run
  Leave: poweroff -f   (or Ctrl-A, then X)

TEXT
    setsid cttyhack sh
    poweroff -f
fi

# The port has its name as soon as the other side has told it.
find_report() {
    for port in /sys/class/virtio-ports/*; do
        if [ "$(cat "$port/name" 2>/dev/null)" = report ]; then
            report=/dev/${port##*/}
            return 0
        fi
    done
    return 1
}
tries=0
until find_report; do
    tries=$((tries + 1))
    if [ $tries -gt 1000 ]; then
        echo "lab: there is no port for reports"
        poweroff -f
    fi
    usleep 10000
done

# One process has the port; whatever outlives the script cannot keep it.
mkfifo /run/report
cat /run/report >"$report" &
exec 3<>/run/report
sh /lab/run >/run/report 2>&1 3>&- </dev/null
printf '\nlab end %s\n' $? >&3
# The other side ends us.
sleep 60
poweroff -f
