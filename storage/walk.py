"""Records in the order in which they were written, across segments, from a place on."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from storage.records import RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES, Record, headers
from storage.recover import Place
from storage.segments import Segments


def walk(segments: Segments, start: Place, end: Place) -> Iterator[tuple[Record, Place]]:
    """Yield each record between two places with the place behind it. No segment from ``start`` on may be removed
    meanwhile. Payloads are not read."""
    for number in segments.numbers:
        salt = segments.salts.get(number)
        if start[0] <= number <= end[0] and salt is not None:
            first = max(start[1], SEGMENT_HEADER_BYTES) if number == start[0] else SEGMENT_HEADER_BYTES
            last = end[1] if number == end[0] else segments.length(number)
            for offset, record in headers(partial(segments.read, number), salt, first, last):
                yield record, (number, offset + RECORD_HEADER_BYTES + record.stored)


def settle(segments: Segments, place: Place, end: Place) -> Place:
    """Return a place as the beginning of the next segment where it is the end of one; never beyond ``end``."""
    number, offset = place
    while number < end[0] and (number not in segments.lengths() or offset >= segments.length(number)):
        number, offset = number + 1, SEGMENT_HEADER_BYTES
    return number, offset
