"""Calls for help when nothing has come for a while.

An arm under position control goes on to its last target whether or not the program that sent it is still there. A
watchdog that has been fed once and then not for its timeout calls `on_stale`, once, until it is fed again. A call that
failed is in the log and is made again after another timeout: a servo bus that lost one packet has the next.
"""

import logging
from collections.abc import Callable
from threading import Condition, Thread
from time import monotonic

logger = logging.getLogger(__name__)


class Watchdog:
    """A thread that waits for the next feeding. State: when the last one was, and whether it was already missed.

    Args:
        timeout_s: How long nothing may come, seconds.
        on_stale: Called in the watchdog's thread, without its lock.

    Attributes:
        bites: How often `on_stale` was called.

    Raises:
        ValueError: If the timeout is not positive.
    """

    def __init__(self, timeout_s: float, on_stale: Callable[[], None]):
        if timeout_s <= 0:
            raise ValueError(f"A watchdog's timeout must be above 0 seconds; got {timeout_s}.")
        self._timeout_s = timeout_s
        self._on_stale = on_stale
        self._condition = Condition()
        self._fed_at: float | None = None  # None: not yet, or already found stale
        self._stopped = False
        self._thread: Thread | None = None
        self.bites = 0

    def start(self) -> None:
        """Begins to watch; the first feeding starts the time."""
        self._stopped = False
        self._thread = Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def feed(self) -> None:
        """Something came."""
        with self._condition:
            self._fed_at = monotonic()
            self._condition.notify()

    @property
    def is_stale(self) -> bool:
        """Whether nothing has come for too long: `on_stale` may have waited for a lock while something did."""
        with self._condition:
            return self._fed_at is not None and monotonic() - self._fed_at >= self._timeout_s

    def stop(self) -> None:
        """Ends the thread, after the call that it is in."""
        with self._condition:
            self._stopped = True
            self._condition.notify()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._fed_at = None

    def _watch(self) -> None:
        while True:
            with self._condition:
                if self._stopped:
                    return
                left = None if self._fed_at is None else self._fed_at + self._timeout_s - monotonic()
                if left is None or left > 0:
                    self._condition.wait(left)
                    continue
                missed = self._fed_at
                self.bites += 1
            again_from = None
            try:  # outside of the lock: it may wait for the robot, which may be waiting to feed
                self._on_stale()
            except Exception:  # whatever a robot's driver raises; a thread that ended here would watch no more
                logger.exception("The watchdog's call failed; the next try is in %.0f ms.", 1000 * self._timeout_s)
                again_from = monotonic()
            with self._condition:
                if self._fed_at == missed:  # nothing came in the meantime
                    self._fed_at = again_from
