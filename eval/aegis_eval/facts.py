"""What a reader needs to judge or repeat a comparison: counts, seeds, versions, machine, commit, commands."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aegis_eval.probes import find_probe
from aegis_eval.results import Comparison
from aegis_eval.run_result import Command, RunResult
from aegis_eval.tables import passages_of, probes_of


@dataclass(frozen=True)
class Origin:
    """The program and the command line that made a comparison."""

    program: str
    command: str


def facts(comparison: Comparison, source: Origin) -> dict[str, str]:
    """Heading -> text."""
    study, runs = comparison.study, comparison.runs
    results = [*runs, *([comparison.pretrained] if comparison.pretrained else [])]
    sets = "; ".join(
        f"{name}: {', '.join(f'{option} {value}' for option, value in options.items())}"
        for name, options in study.rollouts.sets.items()
    )
    found = {
        "command": source.command,
        "runs": f"{comparison.done} of {comparison.planned}: {len({run.arm for run in runs})} arms, "
        f"learning rates {_joined(f'{lr:g}' for lr in comparison.learning_rates)}, "
        f"training seeds {_joined(map(str, comparison.seeds))}",
        "demonstrations": _demonstrations(comparison),
        "training": f"{study.training.steps:,} steps a run, configs/train/{study.train_config}, "
        f"backbone {study.backbone}, {study.device}",
        "anchor": f"{study.anchor.count:,} samples of {study.anchor.source}, which no probe asks about"
        if study.anchor
        else "each training’s own",
        "probes": "; ".join(
            f"{probe.name} v{probe.version}, {probe.count:,} {'questions' if probe.graded else 'passages'}"
            for probe in (
                find_probe(name, count=study.probes.count)
                for name in (*probes_of(comparison), *passages_of(comparison))
            )
        ),
        "rollouts": f"{study.rollouts.episodes} episodes a task of a set, the same initial states for all (from seed "
        f"{study.rollouts.seed}); {sets}",
        "commit": _joined(dict.fromkeys(_commit(result) for result in results)),
        "versions": _joined(dict.fromkeys(_versions(result) for result in results), "; "),
        "machine": _joined(dict.fromkeys(result.machine for result in results), "; "),
        "date": _dates([result.date for result in results]),
    }
    return {name: text for name, text in found.items() if text}


def shown_commands(comparison: Comparison) -> tuple[list[Command], str]:
    """Every command of the first seed at the largest learning rate, each once, and a note on the others."""
    runs = comparison.runs
    chosen = [run for run in runs if run.seed == min(comparison.seeds) and run.lr == max(comparison.learning_rates)]
    first = comparison.pretrained.commands if comparison.pretrained else []
    commands = [*first, *(command for run in chosen for command in run.commands)]
    once = list({one.command: one for one in commands}.values())
    note = (
        "Those of the first seed at the largest learning rate; all others are in results.json."
        if len(chosen) < len(runs)
        else ""
    )
    return once, note


def seconds_of(command: Command) -> str:
    """How long it took, in words."""
    last = f", the last of {command.attempts} attempts" if command.attempts > 1 else ""
    return f"{command.seconds:.0f} s{last}"


def _demonstrations(comparison: Comparison) -> str:
    study = comparison.study
    recorded = next((run.facts["demonstrations"] for run in comparison.runs if "demonstrations" in run.facts), "")
    if study.dataset is not None:
        return f"dataset {study.dataset.repo_id}{f', {recorded}' if recorded else ''}"
    options = ", ".join(f"{name} {value}" for name, value in (study.demonstrations or {}).items())
    return f"{recorded or 'recorded'} of a scripted expert ({options})"


def _commit(result: RunResult) -> str:
    return f"{result.commit}{' with local changes' if result.dirty else ''}"


def _versions(result: RunResult) -> str:
    return ", ".join(f"{name} {number}" for name, number in result.versions.items())


def _dates(dates: Sequence[str]) -> str:
    known = [date for date in dates if date]
    first, last = min(known, default=""), max(known, default="")
    return first if first == last else f"{first} to {last}"


def _joined(texts: Iterable[str], by: str = ", ") -> str:
    return by.join(text for text in texts if text)
