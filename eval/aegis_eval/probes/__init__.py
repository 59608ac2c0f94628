"""VQA probes: versioned sets of questions that measure what a checkpoint still knows."""

from aegis_eval.probes.nano_scenes import PROBE as NANO_SCENES
from aegis_eval.probes.registry import Probe, find_probe, list_probes, read_probe_file, register
from aegis_eval.probes.tabletop import PROBE as TABLETOP

register(NANO_SCENES)
register(TABLETOP)

__all__ = ["Probe", "find_probe", "list_probes", "read_probe_file", "register"]
