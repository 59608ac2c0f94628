"""AEGIS (arXiv 2604.16067) and its full-covariance completion, for any torch model and any trainer."""

from aegis_policy.aegis.anchor import GaussianAnchor
from aegis_policy.aegis.anchor_gradient import backward_beside
from aegis_policy.aegis.collector import AnchorCollector
from aegis_policy.aegis.fingerprint import fingerprint
from aegis_policy.aegis.finite import ON_NONFINITE, note_gradients, when_backward_ends
from aegis_policy.aegis.optimizer import PROJECTIONS, AegisAdamW
from aegis_policy.aegis.projection import ProjectionReport, project_layer
from aegis_policy.aegis.projector import Projector
from aegis_policy.aegis.protected_group import SUBSPACES
from aegis_policy.aegis.ranks import average_over_ranks, on_every_rank, rank, take_from_first, world_size
from aegis_policy.aegis.shards import is_sharded
from aegis_policy.aegis.statistics import ActivationStatistics, SecondMoment
from aegis_policy.aegis.subspace import Closes, closed_share, compact_projector, subspace_projector
from aegis_policy.aegis.wasserstein import masked_moments, pooled_moments, wasserstein2

__all__ = [
    "ON_NONFINITE",
    "PROJECTIONS",
    "SUBSPACES",
    "ActivationStatistics",
    "AegisAdamW",
    "AnchorCollector",
    "Closes",
    "GaussianAnchor",
    "ProjectionReport",
    "Projector",
    "SecondMoment",
    "average_over_ranks",
    "backward_beside",
    "closed_share",
    "compact_projector",
    "fingerprint",
    "is_sharded",
    "masked_moments",
    "note_gradients",
    "on_every_rank",
    "pooled_moments",
    "project_layer",
    "rank",
    "subspace_projector",
    "take_from_first",
    "wasserstein2",
    "when_backward_ends",
    "world_size",
]
