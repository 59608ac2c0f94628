"""How long a step of the backbone a projection leaves, and what came of it: every run of a study that projects steps.

    python benchmarks/step_length.py [--results results/nano] [--set shown]

Where the share `s` of a step's squared norm is removed, `sqrt(1 - s)` of its length is left: here the mean over
protected layers and over the steps that were logged. AdamW's step is about as long as its rate, whatever the gradient,
so the length that is left times the backbone's rate is the rate at which an unprotected backbone moves as far; for
adapters it is the adapters' own. Arms whose projection acts on gradients have no such length and are left out.
"""

import argparse
from collections.abc import Iterable, Sequence
from math import sqrt
from pathlib import Path
from statistics import mean
from typing import Any

from measure import Table

from aegis_eval.run_result import RunResult, read_result

ON_GRADIENTS = ("gradient", "first_moment", "subspace_gradient")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results/nano"), help="of aegis-compare")
    parser.add_argument("--set", default="shown", help="of the study's rollouts")
    options = parser.parse_args(arguments)
    runs = [run for file in sorted(options.results.glob("*-seed*.json")) if projects_steps(run := read_result(file))]
    if not runs:
        raise SystemExit(
            f"--results is a folder of results of aegis-compare; in {options.results} none projects steps."
        )
    if options.set not in (sets := runs[0].successes):
        raise SystemExit(f"--set must be one of {', '.join(sets)}; received {options.set!r}.")
    print(lengths(runs, options.set).markdown())


def projects_steps(run: RunResult) -> bool:
    """Whether what was removed was removed from the step that is taken."""
    return bool(run.curves.energy_shed.values) and _option(run, "projection") not in ON_GRADIENTS


def lengths(runs: Iterable[RunResult], name: str) -> Table:
    """One row a run, the longest steps first."""
    found = []
    for run in runs:
        left = mean(sqrt(1 - shed) for at_step in run.curves.energy_shed.values for shed in at_step)
        rate = float(_option(run, "optimizer_backbone_lr", run.lr))
        marks = "".join(run.successes[name].values())
        found.append((left * rate, run, left, rate, marks.count("1") / len(marks)))
    rows = [
        [
            run.arm,
            str(run.seed),
            f"{run.lr:g}",
            f"{rate:g}",
            f"{left:.2f}",
            f"{1000 * moved:.2f}",
            f"{100 * success:.1f}",
        ]
        for moved, run, left, rate, success in sorted(found, key=lambda row: -row[0])
    ]
    header = ("arm", "seed", "rate", "backbone's rate", "length left", "their product / 1e-3", f"success {name} (%)")
    return Table("Length of the backbone's step that the projection leaves.", header, rows)


def _option(run: RunResult, name: str, default: Any = None) -> Any:
    return run.settings["options"].get(f"policy.{name}", default)


if __name__ == "__main__":
    main()
