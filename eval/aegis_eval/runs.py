"""The runs of a study, and what shapes the numbers of each: two runs with the same settings are the same run."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import yaml

from aegis_eval.probes import find_probe
from aegis_eval.study import Arm, Dataset, Study

PRETRAINED = "pretrained"


@dataclass(frozen=True)
class Run:
    """One arm at one learning rate from one seed."""

    arm: Arm
    lr: float
    seed: int

    @property
    def name(self) -> str:
        """`"naive-lr0.001-seed1000"`."""
        return f"{self.arm.name}-lr{self.lr:g}-seed{self.seed}"

    def folder(self, out: Path) -> Path:
        """Where its stages work."""
        return out / "runs" / self.arm.name / f"lr{self.lr:g}" / f"seed{self.seed}"


def plan_runs(
    study: Study, *, only: Sequence[str] = (), learning_rates: Sequence[float] = (), seeds: Sequence[int] = ()
) -> list[Run]:
    """All runs: a whole seed of every arm before the next seed, so that a study cut short is still a comparison.

    Args:
        study: The study.
        only: Names of the arms to run; empty for all.
        learning_rates: Peak learning rates to run; empty for all.
        seeds: Training seeds to run; empty for all.

    Raises:
        ValueError: If an arm, a learning rate or a seed is not of this study, or an arm that is named has no run left.
    """
    named = [study.arm(name) for name in only]
    for option, some, every in (
        ("--learning-rates", learning_rates, study.learning_rates),
        ("--seeds", seeds, study.seeds),
    ):
        if foreign := sorted(set(some) - set(every)):
            raise ValueError(f"{option} must be some of the study's {list(every)}; received {foreign}.")
    runs = [
        Run(arm, lr, seed)
        for seed in study.seeds
        for lr in study.learning_rates
        for arm in study.arms
        if (not only or arm.name in only)
        and (not learning_rates or lr in learning_rates)
        and (not seeds or seed in seeds)
        and lr in _restricted(study, arm, "learning_rates")
        and seed in _restricted(study, arm, "seeds")
    ]
    planned = {run.arm.name for run in runs}
    for arm in named:
        if arm.name not in planned:
            rates, own_seeds = (list(_restricted(study, arm, what)) for what in ("learning_rates", "seeds"))
            raise ValueError(
                f"--only {arm.name}: this study runs it at learning rates {rates} from seeds {own_seeds}, none of "
                "which was asked for. Ask for these, leave the arm out, or give it others in the study's YAML."
            )
    return runs


def origin(study: Study, run: Run) -> Run:
    """The run that trains the weights of `run`: itself, or that of the arm which it is `of`."""
    return run if run.arm.of is None else Run(study.arm(run.arm.of), run.lr, run.seed)


def run_settings(study: Study, run: Run, *, config_folder: Path) -> dict[str, Any]:
    """What shapes the numbers of a run, as plain data: no label, no number of workers, no checkpoint frequency."""
    trained = origin(study, run).arm
    training = asdict(study.training)
    del training["save_freq"]  # an exact resume makes it a matter of convenience
    rollouts = asdict(study.rollouts)
    for presentation in ("videos", "chance", "chance_note"):
        del rollouts[presentation]
    return _plain(
        {
            "arm": run.arm.name,
            "lr": run.lr,
            "seed": run.seed,
            "options": trained.options,
            "of": run.arm.of,
            "interpolate": run.arm.interpolate,
            "probe_options": run.arm.probe_options,
            "train_config": yaml.safe_load((config_folder / "train" / study.train_config).read_text()),
            **shared_settings(study),
            **({"anchor": trained.anchor.settings()} if trained.anchor else {}),
            **pretrained_settings(study),
            "training": training,
            "rollouts": rollouts,
        }
    )


def pretrained_settings(study: Study) -> dict[str, Any]:
    """What shapes the answers of the untouched backbone."""
    probes = {
        "count": study.probes.count,
        "versions": {name: find_probe(name).version for name in study.probes.names},
    }
    return _plain({**_backbone(study), "device": study.device, "probes": probes})


def shared_settings(study: Study) -> dict[str, Any]:
    """What shapes the data that all runs share."""
    return _plain(
        {
            **_backbone(study),
            "demonstrations": study.demonstrations,
            "dataset": asdict(study.dataset) if study.dataset else None,
            **({"data": _recorded(study.dataset)} if study.dataset else {}),
            "anchor": study.anchor.settings() if study.anchor else None,
        }
    )


def digest(settings: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits that stand for the settings."""
    return sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """`"training.steps was 7 and is now 20, ..."`; empty if they are the same."""
    old, new = _flat(before), _flat(now)
    names = [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]
    return ", ".join(f"{name} was {old.get(name)!r} and is now {new.get(name)!r}" for name in names)


def keep_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings of what a folder is about to hold, or refuse to mix it with what it holds.

    Raises:
        ValueError: If other settings are there.
    """
    if path.is_file():
        try:
            before = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is no JSON ({error}). Delete {path.parent} to begin it anew.") from None
        changed = differences(before, settings)
        if changed:
            raise ValueError(
                f"{path.parent} holds work with other settings ({changed}). Go on with the old ones, choose another "
                f"--out, or delete {path.parent}."
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")  # written beside and moved: whole or not there
    part.write_text(json.dumps(settings, indent=1) + "\n")
    part.replace(path)


def _recorded(dataset: Dataset) -> str:
    """What it holds, by its statistics: the same folder with other recordings is another study. Empty if not here."""
    files = [Path(dataset.root) / "meta" / name for name in ("info.json", "stats.json")] if dataset.root else []
    return _contents(tuple(file for file in files if file.is_file()))


def _backbone(study: Study) -> dict[str, str]:
    """Its name, and what its files hold: the same folder with other weights is another study."""
    from aegis_policy.knowledge.sources import ANCHOR_FILE  # torch: not for --help
    from aegis_policy.network.backbone import resolve_backbone

    folder = Path(resolve_backbone(study.backbone))
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    return {"backbone": study.backbone, "weights": _contents(tuple(f for f in files if f.name != ANCHOR_FILE))}


@lru_cache(maxsize=4)
def _contents(files: tuple[Path, ...]) -> str:
    """Sixteen hexadecimal digits for the bytes of all files; empty for none (a hub id)."""
    found = sha256()
    for path in files:
        with path.open("rb") as file:
            found.update(file_digest(file, "sha256").digest())
    return found.hexdigest()[:16] if files else ""


def _restricted(study: Study, arm: Arm, what: str) -> Sequence[float]:
    """The learning rates or seeds of an arm: its own, those of the arm it is of, the study's."""
    allowed: Sequence[float] = getattr(study, what)
    for one in (arm, study.arm(arm.of)) if arm.of else (arm,):
        own = getattr(one, what)
        allowed = allowed if own is None else [value for value in allowed if value in own]
    return allowed


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON reads it back: tuples become lists."""
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    return plain


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
