"""What a service can be asked: numbered methods, each with its request and reply type.

A catalogue is declared once, beside the types, in the service's ``api`` module. Client and server build their
encoders and decoders from it, so both ends agree by construction.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import msgspec


@dataclass(frozen=True, slots=True)
class Method:
    """One request type and the reply that answers it, None for a one-way message.

    ``number`` is part of the wire protocol: never reused.
    """

    number: int
    request: type[msgspec.Struct]
    reply: type[msgspec.Struct] | None


class Catalogue:
    """The methods of one service, by number and by request type. Numbers and types are unique, checked at import."""

    def __init__(self, name: str, methods: Iterable[Method]) -> None:
        self.name = name
        self.by_number: dict[int, Method] = {}
        self.by_request: dict[type[msgspec.Struct], Method] = {}
        for method in methods:
            assert method.number not in self.by_number, method
            assert method.request not in self.by_request, method
            self.by_number[method.number] = method
            self.by_request[method.request] = method

    def __iter__(self) -> Iterator[Method]:
        return iter(self.by_number.values())
