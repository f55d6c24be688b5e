"""Is a concurrent history linearizable? Wing and Gong's search with Lowe's memoisation.

A history is a list of operations with the interval in which each took effect. An operation whose outcome is unknown
(its process died, or it got an error that says "perhaps") has ``end`` infinite: it may take effect at any time after
its start, or never.

References: J. M. Wing, C. Gong, Testing and Verifying Concurrent Objects (1993); G. Lowe, Testing for Linearizability
(2017).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

NEVER = math.inf
UNKNOWN = object()
"""The result of an operation of which nobody knows whether it took effect."""

Step = Callable[[Any, Any, Any], Iterable[Hashable]]
"""``step(state, call, result)`` yields the states that follow when ``call`` answers ``result``; none: impossible.
With ``UNKNOWN`` it yields every state that the call could lead to."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One call, from just before it was made until just after it returned."""

    call: Any
    result: Any
    start: float
    end: float = NEVER
    process: int = 0


def linearizable(history: Sequence[Operation], initial: Hashable, step: Step) -> bool:
    """Return whether some order of the operations respects real time and the sequential behaviour ``step``."""
    operations = sorted(history, key=lambda o: o.start)
    must = sum(1 << i for i, o in enumerate(operations) if o.end != NEVER)
    seen: set[tuple[int, Hashable]] = set()
    stack: list[tuple[int, Hashable]] = [(0, initial)]
    while stack:
        done, state = stack.pop()
        if done & must == must:
            return True
        if (done, state) in seen:
            continue
        seen.add((done, state))
        # Only an operation that began before every open one had ended can come next.
        first_end = min(o.end for i, o in enumerate(operations) if not done >> i & 1)
        for i, operation in enumerate(operations):
            if operation.start > first_end:
                break
            if not done >> i & 1:
                for after in step(state, operation.call, operation.result):
                    stack.append((done | 1 << i, after))
    return False


def explain(history: Sequence[Operation], initial: Hashable, step: Step) -> list[Operation]:
    """Return a shortest prefix, by end of operations, that is not linearizable; empty when the whole is."""
    ended = sorted((o for o in history if o.end != NEVER), key=lambda o: o.end)
    low, high = 0, len(ended)
    if linearizable(history, initial, step):
        return []

    def prefix(count: int) -> list[Operation]:
        limit = ended[count - 1].end if count else -NEVER
        cut = []
        for o in history:
            if o.end <= limit:
                cut.append(o)
            elif o.start < limit:  # under way: it may have taken effect or not
                cut.append(Operation(o.call, UNKNOWN, o.start, NEVER, o.process))
        return cut

    while low + 1 < high:
        middle = (low + high) // 2
        if linearizable(prefix(middle), initial, step):
            low = middle
        else:
            high = middle
    return prefix(high)
