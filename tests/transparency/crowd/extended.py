"""Messages of the extended protocol, and their answers, for sessions that are played by hand."""

import struct

from harness.wire import ServerError, message, row, text

FLUSH = message(b"H")
SYNC = message(b"S")


def parse(name, sql, types=()):
    return message(b"P", text(name), text(sql), struct.pack(f"!h{len(types)}I", len(types), *types))


def bind(statement, *values, portal=""):
    """Parameters and results as text."""
    parts = [text(portal), text(statement), struct.pack("!hh", 0, len(values))]
    for value in values:
        value = str(value).encode()
        parts += [struct.pack("!i", len(value)), value]
    return message(b"B", *parts, struct.pack("!h", 0))


def describe(kind, name):
    return message(b"D", kind, text(name))


def execute(portal="", rows=0):
    return message(b"E", text(portal), struct.pack("!i", rows))


def close(kind, name):
    return message(b"C", kind, text(name))


def query(sql):
    return message(b"Q", text(sql))


class Replies:
    """What came up to a message: the tags in order, the rows among them."""

    def __init__(self):
        self.tags, self.rows = "", []

    @property
    def value(self):
        return self.rows[0][0]


def ask(client, *messages, until=b"Z", times=1):
    """Sends all in one write, reads to the message that ends the answer: as many of these as told. An error is raised."""
    client.send(b"".join(messages))
    replies, error = Replies(), None
    while times:
        try:
            tag, body = client.read()
        except ServerError as caught:
            if caught.fields.get("S") == "FATAL" or until != b"Z":
                raise
            error = caught
            continue
        if tag in b"NSA":  # may come at any time
            continue
        replies.tags += tag.decode()
        if tag == b"D":
            replies.rows.append(row(body))
        times -= tag == until
    if error:
        raise error
    return replies
