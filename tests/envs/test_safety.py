"""Joint limits, workspace and watchdog, each alone and around a robot."""

import time
from threading import Event, Thread
from time import monotonic

import numpy as np
import pytest
from lerobot.cameras.opencv import OpenCVCameraConfig
from lerobot.robots import make_robot_from_config
from lerobot.robots.earthrover_mini_plus import EarthRoverMiniPlusConfig  # noqa: F401  a robot driven by velocities
from lerobot.robots.so_follower import SO101FollowerConfig

import lerobot_policy_aegis_vla  # noqa: F401  what LeRobot's plugin discovery imports
from aegis_envs.robot import HOME_DEGREES
from aegis_envs.safety.aegis_guarded import AegisGuarded
from aegis_envs.safety.config_aegis_guarded import AegisGuardedConfig
from aegis_envs.safety.joint_limits import checked_limits, clip, so101_limits
from aegis_envs.safety.watchdog import Watchdog
from aegis_envs.safety.workspace import Box, OutsideWorkspaceError, Workspace
from aegis_envs.units import FEATURE_NAMES
from tests.envs.clock import Clock
from tests.envs.otherarm import OtherArmConfig

REACHING = (0.0, 10.0, -10.0, 70.0, 0.0, 10.0)  # out over the table
ROOM = Box((-0.5, -0.5, 0.0), (0.5, 0.5, 0.5))


def action_of(joints) -> dict[str, float]:
    return dict(zip(FEATURE_NAMES, map(float, joints), strict=True))


@pytest.fixture
def make_guarded(tmp_path):
    """Makes and connects a guard around a simulated arm, on the wall clock or one that moves when it is told to."""
    guards = []

    def make(clock: Clock | None = None, robot: dict | None = None, **options) -> AegisGuarded:
        inner = {"type": "aegis_so101_sim", "cameras": "", "calibration_dir": str(tmp_path), **(robot or {})}
        guard = make_robot_from_config(AegisGuardedConfig(robot=inner, calibration_dir=tmp_path, **options))
        guard.robot._clock = clock or guard.robot._clock
        guard.connect()
        guards.append(guard)
        return guard

    yield make
    for guard in guards:
        guard.disconnect()


def wait_for(condition, *, seconds: float = 30.0) -> None:
    """Until it is true; a busy machine may let a thread wait."""
    deadline = monotonic() + seconds
    while not condition():
        assert monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


# --- joint limits ---------------------------------------------------------------------------------------------------


def test_clipping_changes_only_what_is_beyond_a_limit() -> None:
    limits = {"a.pos": (-1.0, 1.0)}
    assert clip({"a.pos": 2.0, "b.pos": 9.0}, limits) == {"a.pos": 1.0, "b.pos": 9.0}
    assert clip({"a.pos": -0.5, "b.pos": 9.0}, limits) == {"a.pos": -0.5, "b.pos": 9.0}


def test_the_so101s_limits_hold_home_and_reach_to_a_closed_and_an_open_gripper() -> None:
    limits = so101_limits()
    assert clip(action_of(HOME_DEGREES), limits) == action_of(HOME_DEGREES)
    assert limits["gripper.pos"] == pytest.approx((0.0, 100.0), abs=0.01)


def test_a_limit_of_a_joint_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(ValueError, match=r"shoulder_pan\.pos"):
        checked_limits({"shoulder": [0, 1]}, FEATURE_NAMES)
    with pytest.raises(ValueError, match="lowest, highest"):
        checked_limits({"gripper": [5, 1]}, FEATURE_NAMES)


# --- workspace ------------------------------------------------------------------------------------------------------


def test_turning_the_arm_turns_its_points_about_the_pan_axis() -> None:
    workspace = Workspace(ROOM)
    straight, turned = (workspace.points(np.array([pan, *REACHING[1:]])) for pan in (0.0, 40.0))
    axis = np.array([0.0388, 0.0])
    np.testing.assert_allclose(straight[:, 2], turned[:, 2], atol=1e-6)  # heights stay
    radii = [np.linalg.norm(points[:, :2] - axis, axis=1) for points in (straight, turned)]
    np.testing.assert_allclose(*radii, atol=1e-3)  # the axis is known to a tenth of a millimetre
    assert not np.allclose(straight, turned, atol=0.05)


def test_a_target_inside_passes_untouched() -> None:
    workspace = Workspace(ROOM)
    assert workspace.limit(action_of(HOME_DEGREES), action_of(REACHING)) == action_of(REACHING)


def test_a_target_outside_is_shortened_to_the_last_place_inside_on_the_way_there() -> None:
    tip = Workspace(ROOM).points(np.array(REACHING))[0]
    wall = float(tip[0]) - 0.03
    workspace = Workspace(Box(ROOM.low, (wall, 0.5, 0.5)))
    limited = np.array(list(workspace.limit(action_of(HOME_DEGREES), action_of(REACHING)).values()))
    assert workspace.contains(limited)
    fractions = (limited - HOME_DEGREES)[1:4] / (np.array(REACHING) - HOME_DEGREES)[1:4]
    np.testing.assert_allclose(fractions, fractions[0])  # on the straight way
    assert workspace.points(limited)[:, 0].max() == pytest.approx(wall, abs=1e-3)  # at the wall: 1/4096 of the way
    below = action_of((0.0, 60.0, 20.0, 60.0, 0.0, 10.0))  # into the table
    lifted = np.array(list(workspace.limit(action_of(HOME_DEGREES), below).values()))
    assert workspace.points(np.array(list(below.values())))[:, 2].min() < 0 <= workspace.points(lifted)[:, 2].min()


def test_from_outside_the_way_back_is_free_and_any_other_is_refused_with_where_the_arm_is() -> None:
    far = Workspace(Box((0.2, -0.5, 0.0), (0.5, 0.5, 0.5)))  # home is nearer to the base than that
    assert not far.contains(np.array(HOME_DEGREES))
    with pytest.raises(OutsideWorkspaceError, match="tip"):
        far.limit(action_of(HOME_DEGREES), action_of(HOME_DEGREES))
    assert far.contains(np.array(REACHING))
    assert far.limit(action_of(HOME_DEGREES), action_of(REACHING)) == action_of(REACHING)
    # Sent inside before, it is sent inside again: the way begins at that target.
    back = far.limit(action_of(HOME_DEGREES), action_of(HOME_DEGREES), last=action_of(REACHING))
    assert far.contains(np.array(list(back.values())))


def test_a_workspace_does_not_guess_the_target_of_a_joint_that_has_none() -> None:
    action = action_of(REACHING)
    del action["elbow_flex.pos"]
    with pytest.raises(ValueError, match=r"elbow_flex\.pos missing"):
        Workspace(ROOM).limit(action_of(HOME_DEGREES), action)


def test_a_box_without_an_inside_is_refused() -> None:
    with pytest.raises(ValueError, match="metres"):
        Box((0.0, 0.0, 0.0), (1.0, 0.0, 1.0))


# --- watchdog -------------------------------------------------------------------------------------------------------


def test_a_watchdog_that_was_never_fed_waits() -> None:
    bitten = Event()
    dog = Watchdog(0.02, bitten.set)
    dog.start()
    assert not bitten.wait(0.2)
    dog.stop()


def test_it_bites_once_when_feeding_stops_and_again_only_after_it_was_fed_again() -> None:
    bitten = Event()
    dog = Watchdog(0.05, bitten.set)
    dog.start()
    dog.feed()
    assert bitten.wait(30.0)  # generous: a busy machine may let the thread wait
    time.sleep(0.2)
    assert dog.bites == 1
    bitten.clear()
    dog.feed()
    assert bitten.wait(30.0) and dog.bites == 2
    dog.stop()


def test_it_bites_at_most_once_for_each_time_that_it_was_really_fed_too_late() -> None:
    timeout, late = 0.2, 0
    dog = Watchdog(timeout, lambda: None)
    dog.start()
    fed = monotonic()
    end = fed + 4 * timeout
    dog.feed()
    while monotonic() < end:
        time.sleep(0.01)
        again = monotonic()
        dog.feed()
        late += monotonic() - fed >= timeout  # on a busy machine: this thread had no turn
        fed = again
    dog.stop()
    late += monotonic() - fed >= timeout
    assert dog.bites <= late


def test_a_call_that_failed_is_in_the_log_and_made_again_until_it_succeeds(caplog) -> None:
    succeeded, calls = Event(), []

    def fail_twice() -> None:
        calls.append(None)
        if len(calls) <= 2:
            raise ConnectionError("no status packet")
        succeeded.set()

    dog = Watchdog(0.01, fail_twice)
    dog.start()
    dog.feed()
    assert succeeded.wait(30.0)
    time.sleep(0.1)
    dog.stop()
    assert len(calls) == 3
    assert caplog.text.count("no status packet") >= 2


# --- around a robot -------------------------------------------------------------------------------------------------


def test_a_guard_without_limits_passes_everything_on(make_guarded) -> None:
    guard = make_guarded()
    assert guard.observation_features == guard.robot.observation_features
    assert guard.name == guard.robot_type == "aegis_so101_sim"  # what LeRobot writes into a dataset
    sent = guard.send_action(action_of(REACHING))
    assert list(sent.values()) == pytest.approx(REACHING)


def test_limits_of_the_option_and_of_the_servos_both_hold(make_guarded) -> None:
    guard = make_guarded(joint_limits={"shoulder_pan": [-30, 30]})
    sent = guard.send_action(action_of([90, 0, 0, 0, 500, 10]))
    assert sent["shoulder_pan.pos"] == pytest.approx(30)
    assert sent["wrist_roll.pos"] == pytest.approx(so101_limits()["wrist_roll.pos"][1])


def test_a_guard_keeps_the_gripper_off_the_table(make_guarded) -> None:
    guard = make_guarded(workspace=[[-0.5, -0.5, 0.02], [0.5, 0.5, 0.5]])
    sent = guard.send_action(action_of((0.0, 60.0, 20.0, 60.0, 0.0, 10.0)))
    assert Workspace(ROOM).points(np.array(list(sent.values())))[:, 2].min() == pytest.approx(0.02, abs=1e-3)


def test_an_arm_that_sags_behind_a_wall_is_still_held_at_it(make_guarded) -> None:
    clock = Clock()
    guard = make_guarded(clock, workspace=[[-0.5, -0.5, 0.02], [0.5, 0.5, 0.5]])
    heights = []
    for _ in range(60):  # two seconds of being sent into the table
        sent = guard.send_action(action_of((0.0, 60.0, 20.0, 60.0, 0.0, 10.0)))
        assert guard._workspace.contains(np.array(list(sent.values())))
        clock.pass_(1 / 30)
        heights.append(guard._workspace.points(np.array(list(guard.robot.joint_positions().values())))[:, 2].min())
    assert min(heights) < 0.02  # or this test would test nothing
    assert min(heights) > 0.0


def test_a_cap_on_each_joint_does_not_bend_the_way_out_of_the_box(make_guarded) -> None:
    """The robot caps joint by joint, after the guard: what it sends is inside all the same."""
    box = [[0.05, -0.2, 0.005], [0.40, 0.2, 0.40]]
    guard = make_guarded(Clock(), robot={"max_relative_target": 8.0}, workspace=box)
    rng, inside = np.random.default_rng(0), Workspace(Box(*map(tuple, box)))
    low, high = np.array(list(so101_limits().values())).T
    goals = (rng.uniform(low, high) for _ in range(400))
    for goal in [goal for goal in goals if inside.contains(goal)][:12]:
        for _ in range(12):
            sent = guard.send_action(action_of(goal))
            assert inside.contains(np.array([sent[name] for name in FEATURE_NAMES]))
            guard.robot._clock.now += 0.1


def test_a_motion_that_a_wall_shortens_stays_within_the_joint_limits(make_guarded) -> None:
    guard = make_guarded(
        Clock(), joint_limits={"shoulder_pan": [-60, 60]}, workspace=[[-0.5, -0.5, 0.0], [0.5, 0.5, 0.5]]
    )
    turned = action_of((80.0, *HOME_DEGREES[1:]))
    for _ in range(30):  # past the guard: by hand, say
        guard.robot.send_action(turned)
        guard.robot._clock.now += 0.1
    present = guard.get_observation()["shoulder_pan.pos"]
    sent = guard.send_action(action_of((60.0, 60.0, 20.0, 60.0, 0.0, 10.0)))  # into the table
    assert present > 70 and sent["shoulder_pan.pos"] <= 60.0


@pytest.mark.parametrize("watchdog_ms", [20, None])
def test_when_actions_stay_out_a_watched_arm_holds_where_it_is_and_another_goes_on(make_guarded, watchdog_ms) -> None:
    clock = Clock()
    guard = make_guarded(clock, watchdog_ms=watchdog_ms)
    start = guard.robot.joint_positions()
    guard.send_action({**start, "shoulder_pan.pos": start["shoulder_pan.pos"] + 80.0})
    clock.pass_(0.1)  # on the way
    if watchdog_ms is not None:
        wait_for(lambda: len(guard.robot._record.sent_at_s) == 2)
        guard.watchdog.stop()  # its call is over now
    clock.pass_(3.0)
    turned = guard.robot.joint_positions()["shoulder_pan.pos"] - start["shoulder_pan.pos"]
    if watchdog_ms is None:
        assert turned == pytest.approx(80.0, abs=2.0)
    else:
        assert turned < 60.0


def test_an_action_that_came_while_the_watchdog_waited_for_the_robot_is_not_undone(make_guarded) -> None:
    guard = make_guarded(Clock(), watchdog_ms=20)
    with guard._lock:  # what send_action holds while it talks to the robot
        guard.send_action(guard.robot.joint_positions())
        wait_for(lambda: guard.watchdog.bites == 1)
        guard.watchdog._timeout_s = 60.0  # what is fed from here on stays fresh
        guard.watchdog.feed()
    guard.watchdog.stop()
    assert len(guard.robot._record.sent_at_s) == 1  # held nothing


def test_the_watchdog_takes_a_refused_action_for_none(make_guarded) -> None:
    guard = make_guarded(Clock(), watchdog_ms=20)
    start = guard.robot.joint_positions()
    guard.send_action({**start, "shoulder_pan.pos": start["shoulder_pan.pos"] + 80.0})

    def is_held_in_spite_of_another_refusal() -> bool:
        with pytest.raises(ValueError, match="finite"):
            guard.send_action({**start, "gripper.pos": float("inf")})
        return guard.watchdog.bites == 1

    wait_for(is_held_in_spite_of_another_refusal)


def test_disconnected_no_thread_watches_any_more_and_connected_again_one_does(make_guarded) -> None:
    guard = make_guarded(watchdog_ms=60_000)
    thread = guard.watchdog._thread
    assert isinstance(thread, Thread) and thread.is_alive()
    guard.disconnect()
    assert not thread.is_alive() and not guard.is_connected
    guard.connect()
    assert guard.watchdog._thread.is_alive()


def test_a_watchdog_around_a_robot_that_it_could_not_stop_is_refused(tmp_path) -> None:
    rover = {"type": "earthrover_mini_plus", "calibration_dir": str(tmp_path)}
    make_robot_from_config(AegisGuardedConfig(robot=rover, calibration_dir=tmp_path))
    with pytest.raises(ValueError, match="linear_velocity"):
        make_robot_from_config(AegisGuardedConfig(robot=rover, calibration_dir=tmp_path, watchdog_ms=100))


def test_an_arm_whose_motors_only_have_the_so101s_names_is_not_taken_for_one(tmp_path) -> None:
    other = {"type": OtherArmConfig().type, "cameras": "", "calibration_dir": str(tmp_path)}
    guard = make_robot_from_config(AegisGuardedConfig(robot=other, calibration_dir=tmp_path))
    assert set(guard.robot.action_features) == set(so101_limits())
    assert guard._limits == {}
    with pytest.raises(ValueError, match=r"the robot is other_arm.*joint_limits"):
        room = [[0, -0.2, 0], [0.4, 0.2, 0.4]]
        make_robot_from_config(AegisGuardedConfig(robot=other, calibration_dir=tmp_path, workspace=room))


def test_a_target_that_is_not_finite_is_refused_and_nothing_is_sent(make_guarded) -> None:
    guard = make_guarded()
    before = guard.robot._environment.simulation.data.ctrl.copy()
    with pytest.raises(ValueError, match="Nothing was sent"):
        guard.send_action({**action_of(REACHING), "gripper.pos": float("nan")})
    assert (guard.robot._environment.simulation.data.ctrl == before).all()


def test_the_real_arms_options_are_read_as_lerobots_command_reads_them() -> None:
    camera = {"type": "opencv", "index_or_path": 0, "width": 640, "height": 480, "fps": 30}
    options = {"type": "so101_follower", "port": "/dev/ttyACM0", "max_relative_target": 8, "cameras": {"front": camera}}
    arm = AegisGuardedConfig(robot=options, workspace=[[0, -0.2, 0], [0.4, 0.2, 0.4]]).inner()
    assert isinstance(arm, SO101FollowerConfig)
    assert arm.cameras["front"] == OpenCVCameraConfig(index_or_path=0, width=640, height=480, fps=30)
    assert isinstance(arm.max_relative_target, float)  # LeRobot refuses a whole number
    with pytest.raises(ValueError, match="degrees"):
        AegisGuardedConfig(robot={**options, "use_degrees": False}, workspace=[[0, -0.2, 0], [0.4, 0.2, 0.4]])


def test_bad_options_are_refused_before_a_robot_is_connected() -> None:
    inner = {"type": "aegis_so101_sim", "cameras": ""}
    with pytest.raises(ValueError, match="watchdog_ms"):
        AegisGuardedConfig(robot=inner, watchdog_ms=0)
    with pytest.raises(ValueError, match="workspace"):
        AegisGuardedConfig(robot=inner, workspace=[[0, 0, 0]])
    with pytest.raises(ValueError, match="so101_follower"):
        AegisGuardedConfig(robot={"type": "aegis_guarded", "robot": inner})
    with pytest.raises(ValueError, match="describes no robot"):
        AegisGuardedConfig(robot={**inner, "colour": "red"})
