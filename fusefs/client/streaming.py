"""What a long sequential write leaves to be written back, before anybody wishes so."""

from __future__ import annotations

from typing import Optional

from fusefs.client import chunking
from fusefs.client.commit import Group, groups_of
from fusefs.client.files import File
from node.wire.limits import GROUP_BYTES_MAX, MIB

EAGER_BYTES = 8 * MIB  # dirty in one file: from here on incomplete chunks go out too


def next_complete(file: File) -> Optional[Group]:
    """The next chunks that a sequential writer has left, behind what is under way; None: let others go first.

    As many as there are: while the window is full, more collect, and travel at the price of one.
    """
    if file.requests or file.behind or file.dead is not None:
        return None
    begin = stop = file.position
    while stop - begin < GROUP_BYTES_MAX:
        start, end = file.dirty.run(stop)
        if start == end or (start != stop and stop != begin):
            break
        cut = chunking.chunk_end(start)
        if end < cut and (file.dirty.bytes <= EAGER_BYTES or file.dirty.end <= cut):
            break
        begin = start if stop == begin else begin
        stop = cut
    if stop == begin:
        return None
    generation = file.dirty.seal()
    group = next(groups_of(file.dirty.pieces(begin, stop), generation))
    file.position = group.end  # not ``stop``: what does not fit into one group is the beginning of the next
    return group
