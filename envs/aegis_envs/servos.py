"""How a target reaches the joints: late, and through play in the gears. Nominally at once and exactly.

    heard(t) = aimed(t - latency)
    held(t)  = clip(held(t-), heard(t) - play / 2, heard(t) + play / 2)        the play operator

The servo pulls on one flank of its gear, so that the joint follows a target's turn only once the play is through.
"""

from collections import deque

import numpy as np

from aegis_envs.units import JOINTS, Array


class Servos:
    """The line from targets to joints.

    State: the targets that have not been heard of yet, the last that was given, and what is held.

    Attributes:
        aimed: The last target that was given, (6,) in radians.
        held: Where the servos hold the joints now, (6,) in radians.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, Array]] = deque()
        self.reset(np.zeros(len(JOINTS)))

    def reset(self, joints: Array, *, latency_steps: int = 0, play: Array | None = None) -> None:
        """Holds `joints` (6,) from now on.

        Args:
            joints: Radians.
            latency_steps: Time steps until a target is heard of.
            play: (6,) radians that a joint can be turned while its servo stands still; None: none.
        """
        self.aimed, self.held = joints.copy(), joints.copy()
        self._latency, self._play = latency_steps, play
        self._waiting.clear()

    def aim(self, target: Array, now: int) -> None:
        """Gives a target (6,) in radians at time step `now`."""
        self.aimed = target
        self._waiting.append((now + self._latency, target))

    def hear(self, now: int) -> Array:
        """What the servos hold at time step `now`, (6,) in radians."""
        while self._waiting and self._waiting[0][0] <= now:
            _, heard = self._waiting.popleft()
            if self._play is None:
                self.held = heard
            else:
                self.held = np.clip(self.held, heard - self._play / 2, heard + self._play / 2)
        return self.held
