"""Lift an object off the table."""

from aegis_envs.instructions import Templates
from aegis_envs.simulation import Simulation
from aegis_envs.tasks.task import TARGET, Task, Verdict

HEIGHT = 0.04  # metres above where it stood


class Lift(Task):
    """Success when the named object is `HEIGHT` up in the gripper; lifting another one halfway is a failure."""

    name = "lift"
    templates = Templates(
        shown=("lift {object}", "pick up {object}", "grasp {object} and lift it"),
        never_shown=("raise {object} off the table", "take {object}", "hold {object} up"),
    )
    seconds = 5.0

    def judge(self, simulation: Simulation) -> Verdict:
        """Success once the target is up, failure once another object is halfway up."""
        others = range(TARGET + 1, len(simulation.layout.objects))
        if any(simulation.height_gain(slot) > HEIGHT / 2 for slot in others):
            return Verdict.FAILURE
        is_up = simulation.height_gain(TARGET) >= HEIGHT and TARGET in simulation.touched
        return Verdict.SUCCESS if is_up else Verdict.ONGOING
