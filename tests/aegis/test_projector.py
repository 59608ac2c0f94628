"""A projector in compact form is the matrix that it stands for."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from aegis_policy.aegis import Closes, Projector, closed_share, compact_projector, subspace_projector
from aegis_policy.aegis.subspace import SMALL


def directions(width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0]


def first(count: int, width: int) -> Tensor:
    return torch.arange(width) < count


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), width=st.integers(1, 12), closed=st.integers(0, 12), out=st.integers(1, 5))
def test_a_step_times_it_is_the_step_times_the_matrix(seed: int, width: int, closed: int, out: int) -> None:
    vectors, closed = directions(width, seed), min(closed, width)
    projector = Projector.of_directions(vectors, first(closed, width))
    matrix = torch.eye(width, dtype=torch.float64) - vectors[:, :closed] @ vectors[:, :closed].T
    step = torch.randn(out, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    # Sums of at most 12 products of float64 numbers of size one.
    torch.testing.assert_close(step @ projector, step @ matrix, rtol=0, atol=1e-13)
    torch.testing.assert_close(projector.matrix(), matrix, rtol=0, atol=1e-13)
    assert closed_share(projector) == closed / width
    assert projector.shape == tuple(matrix.shape)


@pytest.mark.parametrize(("closed", "form", "columns"), [(0, "closed", 0), (3, "closed", 3), (4, "closed", 4)])
@pytest.mark.parametrize("mirrored", [False, True])
def test_it_keeps_the_smaller_side(closed: int, form: str, columns: int, mirrored: bool) -> None:
    if mirrored and closed != 4:  # at exactly half, the closed side
        closed, form = 8 - closed, "open"
    projector = Projector.of_directions(directions(8), first(closed, 8))
    assert (projector.form, projector.basis.shape) == (form, (8, columns))
    assert projector.nbytes == 8 * columns * 8  # float64


def test_nothing_closed_is_exactly_the_identity_and_everything_closed_exactly_zero() -> None:
    step = torch.randn(3, 8, dtype=torch.float64)
    assert torch.equal(step @ Projector.of_directions(directions(8), first(0, 8)), step)
    assert torch.equal(step @ Projector.of_directions(directions(8), first(8, 8)), torch.zeros_like(step))


@pytest.mark.parametrize(
    ("closes", "form"),
    [
        ({"energy": 0.5}, "closed"),
        ({"energy": 0.99}, "open"),
        ({"directions": 0.3, "energy": None}, "closed"),
        ({"directions": 0.8}, "open"),
    ],
)
def test_a_wide_second_moment_gives_the_compact_form_of_the_same_projector(closes: Closes, form: str) -> None:
    width = SMALL + 4
    x = torch.randn(2 * width, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigma = x.T @ x / len(x)
    compact = compact_projector(sigma, **closes)
    assert compact.form == form
    assert 2 * compact.basis.shape[1] <= width
    # Both come from one eigen-decomposition in float64.
    torch.testing.assert_close(compact.matrix(), subspace_projector(sigma, **closes), rtol=0, atol=1e-12)
    soft = compact_projector(sigma, epsilon=0.3)
    assert torch.equal(soft.matrix(), subspace_projector(sigma, epsilon=0.3))
    assert compact_projector(sigma.float(), **closes).dtype == torch.float32


def test_a_narrow_second_moment_gives_the_matrix_itself() -> None:
    sigma = torch.diag(torch.arange(1.0, SMALL + 1))
    assert torch.equal(compact_projector(sigma, energy=0.9).basis, subspace_projector(sigma, energy=0.9))


def test_it_is_moved_only_where_that_changes_something_and_survives_copies() -> None:
    projector = Projector.of_directions(directions(8), first(3, 8))
    cpu = torch.device("cpu")
    assert projector.to(device=cpu, dtype=torch.float64) is projector
    assert projector.to(device=cpu, dtype=torch.float32).dtype == torch.float32
    for twin in (copy.deepcopy(projector), pickle.loads(pickle.dumps(projector))):
        assert torch.equal(twin.matrix(), projector.matrix())


def test_what_is_no_basis_is_refused() -> None:
    with pytest.raises(ValueError, match="one of closed, open, matrix"):
        Projector(torch.eye(3), "half")
    for basis, form in ((torch.zeros(3, 4), "closed"), (torch.zeros(3, 2), "matrix"), (torch.zeros(3), "open")):
        with pytest.raises(ValueError, match="at most as many columns as rows"):
            Projector(basis, form)
