#!/bin/sh
# The guest's first process, which makes ready and becomes busybox's init; and, as `/init console`, what that starts: a
# shell on the console, whose end is the guest's.
if [ "$1" = console ]; then
    echo
    echo "unum: Linux $(uname -r) with $(nproc) processors is up; 'poweroff' ends it"
    cd /root
    # A session of its own with the console as its terminal: job control and Ctrl-C work.
    setsid cttyhack sh
    exec poweroff
fi
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=linux PS1='\w # '
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
hostname unum
for module in /modules/*.ko; do
    [ -e "$module" ] && insmod "$module"
done
echo '::once:/init console' > /etc/inittab
exec /sbin/init
