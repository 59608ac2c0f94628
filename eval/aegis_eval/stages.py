"""The stages of a study as jobs: stock commands, each with a folder, a log and a marker.

record, anchor --> train --> roll out a SET (for each set) --> probe        a run, one after the other
                                                           probe pretrained needs nothing of these
"""

import json
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any

from aegis_envs.recordable import TABLETOP, find_recordable
from aegis_eval.jobs import Job
from aegis_eval.runs import PRETRAINED, Run, origin
from aegis_eval.study import Anchor, Options, Study
from aegis_eval.success import EVAL_INFO, eval_command, lerobot_script
from aegis_eval.training_log import FROM_STEP, read_progress

REPOSITORY = "local/demonstrations"


def config_folder() -> Path:
    """The repository's `configs/`, relative to the working directory where it lies below it.

    Raises:
        FileNotFoundError: If this package does not lie in a clone of the repository.
    """
    folder = Path(__file__).resolve().parents[2] / "configs"
    if not folder.is_dir():
        raise FileNotFoundError(
            f"There is no {folder}: studies read their training configuration from a clone of the repository. "
            "Clone it, install it with `pip install -e .`, and run the command there."
        )
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


def shared_stages(study: Study, out: Path) -> list[Job]:
    """What all runs need: demonstrations and anchor, and the untouched backbone's answers."""
    stages = [_record(study, out)] if study.demonstrations is not None else []
    if study.anchor is not None:
        stages.append(_build_anchor(study, study.anchor, anchor_file(out), name="anchor"))
    probe = _probe(study, PRETRAINED, study.backbone, out / PRETRAINED, {}, title="questions to the untouched backbone")
    return [*stages, probe]


def run_stages(study: Study, run: Run, out: Path) -> list[Job]:
    """The stages of one run in their order, those that another arm's run has done already among them."""
    trained = origin(study, run)
    stages = [train_stage(study, trained, out)]
    if trained.arm.anchor is not None:
        file = _anchor_of(trained, out)
        stages.insert(0, _build_anchor(study, trained.arm.anchor, file, name=f"anchor {trained.name}"))
    checkpoint = training_folder(trained, out)
    if run.arm.interpolate is not None:
        checkpoint = run.folder(out) / "interpolate" / "pretrained_model"
        stages.append(_interpolate(run, training_folder(trained, out), checkpoint, out))
    acts = acting_run(study, run)
    policy = checkpoint if run.arm.interpolate is not None else checkpoint / "checkpoints" / "last" / "pretrained_model"
    stages += [_roll_out(study, acts, name, policy, out) for name in study.rollouts.sets]
    folder = run.folder(out) / "probe"
    title = f"questions to {run.name}"
    stages.append(_probe(study, f"probe {run.name}", str(checkpoint), folder, run.arm.probe_options, title=title))
    return stages


def acting_run(study: Study, run: Run) -> Run:
    """Whose rollouts count for `run`: its own, or those of the run whose weights it asks in another way."""
    return run if run.arm.interpolate is not None else origin(study, run)


def training_folder(run: Run, out: Path) -> Path:
    """Output folder of the run's `lerobot-train`."""
    return run.folder(out) / "train" / "run"


def rollouts_folder(run: Run, name: str, out: Path) -> Path:
    """Output folder of the `lerobot-eval` of a set."""
    return run.folder(out) / "rollouts" / name / "run"


def probe_file(folder: Path) -> Path:
    """JSON file of `aegis-probe` in the folder of its stage."""
    return folder / "probe.json"


def anchor_file(out: Path) -> Path:
    """The anchor that the trainings share."""
    return out / "anchor" / "anchor.safetensors"


def _anchor_of(run: Run, out: Path) -> Path:
    """The anchor of one run's training: its arm's own, or that which all share."""
    return anchor_file(out if run.arm.anchor is None else run.folder(out))


def dataset_folder(study: Study, out: Path) -> Path | None:
    """Where the demonstrations lie; None if LeRobot is to find the dataset by its name."""
    if study.dataset is None:
        return out / "demonstrations" / "dataset"
    return Path(study.dataset.root) if study.dataset.root else None


def as_options(options: Options, *, prefix: str = "") -> list[str]:
    """`--name=value` for each, as LeRobot's commands read them: lists, mappings, booleans and null as JSON."""
    return [
        f"--{prefix}{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in options.items()
    ]


def _record(study: Study, out: Path) -> Job:
    assert study.demonstrations is not None
    # The folder of the dataset must be the recorder's own; log and marker lie beside it.
    command = [
        lerobot_script("aegis-record"),
        f"--repo-id={REPOSITORY}",
        f"--root={dataset_folder(study, out)}",
        *_record_options(study.demonstrations),
        "--resume",
    ]
    episodes = study.demonstrations["episodes"]
    environment = find_recordable(study.demonstrations.get("env.type", TABLETOP))
    return Job(
        name="record",
        title=f"recording {episodes} demonstrations",
        folder=out / "demonstrations",
        command=lambda: command,
        expected_s=20 + environment.episode_s * episodes,
        progress=partial(read_progress, bar="Recording"),
    )


def _record_options(options: Mapping[str, Any]) -> list[str]:
    """Options of `aegis-record`: dashes in names, and `--video` is a switch."""
    plain = {name.replace("_", "-"): value for name, value in options.items() if name != "video"}
    return as_options(plain) + (["--video"] if options.get("video") else [])


def _build_anchor(study: Study, anchor: Anchor, file: Path, *, name: str) -> Job:
    command = [
        lerobot_script("aegis-anchor"),
        f"--backbone={study.backbone}",
        f"--source={anchor.source}",
        f"--count={anchor.count}",
        f"--seed={anchor.seed}",
        f"--device={study.device}",
        f"--out={file}",
        "--overwrite",
        "--unit-inputs" if anchor.unit_inputs else "--no-unit-inputs",
        f"--token-stride={anchor.token_stride}",
    ]
    return Job(
        name=name,
        title=f"{name} from {anchor.count} VQA samples",
        folder=file.parent,
        command=lambda: command,
        expected_s=20 + 0.02 * anchor.count,
        progress=partial(read_progress, bar="Building the anchor"),
    )


def train_stage(study: Study, run: Run, out: Path) -> Job:
    """The `lerobot-train` of a run; its marker holds what the training took."""
    folder = training_folder(run, out)
    last = folder / "checkpoints" / "last" / "pretrained_model" / "train_config.json"
    fresh = _train_command(study, run, out)

    def prepare(log: IO[str]) -> None:
        step = int(last.parents[1].resolve().name) if last.is_file() else 0
        log.write(f"\n{FROM_STEP} {step}\n")
        if not step and folder.exists():
            shutil.rmtree(folder)  # killed before its first checkpoint: nothing to go on from

    def command() -> list[str]:
        return [fresh[0], f"--config_path={last}", "--resume=true"] if last.is_file() else fresh

    return Job(
        name=f"train {run.name}",
        title=f"training {run.name}, {study.training.steps} steps",
        folder=folder.parent,
        command=command,
        prepare=prepare,
        expected_s=30 + 0.6 * study.training.steps,
        progress=read_progress,
    )


def _train_command(study: Study, run: Run, out: Path) -> list[str]:
    root = dataset_folder(study, out)
    options = {
        "dataset.repo_id": REPOSITORY if study.dataset is None else study.dataset.repo_id,
        **({} if root is None else {"dataset.root": str(root)}),
        "output_dir": str(training_folder(run, out)),
        "seed": run.seed,
        "steps": study.training.steps,
        "log_freq": study.training.log_freq,
        "save_freq": study.training.save_freq,
        "policy.backbone": study.backbone,
        "policy.device": study.device,
        "policy.probe_freq": study.training.probe_freq,
        "policy.optimizer_lr": run.lr,
        **({} if (run.arm.anchor or study.anchor) is None else {"policy.anchor_path": str(_anchor_of(run, out))}),
        **run.arm.options,
    }
    config = config_folder() / "train" / study.train_config
    return [lerobot_script("lerobot-train"), f"--config_path={config}", *as_options(options)]


def _interpolate(run: Run, checkpoint: Path, folder: Path, out: Path) -> Job:
    def command() -> list[str]:
        weight, target = f"--weight={run.arm.interpolate}", f"--out={folder}"
        return [lerobot_script("aegis-interpolate"), str(checkpoint), weight, target]

    def prepare(log: IO[str]) -> None:
        if folder.exists():
            shutil.rmtree(folder)

    return Job(
        name=f"interpolate {run.name}",
        title=f"interpolating {run.name}",
        folder=run.folder(out) / "interpolate",
        command=command,
        prepare=prepare,
        expected_s=20,
    )


def _roll_out(study: Study, run: Run, name: str, policy: Path, out: Path) -> Job:
    plan = study.rollouts
    folder = rollouts_folder(run, name, out)

    def prepare(log: IO[str]) -> None:
        if folder.exists() and not (folder / EVAL_INFO).is_file():
            shutil.rmtree(folder)

    return Job(
        name=f"rollouts {name} {run.name}",
        title=f"rollouts of {run.name} on {name}",
        folder=folder.parent,
        command=lambda: eval_command(
            policy,
            out=folder,
            episodes=plan.episodes,
            start_seed=plan.seed,
            environments=plan.environments,
            environment={option: _text(value) for option, value in plan.sets[name].items()},
            device=study.device,
        ),
        prepare=prepare,
        expected_s=25 + 0.5 * plan.episodes * max(1, str(plan.sets[name].get("task", "")).count(",") + 1),
    )


def _probe(study: Study, name: str, checkpoint: str, folder: Path, options: Options, *, title: str) -> Job:
    command = [
        lerobot_script("aegis-probe"),
        checkpoint,
        f"--probe={','.join(study.probes.names)}",
        f"--count={study.probes.count}",
        f"--device={study.device}",
        f"--out={probe_file(folder)}",
        *as_options(options),
    ]
    return Job(
        name=name,
        title=title,
        folder=folder,
        command=lambda: command,
        expected_s=20 + 0.02 * study.probes.count * len(study.probes.names),
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
