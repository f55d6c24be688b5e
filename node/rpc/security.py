"""Who may talk to whom: CURVE keys and allow-lists. A secret never shows in a repr, a log or an error."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import zmq

KEY_TEXT_BYTES = 40


@dataclass(frozen=True, slots=True)
class CurveKeys:
    """A key pair as z85 text, 40 bytes each."""

    public: bytes
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.public) != KEY_TEXT_BYTES or len(self.secret) != KEY_TEXT_BYTES:
            raise ValueError("a CURVE key is 40 characters of z85 text")

    @classmethod
    def generate(cls) -> CurveKeys:
        """Make a new random pair."""
        return cls(*zmq.curve_keypair())

    @classmethod
    def from_secret(cls, secret: bytes) -> CurveKeys:
        """The pair that a secret belongs to. ValueError when it is none."""
        if len(secret) != KEY_TEXT_BYTES:
            raise ValueError("a CURVE key is 40 characters of z85 text")
        try:
            return cls(zmq.curve_public(secret), secret)
        except zmq.ZMQError:
            raise ValueError("not z85 text") from None


class AllowList(Collection[bytes]):
    """Public keys that a server lets in; one that is added later counts from then on. One that is discarded is not let
    in again; a connection that stands stays."""

    def __init__(self, keys: Collection[bytes]) -> None:
        self._keys = set(keys)

    def add(self, key: bytes) -> None:
        self._keys.add(key)

    def discard(self, key: bytes) -> None:
        self._keys.discard(key)

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


@dataclass(frozen=True, slots=True)
class Security:
    """How one socket proves itself. Plain is for ipc (the directory guards it) and for memory."""

    keys: CurveKeys | None = None
    server_public: bytes | None = None  # a client's: whom it expects
    allowed: Collection[bytes] | None = None  # a server's: whom it lets in

    @classmethod
    def plain(cls) -> Security:
        """No keys, no encryption."""
        return cls()

    @classmethod
    def curve_server(cls, keys: CurveKeys, allowed: Collection[bytes]) -> Security:
        """Serve those whose public key (z85 text) is in ``allowed``, nobody else. An AllowList may grow."""
        return cls(keys=keys, allowed=allowed if isinstance(allowed, AllowList) else frozenset(allowed))

    @classmethod
    def curve_client(cls, keys: CurveKeys, server_public: bytes) -> Security:
        """Talk as ``keys`` to the one server that owns ``server_public``."""
        if len(server_public) != KEY_TEXT_BYTES:
            raise ValueError("a CURVE key is 40 characters of z85 text")
        return cls(keys=keys, server_public=server_public)
