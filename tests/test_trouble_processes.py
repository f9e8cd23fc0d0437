"""Processes and event loops: a fork after the first use, two loops at once, SIGTERM with writes under way."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from echo_cache.options import CacheStrategy
from tests.proxy import RedisProxy
from tests.servers import RedisServer
from tests.servers_http import ask
from tests.trouble import DEADLINE, STRATEGIES, Site, body_of

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_forked_process_uses_both_levels_and_so_does_its_parent(strategy: str, redis_url: str) -> None:
    # In a process of its own: to fork one that has threads, as this one may, is not safe.
    script = f"""
        import asyncio, os, sys
        from tests.trouble import Site

        site = Site({redis_url!r}, strategy={strategy!r}, timeout={DEADLINE})

        async def use(name):
            await site.put([f"/{{name}}/{{number}}" for number in range(50)])

        async def other(name):
            there = Site({redis_url!r}, timeout={DEADLINE})
            for number in range(50):
                assert (await there.ask(f"/{{name}}/{{number}}")).is_hit, (name, number)
            await there.close()

        async def finish():
            await site.close()

        async def child(name):
            assert (await site.ask("/parent/1")).is_hit
            await use(name)
            await site.close()
            await other(name)

        loop = asyncio.new_event_loop()
        loop.run_until_complete(use("parent"))
        # A child in a loop of its own, beside its parent: an event loop that both use shares the parent's epoll set.
        for turn in range(2):
            pid = os.fork()
            if pid == 0:
                try:
                    asyncio.run(child(f"child{{turn}}"))
                    os._exit(0)
                except BaseException as error:
                    print(repr(error), file=sys.stderr, flush=True)
                    os._exit(1)
            loop.run_until_complete(use(f"after{{turn}}"))  # while the child works
            assert os.waitpid(pid, 0)[1] == 0
        loop.run_until_complete(finish())
        for name in ("parent", "after0", "after1"):
            loop.run_until_complete(other(name))
        loop.close()
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=DEADLINE * 2,
        cwd=ROOT,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_event_loops_at_once_get_right_answers(strategy: str, redis_url: str) -> None:
    site = Site(redis_url, strategy=strategy, timeout=DEADLINE)
    both = threading.Barrier(2)
    errors: list[BaseException] = []

    async def use(name: str) -> None:
        other = Site(redis_url, timeout=DEADLINE)
        await other.put([f"/{name}/below/{number}" for number in range(100)])
        await other.close()
        await asyncio.to_thread(both.wait, DEADLINE)
        for number in range(100):
            paths = (f"/both/{number}", f"/{name}/{number}", f"/{name}/below/{number}")
            await asyncio.gather(*(site.ask(path) for path in paths for _ in range(3)))
        await asyncio.to_thread(both.wait, DEADLINE)
        await site.close()

    def run(name: str) -> None:
        try:
            asyncio.run(use(name))
        except BaseException as error:
            errors.append(error)
            both.abort()

    threads = [threading.Thread(target=run, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert errors == []
    # What a loop cannot share it does alone, and nothing of it is trouble; a queue it cannot, and that is said.
    assert (site.cache.stats().failures == 0) == (strategy != CacheStrategy.WRITE_BACK)


APP = """
    import sys
    import uvicorn
    from tests.trouble import Site

    site = Site({url!r}, strategy={strategy!r}, timeout={timeout})
    uvicorn.run(Lifespan(site.edge), host="127.0.0.1", port=0, log_level="info", access_log=False)
"""

# The answer to lifespan events, which the app of Site does not know.
LIFESPAN = """
    import echo_cache

    def Lifespan(edge):
        inner = edge.app
        async def app(scope, receive, send):
            if scope["type"] != "lifespan":
                return await inner(scope, receive, send)
            while (message := await receive())["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
        edge.app = app
        return edge
"""


@contextmanager
def worker(url: str, strategy: str, timeout: float) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run a real worker process; yield it and its port."""
    script = textwrap.dedent(LIFESPAN) + textwrap.dedent(APP.format(url=url, strategy=strategy, timeout=timeout))
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stderr is not None
    try:
        port = 0
        while not port:
            line = process.stderr.readline()
            assert line, "the worker did not start"
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                port = int(found[1])
        yield process, port
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_sigterm_writes_to_redis_what_was_not_there_yet(strategy: str, own_redis: RedisServer) -> None:
    paths = [f"/{number}" for number in range(40)]
    with RedisProxy(own_redis.port) as proxy, worker(proxy.url, strategy, timeout=DEADLINE) as (process, port):
        await ask(port, "/first")
        # Writes hang in the proxy: what is asked for now is dirty when the signal comes.
        proxy.hold(only=("SET", "EVALSHA", "EVAL"))
        for path in paths:
            assert (await ask(port, path)).body == body_of(path)
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(proxy.heal)
        _, said = await asyncio.to_thread(process.communicate, timeout=DEADLINE)
        assert process.returncode in (0, -signal.SIGTERM), said
        for word in ("never retrieved", "was destroyed", "Traceback", "WARNING", "ERROR"):
            assert word not in said, said
    other = Site(own_redis.url, timeout=DEADLINE)
    host = {"host": "shop.test"}  # as the client of the worker says
    assert [path for path in paths if not (await other.ask(path, headers=host)).is_hit] == []
    await other.close()


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_sigterm_with_redis_gone_ends_the_process_in_time_and_in_good_order(
    strategy: str, own_redis: RedisServer
) -> None:
    with worker(own_redis.url, strategy, timeout=0.1) as (process, port):
        await ask(port, "/first")
        own_redis.pause()
        for number in range(40):
            await ask(port, f"/{number}")
        process.send_signal(signal.SIGTERM)
        _, said = await asyncio.to_thread(process.communicate, timeout=DEADLINE)
        assert process.returncode in (0, -signal.SIGTERM), said
        for word in ("never retrieved", "was destroyed", "Traceback"):
            assert word not in said, said
