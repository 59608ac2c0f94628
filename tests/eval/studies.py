"""A made-up study, for tests of tables, plots and pages."""

import numpy as np

from aegis_backbones.questions import FAMILIES
from aegis_eval.results import Arm, Curve, ProbeResult, Study

LAYERS = [f"language_model.layers.{i}" for i in range(6)]


def answers(rng, accuracy, count):
    return ProbeResult(
        families=[FAMILIES[i % len(FAMILIES)] for i in range(count)],
        correct="".join("1" if rng.random() < accuracy else "0" for _ in range(count)),
    )


def made_up_study(*, videos=(), commands=()) -> Study:
    rng = np.random.default_rng(0)
    steps = list(range(50, 1001, 50))

    def arm(name, label, note, final, success, drift):
        decay = [0.97 + (final - 0.97) * (1 - np.exp(-step / 250)) for step in steps]
        return Arm(
            name=name,
            label=label,
            note=note,
            probes={
                "nano_scenes": answers(rng, final, 700),
                "tabletop": answers(rng, final - 0.05, 350),
            },
            successes=[bool(rng.random() < success) for _ in range(100)],
            action_loss=0.1 + 0.1 * rng.random(),
            step_s=0.4,
            loss=Curve(steps, [float(1.2 * np.exp(-s / 300) + 0.1) for s in steps]),
            vqa=Curve([0, *steps], [0.97, *map(float, decay)]),
            layers={layer: drift * (i + 1) for i, layer in enumerate(LAYERS)},
            videos=list(videos),
        )

    return Study(
        title="What does the model forget while it learns to act?",
        summary="The same vision-language model, fine-tuned three ways from one seed on the same demonstrations.",
        reference=Arm(
            name="pretrained",
            label="untouched",
            probes={"nano_scenes": answers(rng, 0.97, 700), "tabletop": answers(rng, 0.93, 350)},
        ),
        arms=[
            arm("none", "naive", "Everything learns from the action loss.", 0.45, 0.6, 3.0),
            arm("paper", "AEGIS, as printed", "Each layer's gradient is projected.", 0.5, 0.55, 1.0),
            arm("default", "AEGIS, default", "Each weight's step is kept in a subspace.", 0.95, 0.58, 0.1),
        ],
        probes={"nano_scenes": "held-out scenes", "tabletop": "frames of the robot's camera"},
        chance=1 / 3,
        chance_note="Whoever does not read the instruction succeeds in at most 33 %.",
        facts={"commit": "0123456", "seed": "1000", "machine": "2 cores"},
        commands=list(commands) or [("train none", "lerobot-train --policy.type=aegis_vla", 300.0)],
    )
