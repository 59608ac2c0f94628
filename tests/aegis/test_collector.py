from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from aegis_policy.aegis import AnchorCollector, fingerprint


class Block(nn.Module):
    """Attention-like: two maps read one tensor, a third their product; returns a tuple as many decoder layers do."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(width, 5), nn.Linear(width, 5)
        self.o = nn.Linear(5, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        h = self.norm(x)
        return x + self.o(torch.tanh(self.q(h)) * self.k(input=h)), None


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks: Any = nn.ModuleList([Block(), Block()])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x, _ = block(x)
        return x


def sites(model: Model) -> tuple[dict[str, nn.Module], dict[str, nn.Linear]]:
    layers = {f"blocks.{i}": block for i, block in enumerate(model.blocks)}
    linears = {f"{n}.weight": m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    return layers, linears


def test_it_finds_the_moments_of_the_layers_own_outputs_and_inputs() -> None:
    torch.manual_seed(0)
    model, batches = Model(), [torch.randn(2, 3, 6), torch.randn(4, 5, 6)]
    with AnchorCollector(model, *sites(model)) as collector, torch.no_grad():
        for x in batches:
            model(x)
    anchor = collector.anchor()

    first = [model.blocks[0](x)[0].detach().reshape(-1, 6) for x in batches]
    y = torch.cat(first).double().numpy()
    np.testing.assert_allclose(anchor.mean("blocks.0"), y.mean(0), rtol=0, atol=1e-6)  # stored in float32
    np.testing.assert_allclose(anchor.std("blocks.0"), y.std(0), rtol=1e-6)
    h = torch.cat([model.blocks[1].norm(y).detach() for y in first]).double().numpy()
    np.testing.assert_allclose(anchor.second_moment("blocks.1.q.weight"), h.T @ h / len(h), rtol=0, atol=1e-6)
    assert anchor.samples == 6
    assert anchor.fingerprint == fingerprint(model.state_dict())
    anchor.check(model, fingerprint=fingerprint(model.state_dict()), layers=["blocks.0", "blocks.1"])


def test_maps_that_read_one_tensor_share_one_second_moment() -> None:
    model = Model()
    with AnchorCollector(model, *sites(model)) as collector:
        model(torch.randn(2, 3, 6))
    inputs = [entry["weights"] for entry in collector.anchor().spec()["inputs"]]
    assert inputs == [
        ["blocks.0.q.weight", "blocks.0.k.weight"],
        ["blocks.0.o.weight"],
        ["blocks.1.q.weight", "blocks.1.k.weight"],
        ["blocks.1.o.weight"],
    ]


def test_padding_has_no_influence() -> None:
    torch.manual_seed(0)
    model, x = Model(), torch.randn(2, 3, 6)
    padded = torch.cat([x, torch.full((2, 2, 6), 1e3)], dim=1)
    mask = torch.tensor([1, 1, 1, 0, 0]).expand(2, 5)
    asked = []

    def mask_of(site: str) -> Tensor:
        asked.append(site)
        return mask

    with AnchorCollector(model, *sites(model)) as plain:
        model(x)
    with AnchorCollector(model, *sites(model), mask_of=mask_of) as masked:
        model(padded)
    expected, received = plain.anchor().state_dict(), masked.anchor().state_dict()
    for name in expected:
        # The block is token-wise, but a matrix product of another size may round differently.
        torch.testing.assert_close(received[name], expected[name], rtol=1e-5, atol=1e-6)
    assert set(asked) >= {"blocks.0", "blocks.1.o.weight"}


def test_with_unit_inputs_a_token_that_dwarfs_the_others_does_not_leave_them_open() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8, bias=False))
    usual = torch.randn(200, 2) @ torch.randn(2, 8)  # all but one token use two of eight directions
    x = torch.cat([usual, 1e4 * torch.randn(1, 8)])
    left = {}
    for unit_inputs in (False, True):
        with AnchorCollector(model, linears={"0.weight": model[0]}, unit_inputs=unit_inputs) as collector:
            model(x)
        projector = collector.anchor().projectors(energy=0.97)["0.weight"].matrix()
        left[unit_inputs] = float((usual @ projector).norm() / usual.norm())
    assert left[False] > 0.5 > 0.05 > left[True]


def test_a_token_stride_thins_second_moments_and_not_the_layers_outputs() -> None:
    torch.manual_seed(0)
    model, x = Model(), torch.randn(4, 6, 6)
    with AnchorCollector(model, *sites(model), token_stride=4) as thinned, torch.no_grad():
        model(x)
        model(x)
    with AnchorCollector(model, *sites(model)) as full, torch.no_grad():
        model(x)
    name = "blocks.0.q.weight"
    h = model.blocks[0].norm(x).detach().reshape(-1, 6).double()
    h = torch.cat([h[0::4], h[1::4]])  # one pass begins with the first token, the next with the second
    np.testing.assert_allclose(thinned.anchor().second_moment(name), h.T @ h / 12, rtol=0, atol=1e-6)
    for moment in ("mean", "std"):
        ours, theirs = (getattr(c.anchor(), moment)("blocks.1") for c in (thinned, full))
        torch.testing.assert_close(ours, theirs)


def test_the_model_is_left_as_it_was() -> None:
    model, x = Model(), torch.randn(2, 3, 6)
    before = model(x)
    with AnchorCollector(model, *sites(model)) as collector:
        assert torch.equal(model(x), before)
    seen = collector.samples
    model(x)
    assert collector.samples == seen
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_hooks_go_even_when_the_forward_pass_fails() -> None:
    model = Model()
    with pytest.raises(RuntimeError), AnchorCollector(model, *sites(model)):
        model(torch.randn(2, 3, 7))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_it_can_be_entered_again_and_goes_on() -> None:
    torch.manual_seed(0)
    model, x, y = Model(), torch.randn(2, 3, 6), torch.randn(1, 3, 6)
    once, twice = AnchorCollector(model, *sites(model)), AnchorCollector(model, *sites(model))
    with once:
        model(x)
        model(y)
    for batch in (x, y):
        with twice:
            model(batch)
    a, b = once.anchor().state_dict(), twice.anchor().state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_site_that_saw_nothing_is_an_error_that_names_it() -> None:
    model = Model()
    collector = AnchorCollector(model, *sites(model))
    with pytest.raises(ValueError, match=r"'blocks\.0' saw none"):
        collector.anchor()
    with AnchorCollector(model, *sites(model), mask_of=lambda site: torch.zeros(2, 3)) as masked:
        model(torch.randn(2, 3, 6))
    with pytest.raises(ValueError, match="check the mask"):
        masked.anchor()


def test_modules_that_cannot_be_watched_are_refused() -> None:
    model = Model()
    with pytest.raises(ValueError, match="at least one"):
        AnchorCollector(model)
    with pytest.raises(ValueError, match="not a module of the model"):
        AnchorCollector(model, {"x": nn.Linear(2, 2)})
    with pytest.raises(ValueError, match="LayerNorm"):
        AnchorCollector(model, linears={"x": model.blocks[0].norm})
    with pytest.raises(ValueError, match="at least 1; received 0"):
        AnchorCollector(model, *sites(model), token_stride=0)


def test_maps_that_stop_sharing_an_input_are_refused() -> None:
    model = Model()
    block = model.blocks[0]
    collector = AnchorCollector(model, linears={"q": block.q, "k": block.k})
    with collector:
        model(torch.randn(2, 3, 6))
        block.q(torch.randn(2, 3, 6))
        with pytest.raises(RuntimeError, match="two collectors"):
            block.k(torch.randn(2, 3, 6))
