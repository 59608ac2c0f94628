"""Success in real time against success where time waits: lerobot-rollout and lerobot-eval on the same scenes.

    python benchmarks/real_time_success.py outputs/touch/checkpoints/last/pretrained_model \
        --task touch --instructions "touch the green cube" "touch the yellow ball" [--episodes 4]

Each instruction gets so many episodes of lerobot-rollout's `episodic` strategy, sync and with real-time chunking; the
scenes' seeds are then played by LeRobot's evaluation of `aegis_tabletop`. Intervals are Wilson's, 95 %.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.envs.factory import make_env, make_env_pre_post_processors
from lerobot.envs.utils import close_envs
from lerobot.policies import get_policy_class, make_pre_post_processors
from lerobot.scripts.lerobot_eval import rollout as eval_rollout
from rich.console import Console
from rich.table import Table
from stock_rollout import TICK_HZ, engines, rollout

from aegis_envs import choose_gl_backend
from aegis_envs.configuration_aegis_envs import AegisTabletopEnv
from aegis_eval.statistics import rate


def in_real_time(
    checkpoint: str, instruction: str, options: list[str], *, task: str, episodes: int, patience: float
) -> list[dict]:
    """The episodes of one lerobot-rollout."""
    from aegis_envs.tasks import parse_tasks  # imports MuJoCo, which then has to know how to draw

    (limit,) = (patience * t.seconds for t in parse_tasks(task))
    with tempfile.TemporaryDirectory() as folder:
        report = rollout(
            checkpoint, instruction, *options, f"--robot.task={task}", f"--robot.episode_seconds={limit}",
            "--strategy.type=episodic",
            "--dataset.repo_id=local/rollout_success", f"--dataset.root={Path(folder) / 'dataset'}",
            "--dataset.push_to_hub=false", "--dataset.video=false", f"--dataset.fps={TICK_HZ}",
            f"--dataset.num_episodes={episodes}", f"--dataset.episode_time_s={limit + 0.5}",
            "--dataset.reset_time_s=0.2", "--return_to_initial_position=false",
        )  # fmt: skip
    return report["episodes"]


def where_time_waits(checkpoint: str, seeds: list[int], *, task: str) -> list[bool]:
    """Successes of LeRobot's evaluation on the scenes of `seeds`."""
    config = PreTrainedConfig.from_pretrained(checkpoint)
    policy = get_policy_class(config.type).from_pretrained(checkpoint, config=config).eval()
    before, after = make_pre_post_processors(config, pretrained_path=checkpoint)
    env_config = AegisTabletopEnv(task=task)
    envs = make_env(env_config, n_envs=len(seeds))
    env_before, env_after = make_env_pre_post_processors(env_config, policy_cfg=config)
    with torch.no_grad():
        result = eval_rollout(envs[task][0], policy, env_before, env_after, before, after, seeds=seeds)
    close_envs(envs)
    return result["success"].any(dim=1).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--task", default="touch")
    parser.add_argument("--instructions", nargs="+", default=["touch the green cube", "touch the yellow ball"])
    parser.add_argument("--episodes", type=int, default=4, help="an instruction")
    parser.add_argument("--patience", type=float, default=1.0, help="time limit in real time over the task's own")
    args = parser.parse_args()
    choose_gl_backend()
    table = Table("how", "success", "median seconds to success", title=f"{args.task}, the same scenes")
    seeds: list[int] = []
    for name, options in engines(args.checkpoint).items():
        played = [
            episode
            for instruction in args.instructions
            for episode in in_real_time(
                args.checkpoint, instruction, options, task=args.task, episodes=args.episodes, patience=args.patience
            )
        ]
        seeds = [episode["seed"] for episode in played]
        times = [episode["seconds"] for episode in played if episode["verdict"] == "success"]
        median = f"{sorted(times)[len(times) // 2]:.1f}" if times else "-"
        table.add_row(f"lerobot-rollout, {name}", str(rate(len(times), len(played))), median)
    waited = where_time_waits(args.checkpoint, seeds, task=args.task)
    table.add_row("lerobot-eval", str(rate(sum(waited), len(waited))), "-")
    Console(width=110).print(table)
    Console(width=110).print(f"seeds: {seeds}")


if __name__ == "__main__":
    main()
