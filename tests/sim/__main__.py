"""Play schedules: ``python -m tests.sim --seed N [-v]``, or as many as one likes: ``--schedules 10000``."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.sim.checkers import Violation
from tests.sim.profile import EVENTS, draw
from tests.sim.run import simulate


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="the first seed, or the only one")
    parser.add_argument("--schedules", type=int, default=0, help="how many seeds to play, from --seed on")
    parser.add_argument("--members", type=int, default=0, help="3 to 7; by default the seed decides")
    parser.add_argument("--events", type=int, default=EVENTS, help="events before everything heals")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first violation")
    parser.add_argument("-v", "--verbose", action="store_true", help="tell everything that happens")
    options = parser.parse_args()
    say = print if options.verbose else None
    if options.verbose:
        print(draw(options.seed, options.members, options.events))
    began = time.perf_counter()
    failed: list[tuple[int, str]] = []
    totals: Counter[str] = Counter()
    for seed in range(options.seed, options.seed + max(options.schedules, 1)):
        try:
            report = simulate(seed, members=options.members, events=options.events, say=say)
        except Violation as violation:
            print(f"VIOLATION {violation}", flush=True)
            failed.append((seed, violation.rule))
            if not options.keep_going:
                return 1
            continue
        totals.update({"schedules": 1, "events": report.events, "terms": report.terms})
        totals.update({"committed": report.committed, "mutations": report.mutations, "reads": report.reads})
        totals.update({f"fault {name}": count for name, count in report.faults.items()})
        totals.update(report.counts)
        if not options.schedules:
            print(report)
        elif totals["schedules"] % 100 == 0:
            print(f"seed {seed}: {totals['schedules']} clean, {time.perf_counter() - began:.0f} s", flush=True)
    print(f"{time.perf_counter() - began:.1f} s", dict(sorted(totals.items())))
    for seed, rule in failed:
        print(f"seed {seed}: {rule}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
