"""Closed-loop success through stock `lerobot-eval`."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

EVAL_INFO = "eval_info.json"


@dataclass(frozen=True)
class Rollouts:
    """What `lerobot-eval` found in one task.

    Attributes:
        successes: One an episode; episode i starts from the state of seed `start_seed + i`.
        videos: Of the first episodes, in their order.
    """

    successes: list[bool]
    videos: list[Path]


def eval_command(
    policy: Path | str,
    *,
    out: Path,
    episodes: int,
    start_seed: int,
    environments: int,
    environment: Mapping[str, str],
    device: str = "cpu",
) -> list[str]:
    """The `lerobot-eval` command line; arms with the same seed, counts and options see the same initial states.

    Args:
        policy: A `pretrained_model` folder.
        out: Output folder.
        episodes: Number of episodes.
        start_seed: Seed of the first episode's environment.
        environments: How many are stepped together; also the batch of the policy.
        environment: Options of the environment without their `--env.`, `type` among them.
        device: Of the policy.
    """
    return [
        lerobot_script("lerobot-eval"),
        f"--policy.path={policy}",
        f"--policy.device={device}",
        *[f"--env.{name}={value}" for name, value in environment.items()],
        f"--eval.n_episodes={episodes}",
        f"--eval.batch_size={min(environments, episodes)}",
        "--eval.use_async_envs=false",
        f"--seed={start_seed}",
        f"--output_dir={out}",
    ]


def read_rollouts(folder: Path) -> dict[str, Rollouts]:
    """Read what `lerobot-eval` left in its output folder, by task.

    A task is one of LeRobot's groups, or `<group>_<number>` where a group has several.

    Raises:
        FileNotFoundError: If it has not ended well there.
    """
    path = folder / EVAL_INFO
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: lerobot-eval writes it at its end. See its log.")
    tasks = json.loads(path.read_text())["per_task"]
    groups = [task["task_group"] for task in tasks]
    return {
        task["task_group"] if groups.count(task["task_group"]) == 1 else f"{task['task_group']}_{task['task_id']}": (
            Rollouts(
                successes=[bool(success) for success in task["metrics"]["successes"]],
                videos=[Path(video) for video in task["metrics"].get("video_paths", [])],
            )
        )
        for task in tasks
    }


def lerobot_script(name: str) -> str:
    """The console script, LeRobot's or ours, that belongs to this Python.

    Raises:
        FileNotFoundError: If it is not beside the interpreter.
    """
    script = Path(sys.executable).parent / name
    if not script.is_file():
        raise FileNotFoundError(
            f"{name} is not beside {sys.executable}. Install this project in the environment that you run it "
            "from: pip install -e ."
        )
    return str(script)
