"""Speed of the tabletop environment on one core: control steps a second, with and without cameras.

    python benchmarks/environment.py [--seconds 5]

Each row steps the environment for the given time with small random joint targets, resets included.
"""

import argparse
import time

import numpy as np
from rich.console import Console
from rich.table import Table

from aegis_envs import choose_gl_backend

CASES = (
    ("no camera", {"cameras": ()}),
    ("front, 96 px", {"cameras": ("front",), "image_size": 96}),
    ("front, 224 px", {"cameras": ("front",), "image_size": 224}),
    ("front and wrist, 96 px", {"cameras": ("front", "wrist"), "image_size": 96}),
)


def steps_per_second(options: dict, *, task: str, seconds: float) -> float:
    from aegis_envs.base import TabletopEnv

    env = TabletopEnv(task, **options)
    rng = np.random.default_rng(0)
    observation, _ = env.reset(seed=0)
    steps, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        action = observation["agent_pos"] + rng.normal(0, 3, 6).astype(np.float32)
        observation, _, terminated, truncated, _ = env.step(action)
        steps += 1
        if terminated or truncated:
            observation, _ = env.reset()
    elapsed = time.perf_counter() - start
    env.close()
    return steps / elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="time a row")
    seconds = parser.parse_args().seconds
    choose_gl_backend()
    table = Table("observation", "touch, steps/s", "place, steps/s", title="aegis_envs/Tabletop-v0, one process")
    for name, options in CASES:
        rates = [steps_per_second(options, task=task, seconds=seconds) for task in ("touch", "place")]
        table.add_row(name, *(f"{rate:.0f}" for rate in rates))
    Console().print(table)


if __name__ == "__main__":
    main()
