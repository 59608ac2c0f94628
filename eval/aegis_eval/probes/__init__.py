"""Probes: versioned sets of questions that measure what a checkpoint still knows, of images or of the world."""

from aegis_eval.probes.facts import PROBE as FACTS
from aegis_eval.probes.nano_scenes import PROBE as NANO_SCENES
from aegis_eval.probes.prose import PROBE as PROSE
from aegis_eval.probes.registry import (
    Probe,
    find_probe,
    list_probes,
    read_probe_file,
    register,
    require_graded,
    standard_probes,
)
from aegis_eval.probes.tabletop import PROBE as TABLETOP

register(NANO_SCENES)
register(TABLETOP)
register(FACTS)
register(PROSE)

__all__ = ["Probe", "find_probe", "list_probes", "read_probe_file", "register", "require_graded", "standard_probes"]
