"""The module that LeRobot's plugin discovery imports: registers the policy, the environments and the robots."""

import aegis_envs.aloha.configuration  # EnvConfig `aegis_aloha`
import aegis_envs.configuration_aegis_envs  # EnvConfig `aegis_tabletop`
import aegis_envs.metaworld.configuration  # EnvConfig `aegis_metaworld`
import aegis_envs.safety.config_aegis_guarded  # RobotConfig `aegis_guarded`
import aegis_envs.so101.config_aegis_so101_sim  # noqa: F401  RobotConfig `aegis_so101_sim`
import aegis_policy.configuration_aegis_vla  # noqa: F401  PreTrainedConfig `aegis_vla`
