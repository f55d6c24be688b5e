"""The twenty rules without which data is lost, stale views are shown or something hangs: one named test for each.

Each test plays the interleaving that the rule is there for, finds nothing wrong, then takes out the one place that
implements the rule, plays it again, and something must be wrong. What a rule is about decides where it is played: on
the state machine, with real mounts and the real service in memory, or with real processes where the kernel is the
point.

 1  a mount that was cut off does not write over others          service and mounts in memory
 2  a new leader waits for what the old one let others change    service and mounts in memory
 3  an isolated leader grants nothing                            two services and mounts in memory
 4  an answer that a recall overtook is not remembered           service and mounts in memory
 5  no recall waits for a handler that waits for the leader      real mounts
 6  a stopped mount shows no old pages                           real mounts; the state machine
 7  the clock of leases goes on in suspend                       service and mounts in memory
 8  a recall brings what only the kernel has                     real mounts
 9  appends go to the true end of the file                       real mounts
10  first put, then commit                                       a mount in memory
11  first the data, then the name; first the ancestors            a mount in memory
12  a request waits for its predecessor                          the state machine
13  nothing is acknowledged for which there may be no room       a mount in memory
14  an open file stays readable whatever becomes of its lease    real mounts
15  touches and deletions are as durable as data                 a block store
16  a commit of before a change of its group is refused          the state machine
17  a block that nobody will ever reference is found             the collector in the simulator
18  a name that never ceased to exist is found                   real mounts
19  no reader sees a size before its bytes                       a mount in memory
20  a reference is copied only where it lives                    the state machine
"""

from __future__ import annotations

from collections.abc import Callable, Iterator


def violated(scene: Callable[[], object]) -> bool:
    """Whether something is wrong in a scene. Only a failed assertion counts, also where closing files after it failed;
    anything else is a fault of the test."""
    try:
        scene()
    except Exception as error:
        if isinstance(error, OSError) and isinstance(error.__context__, AssertionError):
            return True
        if not all(isinstance(leaf, AssertionError) for leaf in _leaves(error)):
            raise
        return True
    return False


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
