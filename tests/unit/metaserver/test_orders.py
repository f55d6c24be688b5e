"""The order book: what is repeated, and what is told anew."""

from __future__ import annotations

from metadata.server.orders import OrderBook
from storage.api import DropGroup, DropReport


def test_a_group_that_a_late_put_reached_is_dropped_again() -> None:
    book = OrderBook(3)
    book.drop({(7, 5): 20}, 64)
    (first,) = book.orders_for(7, 64)
    assert isinstance(first, DropGroup)
    book.drop({(7, 5): 21}, 64)
    assert book.orders_for(7, 64) == (first,)
    book.reported(7, [DropReport(first.order, 5, 64, 20, 4)])
    assert book.orders_for(7, 64) == (first,)
    book.reported(7, [DropReport(first.order, 5, 64, 20, 0)])
    assert book.orders_for(7, 64) == ()
    book.drop({(7, 5): 21}, 64)
    (second,) = book.orders_for(7, 64)
    assert isinstance(second, DropGroup) and second.order > first.order and second.pg_epoch == 21
    book.drop({}, 64)
    assert book.orders_for(7, 64) == ()
