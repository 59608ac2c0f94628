"""A comparison as numbers: a row an arm and learning rate, estimated over its seeds from the results of its runs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from aegis_eval.bootstrap import Design, Estimate, Marks, difference_estimate, retention_estimates, success_estimate
from aegis_eval.run_result import ProbeResult, RunResult
from aegis_eval.scoring import ALL
from aegis_eval.study import Arm, Study
from aegis_eval.surprise import perplexity_estimate

WORST = "worst"  # the family that kept least; beside the families and `ALL` in a row's retention


@dataclass(frozen=True)
class Row:
    """An arm at one learning rate.

    Attributes:
        arm: The arm.
        lr: Peak learning rate.
        runs: Training seed -> result.
        vqa: Probe -> family or `ALL` -> accuracy.
        retention: Probe -> family, `ALL` or `WORST` -> accuracy over that of the untouched backbone.
        perplexity: Probe -> perplexity of its passages.
        perplexity_ratio: Probe -> the same over that of the untouched backbone.
        vqa_difference: Probe -> accuracy minus that of the baseline at the same learning rate.
        success: Set -> success rate over all its tasks.
        tasks: Set -> task -> success rate.
        success_difference: Set -> success minus that of the baseline at the same learning rate.
        action_loss: Mean over the seeds, like what follows.
        step_s: Seconds a training step, beside whatever else the machine did.
        memory_mib: Peak resident memory of the training process.
    """

    arm: Arm
    lr: float
    runs: Mapping[int, RunResult]
    vqa: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)
    retention: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)
    perplexity: Mapping[str, Estimate] = field(default_factory=dict)
    perplexity_ratio: Mapping[str, Estimate] = field(default_factory=dict)
    vqa_difference: Mapping[str, Estimate] = field(default_factory=dict)
    success: Mapping[str, Estimate] = field(default_factory=dict)
    tasks: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)
    success_difference: Mapping[str, Estimate] = field(default_factory=dict)
    action_loss: float | None = None
    step_s: float | None = None
    memory_mib: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Arms side by side.

    Attributes:
        study: What was asked for.
        rows: By arm, and within it by learning rate; rows without a run are left out.
        untouched: Probe -> family or `ALL` -> accuracy of the backbone before training.
        untouched_perplexity: Probe -> perplexity of its passages before training.
        pretrained: Its result; None if it was not asked yet.
        planned: Number of runs of the study.
    """

    study: Study
    rows: Sequence[Row]
    untouched: Mapping[str, Mapping[str, Estimate]]
    untouched_perplexity: Mapping[str, Estimate]
    pretrained: RunResult | None
    planned: int

    @property
    def done(self) -> int:
        """Number of runs with a result."""
        return sum(len(row.runs) for row in self.rows)

    @property
    def runs(self) -> list[RunResult]:
        """Every result of a trained or derived run."""
        return [run for row in self.rows for run in row.runs.values()]

    def place(self, row: Row) -> int:
        """Number of the row's arm among those that have a run: what its colour and marker go by."""
        return list(dict.fromkeys(one.arm.name for one in self.rows)).index(row.arm.name)

    @property
    def learning_rates(self) -> list[float]:
        """Those with a row, ascending."""
        return sorted({row.lr for row in self.rows})

    @property
    def seeds(self) -> list[int]:
        """Those with a run, ascending."""
        return sorted({run.seed for run in self.runs})

    def write(self, path: Path) -> None:
        """Write estimates and the results they come from as JSON."""
        rows = [
            {name: value for name, value in asdict(row).items() if name != "runs"} | {"seeds": sorted(row.runs)}
            for row in self.rows
        ]
        content = {
            "study": asdict(self.study),
            "runs_done": self.done,
            "runs_planned": self.planned,
            "untouched": {p: {f: asdict(e) for f, e in found.items()} for p, found in self.untouched.items()},
            "untouched_perplexity": {p: asdict(found) for p, found in self.untouched_perplexity.items()},
            "rows": rows,
            "pretrained": asdict(self.pretrained) if self.pretrained else None,
            "runs": [asdict(run) for run in self.runs],
        }
        path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def compare_results(
    study: Study, results: Sequence[RunResult], pretrained: RunResult | None, *, planned: int
) -> Comparison:
    """Estimate every row from the results that there are."""
    runs: dict[tuple[str, float], dict[int, RunResult]] = {}
    for result in sorted(results, key=lambda found: found.seed):
        runs.setdefault((result.arm, result.lr), {})[result.seed] = result
    rows = [
        _row(arm, lr, runs[arm.name, lr], runs.get((study.baseline, lr), {}), pretrained, study.baseline)
        for arm in study.arms
        for lr in sorted(study.learning_rates)
        if (arm.name, lr) in runs
    ]
    before = {} if pretrained is None else {0: pretrained}
    return Comparison(
        study,
        rows,
        untouched=_vqa(before),
        untouched_perplexity=_perplexity(before),
        pretrained=pretrained,
        planned=planned,
    )


def _row(
    arm: Arm,
    lr: float,
    runs: Mapping[int, RunResult],
    baseline: Mapping[int, RunResult],
    pretrained: RunResult | None,
    baseline_name: str,
) -> Row:
    others = baseline if arm.name != baseline_name else {}
    probes, sets = _shared_names(runs, "probes"), _shared_names(runs, "successes")
    vqa_differences = {p: _vqa_difference(runs, others, p) for p in probes}
    success_differences = {s: _success_difference(runs, others, s) for s in sets}
    return Row(
        arm=arm,
        lr=lr,
        runs=runs,
        vqa=_vqa(runs),
        retention={p: _retention(runs, pretrained, p) for p in probes if pretrained and p in pretrained.probes},
        perplexity=_perplexity(runs),
        perplexity_ratio=_perplexity(runs, over=pretrained) if pretrained else {},
        vqa_difference={p: found for p, found in vqa_differences.items() if found},
        success={s: success_estimate(*_pooled(runs, s)) for s in sets},
        tasks={s: _tasks(runs, s) for s in sets},
        success_difference={s: found for s, found in success_differences.items() if found},
        action_loss=_mean([run.action_loss for run in runs.values()]),
        step_s=_mean([run.step_s for run in runs.values()]),
        memory_mib=_mean([run.memory_mib for run in runs.values()]),
    )


def _vqa(runs: Mapping[int, RunResult]) -> dict[str, dict[str, Estimate]]:
    found: dict[str, dict[str, Estimate]] = {}
    for probe in _shared_names(runs, "probes"):
        answers = {seed: run.probes[probe] for seed, run in runs.items()}
        first = next(iter(answers.values()))
        found[probe] = {
            family: success_estimate({s: _of_family(a, family) for s, a in answers.items()}, _asked(first, family))
            for family in (ALL, *first.names())
        }
    return found


def _perplexity(runs: Mapping[int, RunResult], *, over: RunResult | None = None) -> dict[str, Estimate]:
    """Of each probe's passages; with `over` in times what they cost there, where they were read there."""
    found: dict[str, Estimate] = {}
    for probe in _shared_names(runs, "passages"):
        read = {seed: run.passages[probe] for seed, run in runs.items()}
        first = next(iter(read.values()))
        if over is None or probe in over.passages:
            found[probe] = perplexity_estimate(
                {seed: one.nats for seed, one in read.items()},
                first.tokens,
                first.families,
                before=None if over is None else over.passages[probe].nats,
            )
    return found


def _retention(runs: Mapping[int, RunResult], pretrained: RunResult | None, probe: str) -> dict[str, Estimate]:
    assert pretrained is not None
    before = pretrained.probes[probe]
    outcomes = {seed: run.probes[probe].outcomes() for seed, run in runs.items()}
    return retention_estimates(outcomes, before.outcomes(), before.families)


def _vqa_difference(runs: Mapping[int, RunResult], others: Mapping[int, RunResult], probe: str) -> Estimate | None:
    first = {seed: run.probes[probe] for seed, run in runs.items()}
    second = {seed: run.probes[probe].outcomes() for seed, run in others.items() if probe in run.probes}
    design = _asked(next(iter(first.values())), ALL)
    return difference_estimate({seed: a.outcomes() for seed, a in first.items()}, second, design)


def _success_difference(runs: Mapping[int, RunResult], others: Mapping[int, RunResult], name: str) -> Estimate | None:
    first, design = _pooled(runs, name)
    second, _ = _pooled({seed: run for seed, run in others.items() if name in run.successes}, name)
    return difference_estimate(first, second, design)


def _pooled(runs: Mapping[int, RunResult], name: str) -> tuple[dict[int, Marks], Design]:
    """Training seed -> outcomes of all tasks of a set, whose n-th episodes begin from one seed and so one scene."""
    outcomes: dict[int, Marks] = {}
    scenes: list[int] = []
    for seed, run in runs.items():
        tasks = run.successes[name].values()
        outcomes[seed] = [mark == "1" for marks in tasks for mark in marks]
        scenes = [scene for marks in tasks for scene in range(len(marks))]
    return outcomes, Design.of_episodes(scenes)


def _tasks(runs: Mapping[int, RunResult], name: str) -> dict[str, Estimate]:
    first = next(iter(runs.values())).successes[name]
    return {
        task: success_estimate(
            {seed: [mark == "1" for mark in run.successes[name][task]] for seed, run in runs.items()},
            Design.of_episodes(range(len(marks))),
        )
        for task, marks in first.items()
    }


def _of_family(answers: ProbeResult, family: str) -> list[bool]:
    return [r for asked, r in zip(answers.families, answers.outcomes(), strict=True) if family in (ALL, asked)]


def _asked(answers: ProbeResult, family: str) -> Design:
    return Design.of_questions([asked for asked in answers.families if family in (ALL, asked)])


def _shared_names(runs: Mapping[int, RunResult], what: str) -> list[str]:
    """Probes or sets that every run has, in the order of the first."""
    if not runs:
        return []
    first, *others = [getattr(run, what) for run in runs.values()]
    return [name for name in first if all(name in other for other in others)]


def _mean(values: Sequence[Any]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return fmean(known) if known else None
