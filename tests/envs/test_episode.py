import numpy as np
import pytest

from aegis_envs.base import TabletopEnv
from aegis_envs.episode import draw_episode, find_seed
from aegis_envs.tasks import parse_tasks

OPTIONS = {"objects": 3, "kinds": "shown", "phrasings": "shown"}


def test_an_episode_drawn_from_a_seed_is_the_environments_of_that_seed() -> None:
    tasks = parse_tasks("all")
    env = TabletopEnv("all", cameras=())
    for seed in range(5):
        env.reset(seed=seed)
        episode = draw_episode(np.random.default_rng(seed), tasks, **OPTIONS)
        assert (episode.task.name, episode.instruction) == (env.task, env.task_description)
        assert episode.layout == env.simulation.layout
    env.close()


def test_the_seed_that_is_found_is_the_first_whose_scene_asks_the_instruction() -> None:
    tasks = parse_tasks("touch")
    asked = [draw_episode(np.random.default_rng(seed), tasks, **OPTIONS).instruction for seed in range(40)]
    instruction = asked[25]
    assert find_seed(instruction, tasks, start=0, **OPTIONS) == asked.index(instruction)
    assert find_seed(instruction, tasks, start=25, **OPTIONS) == 25


def test_an_instruction_that_no_scene_asks_is_refused_with_some_that_are_asked() -> None:
    with pytest.raises(ValueError, match=r"What is asked there: .*the .*kinds=never_shown"):
        find_seed("touch the red cube", parse_tasks("touch"), start=0, **OPTIONS)
