"""Two processes that train one policy: replicas stay bit-identical, and train as one process on the global batch."""

from pathlib import Path

import numpy as np
import pytest
import torch

from aegis_policy.knowledge.sources import build_anchor
from aegis_policy.network.backbone import Backbone
from aegis_policy.network.prompt import load_processor
from tests.policy.conftest import make_samples
from tests.policy.ranks_training import WITH_FEATURES, shard_all, train_all
from tests.policy.tiny_backbones import FAMILIES
from tests.ranks import on_ranks

pytestmark = pytest.mark.slow  # two processes

FEATURES = {"reference": "features", "penalty_weight": 1.0}
# These are what one process does with the global batch, for 20 steps where no number is given.
LIKE_ONE: dict[str, dict] = {
    "unprotected": {"options": {"knowledge": "none"}, "steps": 6},
    "gradient": {"options": {"projection": "gradient"}},
    # What is projected out of one moment or both is divided by a root that may be tiny: rounding would show.
    "first_moment": {"options": {"projection": "first_moment", "optimizer_eps": 1e-3}, "steps": 6},
    "update": {"options": {"projection": "update"}},
    "subspace": {"options": {"projection": "subspace"}},
    "subspace and features, every second step": {"options": {**FEATURES, "reference_every": 2}},
    # A bound that is never reached and never nearly so: the scale follows the distance at every step.
    "bounded penalty": {"options": {**FEATURES, "knowledge": "none", "penalty_bound": 0.05}, "steps": 8},
    "moments of both kinds": {
        "options": {"projection": "subspace", "reference": "kind_moments", "penalty_weight": 1e-2},
        "steps": 6,
    },
    "two micro-batches": {"options": {"projection": "update"}, "steps": 6, "micro_batches": 2},
    "one sample on a rank": {"options": {"projection": "update", "reference": "kind_moments"}, "first": 4, "steps": 6},
    "overflow": {"options": {"projection": "gradient"}, "steps": 4, "overflow_at": 1},
    # The last rank's gradient of the distance overflows too, so nobody may go on with the one that was kept.
    "overflow while a gradient is kept": {
        "options": {"projection": "gradient", "reference": "features", "reference_every": 3},
        "steps": 4,
        "overflow_at": 0,
    },
    "co-training": {
        "options": {"knowledge": "none", "cotraining_share": 0.25, "cotraining_samples": 20},
        "steps": 4,
    },
}
OTHERS: dict[str, dict] = {
    "few samples for the reference": {
        "options": {"projection": "gradient", "reference": "features", "reference_samples": 2, "reference_every": 3},
        "first": 4,
        "steps": 6,
    },
    "probed": {"options": {"probe_freq": 2, "probe_count": 1}, "steps": 4},
    "unprobed": {"options": {}, "steps": 4},
    "LoRA": {"options": {"knowledge": "none"}, "steps": 3, "peft": True},
    "protected LoRA": {"options": {"projection": "subspace"}, "steps": 3, "peft": True},
    "LoRA with an anchor gradient": {"options": {"projection": "update"}, "steps": 3, "peft": True},
    "averaged": {"options": {"projection": "subspace", "ema_decay": 0.5}, "steps": 4},
    "projected together": {"options": {"projection": "subspace", "projection_every": 3}, "steps": 4},
}
UNUSED: dict[str, dict] = {"unused not looked for": {"options": {}, "steps": 3, "find_unused": False}}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    """The same weights in every session: how rounding grows depends on them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        folder = FAMILIES["paligemma2"](tmp_path_factory.mktemp("backbone"))
    anchor = build_anchor(Backbone.load(str(folder)), load_processor(str(folder)), make_samples(12))
    anchor.save(folder / "anchor.safetensors")
    return folder


@pytest.fixture(scope="module")
def runs(backbone, tmp_path_factory):
    """Arm -> what one process did (where that is compared) and what each of two did."""
    arms = LIKE_ONE | OTHERS | UNUSED  # the last one ends with an error, and leaves the reducer unfinished
    ranks = on_ranks(train_all, backbone, arms, folder=tmp_path_factory.mktemp("ranks"))
    one = train_all(backbone, LIKE_ONE)
    return {name: (one.get(name), [found[name] for found in ranks]) for name in arms}


@pytest.mark.parametrize("arm", [*LIKE_ONE, *OTHERS])
def test_replicas_that_began_with_other_weights_are_bit_identical(runs, arm):
    _, (a, b) = runs[arm]
    assert a["state"].keys() == b["state"].keys()
    assert [n for n in a["state"] if not torch.equal(a["state"][n], b["state"][n])] == []


@pytest.mark.parametrize("arm", LIKE_ONE)
def test_two_processes_have_the_losses_of_one_with_the_global_batch(runs, arm):
    one, ranks = runs[arm]
    # Three samples here and two there, with actions that are padding: the mean over ranks is that over all actions.
    losses = np.mean([found["losses"] for found in ranks], axis=0)
    np.testing.assert_allclose(losses, one["losses"], rtol=1e-5)


@pytest.mark.parametrize("arm", [*LIKE_ONE, *OTHERS])
def test_every_rank_logs_the_same_entries(runs, arm):
    """LeRobot reduces its log over ranks by position."""
    _, (a, b) = runs[arm]
    assert [list(one) for one in a["metrics"]] == [list(one) for one in b["metrics"]]


def test_each_rank_draws_noise_of_its_own(runs):
    _, (a, b) = runs["subspace"]
    assert not torch.equal(a["noise"], b["noise"])


@pytest.mark.parametrize("arm", ["subspace", "LoRA"])
def test_the_anchor_is_not_sent_again_at_every_step(runs, arm):
    _, ranks = runs[arm]
    for found in ranks:
        assert any(name.endswith("noise_seed") for name in found["buffers sent"])
        assert not [name for name in found["buffers sent"] if "second_moment" in name]  # as large as the weights
        assert any("anchor.second_moment" in name for name in found["state"])


def test_one_rank_asks_what_the_backbone_knows_and_all_log_it(runs):
    _, (a, b) = runs["probed"]
    assert (a["asked"], b["asked"]) == (True, False)
    for mine, other in zip(a["metrics"], b["metrics"], strict=True):
        assert "vqa" in mine
        assert {k: v for k, v in mine.items() if k.startswith("vqa")} == {
            k: v for k, v in other.items() if k.startswith("vqa")
        }
    assert a["losses"] == runs["unprobed"][1][0]["losses"]


def test_a_loss_that_overflows_on_one_rank_skips_the_step_on_all(runs):
    one, ranks = runs["overflow"]
    skipped, taken = (runs[arm][0]["losses"][:4] for arm in ("overflow", "gradient"))
    assert skipped[:2] == taken[:2] and skipped[2] != taken[2]  # in one process that step was skipped ...
    for found in ranks:  # ... and so in two, with the overflow on one of them
        assert all(t.isfinite().all() for t in found["state"].values() if t.is_floating_point())
        torch.testing.assert_close(found["state"]["expert.action_out.weight"], one["state"]["expert.action_out.weight"])


def test_weights_that_no_action_reads_must_be_looked_for(runs):
    """Actions read keys and values: the last layer's MLP gets no gradient, which torch then misses on every rank."""
    _, ranks = runs["unused not looked for"]
    for found in ranks:
        assert "find_unused_parameters=True" in found["error"]


@pytest.fixture(scope="module")
def sharded(backbone, tmp_path_factory):
    options = {"subspace": {"projection": "subspace"}, "subspace and features": WITH_FEATURES}
    one = train_all(backbone, {name: {"options": chosen, "steps": 4} for name, chosen in options.items()})
    return one, on_ranks(shard_all, backbone, folder=tmp_path_factory.mktemp("sharded"))


@pytest.mark.parametrize("case", ["subspace", "subspace and features"])
def test_a_policy_sharded_before_its_optimizer_trains_in_the_subspace_as_one_process(sharded, case):
    one, ranks = sharded[0][case], sharded[1]
    found = [each[f"fsdp2, {case}"] for each in ranks]
    np.testing.assert_allclose(np.mean([each["losses"] for each in found], axis=0), one["losses"], rtol=1e-5)
    for name, weight in found[0]["state"].items():
        torch.testing.assert_close(weight, one["state"][name], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("fsdp2, gradient", "projection=subspace"),
        ("fsdp2, probed", "aegis-probe"),
        ("fsdp2, averaged", "Leave --policy.ema_decay out"),
        ("fsdp2, projected together", "Leave it at 1"),
        ("fsdp2, optimizer first", "fully_shard before"),
        ("fsdp1, subspace", "without --use_fsdp"),
        ("fsdp1, gradient", "without --use_fsdp"),
    ],
)
def test_sharding_that_would_train_unprotected_is_refused_on_every_rank(sharded, case, message):
    _, ranks = sharded
    for found in ranks:
        assert message in found[case]["error"]
