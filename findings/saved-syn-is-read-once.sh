#!/usr/bin/env bash
# TCP_SAVED_SYN returns the SYN of a connection once; later calls succeed with no bytes, and one with a small buffer fails.
# Needs python3.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/finding.py" <<'PYTHON'
import errno
import socket

TCP_SAVE_SYN, TCP_SAVED_SYN = 27, 28  # include/uapi/linux/tcp.h
listener = socket.create_server(("127.0.0.1", 0))
listener.setsockopt(socket.IPPROTO_TCP, TCP_SAVE_SYN, 1)
client = socket.create_connection(listener.getsockname())
server, _ = listener.accept()


def saved(size):
    try:
        return len(server.getsockopt(socket.IPPROTO_TCP, TCP_SAVED_SYN, size))
    except OSError as error:
        return errno.errorcode[error.errno]


small, first, second = saved(10), saved(500), saved(500)
assert first >= 40, first
print("with 10 bytes: %s, with 500 bytes: the SYN, again: %s bytes" % (small, second))
PYTHON
seen=$(python3 "$work/finding.py")
uname -sr
echo "Reading the SYN frees it, and nothing distinguishes that from a connection without a saved SYN; too small a buffer keeps it."
echo "seen: $seen"
[ "$seen" = "with 10 bytes: EINVAL, with 500 bytes: the SYN, again: 0 bytes" ]
