#!/bin/bash
# Usage: boot.sh ROOT WORK CGROUP
#
# Boots systemd on the Debian in ROOT. It is process 1 of new mount, pid, network, IPC and
# UTS namespaces, see machine_linux.go. WORK is an empty directory outside, CGROUP the name of
# a new cgroup. RRD and RRDCTL are the programs under test, UNITS is the directory of the units.
#
# Nothing of the machine outside can be changed from inside:
# - What is written goes to a tmpfs over ROOT and ends with the namespace.
# - The device nodes are the guest's own. A bind mount of the machine's /dev/null would let
#   systemd change its mode outside.
# - /proc/sys is read-only, since fs.* and others are not namespaced, and so is /sys.
set -euo pipefail
root=$1 work=$2 cgroup=$3

mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$work"
mkdir "$work"/{upper,work,root,cgroup}
mount -t cgroup2 cgroup2 "$work/cgroup"
mkdir "$work/cgroup/$cgroup"
echo 0 >"$work/cgroup/$cgroup/cgroup.procs" # this process
mount -t overlay -o "lowerdir=$root,upperdir=$work/upper,workdir=$work/work" overlay "$work/root"
cd "$work/root"

mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs run
mount -t tmpfs -o nosuid,nodev tmpfs tmp
mount -t tmpfs -o mode=755,nosuid tmpfs dev
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
mount -t tmpfs tmpfs dev/shm
umask 0
for node in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0; do
	IFS=: read -r name major minor <<<"$node"
	mknod -m 666 "dev/$name" c "$major" "$minor"
done
umask 022
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
: >etc/machine-id # systemd makes one

# The programs and units under test, as an installation puts them there.
install -m 755 "$RRD" usr/bin/rrd
install -m 755 "$RRDCTL" usr/bin/rrdctl
install -m 644 "$UNITS/rrd.service" "$UNITS/rrd.socket" etc/systemd/system/

exec unshare --cgroup bash -euc '
	mount -t cgroup2 cgroup2 sys/fs/cgroup
	pivot_root . mnt
	cd /
	umount -l mnt
	drop=-sys_time,-sys_module,-sys_rawio,-syslog,-sys_boot
	exec env -i container=rrd PATH=/usr/sbin:/usr/bin:/sbin:/bin \
		setpriv --bounding-set "$drop" --inh-caps "$drop" /lib/systemd/systemd --log-target=journal --show-status=no'
