"""How many cases the repeated tests try: TRIALS in a hundred, so a twentieth with `make test` and all with `make long`, as CI runs them."""

import os

TRIALS = int(os.environ.get("TRIALS", "5"))  # also the number of services that the tests of kills kill
FULL = 100


def spread(count: int, least: int = 2) -> range:
    """Return TRIALS in a hundred of the numbers below `count`, but about `least` at least, spread evenly.

    The step is odd, because even and odd numbers often stand for different things.
    """
    fewer = max(least, count * TRIALS // FULL)
    return range(0, count, 1 if TRIALS >= FULL else count // fewer | 1)
