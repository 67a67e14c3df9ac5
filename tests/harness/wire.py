"""A small client of the PostgreSQL protocol, for what libpq cannot do: be slow, be many, or stop halfway.

It reads and writes raw messages, logs in with SCRAM-SHA-256, and holds nothing it was not asked to hold. Message
formats: https://www.postgresql.org/docs/current/protocol-message-formats.html
"""

import base64
import contextlib
import functools
import hashlib
import hmac
import os
import socket
import struct

from . import DATABASE, PASSWORD, ROLE

PROTOCOL_3_0 = 196608
SSL_REQUEST = struct.pack("!ii", 8, 80877103)
BUFFER_BYTES = 1 << 18
TIMEOUT_S = 120


class ServerError(Exception):
    """An ErrorResponse: its fields by their letter."""

    def __init__(self, fields):
        self.fields = fields
        super().__init__(f"{fields.get('S')} {fields.get('C')}: {fields.get('M')}")

    @property
    def sqlstate(self):
        return self.fields.get("C")


def message(tag, *parts):
    """A message of the client's."""
    return tag + struct.pack("!i", 4 + sum(map(len, parts))) + b"".join(parts)


def text(string):
    return string.encode() + b"\0"


def startup_packet(role=ROLE, database=DATABASE, **parameters):
    body = struct.pack("!i", PROTOCOL_3_0)
    for key, value in {"user": role, "database": database, **parameters}.items():
        body += text(key) + text(value)
    body += b"\0"
    return struct.pack("!i", 4 + len(body)) + body


@functools.lru_cache(maxsize=64)
def salted_password(password, salt, iterations):
    """The slow part of SCRAM; the same for every login of a role, whose salt stays."""
    return hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)


def scram_proof(password, first_bare, server_first):
    """The client's last message and the signature to expect of the server (RFC 5802)."""
    fields = dict(part.split("=", 1) for part in server_first.split(","))
    salted = salted_password(password, base64.b64decode(fields["s"]), int(fields["i"]))

    def sign(key, what):
        return hmac.digest(key, what, "sha256")

    client_key = sign(salted, b"Client Key")
    without_proof = f"c=biws,r={fields['r']}"
    signed = f"{first_bare},{server_first},{without_proof}".encode()
    signature = sign(hashlib.sha256(client_key).digest(), signed)
    proof = base64.b64encode(bytes(a ^ b for a, b in zip(client_key, signature))).decode()
    expected = base64.b64encode(sign(sign(salted, b"Server Key"), signed)).decode()
    return f"{without_proof},p={proof}", f"v={expected}"


class Client:
    """A connection that is logged in."""

    def __init__(self, server, role=ROLE, password=PASSWORD, database=DATABASE, timeout=TIMEOUT_S, **parameters):
        self.socket = socket.create_connection((server.host, server.port), timeout=timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.pending = bytearray()
        self.pid = None
        try:
            self.send(startup_packet(role, database, **parameters))
            self._log_in(password)
        except BaseException:
            self.socket.close()
            raise

    def _log_in(self, password):
        first_bare = expected = None
        while True:
            tag, body = self.read()
            if tag == b"R":
                kind = struct.unpack_from("!i", body)[0]
                if kind == 10:  # AuthenticationSASL
                    first_bare = "n=,r=" + base64.b64encode(os.urandom(18)).decode()
                    first = ("n,," + first_bare).encode()
                    self.send(message(b"p", text("SCRAM-SHA-256"), struct.pack("!i", len(first)), first))
                elif kind == 11:  # AuthenticationSASLContinue
                    last, expected = scram_proof(password, first_bare, body[4:].decode())
                    self.send(message(b"p", last.encode()))
                elif kind == 12 and body[4:].decode() != expected:  # AuthenticationSASLFinal
                    raise ConnectionError("the server does not know the password")
                elif kind not in (0, 12):
                    raise ConnectionError(f"authentication {kind} is not supported here")
            elif tag == b"K":
                self.pid = struct.unpack_from("!i", body)[0]
            elif tag == b"Z":
                return

    def send(self, *parts):
        for part in parts:
            self.socket.sendall(part)

    def read(self):
        """The next message, as its tag and body. An error is raised."""
        while len(self.pending) < 5 or len(self.pending) < 1 + struct.unpack_from("!i", self.pending, 1)[0]:
            self._fill()
        end = 1 + struct.unpack_from("!i", self.pending, 1)[0]
        tag, body = bytes(self.pending[:1]), bytes(self.pending[5:end])
        del self.pending[:end]
        if tag == b"E":
            raise ServerError({field[:1].decode(): field[1:].decode() for field in body.split(b"\0") if field})
        return tag, body

    def read_until(self, wanted):
        """Reads on to the next message of that tag; returns its body."""
        while True:
            tag, body = self.read()
            if tag == wanted:
                return body

    def _fill(self):
        got = self.socket.recv(BUFFER_BYTES)
        if not got:
            raise ConnectionError("the server closed the connection")
        self.pending += got

    def query(self, sql):
        """Runs SQL by the simple protocol; returns rows of text."""
        self.send(message(b"Q", text(sql)))
        rows, error = [], None
        while True:
            try:
                tag, body = self.read()
            except ServerError as caught:
                if caught.fields.get("S") == "FATAL":
                    raise
                error = caught
                continue
            if tag == b"D":
                rows.append(row(body))
            elif tag == b"Z":
                if error:
                    raise error
                return rows

    def value(self, sql):
        return self.query(sql)[0][0]

    def skim(self, pause=lambda total: None):
        """Reads a long answer without keeping it: to ReadyForQuery, in constant memory.

        Returns messages and body bytes by tag. `pause` is called with the bytes so far before every read.
        """
        counts, sizes, total = {}, {}, 0
        buffer = bytearray(BUFFER_BYTES)
        held = bytes(self.pending)
        self.pending.clear()
        left = 0  # of the body of the message we are in
        while True:
            view, position = memoryview(held), 0
            while position < len(view):
                if left:
                    step = min(left, len(view) - position)
                    position, left = position + step, left - step
                    continue
                if len(view) - position < 5:
                    break
                tag, length = struct.unpack_from("!ci", view, position)
                counts[tag] = counts.get(tag, 0) + 1
                sizes[tag] = sizes.get(tag, 0) + length - 4
                if tag == b"E":
                    raise ServerError({"M": bytes(view[position + 5:position + 500]).decode(errors="replace")})
                position, left = position + 5, length - 4
                if tag == b"Z":
                    return counts, sizes
            rest = held[position:]
            pause(total)
            got = self.socket.recv_into(buffer)
            if not got:
                raise ConnectionError("the server closed the connection")
            total += got
            held = rest + bytes(memoryview(buffer)[:got])

    def close(self):
        with contextlib.suppress(OSError):
            self.send(message(b"X"))
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def row(body):
    """The columns of a DataRow, as text or None."""
    columns, at = [], 2
    for _ in range(struct.unpack_from("!h", body)[0]):
        length = struct.unpack_from("!i", body, at)[0]
        at += 4
        if length < 0:
            columns.append(None)
            continue
        columns.append(body[at:at + length].decode())
        at += length
    return columns
