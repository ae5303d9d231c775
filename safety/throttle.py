"""Limits on signing in: failures by account and by address."""

import contextlib
import functools
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator

from ..errors import RateLimited, StorageUnavailable

LOOPBACK_NETWORK = "loopback"


@functools.lru_cache(1024)
def network(address: str) -> str:
    """Return the name under which an address is counted: all loopback addresses are one, and so is each /64 of IPv6."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:  # a proxy may send any text
        return "unknown"
    ip = getattr(ip, "ipv4_mapped", None) or ip
    if ip.is_loopback:
        return LOOPBACK_NETWORK
    return str(ip if ip.version == 4 else ipaddress.ip_network((int(ip), 64), strict=False))


def is_loopback(host: str) -> bool:
    return host == "localhost" or network(host.strip("[]")) == LOOPBACK_NETWORK


class Throttle:
    """Count failures by key. After FREE_FAILURES, each further one delays the next attempt by 1, 2, 4 ... 30 s.

    `known` holds pairs of an account and an address from which it has signed in. There, only failures of this account at this
    address count, so that strangers elsewhere cannot lock the owner out.
    """

    FREE_FAILURES = 5
    MAX_DELAY_SECONDS = 30
    FAILURE_LIFETIME_SECONDS = 3600
    MAX_KEYS = 10_000
    MAX_KNOWN = 1000

    def __init__(self, known: Iterable[str] = ()) -> None:
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()  # by key: number, time of the last
        self.known = OrderedDict.fromkeys(known)

    def is_known(self, name: str, address: str) -> bool:
        return _pair(name, address) in self.known

    def remember(self, name: str, address: str) -> bool:
        """Add a pair to `known`. Return whether it is new."""
        pair = _pair(name, address)
        is_new = pair not in self.known
        self.known[pair] = None
        self.known.move_to_end(pair)
        if len(self.known) > self.MAX_KNOWN:
            self.known.popitem(last=False)
        return is_new

    def rename(self, name: str, new_name: str | None) -> None:
        """Give the pairs of an account another name. None: remove them."""
        kept = OrderedDict[str, None]()
        for pair in self.known:
            account, _, address = pair.rpartition(" at ")
            if account != name:
                kept[pair] = None
            elif new_name is not None:
                kept[f"{new_name} at {address}"] = None
        self.known = kept

    def login_keys(self, name: str, address: str) -> tuple[str, ...]:
        """Return the keys under which a failed login counts."""
        if self.is_known(name, address):
            return (_pair(name, address),)
        return (f"account: {name}", f"address: {network(address)}")  # no name has a colon, so no pair is the same

    def check(self, *keys: str) -> None:
        """Raise RateLimited while one of the keys has to wait."""
        wait = max(self._wait(key) for key in keys)
        if wait > 0:
            raise RateLimited(max(1, round(wait + 0.5)))

    @contextlib.contextmanager
    def attempt(self, *keys: str) -> Iterator[None]:
        """Count an exception in the block as a failure of each key. A success clears the first key. Raises as `check`.

        Attempts with the same key must not overlap if the number of guesses matters: Auth._attempt waits for a slot first.
        """
        self.check(*keys)
        try:
            yield
        except StorageUnavailable:
            raise  # not a wrong guess
        except BaseException:
            for key in keys:
                self._failures[key] = (self._count(key) + 1, time.monotonic())
                self._failures.move_to_end(key)
            while len(self._failures) > self.MAX_KEYS:
                self._failures.popitem(last=False)
            raise
        else:
            self._failures.pop(keys[0], None)

    def _count(self, key: str) -> int:
        count, last = self._failures.get(key, (0, 0.0))
        return count if time.monotonic() - last < self.FAILURE_LIFETIME_SECONDS else 0

    def _wait(self, key: str) -> float:
        """Return the seconds until the next attempt is allowed."""
        delayed = self._count(key) - self.FREE_FAILURES
        if delayed <= 0:
            return 0
        return self._failures[key][1] + min(self.MAX_DELAY_SECONDS, 1 << (delayed - 1)) - time.monotonic()


def _pair(name: str, address: str) -> str:
    """Return the key of an account at an address. Loopback addresses stay apart: another user may have the next one."""
    counted = network(address)
    return f"{name} at {address if counted == LOOPBACK_NETWORK else counted}"
