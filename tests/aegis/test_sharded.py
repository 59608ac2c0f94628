"""Sharded parameters: on DTensors of `fully_shard`, in two processes, the optimizer takes the steps of one process."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

from aegis_policy.aegis import PROJECTIONS, SUBSPACES, AegisAdamW, project_layer, rank, world_size
from aegis_policy.aegis.shards import sum_over_shards
from tests.ranks import on_ranks, told

pytestmark = pytest.mark.slow  # other processes, which import torch

STEPS = 5


def model() -> Any:
    """Five rows over two processes: three and two."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 1))


def optimizer_for(net: Any, projection: str) -> AegisAdamW:
    in_subspace = projection in SUBSPACES
    groups: list[dict[str, Any]] = []
    free = [*net[4].parameters()]
    for i, closed in ((0, 2), (2, 3)):
        layer = net[i]
        if in_subspace:
            size = layer.in_features
            basis = torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(i)))[0][:, :closed]
            projectors = [torch.eye(size) - basis @ basis.T]
            groups.append({"params": [layer.weight], "layer": str(i), "projectors": projectors})
            free.append(layer.bias)
        else:
            groups.append({"params": [layer.weight, layer.bias], "layer": str(i)})
    return AegisAdamW([*groups, {"params": free}], 1e-2, weight_decay=0.1, projection=projection)


def train(projection: str) -> dict[str, Any]:
    """Whole weights, reports and collectives of a step, of a training on this process's part of each batch."""
    net = model()
    if world_size() > 1:
        for i in (0, 2):
            fully_shard(net[i])
        fully_shard(net)
    optimizer = optimizer_for(net, projection)
    reports = []
    for step in range(STEPS):
        optimizer.zero_grad()
        inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
        outputs = net(inputs[rank() :: world_size()])
        if projection not in SUBSPACES:
            outputs.abs().mean().backward(retain_graph=True)  # the penalty: fully_shard reduces its gradient
            for p in net.parameters():
                p.anchor_grad, p.grad = p.grad, None
        (outputs - 1).square().mean().backward()
        with CommDebugMode() as sent:
            optimizer.step()
        reports.append(optimizer.last_report)
    weights = {n: p.full_tensor() if isinstance(p, DTensor) else p for n, p in net.named_parameters()}
    counts = {str(name): count for name, count in sent.get_comm_counts().items()}
    return {"weights": {n: w.detach() for n, w in weights.items()}, "reports": reports, "sent": counts}


def step_with_nan_on_the_last_rank() -> tuple[int, bool]:
    """Steps that were left out, and whether all weights are what they were."""
    net = model()
    for i in (0, 2):
        fully_shard(net[i])
    fully_shard(net)
    optimizer = optimizer_for(net, "subspace")
    optimizer.on_nonfinite = "skip"
    net(torch.ones(1, 6)).square().mean().backward()
    if rank() == world_size() - 1:
        net[2].weight.grad.to_local()[0, 0] = torch.nan
    before = [p.to_local().clone() for p in net.parameters()]
    optimizer.step()
    same = all(torch.equal(b, p.to_local()) for b, p in zip(before, net.parameters(), strict=True))
    return optimizer.skipped_steps, same


def everything() -> dict[str, Any]:
    found: dict[str, Any] = {name: train(name) for name in PROJECTIONS}
    if world_size() > 1:
        found["nan"] = step_with_nan_on_the_last_rank()
        mesh = init_device_mesh("cpu", (2,))
        whole = torch.arange(12.0).view(4, 3)
        by_columns = nn.Parameter(distribute_tensor(whole, mesh, [Shard(1)]))
        group = {"params": [by_columns], "layer": "l", "projectors": [torch.eye(3)]}
        rows, copies = distribute_tensor(whole, mesh, [Shard(0)]), distribute_tensor(whole, mesh, [Replicate()])
        partial = rows.sum(0)
        found["columns"] = told(lambda: AegisAdamW([group], projection="subspace"))
        found["plain anchor"] = told(lambda: project_layer([rows], [whole]))
        found["partial"] = told(lambda: project_layer([partial], [partial]))
        products = [t.to_local().sum() for t in (rows, copies)]
        found["sum"] = sum_over_shards([*products, torch.tensor(1.0)], [rows, copies, torch.zeros(1)])
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What one process found, and what each of two did."""
    return everything(), on_ranks(everything, folder=tmp_path_factory.mktemp("sharded"))


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_two_processes_take_the_steps_of_one(runs: Any, projection: str) -> None:
    one, ranks = runs
    for found in ranks:
        for name, weight in one[projection]["weights"].items():
            # Five steps of 1e-2 in float32, whose gradients were summed in another order.
            torch.testing.assert_close(found[projection]["weights"][name], weight, rtol=0, atol=1e-6)
        for own, its in zip(one[projection]["reports"], found[projection]["reports"], strict=True):
            assert its == pytest.approx(own, abs=1e-5)
    # The comparison is of something: the projection has taken something away.
    assert any(report["energy_shed"] > 1e-3 for report in one[projection]["reports"])


@pytest.mark.parametrize("projection", SUBSPACES)
def test_a_subspace_step_sends_two_numbers_a_layer_and_no_weights(runs: Any, projection: str) -> None:
    _, ranks = runs
    for found in ranks:
        # Two layers, one message for the report of each; and one whether all of the gradient is finite.
        assert sum(found[projection]["sent"].values()) == 3
        assert all("allreduce" in name for name in found[projection]["sent"])


def test_nan_in_one_processs_part_keeps_every_process_from_stepping(runs: Any) -> None:
    assert [found["nan"] for found in runs[1]] == [(1, True)] * 2


def test_products_of_replicas_count_once(runs: Any) -> None:
    _, ranks = runs
    assert [found["sum"].item() for found in ranks] == [66 + 66 + 1] * 2


def test_what_cannot_be_multiplied_locally_is_refused(runs: Any) -> None:
    _, ranks = runs
    for found in ranks:
        assert "Shard along dimension 0" in found["columns"]
        assert "sharded as the parameter is" in found["plain anchor"]
        assert "partial sum" in found["partial"]


def test_one_process_sends_nothing_for_a_plain_tensor() -> None:
    a: list[Tensor] = [torch.ones(3), torch.zeros(2)]
    with CommDebugMode() as sent:
        project_layer(a, a)
    assert sent.get_total_counts() == 0
