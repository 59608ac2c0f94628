"""A study: arms x learning rates x seeds on the same demonstrations, read from YAML (`configs/compare/*.yaml`).

The file selects, this module checks: a key that it does not know, a value that makes no sense and an arm that refers
to nothing are refused with the rule, the value and the remedy. A `quick:` section holds what `--quick` replaces.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from aegis_envs.recordable import TABLETOP, find_recordable
from aegis_eval.checkpoints import NANO
from aegis_eval.plain_data import (
    items,
    mapping,
    positive_numbers,
    refuse_twins,
    refuse_unknown,
    require,
    section,
    whole_numbers,
)
from aegis_eval.probes import find_probe

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Dataset:
    """Demonstrations that exist already."""

    repo_id: str
    root: str | None = None


@dataclass(frozen=True)
class Anchor:
    """What `aegis-anchor` builds the anchor from: a VQA source, a number of its samples and their seed, and how."""

    source: str = "nano_scenes"
    count: int = 2000
    seed: int = 1000
    unit_inputs: bool = True
    token_stride: int = 1

    def settings(self) -> dict[str, Any]:
        """As plain data; a kept result without `unit_inputs` is one of an anchor without them, without `token_stride`
        one of all tokens."""
        as_before = {"unit_inputs": False, "token_stride": 1}
        return {name: value for name, value in asdict(self).items() if as_before.get(name) != value}


@dataclass(frozen=True)
class Training:
    """Steps of each training, and the steps between log lines, checkpoints and the monitor's questions."""

    steps: int
    log_freq: int = 20
    save_freq: int = 500
    probe_freq: int = 250


@dataclass(frozen=True)
class Probes:
    """Names of the VQA probes, and questions asked by each."""

    names: tuple[str, ...] = ("nano_scenes", "tabletop")
    count: int = 1400


@dataclass(frozen=True)
class RolloutPlan:
    """Closed-loop episodes.

    Attributes:
        sets: Set -> options of `lerobot-eval --env.*`, `type` among them.
        episodes: A task of a set.
        seed: Of the first initial state; far from those of the demonstrations.
        environments: Simulations stepped together.
        videos: Films kept of each task of each set.
        chance: Set -> the most that acting without reading the instruction reaches; sets of which it is unknown are
            left out.
        chance_note: Where these numbers come from, in a sentence.
    """

    sets: Mapping[str, Options]
    episodes: int = 50
    seed: int = 100_000
    environments: int = 10
    videos: int = 1
    chance: Mapping[str, float] = field(default_factory=dict)
    chance_note: str = ""


@dataclass(frozen=True)
class Arm:
    """One way to treat the backbone.

    Attributes:
        name: Short, as in folders.
        label: For readers; short enough to stand beside a point.
        note: One sentence on what it does.
        options: Of `lerobot-train`, for an arm that is trained.
        of: Arm whose trained runs this one takes, instead of training.
        interpolate: Share of the trained weights, for an arm `of` another: the rest is the pretrained backbone's.
        probe_options: Appended to `aegis-probe`.
        anchor: Of this arm only, with the study's values where it gives none; None: the study's.
        learning_rates: Of this arm only; None: the study's.
        seeds: Of this arm only; None: the study's.
    """

    name: str
    label: str = ""
    note: str = ""
    options: Options = field(default_factory=dict)
    of: str | None = None
    interpolate: float | None = None
    probe_options: Options = field(default_factory=dict)
    anchor: Anchor | None = None
    learning_rates: tuple[float, ...] | None = None
    seeds: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Study:
    """Everything that a comparison is told.

    Attributes:
        title: Heading.
        summary: What is done, in two or three sentences.
        training: Length and rhythm of each training.
        rollouts: Closed-loop episodes.
        arms: In the order of the tables.
        baseline: Name of the arm with which the others are compared.
        learning_rates: Peak learning rates, `--policy.optimizer_lr`.
        seeds: Training seeds.
        demonstrations: Options of `aegis-record`, `env.type` among them unless it is the table; None if there is a
            dataset.
        dataset: A dataset that exists; None if one is recorded.
        anchor: What the anchor is built from; None: each training finds or builds its own.
        probes: Questions before and after.
        backbone: `"nano"`, or another image-text-to-text model's folder.
        train_config: File in `configs/train`.
        device: torch device of trainings, rollouts and probes.
    """

    title: str
    summary: str
    training: Training
    rollouts: RolloutPlan
    arms: tuple[Arm, ...]
    baseline: str
    learning_rates: tuple[float, ...]
    seeds: tuple[int, ...]
    demonstrations: Options | None = None
    dataset: Dataset | None = None
    anchor: Anchor | None = None
    probes: Probes = Probes()
    backbone: str = NANO
    train_config: str = "demo.yaml"
    device: str = "cpu"

    def __post_init__(self) -> None:
        _check_study(self)

    def arm(self, name: str) -> Arm:
        """The arm of that name.

        Raises:
            ValueError: If there is none; the message names those there are.
        """
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise ValueError(f"There is no arm {name!r} in this study. Arms: {', '.join(a.name for a in self.arms)}.")


def record_options(demonstrations: Options) -> tuple[str, ...]:
    """What a study may tell `aegis-record`, beside the folder and name of the dataset.

    Raises:
        ValueError: If its `env.type` is none that can be recorded.
    """
    own = find_recordable(demonstrations.get("env.type", TABLETOP)).option_names()
    return ("env.type", "episodes", "seed", "video", *own)


def read_study(path: Path, *, quick: bool = False) -> Study:
    """Read a study's YAML file.

    Args:
        path: The file.
        quick: Whether its `quick:` section replaces what it names.

    Raises:
        ValueError: If the file does not describe a study; the message says what to change.
        FileNotFoundError: If there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no study {path}. Studies are YAML files such as configs/compare/nano.yaml.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from None
    try:
        return make_study(content, quick=quick)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def make_study(content: Any, *, quick: bool = False) -> Study:
    """A study from the content of its YAML file; see `read_study`."""
    content = dict(mapping(content, "a study"))
    shrunk = content.pop("quick", None)
    if quick:
        if shrunk is None:
            raise ValueError("--quick needs a section `quick:` that says what a quick study replaces; there is none.")
        content = _replaced(content, dict(mapping(shrunk, "quick")))
    refuse_unknown(content, [f.name for f in fields(Study)], "a study")
    require(content, ("title", "training", "rollouts", "arms", "learning_rates", "seeds"), "a study")
    anchor = mapping(content.get("anchor") or {}, "anchor")
    arms = _arms(content["arms"], anchor=anchor)
    made: dict[str, Any] = {
        **content,
        "summary": str(content.get("summary", "")).strip(),
        "training": section(Training, content["training"], "training"),
        "rollouts": _rollouts(content["rollouts"]),
        "arms": arms,
        "baseline": content.get("baseline", arms[0].name),
        "learning_rates": positive_numbers(content["learning_rates"], "learning_rates"),
        "seeds": whole_numbers(content["seeds"], "seeds"),
    }
    if anchor:
        made["anchor"] = section(Anchor, anchor, "anchor")
    if "dataset" in content:
        made["dataset"] = section(Dataset, content["dataset"], "dataset")
    if "demonstrations" in content:
        made["demonstrations"] = dict(mapping(content["demonstrations"], "demonstrations"))
    if "probes" in content:
        probes = dict(mapping(content["probes"], "probes"))
        if "names" in probes:
            probes["names"] = tuple(items(probes["names"], "probes.names"))
        made["probes"] = section(Probes, probes, "probes")
    return Study(**made)


def _replaced(content: dict[str, Any], quick: dict[str, Any]) -> dict[str, Any]:
    """`content` with what `quick` names in its place; sections key by key, `arms` as a list of names to keep."""
    result = dict(content)
    for key, value in quick.items():
        if key == "arms":
            arms = mapping(content.get("arms"), "arms")
            absent = [name for name in items(value, "quick.arms") if name not in arms]
            if absent:
                raise ValueError(f"quick.arms must name arms; received {absent}. Arms: {', '.join(arms)}.")
            result["arms"] = {name: arm for name, arm in arms.items() if name in value}
        elif isinstance(value, Mapping) and isinstance(content.get(key), Mapping):
            result[key] = _replaced(dict(content[key]), dict(value))
        else:
            result[key] = value
    return result


def _arms(content: Any, *, anchor: Options) -> tuple[Arm, ...]:
    made = []
    for name, given in mapping(content, "arms").items():
        where = f"arms.{name}"
        arm = dict(mapping(given if given is not None else {}, where))
        refuse_unknown(arm, [f.name for f in fields(Arm) if f.name != "name"], where)
        for key in ("options", "probe_options"):
            arm[key] = dict(mapping(arm.get(key) or {}, f"{where}.{key}"))
        if arm.get("anchor") is not None:
            own = mapping(arm["anchor"], f"{where}.anchor")
            arm["anchor"] = section(Anchor, {**anchor, **own}, f"{where}.anchor")
        if arm.get("learning_rates") is not None:
            arm["learning_rates"] = positive_numbers(arm["learning_rates"], f"{where}.learning_rates")
        if arm.get("seeds") is not None:
            arm["seeds"] = whole_numbers(arm["seeds"], f"{where}.seeds")
        made.append(Arm(name=str(name), **{"label": str(name)} | arm))
    if not made:
        raise ValueError("arms must hold at least one arm, as `naive: {options: {policy.knowledge: none}}`.")
    return tuple(made)


def _rollouts(content: Any) -> RolloutPlan:
    given = dict(mapping(content, "rollouts"))
    sets = mapping(given.get("sets"), "rollouts.sets")
    if not sets:
        raise ValueError("rollouts.sets must hold at least one set, as `shown: {type: aegis_tabletop, task: touch}`.")
    for name, options in sets.items():
        if "type" not in mapping(options, f"rollouts.sets.{name}"):
            raise ValueError(f"rollouts.sets.{name} needs `type`, the environment of lerobot-eval; received {options}.")
    given["sets"] = {str(name): dict(options) for name, options in sets.items()}
    given["chance"] = dict(mapping(given.get("chance") or {}, "rollouts.chance"))
    return section(RolloutPlan, given, "rollouts")


def _check_study(study: Study) -> None:
    if (study.demonstrations is None) == (study.dataset is None):
        raise ValueError(
            "A study trains either on `demonstrations:` (options of aegis-record) or on a `dataset:` that exists: "
            f"give exactly one; received {'both' if study.dataset else 'neither'}."
        )
    if study.demonstrations is not None:
        refuse_unknown(study.demonstrations, record_options(study.demonstrations), "demonstrations")
        require(study.demonstrations, ("task", "episodes", "seed"), "demonstrations")
    counts = {
        "demonstrations.episodes": (study.demonstrations or {"episodes": 1})["episodes"],
        "training.steps": study.training.steps,
        "training.log_freq": study.training.log_freq,
        "training.save_freq": study.training.save_freq,
        "probes.count": study.probes.count,
        "rollouts.episodes": study.rollouts.episodes,
        "rollouts.environments": study.rollouts.environments,
    }
    anchors = {"anchor": study.anchor} | {f"arms.{arm.name}.anchor": arm.anchor for arm in study.arms}
    for name, anchor in anchors.items():
        if anchor is not None:
            counts |= {f"{name}.count": anchor.count, f"{name}.token_stride": anchor.token_stride}
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1; received {value!r}.")
    if study.training.log_freq > study.training.steps:
        raise ValueError(
            f"training.log_freq must be at most training.steps, or the training reports nothing; received "
            f"{study.training.log_freq} of {study.training.steps}."
        )
    probes = [find_probe(name) for name in study.probes.names]
    if not any(probe.graded for probe in probes):
        raise ValueError(
            "probes.names must hold a probe whose answers are right or wrong, which retention is drawn from; received "
            f"{', '.join(study.probes.names)}. Add nano_scenes, tabletop or facts."
        )
    for what, values in (("learning_rates", study.learning_rates), ("seeds", study.seeds)):
        refuse_twins(values, what)
    for name, value in {
        "training.probe_freq": study.training.probe_freq,
        "rollouts.videos": study.rollouts.videos,
    }.items():
        if value < 0:
            raise ValueError(f"{name} must be a whole number, 0 for none; received {value}.")
    for name, chance in study.rollouts.chance.items():
        if name not in study.rollouts.sets or not (isinstance(chance, float | int) and 0 <= chance <= 1):
            sets = ", ".join(study.rollouts.sets)
            raise ValueError(
                f"rollouts.chance gives sets ({sets}) a share each, such as 0.3333; received {name}: {chance!r}."
            )
    study.arm(study.baseline)
    labels = [arm.label for arm in study.arms]
    if wrong := [label for label in labels if not isinstance(label, str) or labels.count(label) > 1]:
        raise ValueError(f"Each arm needs a label of its own, in words; received {', '.join(map(repr, wrong))}.")
    for arm in study.arms:
        _check_arm(study, arm)


def _check_arm(study: Study, arm: Arm) -> None:
    where = f"arms.{arm.name}"
    if not arm.name.replace("_", "").replace("-", "").isalnum():
        raise ValueError(f"An arm's name becomes a folder: letters, digits, _ and -; received {arm.name!r}.")
    for what, own, all_ in (
        ("learning_rates", arm.learning_rates, study.learning_rates),
        ("seeds", arm.seeds, study.seeds),
    ):
        if own is not None:
            refuse_twins(own, f"{where}.{what}")
            if not set(own) <= set(all_):
                raise ValueError(f"{where}.{what} must be some of the study's {list(all_)}; received {list(own)}.")
    if arm.of is None:
        if not arm.options:
            raise ValueError(f"{where} needs `options` (of lerobot-train), or `of` with the arm whose runs it takes.")
        if arm.interpolate is not None:
            raise ValueError(f"{where}.interpolate needs `of`: the arm whose trained weights are interpolated.")
        return
    origin = study.arm(arm.of)
    if origin.of is not None:
        raise ValueError(f"{where}.of must name an arm that is trained; {arm.of!r} is itself of {origin.of!r}.")
    if arm.anchor is not None:
        raise ValueError(f"{where} trains nothing, as it is of {arm.of!r}: leave `anchor` out, or `of`.")
    if arm.options:
        raise ValueError(f"{where} trains nothing, as it is of {arm.of!r}: leave `options` out, or `of`.")
    if arm.interpolate is None and not arm.probe_options:
        raise ValueError(f"{where} is the same as {arm.of!r}: give `interpolate` or `probe_options`, or leave it out.")
    share = arm.interpolate
    if share is not None and not (isinstance(share, int | float) and 0 <= share <= 1):
        raise ValueError(f"{where}.interpolate is the trained weights' share, in [0, 1]; received {share!r}.")
