import numpy as np
import pytest

from aegis_envs.base import TabletopEnv
from aegis_envs.demonstrations import attempt, demonstrate
from aegis_envs.kinematics import ArmKinematics
from aegis_envs.robot import HOME_DEGREES, robot_spec
from aegis_envs.tasks import TASKS
from aegis_envs.units import to_radians


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_solved_by_its_expert(task: str, kinematics: ArmKinematics) -> None:
    env = TabletopEnv(task, cameras=(), kinds="all", phrasings="all")
    successes = [attempt(env, kinematics, seed=seed, noise=0.0)[1] for seed in range(10)]
    assert sum(successes) >= 9


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_experts_solve_95_of_100_unseen_seeds(task: str, kinematics: ArmKinematics) -> None:
    env = TabletopEnv(task, cameras=(), kinds="all", phrasings="all")
    failed = [seed for seed in range(1000, 1100) if not attempt(env, kinematics, seed=seed, noise=0.0)[1]]
    assert len(failed) <= 5, f"{task} failed on seeds {failed}"


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_experts_recover_from_the_disturbances_of_a_recording(task: str, kinematics: ArmKinematics) -> None:
    env = TabletopEnv(task, cameras=())
    successes = [attempt(env, kinematics, seed=seed, noise=2.0)[1] for seed in range(1000, 1040)]
    assert np.mean(successes) >= 0.9


def test_a_disturbance_changes_what_happens_but_never_what_the_expert_says_first(
    kinematics: ArmKinematics,
) -> None:
    env = TabletopEnv("touch", cameras=())
    clean, _ = attempt(env, kinematics, seed=5, noise=0.0)
    disturbed, _ = attempt(env, kinematics, seed=5, noise=2.0)
    np.testing.assert_array_equal(clean[0].action, disturbed[0].action)
    assert not np.array_equal(clean[1].observation["agent_pos"], disturbed[1].observation["agent_pos"])


def test_a_demonstration_depends_on_its_number_and_not_on_the_ones_before(kinematics: ArmKinematics) -> None:
    env = TabletopEnv("touch", cameras=())
    alone = demonstrate(env, kinematics, seed=1, episode=3, noise=2.0)
    for episode in range(3):
        demonstrate(env, kinematics, seed=1, episode=episode, noise=2.0)
    after = demonstrate(env, ArmKinematics(), seed=1, episode=3, noise=2.0)
    assert alone.instruction == after.instruction
    np.testing.assert_array_equal([f.action for f in alone.frames], [f.action for f in after.frames])


def test_actions_keep_within_the_action_space(kinematics: ArmKinematics) -> None:
    env = TabletopEnv("all", cameras=())
    for seed in range(8):
        frames, _ = attempt(env, kinematics, seed=seed, noise=2.0)
        assert all(env.action_space.contains(frame.action) for frame in frames)


@pytest.mark.parametrize("radius", [0.13, 0.18, 0.23])
@pytest.mark.parametrize("yaw", [None, 0.4])
def test_inverse_kinematics_agrees_with_forward_kinematics(
    kinematics: ArmKinematics, radius: float, yaw: float | None
) -> None:
    import mujoco

    model = robot_spec().compile()
    data = mujoco.MjData(model)
    position = np.array([0.0388 + radius, 0.03, 0.02])
    joints = to_radians(np.array(HOME_DEGREES))
    for _ in range(5):
        joints = kinematics.solve(joints, "grasp", position, yaw=yaw)
    data.qpos[:] = joints
    mujoco.mj_kinematics(model, data)
    site = data.site("grasp")
    np.testing.assert_allclose(site.xpos, position, atol=5e-4)
    rotation = site.xmat.reshape(3, 3)
    assert rotation[2, 2] > np.cos(np.radians(2))  # points down
    if yaw is not None:
        assert np.arctan2(rotation[1, 0], rotation[0, 0]) == pytest.approx(yaw, abs=0.02)
