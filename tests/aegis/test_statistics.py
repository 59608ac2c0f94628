from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis_policy.aegis import ActivationStatistics, SecondMoment
from aegis_policy.aegis.statistics import BLOCK, TOGETHER

# float64 sums over at most a few hundred tokens: a handful of roundings of 1e-16, relative to the largest entry.
FLOAT64 = 1e-12


def batches(seed: int, sizes: list[int], width: int, offset: float) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [offset + torch.randn(n, width, generator=generator, dtype=torch.float64) for n in sizes]


def statistics_of(parts: list[torch.Tensor]) -> ActivationStatistics:
    statistics = ActivationStatistics(parts[0].shape[-1])
    for part in parts:
        statistics.update(part)
    return statistics


def test_two_tokens_by_hand() -> None:
    statistics = ActivationStatistics(2)
    statistics.update(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    assert statistics.mean.tolist() == [2.0, 5.0]
    assert statistics.std.tolist() == [1.0, 0.0]  # population: divided by n, not n - 1
    assert statistics.count == 2


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(lambda s: sum(s) > 0),
    width=st.integers(1, 5),
    offset=st.sampled_from([0.0, -3.0, 1e4]),
)
def test_streaming_in_any_batches_and_order_equals_all_tokens_at_once(
    seed: int, sizes: list[int], width: int, offset: float
) -> None:
    parts = batches(seed, sizes, width, offset)
    everything = torch.cat(parts).numpy()
    for order in (parts, parts[::-1]):
        statistics = statistics_of(order)
        assert statistics.count == len(everything)
        np.testing.assert_allclose(statistics.mean, everything.mean(0), rtol=FLOAT64, atol=FLOAT64)
        np.testing.assert_allclose(statistics.std, everything.std(0), rtol=1e-8, atol=FLOAT64 * max(1, abs(offset)))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), sizes=st.tuples(*[st.integers(1, 6)] * 3))
def test_merging_is_associative_and_commutative(seed: int, sizes: tuple[int, ...]) -> None:
    def merged(*parts: ActivationStatistics) -> ActivationStatistics:
        total = ActivationStatistics(3)
        for part in parts:
            total.merge(part)
        return total

    a, b, c = (statistics_of([part]) for part in batches(seed, list(sizes), 3, offset=2.0))
    left, right, swapped = merged(merged(a, b), c), merged(a, merged(b, c)), merged(c, b, a)
    for other in (right, swapped):
        assert other.count == left.count
        torch.testing.assert_close(other.mean, left.mean, rtol=FLOAT64, atol=FLOAT64)
        torch.testing.assert_close(other.std, left.std, rtol=FLOAT64, atol=FLOAT64)


def test_the_variance_of_a_channel_far_from_zero_does_not_cancel() -> None:
    # E[y^2] - E[y]^2 loses every digit here even in float64: 1e18 has a spacing of 128.
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4000, 1, generator=generator, dtype=torch.float64)
    statistics = statistics_of(list((1e9 + noise).split(100)))
    # The inputs themselves are rounded to 1e-7 at 1e9.
    torch.testing.assert_close(statistics.std, noise.std(0, correction=0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("offset", [0.0, 30.0, -1e4])
def test_float32_activations_give_what_they_give_in_float64(offset: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = offset + torch.randn(4000, 8, generator=generator)
    statistics = statistics_of(list(x.split(700)))
    # Deviations are of 1 and rounded to 6e-8 each; what the mean of a batch is rounded by is taken back.
    torch.testing.assert_close(statistics.mean, x.double().mean(0), rtol=0, atol=1e-6)
    torch.testing.assert_close(statistics.std, x.double().std(0, correction=0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", [ActivationStatistics, SecondMoment])
@pytest.mark.parametrize("padding", [0.0, 1e30, float("nan"), float("inf")])
def test_masked_tokens_have_no_influence_whatever_stands_there(kind: type, padding: float) -> None:
    x = torch.randn(3, 5, 4)
    padded = torch.cat([x, torch.full((3, 2, 4), padding)], dim=1)
    mask = torch.tensor([1, 1, 1, 1, 1, 0, 0]).expand(3, 7)
    plain, masked = kind(4), kind(4)
    plain.update(x)
    masked.update(padded, mask)
    assert plain.count == masked.count == 15
    if kind is SecondMoment:
        assert torch.equal(plain.value, masked.value)
    else:
        assert torch.equal(plain.mean, masked.mean)
        assert torch.equal(plain.std, masked.std)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_mask_that_is_changed_in_place_is_another_mask(mode: type) -> None:
    x = torch.arange(8.0).reshape(4, 2)
    statistics = ActivationStatistics(2)
    with mode():
        mask = torch.tensor([True, True, False, False])
        statistics.update(x, mask)
        assert statistics.mean.tolist() == [1.0, 2.0]
        mask.logical_not_()
        statistics.update(x, mask)
    assert statistics.count == 4
    assert statistics.mean.tolist() == [3.0, 4.0]


def test_a_fully_masked_batch_changes_nothing() -> None:
    for moments in (ActivationStatistics(4), SecondMoment(4)):
        moments.update(torch.randn(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool))
        assert moments.count == 0


@pytest.mark.parametrize("together", [1, 6, TOGETHER])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_the_second_moment_is_the_mean_outer_product_in_any_batches(together: int, seed: int, sizes: list[int]) -> None:
    with patch("aegis_policy.aegis.statistics.TOGETHER", together):
        _check_streaming(seed, sizes)


def _check_streaming(seed: int, sizes: list[int]) -> None:
    parts = batches(seed, sizes, 4, offset=0.5)
    everything = torch.cat(parts).numpy()
    streamed, merged = SecondMoment(4), SecondMoment(4)
    for part in parts:
        streamed.update(part)
        alone = SecondMoment(4)
        alone.update(part)
        merged.merge(alone)
    expected = everything.T @ everything / len(everything)
    for moment in (streamed, merged):
        np.testing.assert_allclose(moment.value, expected, rtol=FLOAT64, atol=FLOAT64)
        assert torch.equal(moment.value, moment.value.T)
        assert moment.count == len(everything)


def test_tokens_that_wait_are_a_copy_and_counted_when_the_moment_is_read_in_between() -> None:
    moment = SecondMoment(2)
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    expected = (x.T @ x / 2).double()
    moment.update(x)
    x.zero_()  # a model may write over an activation later
    for _ in range(2):
        torch.testing.assert_close(moment.value, expected)
    moment.update(torch.zeros(2, 2, dtype=torch.float64))  # of another precision
    torch.testing.assert_close(moment.value, expected / 2)


@pytest.mark.parametrize("width", [BLOCK, BLOCK + 1, 2 * BLOCK + 7])
def test_a_wide_second_moment_made_of_blocks_is_the_same_mean(width: int) -> None:
    parts = batches(0, [5, 9], width, offset=0.5)
    everything = torch.cat(parts).numpy()
    streamed, merged = SecondMoment(width), SecondMoment(width)
    for part in parts:
        streamed.update(part)
        alone = SecondMoment(width)
        alone.update(part)
        merged.merge(alone)
    for moment in (streamed, merged):
        np.testing.assert_allclose(
            moment.value, everything.T @ everything / len(everything), rtol=FLOAT64, atol=FLOAT64
        )
        assert torch.equal(moment.value, moment.value.T)


def test_a_wide_second_moment_takes_half_of_its_matrix_and_at_most_half_a_block_of_rows_more() -> None:
    width = 6 * BLOCK
    moment = SecondMoment(width)
    assert moment.nbytes == 0
    moment.update(torch.randn(TOGETHER, width))  # of these none waits
    assert moment.nbytes == moment.value.nbytes // 2 + 8 * width * BLOCK // 2  # float64: 8 bytes
    before = moment.nbytes
    for _ in range(2 * TOGETHER):
        moment.update(torch.randn(3, width))
    assert moment.nbytes == before + 4 * TOGETHER * width


def test_half_precision_inputs_are_summed_in_full_precision() -> None:
    # 4096 tokens of 1: a bfloat16 sum stops growing at 256.
    ones = torch.ones(4096, 2, dtype=torch.bfloat16)
    statistics, moment = ActivationStatistics(2), SecondMoment(2)
    statistics.update(ones)
    moment.update(ones)
    assert statistics.mean.tolist() == [1.0, 1.0]
    assert moment.value.tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_of_unit_inputs_each_token_counts_the_same_and_one_of_zeros_adds_nothing() -> None:
    x = torch.tensor([[3e4, 0.0], [0.0, 2e-3], [0.0, 5.0], [0.0, 0.0]])
    moment, merged, part = SecondMoment(2, unit=True), SecondMoment(2, unit=True), SecondMoment(2, unit=True)
    moment.update(x)
    part.update(x)
    merged.merge(part)
    for found in (moment.value, merged.value):
        np.testing.assert_allclose(found, [[0.25, 0.0], [0.0, 0.5]], rtol=FLOAT64)


def test_every_third_token_of_a_batch_and_of_the_next_batch_others() -> None:
    moment = SecondMoment(2, every=3)
    x = torch.arange(14.0).reshape(7, 2)
    counts = torch.tensor([True, True, False, True, False, True, True])
    moment.update(x)  # tokens 0, 3, 6
    moment.update(x, counts)  # of 1 and 4 the one that counts
    moment.update(x[:2])  # the third of two: none
    rows = x[[0, 3, 6, 1]].double()
    assert moment.count == 4
    np.testing.assert_allclose(moment.value, rows.T @ rows / 4, rtol=FLOAT64)


def test_errors_teach() -> None:
    statistics = ActivationStatistics(4)
    with pytest.raises(ValueError, match=r"\(\.\.\., 4\); received \(2, 3\)"):
        statistics.update(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="one entry a token"):
        statistics.update(torch.zeros(2, 3, 4), torch.ones(2, 4))
    with pytest.raises(ValueError, match="call update"):
        _ = statistics.mean
    with pytest.raises(ValueError, match="call update"):
        _ = SecondMoment(3).value
    with pytest.raises(ValueError, match="one width"):
        statistics.merge(ActivationStatistics(5))
    with pytest.raises(ValueError, match="one width"):
        SecondMoment(3).merge(SecondMoment(4))
    with pytest.raises(ValueError, match="one kind"):
        SecondMoment(3).merge(SecondMoment(3, unit=True))
