"""From what the demo's commands left behind to its study, tables and page."""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

import gymnasium

from aegis_envs import GYM_ID
from aegis_eval.demo_plan import ARMS, ENVIRONMENT, EVALUATION_SEED, OBJECTS, PROBES, TASK, ArmPlan, DemoSettings
from aegis_eval.jobs import Job, available_cores, read_marker
from aegis_eval.page import FILMS, write_page
from aegis_eval.probes import find_probe
from aegis_eval.results import Arm, Curve, ProbeResult, Study
from aegis_eval.success import read_rollouts
from aegis_eval.tables import difference_cells, family_cells, markdown, spreadsheet, summary_cells
from aegis_eval.training_log import TrainingLog, read_training_log

DISTANCE = "anchor_distance_"  # followed by the layer's number in the names of the training log
FINAL_SHARE = 0.1  # of the log's windows that the final action loss is the mean of


def gather(settings: DemoSettings, jobs: Sequence[Job]) -> Study:
    """Read every result of a demo that is done."""
    reference = Arm(
        name="pretrained",
        label="untouched",
        note="The backbone before any training.",
        probes=_probe(settings, "pretrained"),
    )
    return Study(
        title="What does the model forget while it learns to act?",
        summary=(
            "A small vision-language model is fine-tuned into a robot policy three times, from the same weights, seed "
            f"and {settings.episodes} demonstrations, for {settings.steps:,} steps each. Before and after, it answers "
            "questions about pictures; after, it acts in closed loop."
        ),
        reference=reference,
        arms=[_arm(settings, plan) for plan in ARMS],
        probes={name: find_probe(name).description for name in PROBES},
        chance=1 / OBJECTS,
        chance_note=(
            f"There are {OBJECTS} objects and touching another one ends the episode, so whoever does not read the "
            f"instruction succeeds in at most {100 / OBJECTS:.0f} %."
        ),
        instructions=_instructions(min(FILMS, settings.eval_episodes)),
        facts=_facts(settings),
        commands=[(job.name, _shown(read_marker(job)["command"]), read_marker(job)["seconds"]) for job in jobs],
    )


def write_reports(study: Study, settings: DemoSettings) -> Path:
    """Write JSON, CSV, Markdown and the page; returns the page's path."""
    out = settings.out
    study.write(out / "results.json")
    (out / "table.csv").write_text(spreadsheet(study))
    parts = [
        f"# {study.title}\n\n{study.summary}\n",
        markdown(summary_cells(study)),
        f"Rates with 95 % Wilson intervals. {study.chance_note}\n",
        "## Differences over the same questions and initial states\n",
        markdown(difference_cells(study)),
    ]
    for probe, asks in study.probes.items():
        parts += [
            f"## VQA accuracy in percent: {probe}\n",
            f"{asks.capitalize()}.\n",
            markdown(family_cells(study, probe)),
        ]
    (out / "table.md").write_text("\n".join(parts))
    page = out / "index.html"
    write_page(study, page, folder=out)
    return page


def _arm(settings: DemoSettings, plan: ArmPlan) -> Arm:
    log = _log(settings, plan.name)
    rollouts = read_rollouts(settings.rollouts(plan.name))
    steps, accuracy = log.score_curve("vqa")
    windows = max(1, round(FINAL_SHARE * len(log.metrics)))
    return Arm(
        name=plan.name,
        label=plan.label,
        note=plan.note,
        probes=_probe(settings, plan.name),
        successes=rollouts.successes,
        action_loss=log.mean("flow_loss", last=windows),
        step_s=_step_seconds(log),
        loss=Curve(*log.curve("flow_loss")),
        vqa=Curve(steps, accuracy),
        layers=_layers(log),
        videos=[os.path.relpath(video, settings.out) for video in rollouts.videos],
    )


def _log(settings: DemoSettings, arm: str) -> TrainingLog:
    path = settings.training(arm).parent / "log.txt"
    with path.open(errors="replace") as lines:
        return read_training_log(lines, log_freq=settings.log_freq)


def _step_seconds(log: TrainingLog) -> float | None:
    """Median over the windows: one that a checkpoint or a neighbour slowed down does not count for more."""
    windows = [m["updt_s"] + m["data_s"] for m in log.metrics.values() if "updt_s" in m and "data_s" in m]
    return median(windows) if windows else None


def _layers(log: TrainingLog) -> dict[str, float]:
    """Distance from the anchor by layer, in the last window of the log."""
    if not log.metrics:
        return {}
    last = log.metrics[max(log.metrics)]
    found = {name.removeprefix(DISTANCE): value for name, value in last.items() if name.startswith(DISTANCE)}
    return {str(int(layer)): found[layer] for layer in sorted(found)}


def _probe(settings: DemoSettings, name: str) -> dict[str, ProbeResult]:
    content = json.loads(settings.probe(name).read_text())
    return {
        probe: ProbeResult(families=found["questions"], correct=found["correct"])
        for probe, found in content["probes"].items()
    }


def _instructions(count: int) -> list[str]:
    """What the robot is told in the first rollouts: an episode is a function of its seed."""
    environment = gymnasium.make(GYM_ID, cameras=(), **ENVIRONMENT)
    try:
        told = []
        for episode in range(count):
            environment.reset(seed=EVALUATION_SEED + episode)
            told.append(str(environment.unwrapped.task_description))  # type: ignore[attr-defined]
        return told
    finally:
        environment.close()


def _facts(settings: DemoSettings) -> dict[str, str]:
    recorded = json.loads((settings.dataset / "meta" / "info.json").read_text())
    episodes, frames = recorded["total_episodes"], recorded["total_frames"]
    packages = ("lerobot_policy_aegis_vla", "lerobot", "torch", "transformers", "mujoco")
    return {
        "task": f"{TASK}, {OBJECTS} objects on the table, language instruction",
        "demonstrations": f"{episodes} episodes of a scripted expert, {frames:,} frames",
        "training": f"{settings.steps:,} steps an arm, seed {settings.seed}, configs/train/demo.yaml",
        "anchor": f"{settings.anchor_samples:,} VQA samples that no probe asks about",
        "probes": f"{settings.questions} questions each: {', '.join(f'{p} v{find_probe(p).version}' for p in PROBES)}",
        "rollouts": f"{settings.eval_episodes} episodes an arm, the same initial states for all",
        "commit": _commit(),
        "versions": ", ".join(f"{name} {version(name)}" for name in packages),
        "machine": f"{_processor()}, {available_cores()} cores, {platform.system()}",
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _commit() -> str:
    """The repository's commit, with a mark if files differ from it."""
    git = shutil.which("git")
    if git is None:
        return "unknown (no git)"
    here = Path(__file__).parent
    run = [git, "-C", str(here)]
    commit = subprocess.run([*run, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
    if commit.returncode:
        return "unknown (not a git repository)"
    status = subprocess.run([*run, "status", "--porcelain"], capture_output=True, text=True, check=False)
    return commit.stdout.strip() + (" with local changes" if status.stdout.strip() else "")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _shown(command: str) -> str:
    """A command as one types it: without the path of the environment's programs."""
    return command.replace(f"{Path(sys.executable).parent}{os.sep}", "")
