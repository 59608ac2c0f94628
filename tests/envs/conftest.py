from collections.abc import Iterator

import pytest

from aegis_envs import choose_gl_backend

choose_gl_backend()

from aegis_envs.base import TabletopEnv  # noqa: E402
from aegis_envs.kinematics import ArmKinematics  # noqa: E402


@pytest.fixture(scope="session")
def kinematics() -> ArmKinematics:
    return ArmKinematics()


@pytest.fixture
def touch_env() -> Iterator[TabletopEnv]:
    env = TabletopEnv("touch")
    yield env
    env.close()


@pytest.fixture
def blind_env() -> Iterator[TabletopEnv]:
    """All tasks, without a camera: nothing is rendered."""
    env = TabletopEnv("all", cameras=(), kinds="all", phrasings="all")
    yield env
    env.close()
