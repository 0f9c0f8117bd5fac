#!/bin/busybox sh
# The first process of the emulated machine: a trial, then a worker that is asked once. Everything that
# the test reads goes to the console, in lines that begin with "arm:".
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs dev /dev
exec >/dev/console 2>&1
$b ip link set lo up
say() { echo "arm: $*"; }

say kernel "$($b uname -r) $($b uname -m)"
say trial "$(/bin/dunlin-agent infer --trial /models/1)"

/bin/dunlin-agent infer --socket /run/infer.sock --listen 127.0.0.1:8600 --models /models \
    --memory-limit-bytes 268435456 </run/orders >/run/words &
worker=$!
exec 3>/run/orders 4</run/words
while read -r word <&4; do
    case $word in
        *listening*)
            say worker "$word"
            say status $($b grep -E '^(NoNewPrivs|Seccomp):' /proc/$worker/status)
            $b cat /models/order >&3
            ;;
        *activated*)
            # Its input stays open until the worker has answered and closed the connection.
            exec 5<>/run/request
            $b cat /models/request >&5
            $b nc 127.0.0.1 8600 <&5 >/run/answer
            # The body, which has no end of line.
            while read -r line || [ -n "$line" ]; do last=$line; done </run/answer
            say answer "$last"
            exec 3>&-
            ;;
        *activate_failed*) say failed "$word" ;;
        *drained*)
            wait $worker
            say ended $?
            break
            ;;
    esac
done
$b poweroff -f
