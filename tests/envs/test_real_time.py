import numpy as np
import pytest

from aegis_envs.base import TabletopEnv
from aegis_envs.so101.real_time import RealTime
from tests.envs.clock import Clock


@pytest.mark.parametrize("looks", [(0.5,), (0.015, 0.5), (0.007, 0.093, 0.101, 0.33, 0.5)])
def test_judgement_comes_every_tenth_of_a_second_however_often_one_looks(looks) -> None:
    env = TabletopEnv("touch", cameras=())
    env.reset(seed=0)
    clock, judged = Clock(), []
    start = clock.now
    time = RealTime(env.simulation, judged.append, clock=clock)
    for look in looks:
        clock.now = start + look + 1e-9
        time.catch_up()
    np.testing.assert_allclose(judged, [0.1, 0.2, 0.3, 0.4, 0.5])
    env.close()
