"""Clients that do nothing cost next to nothing."""

from harness import Postgres, Proxy
from harness.observe import timed
from harness.wire import Client

CLIENTS = 5_000
BACKENDS_MAX = 20
SAMPLE = 100
BYTES_A_CLIENT_MAX = 12 * 1024


def log_in(proxy, count, clients):
    for _ in range(count):
        clients.append(Client(proxy))


def open_all_backends(proxy):
    """As many transactions at once as there may be backends, so that these do not count as growth later."""
    clients = []
    try:
        log_in(proxy, BACKENDS_MAX, clients)
        for client in clients:
            client.query("begin")
        for client in clients:
            client.query("commit")
    finally:
        for client in clients:
            client.close()


def test_five_thousand_idle_clients(say):
    """5,000 clients logged in and idle: at most 12 KB each, and each of them is served when it asks."""
    pool = {"max_connections": BACKENDS_MAX, "max_idle_connections_percent": 100}
    with Postgres() as postgres, Proxy(postgres, log="warn", pool=pool) as proxy:
        clients = []
        try:
            open_all_backends(proxy)
            before = proxy.rss_kb()
            _, took = timed(lambda: log_in(proxy, CLIENTS, clients))
            each = (proxy.rss_kb() - before) * 1024 / CLIENTS
            say(f"{CLIENTS} logins in {took:.1f} s; {each:.0f} bytes of resident memory for each idle client")
            assert proxy.metric("pgsluice_client_connections") == CLIENTS
            for number, client in enumerate(clients[::CLIENTS // SAMPLE]):
                assert client.value(f"select {number}") == str(number)
            assert proxy.metric("pgsluice_database_connections") <= BACKENDS_MAX
            assert proxy.metric("pgsluice_client_connections") == CLIENTS
            after = (proxy.rss_kb() - before) * 1024 / CLIENTS
            say(f"{after:.0f} bytes after {SAMPLE} of them ran a statement")
            assert max(each, after) <= BYTES_A_CLIENT_MAX, f"{each:.0f} bytes for each idle client"
        finally:
            for client in clients:
                client.close()
