"""Strict msgpack encoders and decoders for the methods of a catalogue."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec

from node.wire.catalogue import Catalogue, Method
from node.wire.errors import ProtocolError

T = TypeVar("T", bound=msgspec.Struct)

_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode
"""Encode any struct of a catalogue. Sizes are checked where the message is put together (frames.bound)."""


class StructDecoder(Generic[T]):
    """Decode one struct type. Whatever the bytes are, the outcome is a value of the type or a ProtocolError."""

    __slots__ = ("_decode", "_name")

    def __init__(self, struct: type[T]) -> None:
        self._decode = msgspec.msgpack.Decoder(struct, strict=True).decode
        self._name = struct.__name__

    def __call__(self, body: memoryview | bytes) -> T:
        try:
            return self._decode(body)
        except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError) as error:
            raise ProtocolError(f"{self._name}: {error}") from None


class Codec:
    """Both directions of a catalogue, decoders built once."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self._requests: dict[int, StructDecoder[Any]] = {}
        self._replies: dict[int, StructDecoder[Any]] = {}
        for method in catalogue:
            self._requests[method.number] = StructDecoder(method.request)
            if method.reply is not None:
                self._replies[method.number] = StructDecoder(method.reply)

    def method_of(self, request: msgspec.Struct) -> Method:
        """The method that a request belongs to; a KeyError is a bug of the caller."""
        return self.catalogue.by_request[type(request)]

    def decode_request(self, number: int, body: memoryview | bytes) -> Any:
        """Decode the request (or notification) of method ``number``. Raises ProtocolError."""
        decoder = self._requests.get(number)
        if decoder is None:
            raise ProtocolError(f"unknown method {number:#x}")
        return decoder(body)

    def reply_decoder(self, number: int) -> StructDecoder[Any] | None:
        """The decoder of a method's reply, None for a one-way method."""
        return self._replies.get(number)
