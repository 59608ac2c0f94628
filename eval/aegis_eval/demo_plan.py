"""What `aegis-demo` runs: settings, the three arms, and the commands with what each needs.

dataset ----+--> train ARM --+--> rollouts ARM
anchor -----+                +--> probe ARM        for each ARM;   probe pretrained needs nothing
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from aegis_eval.checkpoints import NANO
from aegis_eval.jobs import Job
from aegis_eval.success import EVAL_INFO, eval_command, lerobot_script
from aegis_eval.training_log import RESUMED, read_progress

TASK = "touch"
OBJECTS = 3  # on the table; whoever touches one of them without reading succeeds at most once in three
ENVIRONMENT: Mapping[str, Any] = {"task": TASK, "kinds": "shown", "objects": OBJECTS}  # of the rollouts
PROBES = ("nano_scenes", "tabletop")
REPOSITORY = "local/touch"
EVALUATION_SEED = 100_000  # far from the seeds of the demonstrations


class ArmPlan(NamedTuple):
    """One way to treat the backbone, as options of `lerobot-train`."""

    name: str
    label: str
    note: str
    options: Mapping[str, str]


ARMS: tuple[ArmPlan, ...] = (
    ArmPlan(
        "none",
        "naive",
        "Everything learns from the action loss; nothing is protected.",
        {"policy.knowledge": "none"},
    ),
    ArmPlan(
        "paper",
        "AEGIS as printed",
        "Each layer’s gradient gives up what would move the layer’s activations away from their anchor.",
        {"policy.knowledge": "aegis", "policy.projection": "gradient"},
    ),
    ArmPlan(
        "default",
        "AEGIS, default",
        "Each weight’s step keeps to the input directions that the anchor’s data leave open.",
        {"policy.knowledge": "aegis"},
    ),
)
# The longest training first: two workers then end closest to each other.
TRAINING_ORDER = ("paper", "default", "none")


@dataclass(frozen=True)
class DemoSettings:
    """How large the demo is.

    Attributes:
        out: Output folder.
        seed: Of recording and training.
        backbone: `"nano"`, or the folder of another image-text-to-text model.
        steps: Training steps an arm.
        episodes: Demonstrations.
        eval_episodes: Rollouts an arm.
        anchor_samples: VQA samples of the anchor.
        questions: Questions a probe.
        log_freq: Training steps a log line.
        probe_freq: Training steps between the monitor's questions.
        save_freq: Training steps a checkpoint; what a kill can lose.
        environments: Simulations stepped together in a rollout.
        step_s: Rough seconds a training step, for the estimate of the time left.
    """

    out: Path = Path("outputs/demo")
    seed: int = 1000
    backbone: str = NANO
    steps: int = 1000
    episodes: int = 300
    eval_episodes: int = 100
    anchor_samples: int = 2000
    questions: int = 700
    log_freq: int = 20
    probe_freq: int = 100
    save_freq: int = 200
    environments: int = 10
    step_s: float = 0.45

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("episodes", 1), ("eval_episodes", 1)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"--{name.replace('_', '-')} must be at least {least}; received {getattr(self, name)}."
                )

    @property
    def dataset(self) -> Path:
        """Folder of the demonstrations."""
        return self.out / "dataset"

    @property
    def anchor(self) -> Path:
        """The anchor's file."""
        return self.out / "anchor" / "anchor.safetensors"

    def training(self, arm: str) -> Path:
        """Output folder of an arm's `lerobot-train`."""
        return self.out / "train" / arm / "run"

    def rollouts(self, arm: str) -> Path:
        """Output folder of an arm's `lerobot-eval`."""
        return self.out / "rollouts" / arm / "run"

    def probe(self, name: str) -> Path:
        """JSON file of `aegis-probe` for an arm, or for `pretrained`."""
        return self.out / "probe" / name / "probe.json"


def quick(out: Path, seed: int) -> DemoSettings:
    """A demo that only shows that every part runs; its numbers say nothing."""
    return DemoSettings(
        out=out,
        seed=seed,
        steps=20,
        episodes=6,
        eval_episodes=4,
        anchor_samples=64,
        questions=28,
        log_freq=5,
        probe_freq=10,
        save_freq=10,
        environments=2,
    )


def plan(settings: DemoSettings) -> list[Job]:
    """All jobs, in the order in which they are to be started."""
    arms = {arm.name: arm for arm in ARMS}
    trained = [arms[name] for name in TRAINING_ORDER]
    return [
        _record(settings),
        _build_anchor(settings),
        _probe(settings, "pretrained", checkpoint=settings.backbone, needs=()),
        *[_train(settings, arm) for arm in trained],
        *[
            job
            for arm in trained
            for job in (
                _roll_out(settings, arm),
                _probe(settings, arm.name, checkpoint=str(settings.training(arm.name)), needs=(f"train {arm.name}",)),
            )
        ],
    ]


def _record(settings: DemoSettings) -> Job:
    # The folder of the dataset must be the recorder's own; log and marker lie beside it.
    command = [
        lerobot_script("aegis-record"),
        f"--repo-id={REPOSITORY}",
        f"--root={settings.dataset}",
        f"--task={TASK}",
        f"--episodes={settings.episodes}",
        f"--seed={settings.seed}",
        f"--objects={OBJECTS}",
        "--kinds=shown",
        "--resume",
    ]
    return Job(
        name="record",
        title=f"recording {settings.episodes} demonstrations",
        folder=settings.out / "record",
        command=lambda: command,
        expected_s=20 + 0.15 * settings.episodes,
    )


def _build_anchor(settings: DemoSettings) -> Job:
    command = [
        lerobot_script("aegis-anchor"),
        f"--backbone={settings.backbone}",
        "--source=nano_scenes",
        f"--count={settings.anchor_samples}",
        f"--seed={settings.seed}",
        f"--out={settings.anchor}",
        "--overwrite",
    ]
    return Job(
        name="anchor",
        title=f"anchor from {settings.anchor_samples} VQA samples",
        folder=settings.anchor.parent,
        command=lambda: command,
        expected_s=20 + 0.02 * settings.anchor_samples,
    )


def _train(settings: DemoSettings, arm: ArmPlan) -> Job:
    run = settings.training(arm.name)
    last = run / "checkpoints" / "last" / "pretrained_model" / "train_config.json"
    fresh = [
        lerobot_script("lerobot-train"),
        f"--config_path={config_folder() / 'train' / 'demo.yaml'}",
        f"--dataset.repo_id={REPOSITORY}",
        f"--dataset.root={settings.dataset}",
        f"--output_dir={run}",
        f"--policy.backbone={settings.backbone}",
        f"--seed={settings.seed}",
        f"--steps={settings.steps}",
        f"--log_freq={settings.log_freq}",
        f"--save_freq={settings.save_freq}",
        f"--policy.probe_freq={settings.probe_freq}",
        f"--policy.anchor_path={settings.anchor}",
        *[f"--{name}={value}" for name, value in arm.options.items()],
    ]

    def prepare(log: IO[str]) -> None:
        if last.is_file():
            log.write(f"\n{RESUMED} {int(last.parents[1].resolve().name)}\n")
        elif run.exists():
            shutil.rmtree(run)  # killed before its first checkpoint: nothing to go on from

    def command() -> list[str]:
        return [fresh[0], f"--config_path={last}", "--resume=true"] if last.is_file() else fresh

    return Job(
        name=f"train {arm.name}",
        title=f"training '{arm.label}', {settings.steps} steps",
        folder=run.parent,
        command=command,
        prepare=prepare,
        needs=("record", "anchor"),
        expected_s=30 + settings.step_s * settings.steps,
        progress=read_progress,
    )


def _roll_out(settings: DemoSettings, arm: ArmPlan) -> Job:
    run = settings.rollouts(arm.name)

    def prepare(log: IO[str]) -> None:
        if run.exists() and not (run / EVAL_INFO).is_file():
            shutil.rmtree(run)

    return Job(
        name=f"rollouts {arm.name}",
        title=f"{settings.eval_episodes} rollouts of '{arm.label}'",
        folder=run.parent,
        command=lambda: eval_command(
            settings.training(arm.name) / "checkpoints" / "last" / "pretrained_model",
            out=run,
            episodes=settings.eval_episodes,
            start_seed=EVALUATION_SEED,
            environments=settings.environments,
            environment={"type": "aegis_tabletop"} | {name: str(value) for name, value in ENVIRONMENT.items()},
        ),
        prepare=prepare,
        needs=(f"train {arm.name}",),
        expected_s=25 + 0.4 * settings.eval_episodes,
    )


def _probe(settings: DemoSettings, name: str, *, checkpoint: str, needs: tuple[str, ...]) -> Job:
    out = settings.probe(name)
    command = [
        lerobot_script("aegis-probe"),
        checkpoint,
        f"--probe={','.join(PROBES)}",
        f"--count={settings.questions}",
        f"--out={out}",
    ]
    return Job(
        name=f"probe {name}",
        title=f"questions to '{name}'",
        folder=out.parent,
        command=lambda: command,
        needs=needs,
        expected_s=20 + 0.04 * settings.questions,
    )


def config_folder() -> Path:
    """The repository's `configs/`, relative to the working directory where it lies below it.

    Raises:
        FileNotFoundError: If this package does not lie in a clone of the repository.
    """
    folder = Path(__file__).resolve().parents[2] / "configs"
    if not folder.is_dir():
        raise FileNotFoundError(
            f"There is no {folder}: the demo reads its training configuration from a clone of the repository. "
            "Clone it, install it with `pip install -e .`, and run `make demo` there."
        )
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder
