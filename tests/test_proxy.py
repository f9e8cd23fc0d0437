"""The proxy makes the trouble that the tests of the stores rely on, and ends it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.proxy import GREETINGS, WRONG_TYPES, RedisProxy
from tests.servers import Certificate, RedisServer

# For what must come, however slow the machine is; and for what must not.
PATIENT = 20.0
SHORT = 0.05


class Raw:
    """A client that sends words and reads bytes."""

    def __init__(self, proxy: RedisProxy) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(PATIENT)
        # Small, so that what is not read stays with the proxy's kernel, which a reset makes forget it.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        try:
            self.socket.connect(("127.0.0.1", proxy.port))
        except OSError:
            self.socket.close()
            raise

    def send(self, *commands: str) -> None:
        """Send commands, words apart by spaces, in one write."""
        self.socket.sendall(b"".join(map(packed, commands)))

    def read(self, size: int) -> bytes:
        data = b""
        while len(data) < size and (more := self.socket.recv(size - len(data))):
            data += more
        return data

    def ask(self, *commands: str, size: int) -> bytes:
        self.send(*commands)
        return self.read(size)

    def is_silent(self) -> bool:
        self.socket.settimeout(SHORT)
        try:
            self.socket.recv(1)
        except TimeoutError:
            return True
        finally:
            self.socket.settimeout(PATIENT)
        return False


def packed(command: str) -> bytes:
    words = command.encode().split()
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


@pytest.fixture
def connect(proxy: RedisProxy) -> Iterator[Callable[[], Raw]]:
    with contextlib.ExitStack() as stack:

        def connect() -> Raw:
            raw = Raw(proxy)
            stack.enter_context(raw.socket)
            return raw

        yield connect


@pytest.fixture
def raw(connect: Callable[[], Raw]) -> Raw:
    return connect()


@pytest.fixture
def client(proxy: RedisProxy) -> Iterator[redis.Redis]:
    with redis.Redis(port=proxy.port, protocol=2, retry=Retry(NoBackoff(), 0), socket_timeout=PATIENT) as client:
        yield client


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_healthy_proxy_is_not_noticed(client: redis.Redis, proxy: RedisProxy) -> None:
    value = bytes(range(256)) * 8192
    assert client.set("key", value) is True
    assert client.get("key") == value
    pipeline = client.pipeline(transaction=True)
    for number in range(500):
        pipeline.set(f"key{number}", number).mget("absent", f"key{number}")
    assert pipeline.execute()[1::2] == [[None, b"%d" % number] for number in range(500)]
    assert client.xadd("log", {"a": "b"}, id="1-1") == b"1-1"
    assert client.xread({"log": 0}) == [[b"log", [(b"1-1", {b"a": b"b"})]]]


def test_resp3_passes_too(proxy: RedisProxy) -> None:
    with redis.Redis(port=proxy.port, protocol=3) as client:
        client.hset("hash", mapping={"a": "1"})
        client.sadd("set", "b")
        assert client.hgetall("hash") == {b"a": b"1"}
        assert client.smembers("set") == {b"b"}
        subscriber = client.pubsub()
        subscriber.subscribe("news")
        assert subscriber.get_message(timeout=PATIENT)
        client.publish("news", "now")
        message = subscriber.get_message(timeout=PATIENT)
        assert message is not None
        assert message["data"] == b"now"
        subscriber.close()


def test_commands_and_connections_are_counted_and_bounded(proxy: RedisProxy, connect: Callable[[], Raw]) -> None:
    first, second = connect(), connect()
    first.ask("SET a " + "v" * 5000, size=5)
    second.ask("get a", size=7)
    assert proxy.commands == [(b"SET", b"a", b"v" * 4096), (b"get", b"a")]
    assert proxy.count("GET") == 1
    assert proxy.connections == proxy.open_connections == 2
    first.socket.close()
    eventually(lambda: proxy.open_connections == 1)
    assert proxy.connections == 2
    proxy.forget()
    assert proxy.commands == []
    assert proxy.connections == 0


def test_delayed_replies_are_late_together(proxy: RedisProxy, raw: Raw) -> None:
    proxy.delay(0.2)
    start = time.monotonic()
    assert raw.ask(*["PING"] * 50, size=350) == b"+PONG\r\n" * 50
    # 50 delays in turn would be 10 s.
    assert 0.2 <= time.monotonic() - start < 5


def test_delay_ends_when_it_is_healed(proxy: RedisProxy, raw: Raw) -> None:
    proxy.delay(1000)
    raw.send("PING")
    eventually(lambda: proxy.count("PING") == 1)
    assert raw.is_silent()
    proxy.heal()
    assert raw.read(7) == b"+PONG\r\n"


def test_held_reply_comes_when_it_is_healed_and_the_server_had_the_command(
    proxy: RedisProxy, raw: Raw, redis_server: RedisServer
) -> None:
    proxy.hold(only=("SET",))
    raw.send("SET a 1", "GET a")
    eventually(lambda: redis_server.command("EXISTS", "a") == "1")
    assert raw.is_silent()
    proxy.heal()
    assert raw.read(12) == b"+OK\r\n$1\r\n1\r\n"


def test_black_hole_accepts_and_never_answers(proxy: RedisProxy, raw: Raw, connect: Callable[[], Raw]) -> None:
    unused = connect()
    assert raw.ask("PING", size=7) == b"+PONG\r\n"
    proxy.black_hole()
    raw.send("SET a 1")
    connect().send("SET a 1")
    eventually(lambda: proxy.count("SET") == 2)
    assert raw.is_silent()
    proxy.heal()
    # What was swallowed is silent for ever, the others never noticed.
    raw.send("PING")
    assert unused.ask("EXISTS a", size=4) == b":0\r\n"
    assert raw.is_silent()


def test_black_hole_is_for_ever_behind_a_reply_that_was_held(proxy: RedisProxy, raw: Raw) -> None:
    proxy.hold(only=("GET",))
    proxy.black_hole(only=("SET",))
    raw.send("GET a", "SET a 1", "PING")
    eventually(lambda: proxy.count("PING") == 1)
    proxy.heal()
    assert raw.read(5) == b"$-1\r\n"
    assert raw.is_silent()


def test_black_hole_swallows_a_reply_that_was_on_its_way(
    proxy: RedisProxy, raw: Raw, connect: Callable[[], Raw]
) -> None:
    raw.send("BLPOP list 0")
    eventually(lambda: proxy.count("BLPOP") == 1)
    proxy.black_hole(only=("BLPOP",))
    assert connect().ask("RPUSH list a", size=4) == b":1\r\n"
    assert raw.is_silent()


def test_refusing_resets_and_refuses_and_a_healed_proxy_is_on_the_same_port(
    proxy: RedisProxy, raw: Raw, connect: Callable[[], Raw]
) -> None:
    assert raw.ask("PING", size=7) == b"+PONG\r\n"
    port = proxy.port
    proxy.refuse()
    proxy.refuse()
    with pytest.raises(ConnectionResetError):
        raw.read(1)
    with pytest.raises(ConnectionRefusedError):
        connect()
    proxy.heal()
    proxy.heal()
    assert proxy.port == port
    assert connect().ask("PING", size=7) == b"+PONG\r\n"


def test_server_that_is_gone_closes_the_connection(own_redis: RedisServer) -> None:
    with RedisProxy(own_redis.port) as proxy, contextlib.closing(Raw(proxy).socket) as first:
        first.sendall(packed("PING"))
        assert first.recv(7) == b"+PONG\r\n"
        own_redis.kill()
        assert first.recv(1) == b""
        with pytest.raises(ConnectionResetError), contextlib.closing(Raw(proxy).socket) as second:
            second.recv(1)
        own_redis.start()
        with contextlib.closing(Raw(proxy).socket) as third:
            third.sendall(packed("PING"))
            assert third.recv(7) == b"+PONG\r\n"


def test_reset_comes_in_the_middle_of_one_reply(proxy: RedisProxy, raw: Raw, connect: Callable[[], Raw]) -> None:
    proxy.reset_in_reply(4, only=("GET",))
    raw.send("SET a value", "GET a", "GET a")
    assert raw.read(9) == b"+OK\r\n$5\r\n"
    with pytest.raises(ConnectionResetError):
        raw.read(1)
    assert connect().ask("GET a", size=11) == b"$5\r\nvalue\r\n"


@pytest.mark.parametrize("after_bytes", [0, 3, 10, 999])
def test_truncation_ends_one_reply_in_good_order(after_bytes: int, proxy: RedisProxy, raw: Raw) -> None:
    proxy.truncate(after_bytes, only=("GET",))
    raw.send("SET a value", "GET a", "GET a")
    assert raw.read(1000) == b"+OK\r\n" + b"$5\r\nvalue\r\n"[: min(after_bytes, 10)]
    # Whoever still sends is not reset.
    raw.send("PING")
    eventually(lambda: proxy.count("PING") == 1)


@pytest.mark.parametrize("cut", ["truncate", "reset_in_reply"])
def test_large_reply_is_cut_where_it_was_asked(cut: str, proxy: RedisProxy, raw: Raw) -> None:
    assert raw.ask("SET a 1", "SETRANGE a 6000000 x", size=15) == b"+OK\r\n:6000001\r\n"
    getattr(proxy, cut)(5_000_000)
    assert len(raw.ask("GET a", size=5_000_000)) == 5_000_000
    with pytest.raises(ConnectionResetError) if cut == "reset_in_reply" else contextlib.nullcontext():
        assert raw.read(1) == b""


def test_garbage_comes_in_place_of_replies(proxy: RedisProxy, client: redis.Redis) -> None:
    proxy.garbage(but=GREETINGS)
    with pytest.raises((redis.ConnectionError, redis.InvalidResponse)):
        client.get("key")
    proxy.heal()
    assert client.get("key") is None


def test_error_is_the_reply_to_each_command_of_a_pipeline(
    proxy: RedisProxy, client: redis.Redis, redis_server: RedisServer
) -> None:
    proxy.reply_error(b"-READONLY You can't write against a read only replica.", only=("SET",))
    replies = client.pipeline(transaction=False).set("a", 1).get("a").set("b", 2).execute(raise_on_error=False)
    assert [type(reply).__name__ for reply in replies] == ["ReadOnlyError", "NoneType", "ReadOnlyError"]
    assert redis_server.command("DBSIZE") == "0"
    proxy.reply_error(but=GREETINGS)
    with pytest.raises(redis.BusyLoadingError):
        client.get("a")


def test_trouble_leaves_alone_what_it_does_not_name(proxy: RedisProxy, raw: Raw) -> None:
    proxy.answer(b"+trouble\r\n", but=("ping", *GREETINGS))
    assert raw.ask("PING", "GET a", size=17) == b"+PONG\r\n+trouble\r\n"


def test_trouble_is_over_after_so_many_replies(proxy: RedisProxy, raw: Raw) -> None:
    proxy.reply_error(b"-OOM full", only=("set",), replies=2)
    replies = b"-OOM full\r\n$-1\r\n-OOM full\r\n+OK\r\n"
    assert raw.ask("SET a 1", "GET a", "SET a 1", "SET a 1", size=len(replies)) == replies


def test_trouble_that_was_set_last_and_fits_strikes(proxy: RedisProxy, raw: Raw) -> None:
    proxy.answer(b"+first\r\n")
    proxy.answer(b"+last\r\n", only=("GET",))
    assert raw.ask("GET a", "SET a 1", size=15) == b"+last\r\n+first\r\n"
    proxy.heal()
    assert raw.ask("GET a", size=5) == b"$-1\r\n"


def test_replies_come_twice(proxy: RedisProxy, raw: Raw) -> None:
    proxy.twice(only=("GET",))
    assert raw.ask("SET a 1", "GET a", "PING", size=26) == b"+OK\r\n" + b"$1\r\n1\r\n" * 2 + b"+PONG\r\n"


@pytest.mark.parametrize("name", WRONG_TYPES)
def test_wrong_type_is_the_reply(name: str, proxy: RedisProxy, client: redis.Redis) -> None:
    proxy.wrong_type(name, only=("ECHO",))
    expected = {"status": b"OK", "integer": 7, "bulk": b"wrong", "array": [b"a", 1], "empty array": []}
    assert client.execute_command("ECHO", "a") == expected.get(name)
    assert client.ping() is True


def test_nested_reply_is_as_deep_as_asked(proxy: RedisProxy, raw: Raw) -> None:
    proxy.nested(only=("GET",))
    assert raw.ask("GET a", "PING", size=80_011) == b"*1\r\n" * 20_000 + b":1\r\n" + b"+PONG\r\n"


def test_new_clients_are_too_many_and_old_ones_go_on(
    proxy: RedisProxy, raw: Raw, connect: Callable[[], Raw], client: redis.Redis
) -> None:
    assert raw.ask("PING", size=7) == b"+PONG\r\n"
    proxy.max_clients()
    assert connect().read(100) == b"-ERR max number of clients reached\r\n"
    with pytest.raises(redis.ConnectionError):
        client.ping()
    assert raw.ask("PING", size=7) == b"+PONG\r\n"
    proxy.heal()
    assert client.ping() is True


def test_open_connections_are_reset_once(proxy: RedisProxy, raw: Raw, connect: Callable[[], Raw]) -> None:
    assert raw.ask("PING", size=7) == b"+PONG\r\n"
    proxy.reset_connections()
    with pytest.raises(ConnectionResetError):
        raw.read(1)
    assert connect().ask("PING", size=7) == b"+PONG\r\n"


def test_who_does_not_speak_the_protocol_is_reset(proxy: RedisProxy, raw: Raw) -> None:
    raw.socket.sendall(b"*one\r\n")
    with pytest.raises(ConnectionResetError):
        raw.read(1)


def test_hundreds_of_connections_are_served(proxy: RedisProxy, connect: Callable[[], Raw]) -> None:
    clients = [connect() for _ in range(400)]
    for raw in clients:
        raw.send("PING")
    assert {raw.read(7) for raw in clients} == {b"+PONG\r\n"}


def test_tls_clients_are_served_and_troubled(tls_proxy: RedisProxy, certificate: Certificate) -> None:
    with redis.Redis.from_url(
        tls_proxy.url, ssl_ca_certs=str(certificate.file), protocol=2, retry=Retry(NoBackoff(), 0)
    ) as client:
        assert client.set("a", "1") is True
        tls_proxy.reply_error(b"-OOM full", only=("SET",))
        with pytest.raises(redis.OutOfMemoryError):
            client.set("a", "2")
        for _ in range(20):
            tls_proxy.reset_in_reply(only=("GET",))
            with pytest.raises(redis.ConnectionError):
                client.get("a")
    stranger = redis.Redis.from_url(tls_proxy.url, protocol=2, retry=Retry(NoBackoff(), 0))
    with stranger, pytest.raises(redis.ConnectionError, match="certificate verify failed"):
        stranger.ping()


def test_nothing_is_left_at_the_end(redis_server: RedisServer) -> None:
    threads = set(threading.enumerate())
    proxy = RedisProxy(redis_server.port)
    with proxy:
        port = proxy.port
        sockets = [Raw(proxy).socket for _ in range(3)]
        proxy.black_hole(replies=1)
        for each in sockets:
            each.sendall(packed("PING") + packed("BLPOP list 0"))
        eventually(lambda: proxy.count("BLPOP") == 3)
    assert set(threading.enumerate()) == threads
    for each in sockets:
        with each, pytest.raises(ConnectionResetError):
            each.recv(8), each.recv(1)
    with socket.create_server(("127.0.0.1", port)):
        pass
    proxy.close()
    with pytest.raises(RuntimeError, match="is not running"):
        proxy.heal()


def test_repr_tells_what_the_proxy_does_now(redis_server: RedisServer) -> None:
    proxy = RedisProxy(redis_server.port)
    to = redis_server.port
    assert repr(proxy) == f"<RedisProxy [0 -> {to} | closed | 0 connections, 0 commands]>"
    with proxy:
        with contextlib.closing(Raw(proxy).socket) as client:
            client.sendall(packed("PING"))
            client.recv(7)
            assert repr(proxy) == f"<RedisProxy [{proxy.port} -> {to} | healthy | 1 connections, 1 commands]>"
        proxy.delay(0.3, only=("SET", "GET"), replies=2)
        proxy.max_clients()
        assert "| delay 0.3 s on GET/SET, 2 left; max clients |" in repr(proxy)
        proxy.refuse()
        assert "; refuses |" in repr(proxy)
