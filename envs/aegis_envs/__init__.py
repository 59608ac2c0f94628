"""MuJoCo environments with language-conditioned tasks and scripted experts."""

import os
import sys
from typing import TYPE_CHECKING, Any

from gymnasium.envs.registration import register, registry

if TYPE_CHECKING:
    from aegis_envs.base import TabletopEnv

GYM_ID = "aegis_envs/Tabletop-v0"


def choose_gl_backend() -> None:
    """Selects EGL for rendering where nothing is selected and no screen is there.

    MuJoCo decides when it is imported and then wants a screen, so this has to come before; what imports MuJoCo
    here is therefore imported late.
    """
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")


def make_tabletop(**options: Any) -> "TabletopEnv":
    """Makes the environment; its options are `aegis_envs.base.TabletopEnv`'s."""
    choose_gl_backend()
    from aegis_envs.base import TabletopEnv

    return TabletopEnv(**options)


if GYM_ID not in registry:
    register(id=GYM_ID, entry_point="aegis_envs:make_tabletop")
