"""Touch an object with the gripper, and no other object before it."""

from aegis_envs.instructions import Templates
from aegis_envs.simulation import Simulation
from aegis_envs.tasks.task import TARGET, Task, Verdict


class Touch(Task):
    """Success is a contact between the gripper and the named object.

    A contact of any part of the arm with another object ends the episode as a failure, so whoever touches objects
    without understanding the instruction succeeds at most once in as many times as there are objects.
    """

    name = "touch"
    templates = Templates(
        shown=("touch {object}", "reach out and touch {object}", "move the gripper to {object}"),
        never_shown=("tap {object}", "make contact with {object}", "poke {object} with the gripper"),
        questions=("which one is {object}?", "where is {object}?", "can you find {object}?"),
    )
    seconds = 3.0

    def judge(self, simulation: Simulation) -> Verdict:
        """Success on contact with the target, failure on contact with anything else."""
        if simulation.bumped - {TARGET}:
            return Verdict.FAILURE
        return Verdict.SUCCESS if TARGET in simulation.touched else Verdict.ONGOING
