"""Signals that ask a run to stop: it ends its step and keeps it. Effects only."""

import contextlib
import signal
from collections.abc import Iterator, Sequence

from jaxstyle.runs import processes


class Interrupted(Exception):  # noqa: N818 - it is no error
    """The run was told to stop by a signal and has written what resuming needs."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.exit_status = 128 + number


def asked(received: Sequence[int]) -> int:
    """The signal that this process was sent, or another of several; 0 if none was."""
    return max(processes.every(received[0] if received else 0))


@contextlib.contextmanager
def interruptible() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM in a list instead of stopping; a second one stops at once."""
    received: list[int] = []

    def receive(number: int, _) -> None:
        received.append(number)
        give_back()

    def give_back() -> None:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    # By this a command hears of signals at once; it is taken last, or one that comes in between would be lost.
    wakeup = signal.set_wakeup_fd(-1)
    try:
        yield received
    finally:
        give_back()
