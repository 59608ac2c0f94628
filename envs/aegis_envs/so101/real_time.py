"""Physics that keeps up with a clock.

Between two calls from outside nothing acts on the simulation but the servos, whose targets stay. So the state at a
moment is found when somebody asks for it, by simulating the time that has passed: the same state as if a thread had
stepped all along, and no thread is needed. A second costs a few milliseconds (200 steps).
"""

from collections.abc import Callable
from time import perf_counter

from aegis_envs.scene import TIMESTEP
from aegis_envs.simulation import Simulation

_SLICE = 4  # time steps between two looks for contacts, 20 ms: as in a control step of aegis_tabletop
PERIOD = 20  # time steps between two judgements, 0.1 s: the same


class RealTime:
    """Brings a simulation up to the clock. State: when it started and how many time steps it has made since.

    Args:
        simulation: What is simulated.
        judge: Called after each 0.1 s of simulated time, with the seconds since the start; contacts are forgotten
            afterwards.
        clock: Seconds, from any origin.
    """

    def __init__(
        self, simulation: Simulation, judge: Callable[[float], None], *, clock: Callable[[], float] = perf_counter
    ):
        self._simulation = simulation
        self._judge = judge
        self._clock = clock
        self._steps = 0
        self._origin = clock()

    @property
    def seconds(self) -> float:
        """Simulated time since the start."""
        return round(self._steps * TIMESTEP, 6)  # without the rounding error of binary fractions

    def restart(self) -> None:
        """Time zero is now. What has touched before is forgotten."""
        self._origin, self._steps = self._clock(), 0
        self._simulation.forget_contacts()

    def catch_up(self) -> None:
        """Simulates what has passed on the clock, in whole time steps."""
        due = int((self._clock() - self._origin) / TIMESTEP)
        while self._steps < due:
            steps = min(_SLICE - self._steps % _SLICE, due - self._steps)
            self._simulation.run(steps)
            self._steps += steps
            if self._steps % PERIOD == 0:
                self._judge(self.seconds)
                self._simulation.forget_contacts()
