"""What the tests of the checkpointer share: savers, one that halts where it is told, and graphs with their steps."""

from __future__ import annotations

import asyncio
import contextlib
import operator
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias, TypedDict

import psycopg
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.base import CheckpointTuple, empty_checkpoint
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import Command, Send, interrupt
from psycopg.rows import dict_row

from echo_cache import RedisStore
from echo_cache.integrations.langgraph import CachedPostgresSaver
from echo_cache.integrations.langgraph.generations import generation_name, value_name
from echo_cache.integrations.langgraph.wire import Key
from tests.redis_support import PATIENT, until

__all__ = [
    "SCENARIOS",
    "SECRET",
    "Gate",
    "HaltingSaver",
    "Scenario",
    "cached",
    "checkpoint",
    "config_of",
    "generation_of",
    "history",
    "new_thread",
    "plain",
    "put",
    "store_of",
    "tidied",
    "value_of",
]

SECRET = "of the tests, and long enough"

Options: TypeAlias = Any


# --- savers -----------------------------------------------------------------------------------------------------------


class Gate:
    """Where a coroutine of a HaltingSaver halts: it says that it is there, and goes on when it may."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.open = asyncio.Event()

    async def halt(self) -> None:
        self.reached.set()
        await self.open.wait()


class HaltingSaver(AsyncPostgresSaver):
    """A saver that halts at gates: "read" behind a read, "write" before PostgreSQL commits, "written" behind that."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # Shared with the clones.
        self.gates: dict[str, Gate] = {}
        self.calls: list[str] = []

    def gate(self, name: str) -> Gate:
        """Make the next one who comes by *name* halt."""
        self.gates[name] = Gate()
        return self.gates[name]

    async def _pass(self, name: str) -> None:
        gate = self.gates.pop(name, None)
        if gate is not None:
            await gate.halt()

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        self.calls.append("aget_tuple")
        found = await super().aget_tuple(config)
        await self._pass("read")
        return found

    async def aput(self, *args: Any, **options: Any) -> RunnableConfig:
        self.calls.append("aput")
        await self._pass("write")
        done = await super().aput(*args, **options)
        await self._pass("written")
        return done


@contextlib.asynccontextmanager
async def plain(url: str, serde: Any = None) -> AsyncIterator[HaltingSaver]:
    """Yield a saver without a cache, with its tables."""
    async with await psycopg.AsyncConnection.connect(
        url, autocommit=True, prepare_threshold=0, row_factory=dict_row
    ) as connection:
        saver = HaltingSaver(connection, serde=serde)
        await saver.setup()
        yield saver


@contextlib.asynccontextmanager
async def cached(
    saver: AsyncPostgresSaver, redis_url: str, *, ttl: float = 3600.0, memory_bytes: int = 1_000_000, **options: Options
) -> AsyncIterator[CachedPostgresSaver]:
    """Yield a cached saver whose store has *options*."""
    async with (
        contextlib.aclosing(store_of(redis_url, **options)) as store,
        CachedPostgresSaver(saver, store, ttl=ttl, memory_bytes=memory_bytes) as found,
    ):
        yield found


def store_of(redis_url: str, **options: Options) -> RedisStore:
    return RedisStore(redis_url, **{"timeout": PATIENT, "secret": SECRET, **options})


def new_thread() -> str:
    return f"thread-{uuid.uuid4().hex}"


def config_of(thread: str, checkpoint_id: str | None = None, namespace: str = "") -> RunnableConfig:
    asked = {"thread_id": thread, "checkpoint_ns": namespace}
    return {"configurable": asked if checkpoint_id is None else {**asked, "checkpoint_id": checkpoint_id}}


def checkpoint(**values: Any) -> Any:
    """Return a checkpoint with *values*, each in version 1 of its channel."""
    return {**empty_checkpoint(), "channel_values": values, "channel_versions": dict.fromkeys(values, "1")}


async def put(saver: Any, thread: str, parent: RunnableConfig | None = None, **values: Any) -> RunnableConfig:
    """Put a checkpoint with *values* and return its config."""
    made = checkpoint(**values)
    made["channel_versions"] = dict.fromkeys(values, uuid.uuid4().hex)
    config: RunnableConfig = await saver.aput(
        parent or config_of(thread), made, {"source": "loop", "step": 1}, made["channel_versions"]
    )
    return config


def value_of(thread: str, checkpoint_id: str | None = None, namespace: str = "", prefix: str = "echo_cache") -> str:
    """Return the name of a value in Redis."""
    return value_name(generation_name(prefix, thread), Key(thread, namespace, checkpoint_id))


def generation_of(thread: str, prefix: str = "echo_cache") -> str:
    """Return the name of a generation in Redis."""
    return generation_name(prefix, thread)


# --- graphs -----------------------------------------------------------------------------------------------------------

Step: TypeAlias = Callable[[Any, Any, str], Awaitable[Any]]
"""A step gets the compiled graph, the saver and the thread."""


@dataclass(frozen=True)
class Scenario:
    """A graph, and what is done with it, one step after the other."""

    builder: Callable[[], StateGraph[Any, Any, Any, Any]]
    steps: Sequence[Step]
    # What the names of the threads that the steps use end with.
    threads: Sequence[str] = ("",)


class Chat(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]
    turns: int


def _chat() -> StateGraph[Any, Any, Any, Any]:
    def answer(state: Chat) -> dict[str, Any]:
        said = state["messages"][-1].content
        return {"messages": [AIMessage(f"you said {said}")], "turns": state.get("turns", 0) + 1}

    return StateGraph(Chat).add_node(answer).add_edge(START, "answer").add_edge("answer", END)


def _say(text: str, suffix: str = "") -> Step:
    async def step(graph: Any, saver: Any, thread: str) -> None:
        await graph.ainvoke({"messages": [HumanMessage(text)]}, {"configurable": {"thread_id": thread + suffix}})

    return step


class Approval(TypedDict):
    question: str
    answers: Annotated[list[str], operator.add]


def _approval() -> StateGraph[Any, Any, Any, Any]:
    def prepare(state: Approval) -> dict[str, Any]:
        return {"answers": ["prepared"]}

    def ask(state: Approval) -> dict[str, Any]:
        return {"answers": [interrupt({"question": state["question"]})]}

    builder = StateGraph(Approval).add_node(prepare).add_node(ask)
    return builder.add_edge(START, "prepare").add_edge("prepare", "ask").add_edge("ask", END)


def _invoke(given: Any, suffix: str = "") -> Step:
    async def step(graph: Any, saver: Any, thread: str) -> None:
        await graph.ainvoke(given, {"configurable": {"thread_id": thread + suffix}})

    return step


async def _old_config(graph: Any, thread: str, back: int) -> RunnableConfig:
    snapshots = [snapshot async for snapshot in graph.aget_state_history({"configurable": {"thread_id": thread}})]
    config: RunnableConfig = snapshots[back].config
    return config


async def _fork(graph: Any, saver: Any, thread: str) -> None:
    """Go on from an old checkpoint with another state."""
    old = await _old_config(graph, thread, 3)
    forked = await graph.aupdate_state(old, {"messages": [HumanMessage("something else")]}, as_node=START)
    await graph.ainvoke(None, forked)


async def _time_travel(graph: Any, saver: Any, thread: str) -> None:
    """Run again from an old checkpoint, as it was."""
    await graph.ainvoke(None, await _old_config(graph, thread, 2))


def _nested() -> StateGraph[Any, Any, Any, Any]:
    """A graph in which a subgraph asks."""

    def outer(state: Approval) -> dict[str, Any]:
        return {"answers": ["outer"]}

    builder = StateGraph(Approval).add_node(outer).add_node("inner", _approval().compile())
    return builder.add_edge(START, "outer").add_edge("outer", "inner").add_edge("inner", END)


class Work(TypedDict):
    items: list[int]
    done: Annotated[list[str], operator.add]
    failing: bool


# The savers of threads in which a branch is to fail.
_failing: dict[str, Any] = {}


def _parallel() -> StateGraph[Any, Any, Any, Any]:
    """Branches at once, of which one fails once, when the writes of the others are pending."""

    async def work(state: dict[str, Any], config: RunnableConfig) -> dict[str, Any]:
        item, thread = state["item"], config["configurable"]["thread_id"]
        if item == 1 and (saver := _failing.pop(thread, None)) is not None:

            async def others_are_pending() -> bool:
                found = await saver.aget_tuple({"configurable": {"thread_id": thread}})
                return len({task for task, _, _ in found.pending_writes or ()}) == 2

            await until(others_are_pending)
            raise ValueError("this once")
        return {"done": [f"item {item}"]}

    def spread(state: Work) -> list[Send]:
        return [Send("work", {"item": item}) for item in state["items"]]

    return StateGraph(Work).add_node("work", work).add_conditional_edges(START, spread, ["work"]).add_edge("work", END)


async def _fail(graph: Any, saver: Any, thread: str) -> None:
    _failing[thread] = saver
    with contextlib.suppress(ValueError):
        await graph.ainvoke({"items": [0, 1, 2]}, {"configurable": {"thread_id": thread}}, durability="sync")


class Ledger(TypedDict):
    entries: Annotated[list[Any], DeltaChannel(lambda state, writes: [*state, *writes], snapshot_frequency=3)]
    turn: int


def _ledger() -> StateGraph[Any, Any, Any, Any]:
    def book(state: Ledger) -> dict[str, Any]:
        return {"entries": f"booked in turn {state['turn']}"}

    return StateGraph(Ledger).add_node(book).add_edge(START, "book").add_edge("book", END)


def _deleted(suffix: str = "") -> Step:
    async def step(graph: Any, saver: Any, thread: str) -> None:
        await saver.adelete_thread(thread + suffix)

    return step


def _pruned(strategy: str, *suffixes: str) -> Step:
    async def step(graph: Any, saver: Any, thread: str) -> None:
        await saver.aprune([thread + suffix for suffix in suffixes], strategy=strategy)

    return step


SCENARIOS = {
    "multi-turn": Scenario(_chat, [_say("hello"), _say("and more"), _say("goodbye")]),
    "interrupt-and-resume": Scenario(
        _approval, [_invoke({"question": "may I?", "answers": []}), _invoke(Command(resume="you may"))]
    ),
    "fork": Scenario(_chat, [_say("hello"), _say("and more"), _fork, _say("goodbye")]),
    "time-travel": Scenario(_chat, [_say("hello"), _say("and more"), _time_travel, _say("goodbye")]),
    "subgraph": Scenario(
        _nested,
        [_invoke({"question": "inside?", "answers": []}), _invoke(Command(resume="yes")), _invoke({"question": "?"})],
    ),
    "parallel-with-pending-writes": Scenario(_parallel, [_fail, _invoke(None), _invoke({"items": [4, 5]})]),
    "delta-channel": Scenario(_ledger, [_invoke({"turn": turn, "entries": f"turn {turn}"}) for turn in range(4)]),
    "delete": Scenario(_chat, [_say("hello"), _say("hello", "-b"), _deleted(), _say("anew")], threads=("", "-b")),
    "prune": Scenario(
        _chat,
        [
            *(_say("hello"), _say("and more"), _say("hello", "-b"), _pruned("keep_latest", "", "-b")),
            *(_say("goodbye"), _pruned("delete", "")),
        ],
        threads=("", "-b"),
    ),
}


async def history(graph: Any, thread: str) -> list[Any]:
    """
    Return all that can be seen of *thread*: the latest state with that of subgraphs, each state by its checkpoint, and
    the history.
    """
    config = {"configurable": {"thread_id": thread}}
    seen = [snapshot async for snapshot in graph.aget_state_history(config)]
    latest = await graph.aget_state(config, subgraphs=True)
    each = [await graph.aget_state(snapshot.config) for snapshot in seen]
    return [latest, each, seen]


_IDS = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|\b[0-9a-f]{32}\b")
_TIMES = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[.\d]*\+00:00")


def tidied(seen: list[Any]) -> str:
    """Return *seen* as text in which times are the same and ids are numbered as they come."""
    numbers: dict[str, str] = {}
    text = _IDS.sub(lambda match: numbers.setdefault(match[0], f"id {len(numbers)}"), repr(seen))
    return _TIMES.sub("then", text)
