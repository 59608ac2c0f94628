"""How evenly actions reach the robot at 30 Hz: stock lerobot-rollout on the simulated SO-101, sync and RTC.

    python benchmarks/control_loop.py outputs/touch/checkpoints/last/pretrained_model [--flow-steps 5 20 50]

The robot writes down when each action arrived. An action is late when more than one and a half ticks (50 ms) passed
since the one before. Inference is made slower by more steps of the flow (`--policy.num_inference_steps`), so the policy
still acts. All runs share one scene and one process.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from stock_rollout import TICK_HZ, engines, rollout

LATE = 1.5 / TICK_HZ  # seconds


def intervals_ms(report: dict) -> np.ndarray:
    """Time between consecutive actions of the only episode, milliseconds; none where no action arrived."""
    times = [episode["sent_at_s"] for episode in report["episodes"]]
    return 1000 * np.diff(times[0]) if times else np.zeros(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a run")
    parser.add_argument("--flow-steps", type=int, nargs="+", default=[5, 20, 50])
    parser.add_argument("--instruction", default="touch the green cube")
    parser.add_argument("--out", type=Path, help="JSON file for every interval")
    args = parser.parse_args()
    table = Table("inference", "flow steps", "actions/s", "median ms", "95 %", "99 %", "longest", "late %", "verdict")
    table.title = f"intervals between actions; a tick is {1000 / TICK_HZ:.1f} ms"
    runs = []
    for steps in args.flow_steps:
        for name, options in engines(args.checkpoint).items():
            load = os.getloadavg()[0]
            report = rollout(
                args.checkpoint, args.instruction, *options, f"--policy.num_inference_steps={steps}",
                f"--duration={args.seconds}", "--return_to_initial_position=false",
            )  # fmt: skip
            gaps = intervals_ms(report)
            verdict = report["episodes"][0]["verdict"] if report["episodes"] else "no action arrived"
            runs.append({"inference": name, "flow_steps": steps, "load": load, "verdict": verdict, "ms": gaps.tolist()})
            if len(gaps) == 0:
                table.add_row(name, str(steps), "0", "-", "-", "-", "-", "-", verdict)
                continue
            late = 100 * (gaps > 1000 * LATE).mean()
            quantiles = (f"{q:.0f}" for q in (*np.percentile(gaps, (50, 95, 99)), gaps.max()))
            table.add_row(name, str(steps), f"{1000 / gaps.mean():.1f}", *quantiles, f"{late:.0f}", verdict)
    Console(width=110).print(table)
    Console(width=110).print(
        f"cores: {os.cpu_count()}; load before each run: {', '.join(f'{r["load"]:.1f}' for r in runs)}"
    )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(runs, indent=1) + "\n")


if __name__ == "__main__":
    main()
