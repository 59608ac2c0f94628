"""A study's options read as the commands will read them, before hours of work lead up to one that is wrong."""

import io
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import draccus
import yaml
from draccus.cfgparsing import parse_string
from draccus.utils import DecodingError, ParsingError

from aegis_eval.checkpoints import NANO
from aegis_eval.probe import make_parser
from aegis_eval.stages import as_options, config_folder
from aegis_eval.study import Arm, Options, Study

# LeRobot reads these from the command line itself, and what they name decides which others there are.
ELSEWHERE = ("path", "discover_packages_path")


def require_backbone(study: Study) -> None:
    """Refuses a backbone that is not there, before anything is recorded; what a hub has is for the hub to say.

    Raises:
        ValueError: If it is neither `"nano"`, nor a folder with a model, nor can it be a hub id.
    """
    folder = Path(study.backbone)
    if study.backbone == NANO or (folder / "config.json").is_file():
        return
    if folder.is_dir() or study.backbone.count("/") != 1:
        raise ValueError(
            f"backbone must be {NANO!r}, a folder with config.json and safetensors, or a hub id, owner/name; "
            f"{study.backbone!r} is none of them. Make or fetch it first: the head of the study's file says how, where "
            "the study wants one that does not ship."
        )


def require_options(study: Study) -> None:
    """Refuses options of arms, sets of rollouts and probes that the commands would refuse.

    What LeRobot finds out later than its parser (a dataset that lacks a feature) stays to be found; so does all that
    stands beside one of `ELSEWHERE`.

    Raises:
        ValueError: With the arm or the set, and what LeRobot, the policy or the environment says to it.
    """
    with _without_warnings():
        from lerobot.configs.train import TrainPipelineConfig
        from lerobot.envs.configs import EnvConfig
        from lerobot.utils.import_utils import register_third_party_plugins

        register_third_party_plugins()  # as each of LeRobot's commands does; this project is one of them
        for name, options in study.rollouts.sets.items():
            _decode(EnvConfig, options, f"rollouts.sets.{name}")
        file = config_folder() / "train" / study.train_config
        for arm in study.arms:
            _parse_probe_options(arm)
            if arm.of is None:
                content = _with_options(yaml.safe_load(file.read_text(encoding="utf-8")), arm.options)
                _decode(TrainPipelineConfig, content, f"arms.{arm.name}.options")


def _decode(kind: type, content: Mapping[str, Any], where: str) -> None:
    policy = content.get("policy")
    if any(name in section for name in ELSEWHERE for section in (content, policy if isinstance(policy, dict) else {})):
        return
    try:
        draccus.decode(kind, _as_typed(content))
    except (ParsingError, ValueError) as error:
        raise ValueError(f"{where}: {_reason(error)}") from None


def _reason(error: BaseException) -> str:
    """What an option's own check says, or the most precise of draccus's own words."""
    while (cause := error.__cause__ or error.__context__) is not None:
        if isinstance(error, DecodingError) and not isinstance(cause, ParsingError):
            break
        error = cause
    return str(error)


def _with_options(content: dict[str, Any], options: Options) -> dict[str, Any]:
    """`content` with `a.b: value` of the command line at `content["a"]["b"]`."""
    for name, value in options.items():
        *sections, key = name.split(".")
        section = content
        for one in sections:
            if not isinstance(section.get(one), dict):
                section[one] = {}
            section = section[one]
        section[key] = value
    return content


def _as_typed(value: Any) -> Any:
    """Strings as draccus takes them from a command line, where `null`, numbers and mappings are written out."""
    if isinstance(value, Mapping):
        return {name: _as_typed(one) for name, one in value.items()}
    return parse_string(value) if isinstance(value, str) else value


def _parse_probe_options(arm: Arm) -> None:
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            make_parser().parse_args(["CHECKPOINT", *as_options(arm.probe_options)])
    except SystemExit:
        raise ValueError(f"arms.{arm.name}.probe_options: {said.getvalue().splitlines()[-1]}") from None


@contextmanager
def _without_warnings() -> Iterator[None]:
    """LeRobot reports again and again which decoders of videos it lacks; each command's own log has that."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
