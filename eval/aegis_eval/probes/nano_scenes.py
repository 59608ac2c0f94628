"""Held-out scenes of the kind that the embedded backbone was pre-trained on: what it knew before."""

from aegis_eval.probes.registry import Probe

PROBE = Probe(
    name="nano_scenes",
    version=1,
    source="nano_scenes",
    count=1400,
    seed=0,
    description="questions about held-out rendered scenes without a robot, as in pre-training",
)
