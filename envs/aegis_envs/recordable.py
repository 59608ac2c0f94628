"""Which environments `aegis-record` records: for each `--env.type`, its options and who plays it.

Another environment is one entry of `RECORDABLE`: a function that adds its options and the place of its demonstrator
(`aegis_envs.demonstrator.Demonstrator`), which is imported only when it is asked for. Each option is also understood
as LeRobot's commands spell it, `--env.image_size` for `--image-size`.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from aegis_envs.aloha.requirements import require_aloha
from aegis_envs.demonstrator import Demonstrator
from aegis_envs.instructions import CHOICES
from aegis_envs.metaworld.requirements import require_metaworld

TABLETOP = "aegis_tabletop"


@dataclass(frozen=True)
class Recordable:
    """An environment that can be recorded.

    Attributes:
        repo_id: Default name of the dataset.
        add_options: Adds the environment's own options to the command.
        demonstrator: `module:class`; called with the command's options.
        episode_s: Rough seconds an episode takes on one core.
        require: Raises an ImportError that says what to install if something is missing.
    """

    repo_id: str
    add_options: Callable[[ArgumentParser], None]
    demonstrator: str
    episode_s: float
    require: Callable[[], None] = lambda: None

    def make(self, options: Namespace) -> Demonstrator:
        """The demonstrator for the options.

        Raises:
            ValueError: If an option is none of its valid choices.
            ImportError: If a package that the environment needs is missing or of a version that does not work.
        """
        self.require()
        module, name = self.demonstrator.split(":")
        made: Demonstrator = getattr(import_module(module), name)(options)
        return made

    def option_names(self) -> tuple[str, ...]:
        """The environment's options as Python names: `task`, `image_size`, ..."""
        parser = ArgumentParser(add_help=False)
        self.add_options(parser)
        return tuple(vars(parser.parse_args([])))


def find_recordable(name: str) -> Recordable:
    """The environment of that `--env.type`.

    Raises:
        ValueError: If there is none; the message names those there are.
    """
    if name not in RECORDABLE:
        raise ValueError(f"--env.type must be one of {', '.join(RECORDABLE)}; got {name!r}.")
    return RECORDABLE[name]


def _tabletop_options(parser: ArgumentParser) -> None:
    _add(parser, "task", default="touch", help="touch, push_to, lift, place, a comma-separated list, or all")
    _add(parser, "kinds", default="shown", help="objects asked for: shown, never_shown or all")
    _add(parser, "phrasings", default="shown", help=f"instructions: {', '.join(CHOICES)}")
    _add(parser, "objects", type=int, default=3, help="graspable objects on the table, 2 to 5")
    _add(
        parser,
        "randomize",
        default="none",
        help="what is drawn anew in each episode: none, all, or some of lights, textures, camera, dynamics, latency, "
        "backlash, separated by commas",
    )
    _add(parser, "cameras", default="front", help="front, wrist or front,wrist")
    _add(parser, "image-size", type=int, default=96, help="pixels")
    _add(parser, "fps", type=int, default=10, help="control steps a second, 10 or 20")
    _add(
        parser,
        "noise",
        type=float,
        default=2.0,
        help="standard deviation in degrees of a disturbance of each arm joint that is executed but not recorded, so "
        "that the data shows how to recover; 0 records undisturbed experts",
    )


def _metaworld_options(parser: ArgumentParser) -> None:
    _add(
        parser,
        "task",
        default="reach-v3",
        help="Meta-World's names, as reach-v3, or LeRobot's groups (easy, medium, hard, very_hard), mt10, mt50, or "
        "several separated by commas",
    )
    _add(
        parser,
        "image-size",
        type=int,
        default=480,
        help="pixels; LeRobot's environment has 480, which a policy then makes smaller. 96 stores a seventeenth",
    )
    _add(
        parser,
        "rendering",
        default="fast",
        help="fast (no shadows, no multisampling), shadows (three times the time) or faithful (Meta-World's own, ten "
        "times)",
    )
    _add(
        parser,
        "noise",
        type=float,
        default=0.0,
        help="standard deviation of a disturbance of the hand's action, in its units of [-1, 1], that is executed but "
        "not recorded, so that the data shows how to recover; 0 records undisturbed experts",
    )


def _aloha_options(parser: ArgumentParser) -> None:
    _add(parser, "task", default="AlohaTransferCube-v0", help="AlohaTransferCube-v0, AlohaInsertion-v0, or both: a,b")
    _add(
        parser,
        "image-size",
        type=int,
        default=480,
        help="height in pixels, divisible by 3; LeRobot's environment has 480 (and 640 columns), which a policy then "
        "makes smaller. 120 stores a sixteenth",
    )
    _add(
        parser,
        "rendering",
        default="faithful",
        help="faithful (the pictures of LeRobot's environment), shadows (half the time) or fast (a sixth, no shadows: "
        "those of aegis_aloha)",
    )
    _add(
        parser,
        "noise",
        type=float,
        default=0.0,
        help="standard deviation in degrees of a disturbance of each arm joint that is executed but not recorded, so "
        "that the data shows how to recover; 0 records undisturbed experts",
    )


def _add(parser: ArgumentParser, name: str, **settings: Any) -> None:
    parser.add_argument(f"--{name}", f"--env.{name.replace('-', '_')}", **settings)


_METAWORLD = Recordable(
    "local/metaworld",
    _metaworld_options,
    "aegis_envs.metaworld.demonstrations:MetaworldDemonstrator",
    episode_s=3.0,
    require=require_metaworld,
)
_ALOHA = Recordable(
    "local/aloha",
    _aloha_options,
    "aegis_envs.aloha.demonstrations:AlohaDemonstrator",
    episode_s=60.0,
    require=require_aloha,
)
RECORDABLE = {
    TABLETOP: Recordable(
        "local/tabletop", _tabletop_options, "aegis_envs.demonstrations:TabletopDemonstrator", episode_s=0.2
    ),
    "metaworld": _METAWORLD,
    "aegis_metaworld": _METAWORLD,  # the same episodes and features: see aegis_envs/metaworld/env.py
    "aloha": _ALOHA,
    "aegis_aloha": _ALOHA,
}
