"""The login throttle: delays by account and by address, and known addresses."""

import pytest
from fireside.errors import RateLimited, StorageUnavailable
from fireside.safety.throttle import Throttle, network

from ..conftest import Clock


def fail(throttle: Throttle, *keys: str) -> int:
    """Make a failed attempt. Return 0, or the seconds to wait if it was refused."""
    try:
        with throttle.attempt(*keys):
            raise KeyError
    except KeyError:
        return 0
    except RateLimited as refused:
        return refused.seconds


def failures(throttle: Throttle, count: int, *keys: str) -> list[int]:
    return [fail(throttle, *keys) for _ in range(count)]


def test_delay_doubles_after_five_failures(clock: Clock) -> None:
    throttle = Throttle()
    assert failures(throttle, 6, "account") == [0] * 6
    waits = []
    for _ in range(8):
        wait = fail(throttle, "account")
        assert wait > 0
        clock.late += wait - 1.5 if wait > 2 else 0
        assert fail(throttle, "account") > 0, "still waiting"
        clock.late += 2.5
        waits.append(wait)
        assert fail(throttle, "account") == 0
    assert [round(wait) for wait in waits] == pytest.approx([1, 2, 4, 8, 16, 30, 30, 30], abs=1)


def test_success_clears_the_failures_of_an_account() -> None:
    throttle = Throttle()
    for _ in range(50):
        with throttle.attempt("account", "address"):
            pass
    failures(throttle, 5, "account")
    with throttle.attempt("account"):
        pass
    assert failures(throttle, 6, "account") == [0] * 6


def test_failures_expire_an_hour_after_the_last(clock: Clock) -> None:
    throttle = Throttle()
    for _ in range(4):
        assert failures(throttle, 5, "account") == [0] * 5
        clock.late += throttle.FAILURE_LIFETIME_SECONDS
    assert failures(throttle, 5, "account") == [0] * 5
    clock.late += throttle.FAILURE_LIFETIME_SECONDS - 60
    assert fail(throttle, "account") == 0 < fail(throttle, "account")


def test_failures_throttle_only_their_account_and_address() -> None:
    throttle = Throttle()
    failures(throttle, 6, "account a", "address x")
    assert fail(throttle, "account a", "address y") > 0
    assert fail(throttle, "account b", "address x") > 0
    assert fail(throttle, "account b", "address y") == 0


def test_throttle_keeps_a_bounded_number_of_keys() -> None:
    throttle = Throttle()
    for number in range(Throttle.MAX_KEYS + 500):
        fail(throttle, f"account {number}")
    assert len(throttle._failures) == Throttle.MAX_KEYS


def test_full_disk_does_not_count_as_a_failure() -> None:
    throttle = Throttle()
    for _ in range(Throttle.FREE_FAILURES + 5):
        with pytest.raises(StorageUnavailable), throttle.attempt("account"):
            raise StorageUnavailable
    with throttle.attempt("account"):
        pass


@pytest.mark.parametrize(
    ("known", "same", "other"),
    [
        ("192.0.2.1", "::ffff:192.0.2.1", "192.0.2.2"),
        ("127.0.0.1", "127.0.0.1", "127.0.0.2"),
        ("2001:db8::1", "2001:db8::ffff:1", "2001:db8:0:1::1"),
    ],
)
def test_failures_elsewhere_do_not_delay_a_known_address(known: str, same: str, other: str) -> None:
    throttle = Throttle()
    assert throttle.remember("ann", known) and not throttle.remember("ann", same)
    while not fail(throttle, *throttle.login_keys("ann", other)):
        pass
    with throttle.attempt(*throttle.login_keys("ann", same)):
        pass
    while not fail(throttle, *throttle.login_keys("ann", same)):
        pass  # failures at the known address delay it


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("127.0.0.1", "127.255.0.9", True),
        ("127.0.0.1", "::1", True),
        ("127.0.0.1", "::ffff:127.0.0.2", True),
        ("2001:db8::1", "2001:db8::2:3:4:5", True),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("192.0.2.1", "192.0.2.2", False),
        ("no address", "", True),
    ],
)
def test_addresses_of_one_network_count_as_one(one: str, other: str, equal: bool) -> None:
    assert (network(one) == network(other)) is equal


def test_number_of_known_addresses_is_bounded() -> None:
    throttle = Throttle()
    for number in range(throttle.MAX_KNOWN + 5):
        throttle.remember(f"user{number}", "192.0.2.1")
    assert not throttle.is_known("user0", "192.0.2.1")
    assert throttle.is_known(f"user{throttle.MAX_KNOWN}", "192.0.2.1")


def test_success_clears_only_failures_of_its_account() -> None:
    throttle = Throttle()
    with throttle.attempt("account", "address"):
        for number in range(throttle.FREE_FAILURES):
            assert not fail(throttle, f"victim{number}", "address")
    assert not fail(throttle, "another", "address")
    assert fail(throttle, "yet another", "address")
