"""The envelope, byte for byte. A change here is a change of the wire protocol."""

from __future__ import annotations

import pytest

from node.wire import codec, frames, hello
from node.wire.errors import Code, FsError
from node.wire.frames import Header, Kind

CLUSTER = bytes(range(16))

VECTORS = {
    "66737270 0100 01 00 0102 0300 07000000 e8030000 efcdab8967452301 000102030405060708090a0b0c0d0e0f 9101": (
        Header(b"fsrp", 1, Kind.REQUEST, 0, 0x201, 3, 7, 1000, 0x0123456789ABCDEF, CLUSTER),
        b"\x91\x01",
    ),
    "66737270 0100 02 00 0102 0000 00000000 00000000 0500000000000000 000102030405060708090a0b0c0d0e0f 90": (
        Header(b"fsrp", 1, Kind.REPLY, 0, 0x201, 0, 0, 0, 5, CLUSTER),
        b"\x90",
    ),
    "66737270 0100 08 00 0000 0000 00000000 00000000 0000400000000000 000102030405060708090a0b0c0d0e0f": (
        Header(b"fsrp", 1, Kind.CREDIT, 0, 0, 0, 0, 0, 4 << 20, CLUSTER),
        b"",
    ),
    "66737270 0200 06 80 0000 0000 00000000 00000000 0100000000000000 000102030405060708090a0b0c0d0e0f": (
        Header(b"fsrp", 2, Kind.HELLO, 0x80, 0, 0, 0, 0, 1, CLUSTER),
        b"",
    ),
}


@pytest.mark.parametrize("text", VECTORS)
def test_a_header_has_these_bytes(text: str) -> None:
    header, body = VECTORS[text]
    fields = {name: value for name, value in header._asdict().items() if name not in ("magic", "kind", "cluster")}
    packed = frames.pack(header.kind, header.cluster, body, **fields)
    assert packed.hex() == text.replace(" ", "")
    assert frames.unpack(packed) == header
    assert bytes(frames.body(packed)) == body


def test_the_header_is_44_bytes() -> None:
    assert frames.HEADER_BYTES == 44


def test_kinds_keep_their_numbers() -> None:
    assert {kind.name: int(kind) for kind in Kind} == {
        "REQUEST": 1, "REPLY": 2, "ERROR": 3, "ONEWAY": 4, "NOTIFY": 5, "HELLO": 6, "WELCOME": 7, "CREDIT": 8,
        "PING": 9,
    }


def test_a_hello_has_these_bytes() -> None:
    assert hello.encode_hello(b"\x11" * 16, "x").hex() == "94" "01" "01" "c410" + "11" * 16 + "a178"
    assert hello.decode_hello(bytes.fromhex("930509c400")) == hello.Hello(5, 9, b"")


def test_a_hello_of_a_later_release_is_understood() -> None:
    longer = codec.encode(hello.Hello(1, 4, b"i" * 16, "y"))
    grown = bytes([longer[0] + 1]) + longer[1:] + b"\xc3"
    assert hello.negotiate(hello.decode_hello(grown)) == 1


def test_an_error_has_these_bytes() -> None:
    encoded = hello.encode_refusal(FsError(Code.NOT_LEADER, "ask 3", hint=3))
    assert encoded.hex() == "93" "2b" "a5" + b"ask 3".hex() + "03"
    decoded = hello.decode_refusal(encoded)
    assert (decoded.code, decoded.detail, decoded.hint) == (Code.NOT_LEADER, "ask 3", 3)


def test_an_error_of_a_later_release_is_an_io_error_that_says_so() -> None:
    decoded = hello.decode_refusal(bytes.fromhex("92cd03e7a3") + b"new")
    assert decoded.code == Code.IO
    assert "999" in decoded.detail
    assert "new" in decoded.detail
