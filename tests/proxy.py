"""
A proxy before a real server, by which a test makes the trouble that a network and a server in trouble make.

The one rule: a trouble strikes each command that arrives, and each reply that passes, while it is set.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import ssl
import struct
import termios
import threading
from collections import deque
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Self, TypeAlias, TypeVar

__all__ = ["GREETINGS", "WRONG_TYPES", "RedisProxy"]

HOST: Final = "127.0.0.1"

# A proxy that hangs should say so before the test runner ends the test.
PATIENCE: Final = 20.0

# What is kept of the commands: enough for any test, and no more than some MB if one sends bodies for a minute.
MAX_COMMANDS: Final = 10_000
MAX_WORD_BYTES: Final = 4096

# What a client says of itself on a new connection, whatever the test is about.
GREETINGS: Final = frozenset({"AUTH", "CLIENT", "HELLO", "PING", "READONLY", "SELECT"})

# One reply of each type. To the question for one value only "bulk" and "null" are possible answers.
WRONG_TYPES: Final = {
    "status": b"+OK\r\n",
    "integer": b":7\r\n",
    "bulk": b"$5\r\nwrong\r\n",
    "null": b"$-1\r\n",
    "array": b"*2\r\n$1\r\na\r\n:1\r\n",
    "empty array": b"*0\r\n",
    "null array": b"*-1\r\n",
}

Words: TypeAlias = tuple[bytes, ...]
T = TypeVar("T")

Kind: TypeAlias = Literal["answer", "black hole", "delay", "hold", "reset", "truncate", "twice"]


@dataclass(eq=False)
class _Trouble:
    """
    What happens to which replies.

    data: what "answer" says. seconds: how long "delay" waits. after_bytes: where "reset" and "truncate" cut.
    left: how many more replies, None for all. over: set by heal().
    """

    kind: Kind
    only: frozenset[str] | None
    but: frozenset[str]
    left: int | None
    data: bytes = b""
    seconds: float = 0.0
    after_bytes: int = 0
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def strikes(self, name: str) -> bool:
        return self.left != 0 and name not in self.but and (self.only is None or name in self.only)

    def __str__(self) -> str:
        said = self.kind + (f" {self.seconds:g} s" if self.kind == "delay" else "")
        said += f" {self.data[:24]!r}" if self.data else ""
        said += f" on {'/'.join(sorted(self.only))}" if self.only is not None else ""
        said += f" but {'/'.join(sorted(self.but))}" if self.but else ""
        return said + (f", {self.left} left" if self.left is not None else "")


@dataclass(eq=False)
class _Slot:
    """The place of one reply in the order of replies. reply: when it came, in the loop's time, and its bytes."""

    name: str
    trouble: _Trouble | None
    reply: asyncio.Future[tuple[float, bytes]]


class RedisProxy:
    """
    A TCP proxy on a free loopback port, before the server at *port*, steered by a test while traffic flows.

    It runs in a thread and an event loop of its own: a blocked test does not stop it. Its methods are for any other
    thread, also for the one that runs the test's event loop, and return when what they ask for is so.

    All troubles take the same limits. only: the names of the commands that are struck, ("SET",), by default all.
    but: those that are not, as GREETINGS. replies: how many replies are struck; then the trouble is over.
    Of several troubles, the one that was set last and fits strikes, alone. heal() ends all.

    tls: the certificate to show to clients, who then speak rediss://; the server is spoken to in plain. Over TLS,
    truncate() says good-bye before it closes.
    """

    def __init__(self, port: int, *, tls: ssl.SSLContext | None = None) -> None:
        self._target = port
        self._tls = tls
        # 0 before the start; kept from then on.
        self.port = 0
        # Holds the port while nobody listens on it, so that nobody else gets it.
        self._hold: socket.socket | None = None
        # All below belongs to the proxy's loop.
        self._listener: asyncio.Server | None = None
        self._open: dict[asyncio.Task[None], _Connection] = {}
        self._troubles: list[_Trouble] = []
        self._full = False
        self._accepted = 0
        self._seen: deque[Words] = deque(maxlen=MAX_COMMANDS)
        self._seen_count = 0
        self._errors: list[BaseException] = []
        # None before the start and after the end.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._loop is None:
            state = "closed"
        else:
            troubles = [str(trouble) for trouble in list(self._troubles) if trouble.left != 0]
            troubles += ["max clients"] * self._full + ["refuses"] * (self._listener is None)
            state = "; ".join(troubles) or "healthy"
        return (
            f"<RedisProxy [{self.port} -> {self._target} | {state} | "
            f"{len(self._open)} connections, {self._seen_count} commands]>"
        )

    @property
    def url(self) -> str:
        """The address for a client, database 0."""
        return f"redis{'s' * (self._tls is not None)}://{HOST}:{self.port}/0"

    @property
    def connections(self) -> int:
        """How many connections were accepted so far, also those that are closed."""
        return self._accepted

    @property
    def open_connections(self) -> int:
        """How many connections are open now."""
        return len(self._open)

    @property
    def commands(self) -> list[Words]:
        """The last 10,000 commands that arrived, as their words; of each word the first 4,096 bytes."""
        return self._call(_value(lambda: list(self._seen))) if self._loop is not None else list(self._seen)

    def count(self, name: str) -> int:
        """Return how many of `commands` have the name *name*."""
        return sum(words[0].upper() == name.upper().encode() for words in self.commands)

    def forget(self) -> None:
        """Forget the commands and connections that were counted."""

        def forget() -> None:
            self._seen.clear()
            self._seen_count = self._accepted = 0

        self._call(_value(forget))

    # --- troubles -----------------------------------------------------------------------------------------------------

    def delay(
        self, seconds: float, *, only: Collection[str] = (), but: Collection[str] = (), replies: int | None = None
    ) -> None:
        """Let each reply pass *seconds* after it came. The replies to a pipeline are late together, not in turn."""
        self._add("delay", only, but, replies, seconds=seconds)

    def hold(self, *, only: Collection[str] = (), but: Collection[str] = (), replies: int | None = None) -> None:
        """Keep replies, and all that come after them on their connections, until heal(). The server got the command."""
        self._add("hold", only, but, replies)

    def black_hole(self, *, only: Collection[str] = (), but: Collection[str] = (), replies: int | None = None) -> None:
        """
        Accept, read and never answer, on open connections too.

        The server does not get the commands. A connection that was struck is silent for ever, also after heal(), as
        one that a firewall has forgotten: who keeps it waits in vain.
        """
        self._add("black hole", only, but, replies)

    def refuse(self) -> None:
        """Reset all connections and refuse new ones, until heal(), which listens on the same port again."""
        self._call(self._refuse())

    def max_clients(self) -> None:
        """Answer each new connection "-ERR max number of clients reached" and close it. Open ones go on."""
        self._call(_value(lambda: setattr(self, "_full", True)))

    def reset_in_reply(
        self,
        after_bytes: int = 3,
        *,
        only: Collection[str] = (),
        but: Collection[str] = (),
        replies: int | None = 1,
    ) -> None:
        """
        Reset the connection (RST) in the middle of the next reply, after *after_bytes* of it or all bytes but one.

        The server got the command.
        """
        self._add("reset", only, but, replies, after_bytes=after_bytes)

    def truncate(
        self,
        after_bytes: int = 3,
        *,
        only: Collection[str] = (),
        but: Collection[str] = (),
        replies: int | None = 1,
    ) -> None:
        """End the connection in good order (FIN) in the middle of the next reply; as reset_in_reply otherwise."""
        self._add("truncate", only, but, replies, after_bytes=after_bytes)

    def twice(self, *, only: Collection[str] = (), but: Collection[str] = (), replies: int | None = None) -> None:
        """Send each reply of the server two times, in one write."""
        self._add("twice", only, but, replies)

    def answer(
        self, data: bytes, *, only: Collection[str] = (), but: Collection[str] = (), replies: int | None = None
    ) -> None:
        """Send *data*, as it is, in place of each reply. The server does not get the commands."""
        self._add("answer", only, but, replies, data=data)

    def garbage(
        self,
        data: bytes = b"\x00\xffgarbage\r\n",
        *,
        only: Collection[str] = (),
        but: Collection[str] = (),
        replies: int | None = None,
    ) -> None:
        """Send *data*, which is no reply of the protocol, in place of each reply."""
        self.answer(data, only=only, but=but, replies=replies)

    def reply_error(
        self,
        error: bytes = b"-LOADING Redis is loading the dataset in memory",
        *,
        only: Collection[str] = (),
        but: Collection[str] = (),
        replies: int | None = None,
    ) -> None:
        """Answer each command with *error*, one to one in a pipeline too. The server does not get the commands."""
        assert error.startswith(b"-"), error
        self.answer(error.removesuffix(b"\r\n") + b"\r\n", only=only, but=but, replies=replies)

    def wrong_type(
        self, name: str, *, only: Collection[str] = (), but: Collection[str] = (), replies: int | None = None
    ) -> None:
        """Answer each command with the reply that WRONG_TYPES has under *name*."""
        self.answer(WRONG_TYPES[name], only=only, but=but, replies=replies)

    def nested(
        self,
        depth: int = 20_000,
        *,
        only: Collection[str] = (),
        but: Collection[str] = (),
        replies: int | None = None,
    ) -> None:
        """Answer each command with an integer in *depth* arrays."""
        self.answer(b"*1\r\n" * depth + b":1\r\n", only=only, but=but, replies=replies)

    def heal(self) -> None:
        """End all troubles: what was held or delayed passes now. Connections that were broken stay so."""
        self._call(self._heal())

    def reset_connections(self) -> None:
        """Reset all connections that are open, once."""
        self._call(self._reset_all())

    # --- thread -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Listen, and return when connections are accepted."""
        self._hold = _bound(self.port)
        self.port = self._hold.getsockname()[1]
        up = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(up,), name=f"redis-proxy-{self.port}", daemon=True)
        self._thread.start()
        if not up.wait(PATIENCE):
            raise RuntimeError(f"{self!r} did not start")

    def close(self) -> None:
        """
        Reset all connections, and return when the thread is gone. A second time does nothing.

        Raises what went wrong in the proxy itself, if anything did.
        """
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._ended.set)
        if self._thread is not None:
            self._thread.join(PATIENCE)
            if self._thread.is_alive():
                raise RuntimeError(f"{self!r} did not end")
        self._thread = None
        if self._hold is not None:
            self._hold.close()
        if self._errors:
            raise self._errors.pop()

    def _run(self, up: threading.Event) -> None:
        # Not the policy's loop: a test may have set another one.
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            runner.run(self._main(up))

    async def _main(self, up: threading.Event) -> None:
        self._ended = asyncio.Event()
        await self._listen()
        self._loop = asyncio.get_running_loop()
        up.set()
        try:
            await self._ended.wait()
        finally:
            self._loop = None
            await self._refuse()

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop is None:
            work.close()
            raise RuntimeError(f"{self!r} is not running")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

    # --- in the loop --------------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        if self._listener is None:
            assert self._hold is not None
            self._hold.close()
            self._hold = None
            # A backlog for the test of 1,000 connections at once.
            self._listener = await asyncio.start_server(
                self._accept, sock=_bound(self.port), backlog=1024, ssl=self._tls
            )

    async def _refuse(self) -> None:
        if self._listener is not None:
            # asyncio hands an accepted connection over in a task of its own, a turn later, and loses it if the
            # listener was closed meanwhile (CPython 3.11). So nothing more is accepted first.
            for listening in self._listener.sockets:
                asyncio.get_running_loop().remove_reader(listening.fileno())
            for _ in range(5):
                await asyncio.sleep(0)
            self._listener.close()
            self._listener = None
            self._hold = _bound(self.port)
        await self._reset_all()

    async def _reset_all(self) -> None:
        tasks = list(self._open)
        for task in tasks:
            self._open[task].reset()
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _heal(self) -> None:
        for trouble in self._troubles:
            trouble.over.set()
        self._troubles.clear()
        self._full = False
        await self._listen()

    def _add(
        self,
        kind: Kind,
        only: Collection[str],
        but: Collection[str],
        replies: int | None,
        **how: Any,
    ) -> None:
        # ("SET") is a string, and would be the commands S, E and T.
        assert not isinstance(only, str), f"only={only!r} must be a collection of names"
        assert not isinstance(but, str), f"but={but!r} must be a collection of names"
        names = frozenset(name.upper() for name in only) or None
        trouble = _Trouble(kind, names, frozenset(name.upper() for name in but), replies, **how)
        self._call(_value(lambda: self._troubles.append(trouble)))

    def strike(self, name: str) -> _Trouble | None:
        """Return the trouble of a command or its reply, which is one less that are left of it. For connections."""
        trouble = next((trouble for trouble in reversed(self._troubles) if trouble.strikes(name)), None)
        if trouble is not None and trouble.left is not None:
            trouble.left -= 1
        return trouble

    def note(self, words: Words) -> None:
        """Keep the words of a command. For connections."""
        self._seen.append(tuple(word[:MAX_WORD_BYTES] for word in words))
        self._seen_count += 1

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(self, reader, writer)
        if self._listener is None:  # it was accepted just before
            connection.reset()
            return
        self._accepted += 1
        work = connection.turn_away() if self._full else connection.serve(self._target)
        task = asyncio.get_running_loop().create_task(work)
        self._open[task] = connection
        task.add_done_callback(self._ended_connection)

    def _ended_connection(self, task: asyncio.Task[None]) -> None:
        self._open.pop(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._errors.append(error)


class _Connection:
    """One connection of a client, and the one to the server that belongs to it."""

    def __init__(self, proxy: RedisProxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._reader = reader
        self._writer = writer
        # Taken now: a TLS transport that is closed has no socket to ask for.
        self._socket = writer.get_extra_info("socket")
        # drain() waits until all is with the kernel: what is written before a reset must have left. With 0, TLS
        # transports, which stop *at* the limit and not above it, would stop while they have nothing to send.
        writer.transport.set_write_buffer_limits(high=0 if writer.get_extra_info("sslcontext") is None else 1)
        # The replies that the client waits for, in order, and those of them that the server owes.
        self._slots: asyncio.Queue[_Slot] = asyncio.Queue()
        self._owed: deque[_Slot] = deque()

    async def turn_away(self) -> None:
        """Say that there are too many clients."""
        try:
            await self._finish(b"-ERR max number of clients reached\r\n")
            while await self._reader.read(65536):
                pass
        except OSError:
            pass
        finally:
            self._writer.transport.abort()

    async def serve(self, target: int) -> None:
        """Carry commands to the server and replies back until one of the three ends it."""
        try:
            reader, writer = await asyncio.open_connection(HOST, target)
        except OSError:
            self.reset()
            return
        loop = asyncio.get_running_loop()
        answers = loop.create_task(self._answer())
        work = {loop.create_task(self._read_replies(reader)), answers, loop.create_task(self._read_commands(writer))}
        try:
            done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                error = task.exception()
                if isinstance(error, _NoProtocolError):
                    self.reset()
                elif error is not None and not isinstance(error, (OSError, EOFError)):
                    raise error
        finally:
            # Sockets first: the wait for the tasks may be cancelled.
            writer.transport.abort()
            if self._writer.transport.get_write_buffer_size():  # the client is gone, or will not read
                self._writer.transport.abort()
            self._writer.close()
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)

    def reset(self) -> None:
        """Close the client's connection by RST, with nothing after what the kernel has already sent."""
        with contextlib.suppress(OSError):  # it may be closed already
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def _read_commands(self, server: asyncio.StreamWriter) -> None:
        """Take the client's commands, and forward those that the server shall see. Ends with the client's part."""
        while (command := await _read_command(self._reader)) is not None:
            words, data = command
            if not words:  # an empty line, which has no reply
                continue
            self._proxy.note(words)
            name = words[0].upper().decode(errors="replace")
            slot = _Slot(name, self._proxy.strike(name), asyncio.get_running_loop().create_future())
            if slot.trouble is None or slot.trouble.kind not in ("answer", "black hole"):
                self._owed.append(slot)
                server.write(data)
            else:
                slot.reply.set_result((0.0, slot.trouble.data))
            self._slots.put_nowait(slot)
            await server.drain()

    async def _read_replies(self, server: asyncio.StreamReader) -> None:
        """Take the server's replies, and put each in its slot. Ends when the server closes and all is passed on."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                data = await _read_reply(server)
                # What nobody asked for is a pushed message or a farewell. RESP3 pushes the answer to SUBSCRIBE too.
                is_owed = self._owed and (not data.startswith(b">") or "SUBSCRIBE" in self._owed[0].name)
                slot = self._owed.popleft() if is_owed else _Slot("", None, loop.create_future())
                slot.reply.set_result((loop.time(), data))
                if not is_owed:
                    self._slots.put_nowait(slot)
        except (OSError, EOFError):
            # What is owed will not come; what came before goes out first.
            for slot in self._owed:
                slot.reply.cancel()
            if not self._owed:
                lost = _Slot("", None, loop.create_future())
                lost.reply.cancel()
                self._slots.put_nowait(lost)
            await asyncio.Event().wait()

    async def _answer(self) -> None:
        """Send the replies in order, each with its trouble. Ends where the connection must."""
        while True:
            slot = await self._slots.get()
            await asyncio.wait([slot.reply])
            if slot.reply.cancelled():
                return
            came, data = slot.reply.result()
            if not await self._pass(slot.trouble or self._proxy.strike(slot.name), came, data):
                return

    async def _pass(self, trouble: _Trouble | None, came: float, data: bytes) -> bool:
        """Send one reply as *trouble* has it. Return whether the connection goes on."""
        kind = None if trouble is None else trouble.kind
        if kind == "black hole":
            await asyncio.Event().wait()
        elif trouble is None or trouble.over.is_set():
            self._writer.write(data)
        elif kind == "reset":
            self._writer.write(data[: min(trouble.after_bytes, len(data) - 1)])
            await self._sent()
            self.reset()
            return False
        elif kind == "truncate":
            await self._finish(data[: min(trouble.after_bytes, len(data) - 1)])
            await asyncio.Event().wait()
        else:
            if kind in ("delay", "hold"):
                await _until(trouble.over, came + trouble.seconds if kind == "delay" else None)
            self._writer.write(trouble.data if kind == "answer" else data * 2 if kind == "twice" else data)
        await self._writer.drain()
        return True

    async def _finish(self, data: bytes) -> None:
        """Send *data* and FIN. The socket stays open: one that is closed with bytes unread sends RST, not FIN."""
        self._writer.write(data)
        await self._writer.drain()
        if self._writer.can_write_eof():
            self._writer.write_eof()
        else:
            self._writer.close()

    async def _sent(self) -> None:
        """Wait until the client's side has all that was written: RST drops what it does not have."""
        await self._writer.drain()
        while struct.unpack("i", fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, bytes(4)))[0]:  # noqa: ASYNC110
            await asyncio.sleep(0.001)  # the kernel tells nobody


# --- protocol ---------------------------------------------------------------------------------------------------------


class _NoProtocolError(Exception):
    """Raised when a client or a server does not speak the protocol."""


async def _read_command(reader: asyncio.StreamReader) -> tuple[Words, bytes] | None:
    """Return the words of the next command and its bytes, or None at the end. Raises _NoProtocolError."""
    try:
        line = await reader.readline()
        if not line.endswith(b"\n"):
            return None
        if not line.startswith(b"*"):
            return tuple(line.split()), line
        data, words = [line], []
        for _ in range(int(line[1:])):
            head = await reader.readline()
            body = await reader.readexactly(int(head[1:]) + 2)
            data += (head, body)
            words.append(body[:-2])
    except ValueError as error:
        raise _NoProtocolError from error
    return tuple(words), b"".join(data)


async def _read_reply(reader: asyncio.StreamReader) -> bytes:
    """Return the bytes of the next reply, in RESP2 or RESP3. Raises EOFError at the end, and _NoProtocolError."""
    data: list[bytes] = []
    wanted = 1
    try:
        while wanted:
            line = await reader.readline()
            if not line.endswith(b"\r\n"):
                raise EOFError
            data.append(line)
            wanted -= 1
            kind = line[:1]
            if kind in b"*~>":
                wanted += max(int(line[1:]), 0)
            elif kind in b"%|":
                wanted += 2 * int(line[1:]) + (kind == b"|")  # what attributes belong to follows them
            elif kind in b"$=!" and (size := int(line[1:])) >= 0:
                data.append(await reader.readexactly(size + 2))
    except ValueError as error:
        raise _NoProtocolError from error
    return b"".join(data)


async def _until(event: asyncio.Event, when: float | None) -> None:
    """Return when *event* is set, and at the latest at *when* in the loop's time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout_at(when):
            await event.wait()


async def _value(function: Callable[[], T]) -> T:
    return function()


def _bound(port: int) -> socket.socket:
    """Return a socket that has *port*, or a free one for 0, and does not listen: who connects to it is refused."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((HOST, port))
    except BaseException:
        sock.close()
        raise
    return sock
