"""Put an object on a coloured disc."""

from aegis_envs.instructions import Templates
from aegis_envs.simulation import Simulation
from aegis_envs.tasks.task import TARGET, Task, Verdict, another_on_disc, on_disc

_AT_REST = 0.05  # m/s


class Place(Task):
    """Success when the named object rests on the named disc and the gripper has let go of it.

    Another object on that disc is a failure.
    """

    name = "place"
    templates = Templates(
        shown=("put {object} on {disc}", "place {object} on {disc}", "pick up {object} and put it on {disc}"),
        never_shown=("set {object} down on {disc}", "move {object} over to {disc}", "drop {object} onto {disc}"),
    )
    discs = 2
    seconds = 8.0

    def judge(self, simulation: Simulation) -> Verdict:
        """Success at rest on the disc, out of the gripper; failure with another object there."""
        if another_on_disc(simulation):
            return Verdict.FAILURE
        released = TARGET not in simulation.touched and simulation.object_speed(TARGET) < _AT_REST
        return Verdict.SUCCESS if released and on_disc(simulation, TARGET) else Verdict.ONGOING
