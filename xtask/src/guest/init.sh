#!/bin/sh
# The guest's first process: a shell on the console, whose end is the guest's.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=linux PS1='\w # '
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
hostname unum
# What the programs poweroff, halt and reboot ask the first process for.
trap 'poweroff -f' USR2
trap 'halt -f' USR1
trap 'reboot -f' TERM
echo
echo "unum: Linux $(uname -r) with $(nproc) processors is up; 'poweroff' ends it"
cd /root
setsid cttyhack sh &
wait $!
poweroff -f
