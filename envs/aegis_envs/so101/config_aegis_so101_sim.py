"""Options of the simulated SO-101: `--robot.type=aegis_so101_sim`.

LeRobot finds the robot of a configuration by names: `AegisSO101SimConfig` in `config_aegis_so101_sim.py` belongs to
`AegisSO101Sim` in `aegis_so101_sim.py`.
"""

from dataclasses import dataclass
from pathlib import Path

from lerobot.robots import RobotConfig

from aegis_envs import choose_gl_backend


@RobotConfig.register_subclass("aegis_so101_sim")
@dataclass(kw_only=True)
class AegisSO101SimConfig(RobotConfig):
    """The table of `aegis_tabletop` in real time.

    Attributes:
        task: What judges the episode: `touch`, `push_to`, `lift`, `place`, several separated by commas, or `all`.
        instruction: Take scenes that ask this, with the same words as `--task`; None: take each scene as it comes and
            say in the log what it asks.
        seed: The first scene: that of `aegis_tabletop` under the same seed, or the first after it that asks
            `instruction`.
        cameras: `front`, `wrist` or `front,wrist`.
        image_size: Height and width of the images in pixels.
        kinds: As in `aegis_tabletop`.
        phrasings: As in `aegis_tabletop`.
        objects: As in `aegis_tabletop`.
        randomize: As in `aegis_tabletop`.
        episode_seconds: How long an episode may take from its first action on; None: each task's own limit.
        max_relative_target: As in `so101_follower`: how far, in degrees or gripper percent, a target may be from where
            the joint is; one number or one a joint. None: any.
        report: JSON file for the episodes' verdicts and the times of their actions, written after each of them.
    """

    task: str = "touch"
    instruction: str | None = None
    seed: int = 0
    cameras: str = "front"
    image_size: int = 96
    kinds: str = "shown"
    phrasings: str = "shown"
    objects: int = 3
    randomize: str = "none"
    episode_seconds: float | None = None
    max_relative_target: float | dict[str, float] | None = None
    report: Path | None = None

    def __post_init__(self) -> None:
        """Checks the options.

        Raises:
            ValueError: If one is none of its valid choices, or no scene asks `instruction`.
        """
        # LeRobot's own check is of cameras that are devices; these are views of the scene.
        choose_gl_backend()
        from aegis_envs.base import CONTROL_HZ, check_options, check_phrasings
        from aegis_envs.tasks import parse_tasks

        check_phrasings(self.phrasings, parse_tasks(self.task))
        check_options(
            cameras=self.camera_names, image_size=self.image_size, kinds=self.kinds, phrasings=self.phrasings,
            objects=self.objects, randomize=self.randomize, obs_type="pixels_agent_pos", max_steps=None,
            control_hz=CONTROL_HZ,
        )  # fmt: skip
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more; got {self.seed}.")
        if self.episode_seconds is not None and self.episode_seconds <= 0:
            raise ValueError(
                f"episode_seconds must be above 0, or None for the task's own; got {self.episode_seconds}."
            )
        if self.instruction is not None:
            self.next_seed(self.seed)

    @property
    def camera_names(self) -> tuple[str, ...]:
        """The cameras as a tuple."""
        return tuple(name.strip() for name in self.cameras.split(",") if name.strip())

    def next_seed(self, start: int) -> int:
        """The first scene from `start` on that asks `instruction`; `start` itself where none is asked for.

        Raises:
            ValueError: If there is none within reach.
        """
        if self.instruction is None:
            return start
        from aegis_envs.episode import find_seed
        from aegis_envs.tasks import parse_tasks

        return find_seed(
            self.instruction, parse_tasks(self.task), start=start, objects=self.objects, kinds=self.kinds,
            phrasings=self.phrasings,
        )  # fmt: skip
