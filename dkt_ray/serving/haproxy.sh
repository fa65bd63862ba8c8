#!/bin/sh
# HAProxy as Serve starts it, without the ports that nobody asked for; RAY_SERVE_HAPROXY_BINARY_PATH names this file.
#
# Serve 2.60 writes a configuration with a page of statistics and one of metrics on all interfaces, open to everybody, and
# an admin socket for all users. This takes the pages out, closes the socket, and refuses to start when any other port is
# left open. It also leaves 502 to 504 as they are (Serve makes them 500), says 503 where no route is known yet (Serve: 404),
# and has a request read whole before it is passed on: only then can it be sent to another replica when the first one
# dies. Of Serve's two logs, the one to the machine's syslog goes, and the one that Serve counts requests by loses the
# request line: both would hold ids of users. DKT_HAPROXY is the real program.
set -eu
umask 077
config=
previous=
for argument in "$@"; do
  [ "$previous" = -f ] && config=$argument
  previous=$argument
done
awk '
  /^[a-z]/ { section = $2; closed = /^(frontend prometheus|listen stats)/ }
  closed || /^ *errorfile 50[234] / { next }
  $1 == "log" && $2 != "global" && $2 !~ /^\// { next }
  section != "http_frontend" && /^ *bind / && !/^ *bind +127\.0\.0\.1:/ {
    print FILENAME ": " section " listens off loopback (" $0 "); this is for Ray 2.60 only" > "/dev/stderr"
    exit 1
  }
  { sub(/ mode 666 /, " mode 600 "); sub(/return status 404 .*/, "return status 503"); sub(/option httplog/, "log-format %ST"); print }
  /^defaults/ { print "    option http-buffer-request\n    timeout http-request 30s" }
' "$config" > "$config.closed"
cat "$config.closed" > "$config"
exec "$DKT_HAPROXY" "$@"
