import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray

from aegis_envs import GYM_ID
from aegis_envs.base import TabletopEnv
from aegis_envs.experts import CLOSED, Arm
from aegis_envs.kinematics import ArmKinematics
from aegis_envs.tasks import TASKS
from tests.envs.colours import shows


def _replay(env: TabletopEnv, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    observation, _ = env.reset(seed=seed)
    record = [observation["pixels"]["front"], observation["agent_pos"]]
    for _ in range(12):
        action = observation["agent_pos"] + rng.normal(0, 6, 6).astype(np.float32)
        observation, _, terminated, _, _ = env.step(action)
        record += [observation["pixels"]["front"], observation["agent_pos"]]
        if terminated:
            break
    return record


def test_a_seed_replays_the_same_episode_to_the_pixel_whatever_was_played_before() -> None:
    first, second = TabletopEnv("all"), TabletopEnv("all")
    _replay(second, 99)
    for seed in (3, 4):
        once, again = _replay(first, seed), _replay(second, seed)
        assert len(once) == len(again)
        assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))
    first.close()
    second.close()


def test_different_seeds_are_different_episodes(touch_env: TabletopEnv) -> None:
    assert not np.array_equal(_replay(touch_env, 1)[0], _replay(touch_env, 2)[0])


def test_gymnasiums_own_checker_finds_nothing_to_say() -> None:
    env = gym.make(GYM_ID, task="touch").unwrapped
    check_env(env, skip_render_check=True)
    assert isinstance(env, TabletopEnv) and env.render().shape == (256, 256, 3)
    env.close()


def test_cameras_are_as_asked_for() -> None:
    env = TabletopEnv("touch", cameras=("front", "wrist"), image_size=64)
    observation, _ = env.reset(seed=0)
    assert {name: image.shape for name, image in observation["pixels"].items()} == {
        "front": (64, 64, 3),
        "wrist": (64, 64, 3),
    }
    env.close()
    blind = TabletopEnv("touch", cameras=())
    assert "pixels" not in blind.reset(seed=0)[0]


def test_a_held_pose_is_reached_and_read_back_in_the_units_of_the_action(blind_env: TabletopEnv) -> None:
    blind_env.reset(seed=0)
    pose: NDArray[np.float32] = np.array([15, -60, 50, 70, 20, 40], dtype=np.float32)
    for _ in range(10):
        observation, *_ = blind_env.step(pose)
    np.testing.assert_allclose(observation["agent_pos"], pose, atol=0.7)  # what gravity costs the servos


def test_doing_nothing_is_cut_off_without_success(blind_env: TabletopEnv) -> None:
    observation, _ = blind_env.reset(seed=1)
    start, truncated = observation["agent_pos"], False
    while not truncated:
        _, reward, terminated, truncated, info = blind_env.step(start)
        assert not terminated and reward == 0 and not info["is_success"]
    assert info["verdict"] == "ongoing"


def _touch_slot(env: TabletopEnv, kinematics: ArmKinematics, slot: int) -> tuple[float, bool, dict]:
    arm = Arm(env.simulation, kinematics)
    while True:
        place, (tip, _) = env.simulation.object_position(slot), env.simulation.site("tip")
        height = 0.0 if np.linalg.norm((place - tip)[:2]) < 0.01 else 0.058
        action = arm.towards(np.array([*place[:2], height]), site="tip", gripper=CLOSED)
        _, reward, terminated, truncated, info = env.step(action)
        if terminated or truncated:
            return reward, terminated, info


def test_touching_the_named_object_succeeds_and_ends_the_episode(kinematics: ArmKinematics) -> None:
    env = TabletopEnv("touch", cameras=())
    env.reset(seed=0)
    reward, terminated, info = _touch_slot(env, kinematics, 0)
    assert terminated and reward == 1 and info["is_success"]


@pytest.mark.parametrize("slot", [1, 2])
def test_touching_another_object_fails_and_ends_the_episode(kinematics: ArmKinematics, slot: int) -> None:
    env = TabletopEnv("touch", cameras=())
    env.reset(seed=0)
    reward, terminated, info = _touch_slot(env, kinematics, slot)
    assert terminated and reward == 0 and not info["is_success"] and info["verdict"] == "failure"


def test_scene_objects_are_where_the_image_shows_their_colour() -> None:
    env = TabletopEnv("place", image_size=192)
    for seed in range(5):
        image = env.reset(seed=seed)[0]["pixels"]["front"].astype(float)
        for thing in env.scene_objects():
            u, v = thing.pixel
            pixel = image[int(v * 192), int(u * 192)]
            assert shows(thing.colour, pixel), (seed, thing, pixel)
    env.close()


def test_objects_start_visible_and_discs_are_listed_after_them() -> None:
    env = TabletopEnv("place", kinds="all", objects=5)
    for seed in range(5):
        env.reset(seed=seed)
        things = env.scene_objects()
        assert [t.shape == "disc" for t in things] == [False] * 5 + [True] * 2
        assert all(0 < x < 1 for t in things for x in t.pixel)
        assert all(t.visible > 0.6 for t in things)
    env.close()


def test_what_the_arm_covers_is_less_visible(kinematics: ArmKinematics) -> None:
    env = TabletopEnv("touch", cameras=())
    env.reset(seed=0)
    before = env.scene_objects()[0].visible
    _touch_slot(env, kinematics, 0)
    assert env.scene_objects()[0].visible < 0.9 * before
    env.close()


def test_asking_for_the_scene_does_not_change_the_image(touch_env: TabletopEnv) -> None:
    image = touch_env.reset(seed=2)[0]["pixels"]["front"]
    touch_env.scene_objects()
    assert np.array_equal(touch_env.reset(seed=2)[0]["pixels"]["front"], image)


def test_all_tasks_appear_and_name_the_target(blind_env: TabletopEnv) -> None:
    seen = set()
    for seed in range(30):
        _, info = blind_env.reset(seed=seed)
        seen.add(info["task"])
        assert blind_env.task_description
    assert seen == set(TASKS)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"task": "throw"}, "touch, push_to, lift, place"),
        ({"cameras": ("side",)}, "front, wrist"),
        ({"kinds": "new"}, "shown, never_shown, all"),
        ({"phrasings": "odd"}, "shown, never_shown, attributes, shapes, all, questions"),
        ({"task": "lift", "phrasings": "questions"}, "task touch"),
        ({"objects": 1}, "2 to 5"),
        ({"image_size": 4}, "16 to"),
        ({"control_hz": 15}, "10 or 20"),
        ({"max_steps": 0}, "at least 1"),
        ({"obs_type": "state"}, "pixels_agent_pos, pixels"),
        ({"obs_type": "pixels", "cameras": ()}, "name a camera"),
        ({"render_mode": "human"}, "rgb_array"),
    ],
)
def test_a_bad_option_is_refused_with_what_is_valid(option: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TabletopEnv(**option)


@pytest.mark.parametrize("action", [np.zeros(5), np.array([0, 0, 0, 0, 0, np.nan])])
def test_a_malformed_action_is_refused(blind_env: TabletopEnv, action: NDArray) -> None:
    blind_env.reset(seed=0)
    with pytest.raises(ValueError, match="6 finite joint targets"):
        blind_env.step(action)
