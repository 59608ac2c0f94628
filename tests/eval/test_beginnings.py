"""What a result says of the beginnings of its episodes is what the environments begin with."""

import pytest

from aegis_eval.beginnings import initial_states, instructions


def test_metaworlds_states_are_those_of_lerobots_own_environment_and_a_function_of_the_seed():
    pytest.importorskip("metaworld", reason="needs the extra metaworld: pip install -e '.[metaworld]'")
    from lerobot.envs.metaworld import MetaworldEnv

    theirs = MetaworldEnv("push-v3", obs_type="pixels_agent_pos")
    theirs._ensure_env()
    states = []
    for seed in (100_001, 100_000):
        theirs._env.seed(seed)
        theirs._env.reset()
        states.append(theirs._env._last_rand_vec.tolist())
    for kind in ("metaworld", "aegis_metaworld"):
        assert initial_states({"type": kind}, "push-v3", seeds=[100_001, 100_000]) == states
    assert initial_states({"type": "metaworld"}, "push-v3", seeds=[100_000, 100_001]) == states[::-1]


def test_an_environment_that_does_not_say_has_no_states():
    assert initial_states({"type": "aegis_tabletop"}, "touch", seeds=[1]) == []
    assert initial_states({"type": "metaworld"}, "easy_3", seeds=[1]) == []


def test_instructions_are_those_that_the_robot_is_given():
    assert instructions({"type": "metaworld"}, "reach-v3", seeds=[1, 2]) == ["Reach a goal position"] * 2
    assert instructions({"type": "metaworld"}, "easy_3", seeds=[1]) == []
    (told,) = instructions({"type": "aegis_tabletop", "kinds": "shown"}, "touch", seeds=[3])
    assert told != instructions({"type": "aegis_tabletop", "kinds": "shown"}, "touch", seeds=[4])[0]
