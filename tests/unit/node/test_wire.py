"""The pure part of the wire: whatever comes in, the outcome is a value or a ProtocolError."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.wire import frames, hello
from node.wire.catalogue import Catalogue, Method
from node.wire.codec import Codec, encode
from node.wire.errors import Code, FsError, ProtocolError
from node.wire.frames import Kind
from node.wire.limits import BODY_BYTES_MAX, DEADLINE_S_MAX, FRAME_PARTS_MAX, MESSAGE_BYTES_MAX
from node.wire.types import Buffer

CLUSTER = b"c" * 16


class Inner(msgspec.Struct, frozen=True, array_like=True, tag=1):
    number: int


class Ask(msgspec.Struct, frozen=True, array_like=True):
    name: bytes
    inner: tuple[Inner, ...] = ()


class Answer(msgspec.Struct, frozen=True, array_like=True):
    text: str


class Tell(msgspec.Struct, frozen=True, array_like=True):
    number: int


CODEC = Codec(Catalogue("test", [Method(1, Ask, Answer), Method(2, Tell, None)]))

u8, u16, u32, u64 = (st.integers(0, (1 << bits) - 1) for bits in (8, 16, 32, 64))


@given(st.sampled_from(Kind), u8, u16, u16, u32, u32, u64, st.binary(min_size=16, max_size=16), st.binary())
def test_headers_survive_the_wire(
    kind: Kind, flags: int, method: int, parts: int, group: int, remaining_ms: int, request: int, cluster: bytes,
    body: bytes,
) -> None:
    packed = frames.pack(
        kind, cluster, body, flags=flags, method=method, parts=parts, group=group, remaining_ms=remaining_ms,
        request=request,
    )
    header = frames.unpack(packed)
    assert header[2:] == (kind, flags, method, parts, group, remaining_ms, request, cluster)
    assert bytes(frames.body(packed)) == body


@given(st.binary(max_size=200) | st.binary(max_size=100).map(lambda tail: frames.pack(1, CLUSTER)[:30] + tail))
def test_hostile_heads_are_refused_or_read(head: bytes) -> None:
    try:
        header = frames.unpack(head)
    except ProtocolError:
        return
    assert header.magic == frames.MAGIC
    assert header.kind in list(Kind)


@given(st.binary(max_size=300))
def test_hostile_bodies_are_refused_or_read(body: bytes) -> None:
    for decode, kind in (
        (lambda: CODEC.decode_request(1, body), Ask),
        (lambda: hello.decode_hello(body), hello.Hello),
        (lambda: hello.decode_refusal(body), FsError),
    ):
        try:
            assert isinstance(decode(), kind)
        except ProtocolError:
            pass


@pytest.mark.parametrize(
    "body", [b"\x91" * 500_000, b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x92\xa1\xff\x90"]
)
def test_bombs_are_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        CODEC.decode_request(1, body)
    with pytest.raises(ProtocolError):
        hello.decode_hello(body)


def test_a_body_above_the_bound_is_refused_unread() -> None:
    frames.unpack(frames.pack(Kind.REQUEST, CLUSTER, bytes(BODY_BYTES_MAX)))
    with pytest.raises(ProtocolError):
        frames.unpack(frames.pack(Kind.REQUEST, CLUSTER, bytes(BODY_BYTES_MAX + 1)))


def test_parts_are_counted_and_weighed() -> None:
    header = frames.unpack(frames.pack(Kind.REQUEST, CLUSTER, parts=2))
    frames.check_parts(header, [b"a", b"b"], 44)
    for data in ([b"a"], [b"a", b"b", b"c"], [bytes(MESSAGE_BYTES_MAX), b""]):
        with pytest.raises(ProtocolError):
            frames.check_parts(header, data, 44)
    many = frames.unpack(frames.pack(Kind.REQUEST, CLUSTER, parts=FRAME_PARTS_MAX + 1))
    with pytest.raises(ProtocolError):
        frames.check_parts(many, [b""] * (FRAME_PARTS_MAX + 1), 44)


def test_what_the_peer_would_refuse_is_not_sent() -> None:
    frames.bound(BODY_BYTES_MAX, [bytes(MESSAGE_BYTES_MAX - BODY_BYTES_MAX - frames.HEADER_BYTES)])
    for body_bytes, data in (
        (BODY_BYTES_MAX + 1, []),
        (0, [b""] * (FRAME_PARTS_MAX + 1)),
        (BODY_BYTES_MAX, [bytes(MESSAGE_BYTES_MAX - BODY_BYTES_MAX)]),
    ):
        with pytest.raises(FsError) as caught:
            frames.bound(body_bytes, data)
        assert caught.value.code == Code.TOO_BIG


@pytest.mark.parametrize("part", ["text", 7, None, memoryview(b"abcdef")[::2]])
def test_what_is_no_payload_is_refused_before_anything_is_sent(part: Any) -> None:
    with pytest.raises(TypeError):
        frames.bound(0, [b"fine", part])


def test_both_ends_weigh_alike() -> None:
    data: list[Buffer] = [b"a" * 1000, memoryview(b"b" * 2000)]
    assert frames.weigh(100, data) == 3100
    assert frames.weigh(100, []) == frames.MESSAGE_WEIGHT_MIN


@given(st.floats(allow_nan=False))
def test_a_remaining_time_is_never_0_and_fits(remaining_s: float) -> None:
    milliseconds = frames.to_ms(remaining_s)
    assert 1 <= milliseconds <= DEADLINE_S_MAX * 1000 + 1
    if 0 <= remaining_s <= DEADLINE_S_MAX:
        assert 0 < milliseconds - remaining_s * 1000 <= 1.001


def test_a_catalogue_encodes_and_decodes() -> None:
    ask = Ask(b"x", (Inner(1), Inner(2)))
    method = CODEC.method_of(ask)
    assert CODEC.decode_request(method.number, encode(ask)) == ask
    decoder = CODEC.reply_decoder(1)
    assert decoder is not None
    assert decoder(encode(Answer("y"))) == Answer("y")
    assert CODEC.reply_decoder(2) is None
    with pytest.raises(ProtocolError):
        CODEC.decode_request(3, b"\x90")
    with pytest.raises(KeyError):
        CODEC.method_of(Answer("a reply is not a request"))


@pytest.mark.parametrize(
    "value", [["text"], [1], [None], [[1, 2]], {"name": b"x"}, 7, [b"x", [[2, 5]]], [b"x", [[1, "n"]]]]
)
def test_decoding_is_strict(value: object) -> None:
    with pytest.raises(ProtocolError):
        CODEC.decode_request(1, msgspec.msgpack.encode(value))


def test_a_message_may_grow_at_its_end() -> None:
    assert CODEC.decode_request(1, msgspec.msgpack.encode([b"x", [], "of a later release"])) == Ask(b"x")
    assert CODEC.decode_request(1, msgspec.msgpack.encode([b"x"])) == Ask(b"x")


@pytest.mark.parametrize(("low", "high", "word"), [(2, 9, "upgrade this end"), (0, 0, "upgrade that end")])
def test_versions_that_do_not_meet_are_refused(low: int, high: int, word: str) -> None:
    with pytest.raises(FsError) as caught:
        hello.negotiate(hello.Hello(low, high, b""))
    assert caught.value.code == Code.UNSUPPORTED_VERSION
    assert word in caught.value.detail


def test_versions_that_meet_are_agreed() -> None:
    assert hello.negotiate(hello.Hello(0, 1, b"")) == 1
    assert hello.negotiate(hello.Hello(1, 7, b"")) == 1


def test_a_foreign_cluster_is_named() -> None:
    hello.check_cluster(CLUSTER, CLUSTER)
    with pytest.raises(FsError) as caught:
        hello.check_cluster(CLUSTER, b"d" * 16)
    assert caught.value.code == Code.FOREIGN_CLUSTER
    assert "64" * 16 in caught.value.detail
    assert "63" * 16 in caught.value.detail
