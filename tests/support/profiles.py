"""How many random cases are tried: a bounded number on each push, the same each time; many in ``make test-thorough``.

There ``FASTASSIGN_THOROUGH`` says how many times as many, and ``FASTASSIGN_SEED`` where they begin; the header of the
tests prints both, so that a failure can be had again with ``make test-thorough SEED=...``.
"""

import os

from hypothesis import settings

TIMES = int(os.environ.get("FASTASSIGN_THOROUGH", "1"))
SEED = int(os.environ.get("FASTASSIGN_SEED", "0"))

settings.register_profile("push", deadline=None, derandomize=True, database=None, print_blob=True)
settings.register_profile("thorough", deadline=None, max_examples=100 * TIMES, print_blob=True)
settings.load_profile("thorough" if TIMES > 1 else "push")


def cases(count, **how):
    """Return hypothesis' settings for this many cases on a push."""
    return settings(max_examples=count * TIMES, **how)


def seeds(count, first=0):
    """Return the seeds of random walks, this many on a push."""
    return range(first + SEED, first + SEED + count * TIMES)


def header():
    """Return the line that says what it takes to run the same cases again."""
    if TIMES == 1:
        return "random cases: those of every push"
    return f"random cases: {TIMES} times as many as on a push; again with make test-thorough SEED={SEED}"
