import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_model, save_file, save_model
from torch import nn

from aegis_policy.aegis import GaussianAnchor, subspace_projector


def anchor(seed: int = 0) -> GaussianAnchor:
    generator = torch.Generator().manual_seed(seed)

    def second_moment(width: int) -> torch.Tensor:
        x = torch.randn(20, width, generator=generator)
        return x.T @ x / 20

    return GaussianAnchor.from_moments(
        {name: (torch.randn(4, generator=generator), torch.rand(4, generator=generator)) for name in ("l.0", "l.1")},
        [(["l.0.q.weight", "l.0.k.weight"], second_moment(4)), (["l.1.down~proj.weight"], second_moment(6))],
        fingerprint="ab" * 32,
        samples=20,
    )


def same(a: GaussianAnchor, b: GaussianAnchor) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return a.spec() == b.spec() and one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


class Host(nn.Module):
    def __init__(self, anchor: GaussianAnchor) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.anchor = anchor


def test_it_returns_what_it_was_made_of() -> None:
    mean, std, sigma = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]), torch.tensor([[2.0, -1.0], [-1.0, 5.0]])
    made = GaussianAnchor.from_moments({"a": (mean, std)}, [(["w", "v"], sigma)], fingerprint="f", samples=7)
    assert torch.equal(made.mean("a"), mean)
    assert torch.equal(made.std("a"), std)
    assert torch.equal(made.second_moment("w"), sigma)
    assert torch.equal(made.second_moment("v"), sigma)
    assert (made.layers, made.weights, made.fingerprint, made.samples) == (["a"], ["w", "v"], "f", 7)


@pytest.mark.parametrize("width", [1, 2, 7, 64])
def test_the_packed_triangle_is_the_matrix_in_half_the_memory(width: int) -> None:
    sigma = torch.randn(width, width)
    sigma = sigma + sigma.T
    made = GaussianAnchor.from_moments({}, [(["w"], sigma)], fingerprint="", samples=1)
    assert torch.equal(made.second_moment("w"), sigma)
    assert [t.numel() for t in made.state_dict().values()] == [width * (width + 1) // 2]


def test_save_and_load_is_the_identity(tmp_path: Path) -> None:
    original = anchor()
    original.save(tmp_path / "anchor.safetensors")
    assert same(GaussianAnchor.load(tmp_path / "anchor.safetensors"), original)


def test_a_file_says_whether_its_second_moments_are_of_unit_inputs(tmp_path: Path) -> None:
    for unit_inputs in (False, True):
        made = GaussianAnchor.from_moments(
            {}, [(["w"], torch.eye(2))], fingerprint="f", samples=1, unit_inputs=unit_inputs
        )
        made.save(tmp_path / "anchor.safetensors")
        assert GaussianAnchor.load(tmp_path / "anchor.safetensors").unit_inputs is unit_inputs


def test_it_travels_in_its_hosts_state_dict_through_safetensors(tmp_path: Path) -> None:
    host = Host(anchor())
    save_model(host, str(tmp_path / "model.safetensors"))
    spec = json.loads(json.dumps(host.anchor.spec()))
    empty = Host(GaussianAnchor.from_spec(spec))
    load_model(empty, str(tmp_path / "model.safetensors"))
    assert same(empty.anchor, host.anchor)


def test_buffer_names_are_reversible_so_that_no_two_layers_collide() -> None:
    names = ["a.b", "a~1b", "a~b", "a~0b", "a_b", "training", "mean"]
    moments = {n: (torch.full((2,), float(i)), torch.ones(2)) for i, n in enumerate(names)}
    made = GaussianAnchor.from_moments(moments, [], fingerprint="", samples=1)
    assert [made.mean(n)[0].item() for n in names] == list(range(len(names)))


def test_casting_the_host_does_not_round_it() -> None:
    host = Host(anchor()).to(torch.bfloat16)
    assert host.linear.weight.dtype == torch.bfloat16
    assert same(host.anchor, anchor())
    assert same(copy.deepcopy(host).half().anchor, anchor())


def test_second_moments_stay_where_they_are_when_the_host_moves_and_nobody_broadcasts_them() -> None:
    host = Host(anchor()).to("meta")  # a device that keeps no values
    assert host.anchor.mean("l.0").is_meta
    for weight in host.anchor.weights:
        assert torch.equal(host.anchor.second_moment(weight), anchor().second_moment(weight))
    assert not [name for name, _ in host.named_buffers() if "second_moment" in name]


def test_a_state_dict_that_lacks_a_second_moment_or_has_one_of_another_size_is_refused() -> None:
    state = anchor().state_dict()
    name = next(n for n in state if "second_moment" in n)
    empty = GaussianAnchor.from_spec(anchor().spec())
    for wrong, message in (
        ({n: t for n, t in state.items() if n != name}, "Missing key"),
        (state | {name: torch.zeros(3)}, "size mismatch"),
        (state | {name + "x": torch.zeros(3)}, "Unexpected key"),
    ):
        with pytest.raises(RuntimeError, match=message):
            empty.load_state_dict(wrong)
    empty.load_state_dict(state)
    assert same(empty, anchor())


def test_it_is_no_parameter_and_has_no_gradient() -> None:
    assert not list(anchor().parameters())
    assert not any(b.requires_grad for b in anchor().buffers())


def test_projectors_are_those_of_the_second_moments_and_shared_where_the_input_is() -> None:
    made = anchor()
    steps: list[tuple[int, int]] = []
    projectors = made.projectors(energy=0.9, progress=lambda done, total: steps.append((done, total)))
    assert list(projectors) == made.weights
    for weight, projector in projectors.items():
        assert torch.equal(projector.matrix(), subspace_projector(made.second_moment(weight), energy=0.9))
    assert projectors["l.0.q.weight"] is projectors["l.0.k.weight"]
    assert steps == [(1, 2), (2, 2)]
    assert list(made.projectors(epsilon=0.1, weights=["l.0.k.weight"])) == ["l.0.k.weight"]


def test_the_closed_share_is_one_minus_the_mean_of_the_diagonal() -> None:
    made = anchor()
    shares = made.closed_share(energy=1.0)
    assert shares.keys() == {*made.weights, "mean"}
    assert all(share == pytest.approx(1) for share in shares.values())  # 20 tokens span all of 4 and 6 dimensions
    half = GaussianAnchor.from_moments({}, [(["w"], torch.diag(torch.tensor([1.0, 0.0])))], fingerprint="", samples=1)
    assert half.closed_share(energy=1.0) == {"w": 0.5, "mean": 0.5}


def weights_for(made: GaussianAnchor) -> dict[str, torch.Tensor]:
    return {w: torch.zeros(3, made.second_moment(w).shape[0]) for w in made.weights}


def test_check_accepts_the_model_it_belongs_to() -> None:
    made = anchor()
    made.check(weights_for(made), fingerprint="ab" * 32, layers=["l.1"])


def test_check_refuses_another_model_and_says_what_to_do() -> None:
    made = anchor()
    with pytest.raises(ValueError, match="Collect an anchor on this model"):
        made.check(weights_for(made), fingerprint="cd" * 32)
    with pytest.raises(ValueError, match=r"no layer 'l\.7'. It holds 2: 'l\.0', 'l\.1'"):
        made.check(weights_for(made), layers=["l.7"])
    with pytest.raises(ValueError, match="does not have"):
        made.check(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="are 4 wide"):
        made.check(weights_for(made) | {"l.0.k.weight": torch.zeros(4, 5)})


def test_moments_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="mean of 'a' is not"):
        GaussianAnchor.from_moments({"a": (torch.tensor([float("nan")]), torch.ones(1))}, [], fingerprint="", samples=1)


def test_unknown_names_and_foreign_files_are_refused(tmp_path: Path) -> None:
    made = anchor()
    with pytest.raises(KeyError, match="no layer 'x'"):
        made.mean("x")
    with pytest.raises(KeyError, match="no weight 'x'"):
        made.second_moment("x")
    with pytest.raises(KeyError, match="no weight 'x'"):
        made.projectors(energy=0.9, weights=["x"])
    save_file({"w": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="is not an anchor"):
        GaussianAnchor.load(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="spec has format"):
        GaussianAnchor.from_spec({})
