"""A stand-in for a network camera: one client at a time, RTSP with the pictures in the same connection."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

MPEG_TS = 33  # its RTP payload type
PACKETS = 7 * 188  # bytes of it in one RTP packet


@contextmanager
def camera(stream: bytes, *, packets_per_s: float = 2000, hangs: bool = False) -> Iterator[int]:
    """The port where it shows a stream (MPEG-TS), from the beginning for each client.

    At its end it hangs up, or if it `hangs` says nothing any more.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        done = threading.Event()

        def serve() -> None:
            while True:
                try:
                    client, _ = server.accept()
                except OSError:  # closed
                    return
                with client, suppress(OSError):
                    talk(client)
                    for packet in packets(stream):
                        client.sendall(packet)
                        time.sleep(1 / packets_per_s)
                    if hangs:
                        done.wait()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            done.set()
            server.shutdown(socket.SHUT_RDWR)
            server.close()
            thread.join(10)


def talk(client: socket.socket) -> None:
    """Answers what a player asks, until it wants to see."""
    with client.makefile("rb") as asked:
        while True:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                line = asked.readline()
                if not line:
                    raise ConnectionError
                head += line
            method = head.split()[0]
            number = re.search(rb"CSeq: *(\d+)", head, re.IGNORECASE)
            assert number is not None
            fields, body = [b"CSeq: " + number[1]], b""
            if method == b"OPTIONS":
                fields.append(b"Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN")
            if method == b"DESCRIBE":
                body = b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\n"
                body += b"m=video 0 RTP/AVP %d\r\na=control:track\r\n" % MPEG_TS
                fields += [b"Content-Type: application/sdp", b"Content-Length: %d" % len(body)]
            if method == b"SETUP":
                fields.append(b"Transport: RTP/AVP/TCP;unicast;interleaved=0-1")
            if method in (b"SETUP", b"PLAY"):
                fields.append(b"Session: 1")
            client.sendall(b"\r\n".join([b"RTSP/1.0 200 OK", *fields, b"", body]))
            if method == b"PLAY":
                return


def packets(stream: bytes) -> Iterator[bytes]:
    """RTP packets, each in a frame of the connection's first channel."""
    for number, start in enumerate(range(0, len(stream), PACKETS)):
        payload = stream[start : start + PACKETS]
        head = bytes([0x80, MPEG_TS]) + (number & 0xFFFF).to_bytes(2) + bytes(4) + b"cam1"
        packet = head + payload
        yield b"$\0" + len(packet).to_bytes(2) + packet
