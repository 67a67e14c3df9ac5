"""Strangers are cheap: who does not log in costs a few KB, no database connection, and nobody else's time."""

import contextlib
import itertools
import socket
import time

from harness import Postgres, Proxy, wait_until
from harness.observe import timed
from harness.wire import SSL_REQUEST, TIMEOUT_S, Client, startup_packet

STRANGERS = 5_000
BYTES_A_STRANGER_MAX = 6 * 1024
LOGIN_S_MAX = 1.0
LOGIN_TIMEOUT_S = 12
GONE_WITHIN_S = 30

SILENT = b""
HALF_A_STARTUP = startup_packet(application_name="half " * 20)[:40]
UNPROVEN = startup_packet()  # is asked for a password and never answers


def approach(proxy, count, words):
    """Opens `count` connections that say in turn one of `words`, and no more."""
    strangers = []
    for saying, _ in zip(itertools.cycle(words), range(count)):
        stranger = socket.create_connection((proxy.host, proxy.port), timeout=TIMEOUT_S)
        strangers.append(stranger)
        stranger.sendall(saying)
        if saying in (SSL_REQUEST, UNPROVEN):
            assert stranger.recv(1)  # it has come this far
    return strangers


def check_sent_away(crowd):
    """The proxy closes every one of them, told why or not."""
    deadline = time.monotonic() + GONE_WITHIN_S
    for stranger in crowd:
        stranger.settimeout(max(0.01, deadline - time.monotonic()))
        while stranger.recv(4096):
            pass


def timed_out(proxy):
    return proxy.metric("pgsluice_client_connections_setup_total", result="failed_timeout")


def log_in(proxy):
    with Client(proxy) as client:
        return client.value("select 1")


def check_strangers(say, words, tls):
    settings = {"listen": {"login_timeout": LOGIN_TIMEOUT_S}, "pool": {"max_connections": 4}}
    with Postgres() as postgres, Proxy(postgres, tls=tls, log="error", **settings) as proxy, \
            contextlib.ExitStack() as strangers:
        log_in(proxy)
        backends = proxy.metric("pgsluice_database_connections")
        before = proxy.rss_kb()
        (crowd, took) = timed(lambda: approach(proxy, STRANGERS, words))
        for stranger in crowd:
            strangers.callback(stranger.close)
        each = (proxy.rss_kb() - before) * 1024 / STRANGERS
        _, waited = timed(lambda: log_in(proxy))
        say(f"{STRANGERS} in {took:.1f} s, {each:.0f} bytes of resident memory each;"
            f" a real login and a statement took {waited * 1000:.0f} ms")
        assert took < LOGIN_TIMEOUT_S, "the first had to leave before the last came: nothing is shown"
        assert each <= BYTES_A_STRANGER_MAX, f"{each:.0f} bytes for each stranger"
        assert waited <= LOGIN_S_MAX, f"the next login took {waited:.1f} s"
        assert proxy.metric("pgsluice_database_connections") == backends
        check_sent_away(crowd)
        wait_until(lambda: timed_out(proxy) == STRANGERS, "every stranger counts as timed out", GONE_WITHIN_S)
        assert log_in(proxy) == "1"


def test_strangers_who_say_nothing_or_half(say):
    """5,000 connections that stay silent, stop halfway through the startup packet, or never prove who they are."""
    check_strangers(say, (SILENT, HALF_A_STARTUP, UNPROVEN), tls=False)


def test_strangers_who_ask_for_tls(say):
    """5,000 connections that ask for TLS, are told to go ahead, and do not."""
    check_strangers(say, (SSL_REQUEST, ), tls=True)
