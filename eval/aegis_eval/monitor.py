"""VQA accuracy while a policy trains: what `--policy.probe_freq` runs."""

from pathlib import Path
from typing import Any

from aegis_backbones.questions import FAMILIES
from aegis_envs import choose_gl_backend
from aegis_eval.probes import Probe, find_probe, read_probe_file, require_graded
from aegis_eval.scoring import ALL, Answerer, Score


class VQAMonitor:
    """Asks the same few questions at every call.

    State: the questions, made once at the first call. They have their own seed, and answers are greedy, so
    that a training with the monitor draws the same random numbers as one without.
    """

    def __init__(self, *, count: int, config: str | Path | None = None) -> None:
        """Choose the probes.

        Args:
            count: Questions a family, of the probe `nano_scenes`.
            config: YAML file as for `aegis-probe --config`, whose probes are asked instead.

        Raises:
            ValueError: If the file names a probe without right answers.
        """
        choose_gl_backend()
        scenes = [find_probe("nano_scenes", count=count * len(FAMILIES))]
        self.probes: list[Probe] = scenes if config is None else read_probe_file(config)
        for probe in self.probes:
            require_graded(probe, "The monitor")
        self._samples: dict[str, list[Any]] = {}

    def __call__(self, vlm: Answerer, step: int) -> dict[str, float]:
        """Scores for the training log.

        Args:
            vlm: The policy's vision-language model as it is at this step.
            step: Number of training steps done; the questions do not depend on it.

        Returns:
            For the first probe `vqa` (all questions) and `vqa_<family>`; for further probes
            `vqa_<probe>` and `vqa_<probe>_<family>`.
        """
        scores: dict[str, float] = {}
        for place, probe in enumerate(self.probes):
            if probe.name not in self._samples:
                self._samples[probe.name] = probe.samples()
            prefix = "vqa" if place == 0 else f"vqa_{probe.name}"
            found = probe.ask(vlm, self._samples[probe.name])
            assert isinstance(found, Score), "checked when the probes were chosen"
            rates = found.rates()
            scores[prefix] = rates.pop(ALL).value
            scores |= {f"{prefix}_{family}": rate.value for family, rate in rates.items()}
        return scores
