"""The sockets that the root binds before anything else starts."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.server import free_port
from tidegate.server.listening import listen, port_of, url_of
from tidegate.server.refusal import StartRefused


@contextmanager
def listening(host: str, port: int, *, patience_s: float = 0) -> Iterator[list[socket.socket]]:
    listeners = listen(host, port, patience_s=patience_s)
    try:
        yield listeners
    finally:
        for listener in listeners:
            listener.close()


def has_ipv6() -> bool:
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            return False
    return True


def test_port_0_takes_a_free_one_and_a_client_is_queued_at_once() -> None:
    with listening("127.0.0.1", 0) as listeners:
        assert port_of(listeners) > 0
        assert url_of(listeners) == f"http://127.0.0.1:{port_of(listeners)}"
        socket.create_connection(("127.0.0.1", port_of(listeners)), timeout=5).close()


def test_a_name_of_several_addresses_is_one_port() -> None:
    with listening("localhost", 0) as listeners:
        assert len({listener.getsockname()[1] for listener in listeners}) == 1
        assert all(listener.getsockname()[0] in ("127.0.0.1", "::1") for listener in listeners)


def test_a_wildcard_is_reached_by_loopback() -> None:
    with listening("0.0.0.0", 0) as listeners:
        assert url_of(listeners) == f"http://127.0.0.1:{port_of(listeners)}"


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_ipv6_is_written_in_brackets() -> None:
    with listening("::1", 0) as listeners:
        assert url_of(listeners) == f"http://[::1]:{port_of(listeners)}"


def test_a_port_in_use_is_refused_and_nothing_stays_open() -> None:
    with listening("127.0.0.1", 0) as listeners, pytest.raises(StartRefused, match="is in use"):
        listen("127.0.0.1", port_of(listeners))


def test_patience_outlasts_a_dying_server() -> None:
    port = free_port()
    dying = socket.create_server(("127.0.0.1", port))
    timer = threading.Timer(0.2, dying.close)
    timer.start()
    try:
        with listening("127.0.0.1", port, patience_s=30) as listeners:
            assert port_of(listeners) == port
    finally:
        timer.join()


def test_a_host_without_an_address_is_refused() -> None:
    with pytest.raises(StartRefused, match="TIDEGATE_SERVER__HOST"):
        listen("no such host", 0)
