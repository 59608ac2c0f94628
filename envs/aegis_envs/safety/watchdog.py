"""Calls for help when nothing has come for a while.

An arm under position control goes on to its last target whether or not the program that sent it is still there. A
watchdog that has been fed once and then not for its timeout calls `on_stale`, once, until it is fed again.
"""

from collections.abc import Callable
from threading import Condition, Thread
from time import monotonic


class Watchdog:
    """A thread that waits for the next feeding. State: when the last one was, and whether it was already missed.

    Args:
        timeout_s: How long nothing may come, seconds.
        on_stale: Called in the watchdog's thread.

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
        self.error: Exception | None = None

    def start(self) -> None:
        """Begins to watch; the first feeding starts the time."""
        self._stopped = False
        self._thread = Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def feed(self) -> None:
        """Something came.

        Raises:
            RuntimeError: If `on_stale` failed since: whoever relies on it has to know.
        """
        if self.error is not None:
            raise RuntimeError("The watchdog could not stop the arm when actions stayed out.") from self.error
        with self._condition:
            self._fed_at = monotonic()
            self._condition.notify()

    def stop(self) -> None:
        """Ends the thread."""
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
                self._fed_at = None
                self.bites += 1
            try:  # outside of the lock: it may wait for the robot, which may be waiting to feed
                self._on_stale()
            except Exception as error:  # handed to whoever feeds next
                self.error = error
                return
