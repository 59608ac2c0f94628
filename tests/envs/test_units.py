import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from so101_nexus.config import SO101_JOINT_NAMES

from aegis_envs.robot import robot_spec
from aegis_envs.units import GRIPPER, GRIPPER_RANGE, JOINTS, to_radians, to_units


@given(st.lists(st.floats(-180, 180), min_size=6, max_size=6))
def test_units_and_radians_are_inverse(values: list[float]) -> None:
    units = np.array(values)
    np.testing.assert_allclose(to_units(to_radians(units)), units, atol=1e-9)


def test_a_closed_gripper_reads_0_and_an_open_one_100() -> None:
    low, high = GRIPPER_RANGE
    assert to_units(np.array([0, 0, 0, 0, 0, low]))[GRIPPER] == pytest.approx(0)
    assert to_units(np.array([0, 0, 0, 0, 0, high]))[GRIPPER] == pytest.approx(100)


def test_a_right_angle_reads_90_degrees() -> None:
    assert to_units(np.full(6, np.pi / 2))[0] == pytest.approx(90)


def test_the_gripper_range_is_the_robot_models() -> None:
    model = robot_spec().compile()
    actuator = model.actuator("gripper").id
    np.testing.assert_allclose(model.actuator_ctrlrange[actuator], GRIPPER_RANGE, atol=1e-5)


def test_the_joints_are_the_robot_models_in_its_order() -> None:
    model = robot_spec().compile()
    assert tuple(model.actuator(i).name for i in range(model.nu)) == JOINTS


def test_the_joints_are_those_of_nexus_simulated_lerobot_follower() -> None:
    assert tuple(SO101_JOINT_NAMES) == JOINTS
