import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis_policy.aegis import project_layer

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(3, 4), (5,), (2, 2, 2)]


def layer(seed: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [(scale * torch.randn(s, generator=generator, dtype=torch.float64)).to(dtype) for s in SHAPES]


def vector(tensors: list[torch.Tensor]) -> np.ndarray:
    return torch.cat([t.double().flatten() for t in tensors]).numpy()


def reference(task: list[torch.Tensor], anchor: list[torch.Tensor]) -> np.ndarray:
    """The paper's formula in numpy float64, with the anchor normalised so that nothing underflows."""
    g, a = vector(task), vector(anchor)
    if not a.any():
        return g
    a = a / np.abs(a).max()
    d = g @ a
    return g - d / (a @ a) * a if d < 0 else g


def conflicting(seed: int, dtype: torch.dtype = torch.float32) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    task, anchor = layer(seed, dtype), layer(seed + 1, dtype)
    task[1][0] = -0.0
    if vector(task) @ vector(anchor) > 0:
        anchor = [-a for a in anchor]
    return task, anchor


def test_two_vectors_by_hand() -> None:
    (g,), report = project_layer([torch.tensor([1.0, -1.0])], [torch.tensor([0.0, 2.0])])
    assert g.tolist() == [1.0, 0.0]
    assert report.conflict.item()
    assert report.cosine is not None
    assert report.cosine.item() == pytest.approx(-(2**-0.5))
    assert report.energy_shed.item() == pytest.approx(0.5)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from(DTYPES),
    anchor_dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    anchor_scale=st.sampled_from([1.0, 1e-20, 1e-30, 1e15, 0.0]),
    task_scale=st.sampled_from([1.0, 1e-3, 0.0]),
)
def test_no_projected_gradient_conflicts_with_the_anchor(
    seed: int, dtype: torch.dtype, anchor_dtype: torch.dtype, anchor_scale: float, task_scale: float
) -> None:
    task, anchor = layer(seed, dtype, task_scale), layer(seed + 1, anchor_dtype, anchor_scale)
    g, a = vector(project_layer(task, anchor)[0]), vector(anchor)
    # Rounding moves each entry by at most eps/2 of itself (Cauchy-Schwarz), or by half of the smallest number
    # where float16 runs out of exponent.
    info = torch.finfo(dtype)
    underflow = info.smallest_normal * info.eps * len(g) ** 0.5
    assert g @ a >= -(info.eps * np.linalg.norm(g) + underflow) * np.linalg.norm(a)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.sampled_from([1.0, 1e-20, 1e12]), dtype=st.sampled_from(DTYPES))
def test_it_agrees_with_an_independent_float64_reference(seed: int, scale: float, dtype: torch.dtype) -> None:
    task, anchor = layer(seed, dtype), layer(seed + 1, torch.float32, scale)
    projected = vector(project_layer(task, anchor)[0])
    # The result is rounded once; entries that cancel are accurate relative to what they were.
    atol = torch.finfo(dtype).eps * np.abs(vector(task)).max()
    np.testing.assert_allclose(projected, reference(task, anchor), rtol=0, atol=atol)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), dtype=st.sampled_from(DTYPES))
def test_without_conflict_the_gradient_is_bit_identical(seed: int, dtype: torch.dtype) -> None:
    task, anchor = conflicting(seed, dtype)
    agreeing = [-a for a in anchor]
    zero = [torch.zeros_like(a) for a in anchor]
    for other in (agreeing, zero):
        projected, report = project_layer(task, other)
        assert not report.conflict.item()
        assert report.energy_shed.item() == 0
        for before, after in zip(task, projected, strict=True):
            assert after.dtype == before.dtype
            assert torch.equal(before.view(torch.uint8), after.view(torch.uint8))


@pytest.mark.parametrize("scale", [1e-20, 1e-37, 1e-44])
def test_anchor_gradients_whose_square_is_no_float32_number_project_like_any_other(scale: float) -> None:
    (g,), report = project_layer([torch.tensor([3.0, -4.0])], [torch.tensor([0.0, scale])])
    assert g.tolist() == pytest.approx([3.0, 0.0], abs=1e-15)  # float64 rounding
    assert report.energy_shed.item() == pytest.approx(16 / 25)


@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e-37])
def test_so_they_do_on_a_device_without_float64(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aegis_policy.aegis.projection.accumulation_dtype", lambda device: torch.float32)
    for seed in range(20):
        task, anchor = layer(seed), layer(seed + 1, scale=scale)
        g = vector(project_layer(task, anchor)[0])
        # Sums of 25 products in float32 and what they cancel to: a few units in the last place of the task.
        atol = 8 * torch.finfo(torch.float32).eps * np.abs(vector(task)).max()
        np.testing.assert_allclose(g, reference(task, anchor), rtol=0, atol=atol)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), exponent=st.integers(-30, 30))
def test_it_is_homogeneous_in_the_task_gradient_and_blind_to_the_anchors_scale(seed: int, exponent: int) -> None:
    task, anchor = conflicting(seed)
    plain, _ = project_layer(task, anchor)
    c = 2.0**exponent  # powers of two scale without rounding, so the laws hold bit for bit
    scaled_task, _ = project_layer([c * g for g in task], anchor)
    scaled_anchor, _ = project_layer(task, [c * a for a in anchor])
    for p, t, a in zip(plain, scaled_task, scaled_anchor, strict=True):
        assert torch.equal(c * p, t)
        assert torch.equal(p, a)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), order=st.permutations(range(len(SHAPES))))
def test_the_order_of_a_layers_parameters_does_not_matter(seed: int, order: list[int]) -> None:
    task, anchor = conflicting(seed)
    plain, _ = project_layer(task, anchor)
    permuted, _ = project_layer([task[i] for i in order], [anchor[i] for i in order])
    for position, i in enumerate(order):
        torch.testing.assert_close(permuted[position], plain[i], rtol=1e-6, atol=1e-7)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_projecting_twice_is_projecting_once(seed: int) -> None:
    task, anchor = conflicting(seed)
    once, _ = project_layer(task, anchor)
    twice, _ = project_layer(once, anchor)
    for p, q in zip(once, twice, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_the_report_says_what_was_removed(seed: int) -> None:
    task, anchor = conflicting(seed)
    projected, report = project_layer(task, anchor)
    g_task, g, a = vector(task), vector(projected), vector(anchor)
    cosine = g_task @ a / np.linalg.norm(g_task) / np.linalg.norm(a)
    assert report.conflict.item()
    assert report.cosine is not None
    assert report.cosine.item() == pytest.approx(cosine, rel=1e-9)
    # The projected gradient is rounded to float32.
    assert report.energy_shed.item() == pytest.approx(1 - (g @ g) / (g_task @ g_task), abs=1e-6)


def test_a_layer_is_one_vector_and_not_one_a_parameter() -> None:
    # Alone the second parameter conflicts; together with the first the layer does not.
    task = [torch.tensor([2.0]), torch.tensor([-1.0])]
    anchor = [torch.tensor([1.0]), torch.tensor([1.0])]
    projected, report = project_layer(task, anchor)
    assert not report.conflict.item()
    assert [p.item() for p in projected] == [2.0, -1.0]


def test_a_zero_task_gradient_stays_zero() -> None:
    projected, report = project_layer([torch.zeros(3)], [torch.ones(3)])
    assert torch.equal(projected[0], torch.zeros(3))
    assert report.cosine is not None
    assert report.cosine.item() == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_never_let_through_unprotected(bad: float) -> None:
    projected, _ = project_layer([torch.ones(2)], [torch.tensor([bad, 1.0])])
    assert projected[0].isnan().any()


def test_inputs_are_not_changed() -> None:
    task, anchor = conflicting(3)
    before = [t.clone() for t in task + anchor]
    project_layer(task, anchor)
    assert all(torch.equal(b, t) for b, t in zip(before, task + anchor, strict=True))


def test_lists_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="received none"):
        project_layer([], [])
    with pytest.raises(ValueError, match="parallel lists"):
        project_layer([torch.zeros(2)], [torch.zeros(3)])
