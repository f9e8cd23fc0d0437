"""
The order of what happens to one key. The one rule: whoever comes late at a level sees that it has been overtaken.

A read, a write and a delete of one key may overlap, and each of them touches two levels at two moments. So every key
with something under way has an Order, and it is forgotten with the last of it.
"""

from __future__ import annotations

import asyncio
from weakref import WeakValueDictionary

from echo_cache.model import CacheKey, Vary

__all__ = ["Order", "Orders"]


class Order:
    """
    The order of what happens to one key, for as long as something is under way.

    tickets: how many writes and deletes have begun. deleted: the ticket of the latest delete. visible: the ticket of
    the latest write of each variant which L1 saw before L2. turn: held by the one write or delete that is at L2.
    """

    __slots__ = ("__weakref__", "deleted", "loop", "tickets", "turn", "visible")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.tickets = 0
        self.deleted = 0
        self.visible: dict[Vary, int] = {}
        self.turn = asyncio.Lock()

    def take_ticket(self) -> int:
        """Begin a write or a delete: what began before it is overtaken."""
        self.tickets += 1
        return self.tickets

    def may_show(self, ticket: int, vary: Vary) -> bool:
        """Return whether nothing that began after *ticket* has changed what L1 holds for *vary*."""
        visible = self.visible
        return self.deleted < ticket and visible.get(vary, 0) <= ticket and visible.get((), 0) <= ticket


class Orders:
    """The orders of all keys with something under way, of each event loop its own: a lock belongs to one loop."""

    def __init__(self) -> None:
        self._orders: WeakValueDictionary[tuple[int, CacheKey], Order] = WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._orders)

    def of(self, key: CacheKey) -> Order:
        """Return the order of *key* in the running event loop. It lives as long as the caller keeps it."""
        loop = asyncio.get_running_loop()
        order = self._orders.get((id(loop), key))
        if order is None:
            self._orders[id(loop), key] = order = Order(loop)
        return order

    def overtake_reads(self) -> None:
        """Let no read that is under way promote what it finds."""
        for order in list(self._orders.values()):
            order.take_ticket()

    def overtake_all(self) -> list[Order]:
        """Let no write or read that is under way outlive what comes now. Returns the orders of those."""
        orders = list(self._orders.values())
        for order in orders:
            order.deleted = order.take_ticket()
        return orders
