import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis_policy.aegis import closed_share, subspace_projector


def inputs(seed: int, tokens: int, width: int, rank: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """(tokens, width), spanning `rank` directions of falling energy."""
    generator = torch.Generator().manual_seed(seed)
    factors = torch.randn(tokens, rank, generator=generator, dtype=torch.float64)
    directions = torch.linalg.qr(torch.randn(width, rank, generator=generator, dtype=torch.float64))[0].T
    falling = torch.logspace(0, -1, rank, dtype=torch.float64)
    return ((factors * falling) @ directions).to(dtype)


def second_moment(x: torch.Tensor) -> torch.Tensor:
    return x.T @ x / len(x)


def reference_hard(sigma: np.ndarray, energy: float) -> np.ndarray:
    """Independent of the code: singular value decomposition, directions added one by one until enough is carried."""
    u, s, _ = np.linalg.svd(sigma)
    projector, carried = np.eye(len(sigma)), 0.0
    for k in range(len(s)):
        if carried >= energy * s.sum() or s[k] < 1e-12 * s[0]:
            break
        projector -= np.outer(u[:, k], u[:, k])
        carried += s[k]
    return projector


sizes = st.tuples(st.integers(2, 12), st.integers(1, 12)).map(lambda wr: (wr[0], min(wr)))


def test_a_diagonal_case_by_hand() -> None:
    sigma = torch.diag(torch.tensor([6.0, 3.0, 1.0]))  # carries 60, 30 and 10 %
    assert subspace_projector(sigma, energy=0.5).diagonal().tolist() == [0, 1, 1]
    assert subspace_projector(sigma, energy=0.9).diagonal().tolist() == [0, 0, 1]
    assert subspace_projector(sigma, energy=0.91).diagonal().tolist() == [0, 0, 0]
    assert torch.equal(subspace_projector(sigma, energy=0.0), torch.eye(3))
    # e = 0.3 * mean eigenvalue 10/3 = 1, so the diagonal is 1 / (1 + lambda).
    soft = subspace_projector(sigma, epsilon=0.3).diagonal()
    torch.testing.assert_close(soft, torch.tensor([1 / 7, 1 / 4, 1 / 2]), rtol=1e-6, atol=0)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), size=sizes, energy=st.sampled_from([0.3, 0.9, 0.999, 1.0]))
def test_the_hard_form_agrees_with_an_independent_reference(seed: int, size: tuple[int, int], energy: float) -> None:
    sigma = second_moment(inputs(seed, 40, *size))
    # Eigenvectors are accurate to 1e-16 over the relative gap of their eigenvalues.
    expected = reference_hard(sigma.numpy(), energy)
    np.testing.assert_allclose(subspace_projector(sigma, energy=energy), expected, rtol=0, atol=1e-7)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), size=sizes, epsilon=st.sampled_from([1e-3, 0.1, 10.0]))
def test_the_soft_form_is_the_inverse_in_the_formula(seed: int, size: tuple[int, int], epsilon: float) -> None:
    sigma = second_moment(inputs(seed, 40, *size))
    width = len(sigma)
    expected = np.linalg.inv(np.eye(width) + sigma.numpy() / (epsilon * np.trace(sigma.numpy()) / width))
    np.testing.assert_allclose(subspace_projector(sigma, epsilon=epsilon), expected, rtol=0, atol=1e-10)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), size=sizes, dtype=st.sampled_from([torch.float32, torch.float64]))
def test_full_energy_closes_the_span_of_what_was_seen_and_no_more(
    seed: int, size: tuple[int, int], dtype: torch.dtype
) -> None:
    width, rank = size
    x = inputs(seed, 40, width, rank, dtype)
    projector = subspace_projector(second_moment(x), energy=1.0)
    eps = torch.finfo(dtype).eps
    assert closed_share(projector) == pytest.approx(rank / width, abs=10 * width * eps)
    # Relative to the largest input: the eigenvectors of small eigenvalues inherit the rounding of the large ones,
    # amplified by the range of the eigenvalues.
    condition = (torch.linalg.svdvals(x.double())[[0, rank - 1]].square()).tolist()
    bound = 10 * width * eps * (1 + condition[0] / condition[1]) * x.norm(dim=1).max()
    assert (x @ projector).norm(dim=1).max() <= bound


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), size=sizes, energy=st.sampled_from([0.5, 0.99, 1.0]))
def test_the_hard_form_is_an_orthogonal_projection(seed: int, size: tuple[int, int], energy: float) -> None:
    projector = subspace_projector(second_moment(inputs(seed, 40, *size)), energy=energy)
    torch.testing.assert_close(projector @ projector, projector, rtol=0, atol=1e-12)
    torch.testing.assert_close(projector, projector.T, rtol=0, atol=1e-14)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), size=sizes, exponent=st.integers(-20, 20))
def test_it_does_not_depend_on_the_scale_of_the_inputs(seed: int, size: tuple[int, int], exponent: int) -> None:
    sigma = second_moment(inputs(seed, 40, *size))
    for choice in ({"energy": 0.9}, {"epsilon": 0.1}):
        plain = subspace_projector(sigma, **choice)
        torch.testing.assert_close(subspace_projector(sigma * 2.0**exponent, **choice), plain, rtol=0, atol=1e-7)


@settings(deadline=None)
@given(seed=st.integers(0, 2**31), size=sizes, share=st.sampled_from([0.0, 0.3, 0.7, 1.0]))
def test_a_share_of_the_directions_closes_as_many_and_the_leading_ones(
    seed: int, size: tuple[int, int], share: float
) -> None:
    width, rank = size
    x = inputs(seed, 40, width, rank)
    _, s, right = np.linalg.svd(x.numpy(), full_matrices=False)  # of the inputs, not of their second moment
    count = min(round(share * width), int((s > 1e-6 * s[0]).sum()))
    projector = subspace_projector(second_moment(x), directions=share)
    np.testing.assert_allclose(projector, np.eye(width) - right[:count].T @ right[:count], rtol=0, atol=1e-7)
    assert closed_share(projector) == pytest.approx(count / width)


def test_more_energy_and_less_softness_close_more() -> None:
    sigma = second_moment(inputs(0, 40, 10, 10))
    hard = [closed_share(subspace_projector(sigma, energy=e)) for e in (0.0, 0.5, 0.9, 0.99, 1.0)]
    soft = [closed_share(subspace_projector(sigma, epsilon=e)) for e in (1e3, 10, 0.1, 1e-3, 1e-6)]
    assert hard == sorted(hard)
    assert soft == sorted(soft)
    assert hard[0] == 0
    assert soft[0] < 0.01
    assert hard[-1] == pytest.approx(1)
    assert soft[-1] > 0.99


def test_without_any_input_nothing_is_closed() -> None:
    for choice in ({"energy": 0.99}, {"directions": 0.5}, {"epsilon": 0.1}):
        assert torch.equal(subspace_projector(torch.zeros(3, 3), **choice), torch.eye(3))


def test_rounding_that_makes_the_matrix_indefinite_does_no_harm() -> None:
    x = inputs(0, 200, 64, 5, torch.float32)
    sigma = second_moment(x)
    assert torch.linalg.eigvalsh(sigma.double())[0] < 0  # the premise of this test
    soft = torch.linalg.eigvalsh(subspace_projector(sigma, epsilon=1e-9).double())
    assert soft.min() >= -1e-6
    assert soft.max() <= 1 + 1e-6


def test_arguments_are_checked() -> None:
    sigma = torch.eye(3)
    for arguments in ({}, {"energy": None}, {"energy": 0.9, "epsilon": 0.1}, {"energy": 0.9, "directions": 0.3}):
        with pytest.raises(ValueError, match="exactly one"):
            subspace_projector(sigma, **arguments)
    for share in (-0.1, 1.1, float("nan")):
        for name in ("energy", "directions"):
            with pytest.raises(ValueError, match=f"{name} is a share in"):
                subspace_projector(sigma, **{name: share})
    for epsilon in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="positive number"):
            subspace_projector(sigma, epsilon=epsilon)
    with pytest.raises(ValueError, match="square"):
        subspace_projector(torch.zeros(2, 3), energy=0.9)
    with pytest.raises(ValueError, match="not finite"):
        subspace_projector(torch.full((2, 2), float("nan")), energy=0.9)
