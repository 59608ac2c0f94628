"""An arm that is no SO-101 and has motors of the same names, as Koch's has. LeRobot finds it by this file's name."""

from dataclasses import dataclass

from lerobot.robots import RobotConfig

from aegis_envs.so101.aegis_so101_sim import AegisSO101Sim
from aegis_envs.so101.config_aegis_so101_sim import AegisSO101SimConfig


@RobotConfig.register_subclass("other_arm")
@dataclass(kw_only=True)
class OtherArmConfig(AegisSO101SimConfig):
    """Its options."""


class OtherArm(AegisSO101Sim):
    """The arm."""

    config_class = OtherArmConfig
    name = "other_arm"
