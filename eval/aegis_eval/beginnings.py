"""What the episodes of a rollout begin with: what the robot is told, and the state that it finds.

An episode of these environments is a function of its seed, so nothing need be noted while a policy acts.
"""

from collections.abc import Sequence

from aegis_envs.metaworld.tasks import descriptions
from aegis_envs.recordable import RECORDABLE
from aegis_eval.study import Options, Study

METAWORLD = ("aegis_metaworld", "metaworld")  # both draw the same state from a seed


def require_environments(study: Study) -> None:
    """Refuses a study whose rollouts cannot begin here, before anything is trained for them.

    Raises:
        ImportError: If a set is of a suite whose package is missing or does not work with the installed MuJoCo.
    """
    for options in study.rollouts.sets.values():
        if options["type"] in RECORDABLE:
            RECORDABLE[options["type"]].require()


def instructions(options: Options, task: str, *, seeds: Sequence[int]) -> list[str]:
    """What the robot is told in the episodes of these seeds; empty for an environment that does not say.

    Args:
        options: Of the environment, `type` among them.
        task: Its name in the results.
        seeds: One an episode.
    """
    if options["type"] in METAWORLD:
        return [descriptions()[task]] * len(seeds) if task in descriptions() else []
    if options["type"] != "aegis_tabletop" or not seeds:
        return []
    import gymnasium  # renders nothing, but loads MuJoCo

    from aegis_envs import GYM_ID

    given = {name: value for name, value in options.items() if name in ("kinds", "phrasings", "objects")}
    environment = gymnasium.make(GYM_ID, task=task, cameras=(), **given)
    try:
        told = []
        for seed in seeds:
            environment.reset(seed=seed)
            told.append(str(environment.unwrapped.task_description))  # type: ignore[attr-defined]
        return told
    finally:
        environment.close()


def initial_states(options: Options, task: str, *, seeds: Sequence[int]) -> list[list[float]]:
    """Positions of object and goal in metres at the start of Meta-World's episodes; empty for other environments."""
    if options["type"] not in METAWORLD or task not in descriptions():
        return []
    from aegis_envs.metaworld import configuration as metaworld  # loads LeRobot's environments, which takes seconds

    return metaworld.initial_states(task, seeds)
