"""The module that LeRobot's plugin discovery imports: registers the policy and the environments."""

import aegis_envs.configuration_aegis_envs  # noqa: F401  registers EnvConfig `aegis_tabletop`
import aegis_policy.configuration_aegis_vla  # noqa: F401  registers PreTrainedConfig `aegis_vla`
