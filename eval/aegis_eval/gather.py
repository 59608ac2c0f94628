"""From what the stages of a run left in its folder to its result."""

import json
import math
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from aegis_eval.beginnings import initial_states, instructions
from aegis_eval.jobs import Job, read_marker
from aegis_eval.provenance import as_typed, commit, machine, versions
from aegis_eval.run_result import Command, Curve, Curves, LayerCurve, PassageResult, ProbeResult, RunResult, rounded
from aegis_eval.runs import PRETRAINED, Run, origin, pretrained_settings, run_settings
from aegis_eval.stages import (
    acting_run,
    config_folder,
    dataset_folder,
    probe_file,
    rollouts_folder,
    run_stages,
    shared_stages,
    train_stage,
    training_folder,
)
from aegis_eval.study import Study
from aegis_eval.success import Rollouts, read_rollouts
from aegis_eval.training_log import TrainingLog, read_training_log

DISTANCE = "anchor_distance_"  # followed by the layer's number in the names of the training log
FINAL_SHARE = 0.1  # of the log's windows that the final action loss is the mean of


def gather_pretrained(study: Study, out: Path) -> RunResult:
    """The untouched backbone's answers."""
    probe = shared_stages(study, out)[-1]
    return RunResult(
        arm=PRETRAINED,
        lr=0.0,
        seed=0,
        settings=pretrained_settings(study),
        **_read_probes(probe_file(out / PRETRAINED)),
        commands=_commands([probe]),
        **_provenance([probe]),
    )


def gather_run(study: Study, run: Run, out: Path) -> RunResult:
    """Everything that a run found; its stages must be done."""
    stages = run_stages(study, run, out)
    trained, acts = origin(study, run), acting_run(study, run)
    log = _training_log(study, trained, out)
    windows = max(1, round(FINAL_SHARE * len(log.metrics)))
    successes: dict[str, dict[str, str]] = {}
    videos: dict[str, dict[str, list[str]]] = {}
    told: dict[str, dict[str, list[str]]] = {}
    starts: dict[str, dict[str, list[list[float]]]] = {}
    for name, options in study.rollouts.sets.items():
        tasks = read_rollouts(rollouts_folder(acts, name, out))
        successes[name] = {task: _marks(found.successes) for task, found in tasks.items()}
        videos[name], told[name], starts[name] = {}, {}, {}
        for task, found in tasks.items():
            kept = keep_videos(found, study.rollouts.videos, task=task, start_seed=study.rollouts.seed)
            videos[name][task] = [Path(os.path.relpath(video, out)).as_posix() for video in kept]
            seeds = range(study.rollouts.seed, study.rollouts.seed + len(found.successes))
            told[name][task] = instructions(options, task, seeds=seeds[: len(kept)])
            starts[name][task] = initial_states(options, task, seeds=seeds)
    return RunResult(
        arm=run.arm.name,
        lr=run.lr,
        seed=run.seed,
        settings=run_settings(study, run, config_folder=config_folder()),
        **_read_probes(probe_file(run.folder(out) / "probe")),
        successes=successes,
        # The loss of interpolated weights is not measured; adapters that are off answer only, so the loss stays.
        action_loss=log.mean("flow_loss", last=windows) if run.arm.interpolate is None else None,
        step_s=_step_seconds(log),
        memory_mib=read_marker(train_stage(study, trained, out)).get("peak_mib"),
        curves=_curves(log) if run.arm.of is None else Curves(),
        videos=videos,
        instructions=told,
        initial_states=starts,
        facts=_facts(study, out),
        commands=_commands([*shared_stages(study, out)[:-1], *stages]),
        **_provenance(stages),
    )


def _provenance(stages: Sequence[Job]) -> dict[str, Any]:
    now = commit()  # for a marker of before there were stamps
    stamps = [{**now, **read_marker(job)} for job in stages]
    return {
        "commit": ", ".join(dict.fromkeys(str(stamp["commit"]) for stamp in stamps)),
        "dirty": any(stamp["dirty"] for stamp in stamps),
        "versions": versions(),
        "machine": machine(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _commands(stages: Sequence[Job]) -> list[Command]:
    marked = [(job, read_marker(job)) for job in stages]
    return [
        Command(job.name, as_typed(marker["command"]), marker["seconds"], marker.get("attempts", 1))
        for job, marker in marked
    ]


def _read_probes(path: Path) -> dict[str, Any]:
    """What `aegis-probe --out` wrote, as fields of a result."""
    content = json.loads(path.read_text())["probes"]
    return {
        "probes": {
            name: ProbeResult(families=found["questions"], correct=found["correct"])
            for name, found in content.items()
            if "correct" in found
        },
        "passages": {
            name: PassageResult(families=found["questions"], nats=found["nats"], tokens=found["tokens"])
            for name, found in content.items()
            if "nats" in found
        },
    }


def _training_log(study: Study, run: Run, out: Path) -> TrainingLog:
    path = training_folder(run, out).parent / "log.txt"
    with path.open(errors="replace") as lines:
        return read_training_log(lines, log_freq=study.training.log_freq)


def _step_seconds(log: TrainingLog) -> float | None:
    """Median over the windows: one that a checkpoint or a neighbour slowed down does not count for more."""
    windows = [m["updt_s"] + m["data_s"] for m in log.metrics.values() if "updt_s" in m and "data_s" in m]
    return median(windows) if windows else None


def _curves(log: TrainingLog) -> Curves:
    steps, loss = log.curve("flow_loss")
    vqa_steps, vqa = log.score_curve("vqa")
    probe_names = dict.fromkeys(name for found in log.probes.values() for name in found["scores"])
    families = {
        name.removeprefix("vqa_"): _score_curve(log, name)
        for name in probe_names
        if name.startswith("vqa_") and not name.removeprefix("vqa_").startswith(tuple(_other_probes(probe_names)))
    }
    return Curves(
        flow_loss=_finite(steps, loss),
        vqa=_finite(vqa_steps, vqa),
        families=families,
        anchor_distance=_distances(log),
        energy_shed=_layers(log, "energy_shed"),
        conflict=_layers(log, "conflict"),
    )


def _other_probes(names: Sequence[str] | dict[str, None]) -> list[str]:
    """Prefixes of scores of a monitor's further probes, `vqa_<probe>` with a `vqa_<probe>_<family>` beside it."""
    bare = [name.removeprefix("vqa_") for name in names if name.startswith("vqa_")]
    return [one for one in bare if any(other.startswith(f"{one}_") for other in bare)]


def _score_curve(log: TrainingLog, name: str) -> Curve:
    return _finite(*log.score_curve(name))


def _finite(steps: Sequence[int], values: Sequence[float]) -> Curve:
    """A curve without what JSON cannot hold: a loss that diverged ends its curve."""
    kept = [(step, value) for step, value in zip(steps, values, strict=True) if math.isfinite(value)]
    return Curve([step for step, _ in kept], rounded([value for _, value in kept]))


def _distances(log: TrainingLog) -> LayerCurve:
    """Distance from the anchor by layer, window by window."""
    names = sorted({name for found in log.metrics.values() for name in found if name.startswith(DISTANCE)})
    steps = [
        step
        for step, found in sorted(log.metrics.items())
        if names and all(math.isfinite(found.get(name, math.nan)) for name in names)
    ]
    return LayerCurve(
        steps=steps,
        layers=[str(int(name.removeprefix(DISTANCE))) for name in names],
        values=[rounded([log.metrics[step][name] for name in names]) for step in steps],
    )


def _layers(log: TrainingLog, quantity: str) -> LayerCurve:
    """A quantity of the projection's report by layer, where it was asked for."""
    reports = {step: found["layers"] for step, found in sorted(log.probes.items()) if found.get("layers")}
    # The report goes from the action side back to the images: turned round, so that depth grows upward in a figure.
    names = list(reversed(dict.fromkeys(layer for found in reports.values() for layer in found)))
    steps = [
        step
        for step, found in reports.items()
        if all(math.isfinite(found.get(name, {}).get(quantity, math.nan)) for name in names)
    ]
    return LayerCurve(
        steps=steps,
        layers=names if steps else [],
        values=[rounded([reports[step][name][quantity] for name in names]) for step in steps],
    )


def _marks(successes: Sequence[bool]) -> str:
    return "".join("1" if success else "0" for success in successes)


def keep_videos(found: Rollouts, count: int, *, task: str, start_seed: int) -> list[Path]:
    """The films of the first episodes, named `<task>_seed<seed>_<success or failure>.mp4`, in their order.

    The others are deleted, since a large study would leave thousands. May be called again.

    Args:
        found: Of the task; its films have LeRobot's names.
        count: How many to keep.
        task: Its name in the results.
        start_seed: Of the first episode.
    """
    for video in found.videos[count:]:
        video.unlink(missing_ok=True)
    kept = []
    for episode, video in enumerate(found.videos[:count]):
        outcome = "success" if found.successes[episode] else "failure"
        named = video.with_name(f"{task}_seed{start_seed + episode}_{outcome}.mp4")
        if video.is_file():
            video.replace(named)
        if named.is_file():
            kept.append(named)
    return kept


def _facts(study: Study, out: Path) -> dict[str, str]:
    root = dataset_folder(study, out)
    info = None if root is None else root / "meta" / "info.json"
    if info is None or not info.is_file():
        return {}
    recorded = json.loads(info.read_text())
    return {"demonstrations": f"{recorded['total_episodes']} episodes, {recorded['total_frames']:,} frames"}
