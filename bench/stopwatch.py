"""Fireside with a stopwatch: at its end it prints the CPU seconds spent on saving unfinished answers."""

import os
import sys
import time
from collections.abc import Callable
from typing import Any, Never

from fireside import db, queries
from fireside.__main__ import main
from fireside.chat import events

spent = 0.0


def timed(function: Callable[..., Any], when: Callable[..., bool]) -> Callable[..., Any]:
    """Return the function, adding the thread time of the calls for which `when` is true to `spent`."""

    def call(*args: Any, **kw: Any) -> Any:
        global spent
        start = time.thread_time()
        try:
            return function(*args, **kw)
        finally:
            if when(*args):
                spent += time.thread_time() - start

    return call


# The event loop's thread encodes the texts and logs, the writer's thread commits them.
events.EventLog.unsaved_part = timed(events.EventLog.unsaved_part, lambda *_: True)  # type: ignore[method-assign]
db._transaction = timed(
    db._transaction, lambda connection, begin, function, *_: function is queries.generations.add_parts
)


def exit_with_time(status: int) -> Never:
    print(spent, flush=True)
    end(status)


end, os._exit = os._exit, exit_with_time  # how the command ends after it has served

if __name__ == "__main__":
    main(sys.argv[1:])
