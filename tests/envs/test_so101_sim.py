"""The simulated SO-101 as LeRobot's robot: units, real time, episodes."""

import json
import time

import numpy as np
import pytest
from lerobot.robots import Robot, RobotConfig, make_robot_from_config
from lerobot.utils.errors import DeviceNotConnectedError

import lerobot_policy_aegis_vla  # noqa: F401  what LeRobot's plugin discovery imports
from aegis_envs.base import TabletopEnv
from aegis_envs.experts import EXPERTS, Arm
from aegis_envs.kinematics import ArmKinematics
from aegis_envs.so101.aegis_so101_sim import AegisSO101Sim
from aegis_envs.so101.config_aegis_so101_sim import AegisSO101SimConfig
from aegis_envs.units import FEATURE_NAMES, to_units
from tests.envs.clock import Clock


@pytest.fixture
def make_sim(tmp_path):
    """Makes and connects a robot whose clock moves when it is told to: `sim, clock = make_sim(**options)`."""
    robots = []

    def make(**options) -> tuple[AegisSO101Sim, Clock]:
        clock = Clock()
        options = {"cameras": "", "calibration_dir": tmp_path, **options}
        robot = AegisSO101Sim(AegisSO101SimConfig(**options), clock=clock)
        robot.connect()
        robots.append(robot)
        return robot, clock

    yield make
    for robot in robots:
        if robot.is_connected:
            robot.disconnect()


def joints_of(values: dict) -> np.ndarray:
    return np.array([values[name] for name in FEATURE_NAMES])


def action_of(joints) -> dict[str, float]:
    return dict(zip(FEATURE_NAMES, map(float, joints), strict=True))


def test_lerobot_makes_the_robot_from_its_type(tmp_path) -> None:
    config = RobotConfig.get_choice_class("aegis_so101_sim")(calibration_dir=tmp_path)
    robot = make_robot_from_config(config)
    assert isinstance(robot, AegisSO101Sim) and isinstance(robot, Robot)
    assert robot.robot_type == config.type == "aegis_so101_sim"


def test_its_features_are_those_of_the_real_follower_and_its_observation_has_them(make_sim) -> None:
    robot, _ = make_sim(cameras="front,wrist", image_size=64)
    features = robot.observation_features
    motors = ["shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper"]
    assert list(robot.action_features) == [f"{motor}.pos" for motor in motors]
    observation = robot.get_observation()
    assert list(observation) == list(features)
    for name, feature in features.items():
        if isinstance(feature, tuple):
            assert observation[name].shape == feature == (64, 64, 3) and observation[name].dtype == np.uint8
        else:
            assert type(observation[name]) is feature is float
    assert (observation["front"] != observation["wrist"]).any()


def test_it_sees_what_the_environment_of_the_same_seed_shows_a_policy_in_training(make_sim) -> None:
    robot, _ = make_sim(cameras="front", seed=7)
    env = TabletopEnv("touch")
    expected, _ = env.reset(seed=7)
    observation = robot.get_observation()
    np.testing.assert_array_equal(observation["front"], expected["pixels"]["front"])
    np.testing.assert_array_equal(joints_of(observation).astype(np.float32), expected["agent_pos"])
    assert robot.instruction == env.task_description
    env.close()


def servo_reading(radians: float) -> int:
    """What a servo of 4096 steps a turn reads when its joint is at `radians`, homed so that 2048 is zero."""
    return round(2048 + radians * 4096 / (2 * np.pi))


def test_its_units_are_those_that_lerobot_reads_off_a_calibrated_servo(make_sim) -> None:
    """LeRobot's arithmetic (motors_bus.py, `_normalize`), on the steps of the servos, against ours, on radians."""
    robot, _ = make_sim()
    simulation = robot._environment.simulation
    radians = simulation.limits[0] + 0.3 * (simulation.limits[1] - simulation.limits[0])
    simulation.data.qpos[simulation._joints] = radians
    ours = robot.joint_positions()
    for i, name in enumerate(FEATURE_NAMES):
        low, high = simulation.limits[:, i]
        reading, start, end = (servo_reading(x) for x in (radians[i], low, high))
        if name == "wrist_roll.pos":
            start, end = 0, 4095  # LeRobot's calibration lets it turn all the way round
        if name == "gripper.pos":
            theirs = (reading - start) / (end - start) * 100
        else:
            theirs = (reading - (start + end) / 2) * 360 / 4095
        # A step is 0.09 degrees, the middle of two rounded ends up to half of one off; 4095 for 4096 is 0.03 degrees
        # at 110, and the model's ranges are symmetric to 0.1.
        assert ours[name] == pytest.approx(theirs, abs=0.25), name


def test_a_target_that_is_sent_is_where_the_arm_then_reads_to_be(make_sim) -> None:
    robot, clock = make_sim()
    target = np.array([20.0, -40.0, 30.0, 50.0, -25.0, 60.0])
    for _ in range(30):
        clock.pass_(0.1)
        sent = robot.send_action(action_of(target))
    np.testing.assert_allclose(joints_of(sent), target, atol=1e-9)  # radians and back
    # Servos of the model give way to gravity by up to a few degrees; the scale and the sign are what is tested.
    np.testing.assert_allclose(joints_of(robot.joint_positions()), target, atol=4.0)


def test_a_target_beyond_a_servos_range_is_sent_as_its_end(make_sim) -> None:
    robot, _ = make_sim()
    sent = robot.send_action(action_of([500.0, 0, 0, 0, 0, -20.0]))
    low, high = (to_units(limit.copy()) for limit in robot._environment.simulation.limits)
    assert sent["shoulder_pan.pos"] == pytest.approx(high[0]) and sent["gripper.pos"] == pytest.approx(low[5])


def test_physics_goes_on_with_the_clock_and_a_stale_target_is_still_tracked(make_sim) -> None:
    robot, clock = make_sim()
    start = joints_of(robot.joint_positions())
    assert (joints_of(robot.joint_positions()) == start).all()  # no time, no motion
    goal = start + np.array([30.0, 0, 0, 0, 0, 0])
    robot.send_action(action_of(goal))
    pans = []
    for _ in range(10):  # nothing is sent any more
        clock.pass_(0.1)
        pans.append(robot.joint_positions()["shoulder_pan.pos"])
    assert pans[0] > start[0] and pans[-1] == pytest.approx(goal[0], abs=1.5)
    assert robot._time.seconds == pytest.approx(1.0, abs=0.006)  # a time step is 5 ms


def test_looking_often_or_seldom_does_not_change_what_happens(make_sim) -> None:
    often, often_clock = make_sim(seed=3)
    seldom, seldom_clock = make_sim(seed=3)
    goal = joints_of(often.joint_positions()) + np.array([15.0, 10, -10, 0, 5, 20])
    for robot in (often, seldom):
        robot.send_action(action_of(goal))
    for _ in range(50):
        often_clock.pass_(0.01)
        often.joint_positions()
    seldom_clock.now = often_clock.now
    assert often.joint_positions() == seldom.joint_positions()


def test_on_the_wall_clock_a_second_is_a_second(tmp_path) -> None:
    with AegisSO101Sim(AegisSO101SimConfig(cameras="", calibration_dir=tmp_path)) as robot:
        before = time.perf_counter()
        robot.send_action(action_of(joints_of(robot.joint_positions()) + 1.0))  # time zero is the first action
        time.sleep(0.3)
        robot.joint_positions()
        passed = time.perf_counter() - before
        # At least what was slept, at most what passed, in whole time steps of 5 ms.
        assert 0.3 - 0.006 <= robot._time.seconds <= passed


def test_an_expert_in_real_time_succeeds_and_the_report_says_so(make_sim, tmp_path, kinematics: ArmKinematics) -> None:
    robot, clock = make_sim(seed=1, report=tmp_path / "report.json")
    expert = EXPERTS["touch"](Arm(robot._environment.simulation, kinematics))
    present = joints_of(robot.joint_positions())
    for target in expert:
        for part in (1 / 3, 2 / 3, 1.0):  # 30 actions a second, as --interpolation_multiplier=3 sends them
            robot.send_action(action_of(present + part * (target - present)))
            clock.pass_(1 / 30)
        robot.joint_positions()
        present = target
        if robot._record.verdict != "unfinished":
            break
    instruction = robot.instruction
    robot.disconnect()
    report = json.loads((tmp_path / "report.json").read_text())
    (episode,) = report["episodes"]
    assert (report["judged"], report["successes"], report["success_rate"]) == (1, 1, 1.0)
    assert (episode["verdict"], episode["seed"], episode["instruction"]) == ("success", 1, instruction)
    # On the wall clock, from the first action on.
    np.testing.assert_allclose(np.diff(episode["sent_at_s"]), 1 / 30, atol=2e-4)  # written to a tenth of a millisecond


def test_an_arm_that_stands_still_runs_out_of_time_and_time_begins_with_the_first_action(make_sim, tmp_path) -> None:
    robot, clock = make_sim(report=tmp_path / "report.json", episode_seconds=1.0)
    clock.pass_(5.0)
    here = joints_of(robot.get_observation()) + 0.01
    robot.send_action(action_of(here))
    clock.pass_(0.9)
    robot.get_observation()
    assert robot._record.verdict == "unfinished"
    clock.pass_(0.2)
    robot.get_observation()
    assert (robot._record.verdict, robot._record.seconds) == ("timeout", pytest.approx(1.0))


def test_an_episode_cut_short_is_reported_but_not_counted(make_sim, tmp_path) -> None:
    robot, clock = make_sim(report=tmp_path / "report.json")
    robot.send_action(action_of(joints_of(robot.joint_positions())))
    clock.pass_(0.5)
    robot.disconnect()
    report = json.loads((tmp_path / "report.json").read_text())
    assert [e["verdict"] for e in report["episodes"]] == ["unfinished"]
    assert (report["judged"], report["success_rate"]) == (0, None)


def test_where_no_action_arrived_the_report_is_empty_and_the_log_says_so(make_sim, tmp_path, caplog) -> None:
    robot, clock = make_sim(report=tmp_path / "report.json")
    clock.pass_(5.0)
    robot.get_observation()
    robot.disconnect()
    report = json.loads((tmp_path / "report.json").read_text())
    assert report == {"episodes": [], "judged": 0, "successes": 0, "success_rate": None}
    assert "No action arrived" in caplog.text


def test_sent_back_to_where_it_was_first_seen_the_arm_gets_the_next_scene_of_the_instruction(make_sim) -> None:
    first, _ = make_sim(seed=0)
    instruction = first.instruction
    robot, clock = make_sim(instruction=instruction, seed=0)
    home = joints_of(robot.get_observation())
    before = joints_of(robot.joint_positions())
    for part in np.linspace(0, 1, 51):  # LeRobot's _return_to_initial_position
        away = before + 5.0
        robot.send_action(action_of(away * (1 - part) + home * part))
        clock.pass_(0.02)
    assert robot.instruction == instruction and robot._record.seed > 0
    assert [episode.seed for episode in robot.report.episodes] == [0]
    assert robot._record.sent_at_s == []  # the next episode has yet to begin


def test_told_to_stay_where_it_was_first_seen_the_arm_keeps_its_scene(make_sim) -> None:
    robot, clock = make_sim()
    home = robot.get_observation()
    for _ in range(3):
        robot.send_action(home)
        clock.pass_(0.1)
    assert robot.report.episodes == [] and len(robot._record.sent_at_s) == 3


def test_a_relative_limit_is_lerobots(make_sim) -> None:
    robot, _ = make_sim(max_relative_target=5.0)
    present = joints_of(robot.joint_positions())
    sent = robot.send_action(action_of(present + np.array([90, 2, 0, 0, 0, -2])))
    np.testing.assert_allclose(joints_of(sent), present + np.array([5, 2, 0, 0, 0, -2]), atol=1e-6)


def test_disconnected_it_has_closed_its_renderers_and_answers_no_more(make_sim) -> None:
    robot, _ = make_sim(cameras="front,wrist")
    robot.get_observation()
    env = robot._environment
    cameras = [cameras for _, cameras in env._simulations.values()]
    assert any(camera._renderers for camera in cameras)
    robot.disconnect()
    assert not any(camera._renderers for camera in cameras)
    with pytest.raises(DeviceNotConnectedError):
        robot.get_observation()
    with pytest.raises(DeviceNotConnectedError):
        robot.send_action({})
    robot.connect()  # and can be connected again
    assert robot.get_observation()["front"].any()


def test_a_report_that_cannot_be_written_is_refused_at_connection(make_sim, tmp_path) -> None:
    with pytest.raises(OSError, match=str(tmp_path)):
        make_sim(report=tmp_path)  # a folder


def test_bad_options_and_actions_are_refused_with_what_would_do(make_sim) -> None:
    with pytest.raises(ValueError, match="touch, push_to, lift, place"):
        AegisSO101SimConfig(task="fly")
    with pytest.raises(ValueError, match="front, wrist"):
        AegisSO101SimConfig(cameras="top")
    with pytest.raises(ValueError, match="What is asked there"):
        AegisSO101SimConfig(instruction="touch the red cube")
    robot, _ = make_sim()
    with pytest.raises(ValueError, match=r"gripper\.pos missing"):
        robot.send_action(dict.fromkeys(FEATURE_NAMES[:5], 0.0))
    with pytest.raises(ValueError, match="finite"):
        robot.send_action(dict.fromkeys(FEATURE_NAMES, float("nan")))


def test_a_randomised_scene_is_that_of_the_environment_and_the_report_says_what_was_drawn(make_sim, tmp_path) -> None:
    robot, clock = make_sim(randomize="all", seed=4, cameras="front", image_size=64, report=tmp_path / "report.json")
    env = TabletopEnv("touch", image_size=64, randomize="all")
    image = env.reset(seed=4)[0]["pixels"]["front"]
    env.close()
    np.testing.assert_array_equal(robot.get_observation()["front"], image)
    start = joints_of(robot.get_observation())
    robot.send_action(action_of(start + np.array([10, 0, 0, 0, 0, 0])))
    latency, before = env.randomization.record()["latency"]["seconds"], robot._environment.simulation.joints[0]
    turned = []
    for seconds in (latency / 2, latency / 2 + 0.2):
        clock.pass_(seconds)
        robot.joint_positions()
        turned.append(np.degrees(robot._environment.simulation.joints[0] - before))
    assert abs(turned[0]) < 0.1 < 5 < turned[1]  # degrees: first it has not heard of it yet
    robot.disconnect()
    drawn = json.loads((tmp_path / "report.json").read_text())["episodes"][0]["randomization"]
    assert drawn == json.loads(json.dumps(env.randomization.record()))
