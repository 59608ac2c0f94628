"""A made-up comparison, for tests of statistics, tables, plots and pages."""

import numpy as np

from aegis_backbones.questions import FAMILIES
from aegis_eval.facts import Origin
from aegis_eval.results import compare_results
from aegis_eval.run_result import Command, Curve, Curves, LayerCurve, ProbeResult, RunResult
from aegis_eval.runs import plan_runs
from aegis_eval.study import make_study

ORIGIN = Origin("aegis-compare", "aegis-compare configs/compare/made_up.yaml")
LAYERS = [str(i) for i in range(6)]
PROBES = {"nano_scenes": 700, "tabletop": 350}
STEPS = list(range(50, 1001, 50))
# Arm -> (VQA at the end, success, drift, whether it projects), at the high learning rate.
ENDS = {
    "naive": (0.45, 0.80, 3.0, False),
    "gradient": (0.55, 0.78, 1.0, True),
    "subspace": (0.96, 0.82, 0.1, True),
    "lora": (0.80, 0.70, 0.6, False),
    "frozen": (0.97, 0.40, 0.01, False),
}


def study_content(arms=tuple(ENDS), *, rates=(3.0e-4, 1.0e-3), seeds=(1000, 1001, 1002)):
    """The content of a study's YAML file."""
    tasks = "touch,lift"
    return {
        "title": "What each way of fine-tuning keeps",
        "summary": "The same vision-language model, fine-tuned by every arm on the same demonstrations.",
        "demonstrations": {"task": tasks, "episodes": 90, "seed": 1000},
        "anchor": {"count": 500},
        "training": {"steps": 1000, "log_freq": 50, "probe_freq": 50},
        "seeds": list(seeds),
        "learning_rates": list(rates),
        "probes": {"names": list(PROBES), "count": 700},
        "rollouts": {
            "episodes": 50,
            "sets": {
                "shown": {"type": "aegis_tabletop", "task": tasks, "kinds": "shown"},
                "never_shown": {"type": "aegis_tabletop", "task": tasks, "kinds": "never_shown"},
            },
            "chance": {"shown": 0.333},
            "chance_note": "Whoever does not read the instruction succeeds in at most 33 %.",
        },
        "arms": {
            arm: {"label": arm.capitalize(), "note": f"What {arm} does.", "options": {"policy.knowledge": "none"}}
            for arm in arms
        },
    }


def answers(rng, accuracy, count):
    return ProbeResult(
        families=[FAMILIES[i % len(FAMILIES)] for i in range(count)],
        correct="".join("1" if rng.random() < accuracy else "0" for _ in range(count)),
    )


def made_up_run(arm, lr, seed, *, videos=(), end=None, settings=None):
    rng = np.random.default_rng([seed, sum(map(ord, arm)), round(1e5 * lr)])
    final, success, drift, projects = end or ENDS[arm]
    if lr < 5e-4:
        final, success = final + 0.6 * (0.97 - final), success - 0.1
    final, success = np.clip([final + 0.02 * rng.normal(), success + 0.03 * rng.normal()], 0.02, 0.98)

    def over_steps(rate):
        values = [0.97 + (final - 0.97) * (1 - np.exp(-step / rate)) for step in STEPS]
        return Curve([0, *STEPS], [0.97, *map(float, values)])

    def by_layer(scale, noise):
        values = [[float(scale * (i + 1) * (1 + s / 300) + noise * rng.random()) for i in range(6)] for s in STEPS]
        return LayerCurve(STEPS, LAYERS, values)

    return RunResult(
        arm=arm,
        lr=lr,
        seed=seed,
        settings=settings or {"arm": arm},
        commit="0123456789ab",
        versions={"lerobot": "0.6.1"},
        machine="a machine",
        date="2026-01-01 10:00 UTC",
        probes={name: answers(rng, final - 0.05 * place, n) for place, (name, n) in enumerate(PROBES.items())},
        successes={
            name: {
                task: "".join("1" if rng.random() < success - less else "0" for _ in range(50))
                for task in ("touch", "lift")
            }
            for name, less in (("shown", 0.0), ("never_shown", 0.15))
        },
        action_loss=0.1 + 0.1 * rng.random(),
        step_s=0.4 * (1.3 if arm == "gradient" else 1.0),
        memory_mib=1200.0,
        curves=Curves(
            flow_loss=Curve(STEPS, [float(1.2 * np.exp(-s / 300) + 0.1) for s in STEPS]),
            vqa=over_steps(250),
            families={family: over_steps(100 + 60 * i) for i, family in enumerate(FAMILIES)},
            anchor_distance=by_layer(drift, 0.1 * drift),
            energy_shed=by_layer(0.01, 0.05) if projects else LayerCurve(),
            conflict=LayerCurve(),
        ),
        videos={"shown": {task: list(videos) for task in ("touch", "lift")}} if videos else {},
        instructions={"shown": {task: [f"{task} the red cube"] * len(videos) for task in ("touch", "lift")}},
        facts={"demonstrations": "90 episodes, 1,800 frames"},
        commands=[Command(f"train {arm}", f"lerobot-train --seed={seed} --x=<y>", 300.0)],
    )


def made_up_pretrained(settings=None):
    rng = np.random.default_rng(0)
    return RunResult(
        arm="pretrained",
        lr=0.0,
        seed=0,
        settings=settings or {},
        probes={name: answers(rng, 0.97 - 0.02 * place, n) for place, (name, n) in enumerate(PROBES.items())},
    )


def made_up_comparison(*, arms=tuple(ENDS), rates=(3.0e-4, 1.0e-3), seeds=(1000, 1001, 1002), videos=(), missing=0):
    """A comparison whose last `missing` runs have not ended."""
    study = make_study(study_content(arms, rates=rates, seeds=seeds))
    runs = plan_runs(study)
    results = [
        made_up_run(run.arm.name, run.lr, run.seed, videos=videos, end=_end(run.arm.name))
        for run in runs[: len(runs) - missing]
    ]
    return compare_results(study, results, made_up_pretrained(), planned=len(runs))


def _end(arm):
    """Of an arm without an entry of its own, from its name: studies of many arms."""
    if arm in ENDS:
        return ENDS[arm]
    rng = np.random.default_rng(sum(map(ord, arm)))
    return 0.7 + 0.27 * rng.random(), 0.5 + 0.4 * rng.random(), float(rng.random()), bool(rng.random() < 0.5)
