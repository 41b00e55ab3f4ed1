"""Listening sockets that several processes share, and that are given up without losing a connection.

With SO_REUSEPORT every listening socket of a port has a queue of its own, and the kernel decides with a connection's
first packet whose queue it goes to. Whatever is in the queue of a socket that is closed is reset, also by a process
that is still there to accept it: between its last `accept` and `close` a connection can be made.
(`net.ipv4.tcp_migrate_req=1` has the kernel move them to another socket, but is off by default.)
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
import sys

BACKLOG = 2048
# linux/filter.h: a program of classic BPF over the segment, which begins with the TCP header
_LOAD_BYTE, _AND, _JUMP_IF_EQUAL, _RETURN = 0x30, 0x54, 0x15, 0x06
_FLAGS_AT, _SYN, _ACK = 13, 0x02, 0x10
_NO_FIRST_PACKET = (
    (_LOAD_BYTE, 0, 0, _FLAGS_AT),
    (_AND, 0, 0, _SYN | _ACK),
    (_JUMP_IF_EQUAL, 0, 1, _SYN),
    (_RETURN, 0, 0, 0),
    (_RETURN, 0, 0, 0xFFFFFFFF),
)
_SO_ATTACH_FILTER = 26


def bound(host: str, port: int) -> socket.socket:
    """A socket bound to `host:port`, beside others of the port; it does not listen yet.

    Raises:
        OSError: the address cannot be bound.
    """
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


def refuse_new(listening: socket.socket) -> None:
    """Let no new connection begin here; those that have begun still arrive, and are to be accepted.

    A first packet is dropped as if it had been lost. The client sends it again after a second, and finds another
    socket of the port, or, once this one is closed, a refusal.
    """
    if sys.platform != "linux":
        return
    code = b"".join(struct.pack("HBBI", *step) for step in _NO_FIRST_PACKET)
    kept = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HP", len(_NO_FIRST_PACKET), ctypes.addressof(kept))
    with contextlib.suppress(OSError):  # a kernel without it resets what is queued at the close
        listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
