"""A study's options read as LeRobot's commands will read them, before hours of work lead up to one that is wrong."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import draccus
import yaml
from draccus.utils import DecodingError, ParsingError

from aegis_eval.stages import config_folder
from aegis_eval.study import Options, Study


def require_options(study: Study) -> None:
    """Refuses options that lerobot-train or lerobot-eval would refuse.

    Raises:
        ValueError: With the arm or the set, and what LeRobot or the policy says to it.
    """
    with _without_warnings():
        from lerobot.configs.train import TrainPipelineConfig
        from lerobot.envs.configs import EnvConfig

        import lerobot_policy_aegis_vla  # noqa: F401  registers the policy and the environments

        for name, options in study.rollouts.sets.items():
            _decode(EnvConfig, options, f"rollouts.sets.{name}")
        file = config_folder() / "train" / study.train_config
        for arm in study.arms:
            if arm.of is None:
                content = _with_options(yaml.safe_load(file.read_text(encoding="utf-8")), arm.options)
                _decode(TrainPipelineConfig, content, f"arms.{arm.name}.options")


def _decode(kind: type, content: Mapping[str, Any], where: str) -> None:
    try:
        draccus.decode(kind, dict(content))
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
            section = section.setdefault(one, {})
        section[key] = value
    return content


@contextmanager
def _without_warnings() -> Iterator[None]:
    """LeRobot reports again and again which decoders of videos it lacks; each command's own log has that."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
