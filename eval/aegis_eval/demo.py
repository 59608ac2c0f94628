"""`aegis-demo`: the comparison of configs/compare/demo.yaml, three arms from one seed in about twenty minutes."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from aegis_eval.compare import compare, guarded, make_place, repository_study
from aegis_eval.display import study_console
from aegis_eval.execution import Place
from aegis_eval.facts import Origin
from aegis_eval.jobs import available_cores
from aegis_eval.study import Study, read_study

MAX_WORKERS = 3  # as many as there are arms


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command; returns the exit status."""
    given = list(sys.argv[1:] if argv is None else argv)
    arguments = _parser().parse_args(given)
    console = study_console()
    source = Origin("aegis-demo", shlex.join(["aegis-demo", *given]))
    return guarded("aegis-demo", lambda: compare(_place(arguments), source=source, console=console), console=console)


def _place(arguments: argparse.Namespace) -> Place:
    return make_place(
        _study(arguments),
        out=arguments.out,
        results=arguments.out / "results",
        workers=arguments.workers,
        threads=arguments.threads,
    )


def _study(arguments: argparse.Namespace) -> Study:
    """The demo's study with what the command line says otherwise."""
    study = read_study(repository_study("demo"), quick=arguments.quick)
    assert study.demonstrations is not None and study.anchor is not None  # the file has both
    demonstrations = dict(study.demonstrations)
    if arguments.seed is not None:
        demonstrations["seed"] = arguments.seed
        study = replace(study, seeds=(arguments.seed,), anchor=replace(study.anchor, seed=arguments.seed))
    if arguments.episodes is not None:
        demonstrations["episodes"] = arguments.episodes
    if arguments.steps is not None:
        study = replace(study, training=replace(study.training, steps=arguments.steps))
    if arguments.eval_episodes is not None:
        study = replace(study, rollouts=replace(study.rollouts, episodes=arguments.eval_episodes))
    return replace(study, demonstrations=demonstrations, backbone=arguments.backbone or study.backbone)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="aegis-demo",
        description="Record demonstrations, fine-tune the embedded vision-language model three ways, roll out and "
        "probe all of them, and write a page. Interrupted and started again, it goes on where it was.",
    )
    workers = min(MAX_WORKERS, available_cores())
    parser.add_argument("--out", type=Path, default=Path("outputs/demo"), help="output folder (default: outputs/demo)")
    parser.add_argument("--seed", type=int, help="seed of recording, anchor and training")
    parser.add_argument("--backbone", help="folder of another vision-language model")
    parser.add_argument("--steps", type=int, help="training steps an arm")
    parser.add_argument("--episodes", type=int, help="demonstrations")
    parser.add_argument("--eval-episodes", type=int, help="rollouts an arm")
    parser.add_argument("--workers", type=int, default=workers, help=f"arms at once (default: {workers})")
    parser.add_argument("--threads", type=int, default=1, help="threads a command (default: 1)")
    parser.add_argument("--quick", action="store_true", help="tiny: shows that every part runs, nothing else")
    parser.epilog = "Defaults are those of configs/compare/demo.yaml."
    return parser


if __name__ == "__main__":
    sys.exit(main())
