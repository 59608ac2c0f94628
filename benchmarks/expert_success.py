"""How often the scripted experts succeed, in the nominal world and under each kind of domain randomisation.

    python benchmarks/expert_success.py [--episodes 40] [--kinds none,all] [--picture FILE]

Each cell plays that many episodes of a task, from seed 1000 on, undisturbed and without a camera. The picture shows the
same six scenes of `place` without randomisation (above) and with all of it.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from aegis_envs import choose_gl_backend

FIRST_SEED = 1000
PICTURE_SEEDS, PICTURE_SIZE = range(6), 160


def successes(task: str, randomize: str, *, episodes: int) -> int:
    from aegis_envs.base import TabletopEnv
    from aegis_envs.demonstrations import attempt
    from aegis_envs.kinematics import ArmKinematics

    env, kinematics = TabletopEnv(task, cameras=(), randomize=randomize), ArmKinematics()
    return sum(attempt(env, kinematics, seed=FIRST_SEED + i, noise=0.0)[1] for i in range(episodes))


def draw_picture(path: Path) -> None:
    from aegis_envs.base import TabletopEnv

    rows = []
    for randomize in ("none", "all"):
        env = TabletopEnv("place", image_size=PICTURE_SIZE, randomize=randomize)
        rows.append(np.hstack([env.reset(seed=seed)[0]["pixels"]["front"] for seed in PICTURE_SEEDS]))
        env.close()
    Image.fromarray(np.vstack(rows)).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=40)
    parser.add_argument("--kinds", help="comma-separated; default: none, each kind, all")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    choose_gl_backend()
    from aegis_envs.randomization import KINDS
    from aegis_envs.tasks import TASKS

    if options.picture:
        draw_picture(options.picture)
    table = Table("randomize", *TASKS, title=f"successes of {options.episodes} episodes")
    for kind in options.kinds.split(",") if options.kinds else ("none", *KINDS, "all"):
        table.add_row(kind, *(str(successes(task, kind, episodes=options.episodes)) for task in TASKS))
    Console().print(table)


if __name__ == "__main__":
    main()
