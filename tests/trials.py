"""How often what is repeated is repeated. Whoever types `make test` waits for it, so that it tries a tenth of what `make long`
does, which CI runs too: TRIALS is 100 there. From there on every case is tried, and only the kills go on to grow.
"""

import os

TRIALS = int(os.environ.get("TRIALS", "10"))  # lives of the service that are killed
WHOLE = 100


def some(count: int, least: int = 4) -> range:
    """Of the numbers below `count` some TRIALS in a hundred, but `least` or so at least, spread evenly. The step is odd, as even and
    odd numbers often stand for different things.
    """
    fewer = max(least, count * TRIALS // WHOLE)
    return range(0, count, 1 if TRIALS >= WHOLE else count // fewer | 1)
