"""Streaming moments of activations over unmasked tokens, a batch at a time.

    ActivationStatistics   mu = E[y],  sigma = sqrt(E[(y - mu)^2])   of a layer's outputs,  per channel
    SecondMoment           Sigma = E[x x^T]                          of a linear map's inputs, or of x / |x|

`D`, `in` widths; `N` unmasked tokens of a batch; `...` any leading dimensions. Batches are merged with Chan's
formula, which does not cancel where E[y^2] - E[y]^2 would:

    delta = mu_b - mu_a;  mu = mu_a + delta n_b / n;  M2 = M2_a + M2_b + delta^2 n_a n_b / n
"""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import normalize

from aegis_policy.aegis.precision import accumulation_dtype, full_precision_matmul, wide

# Rows of a second moment that are made and kept at once, from their diagonal block on to the right: of a wide one
# little more than half (benchmarks/anchor.py).
BLOCK = 256
# Tokens whose product is made at once. Of a few tokens it costs what reading and writing the running sum costs.
TOGETHER = 512


def check_rows(x: Tensor, mask: Tensor | None, width: int | None) -> None:
    """Refuse activations of another width and masks that are not one entry a token.

    Raises:
        ValueError: With the rule, the shapes received and the remedy.
    """
    if x.ndim < 1 or (width is not None and x.shape[-1] != width):
        raise ValueError(f"Activations must be (..., {width}); received {tuple(x.shape)}.")
    if mask is not None and mask.shape != x.shape[:-1]:
        raise ValueError(
            f"A mask has one entry a token, shape {tuple(x.shape[:-1])} for activations {tuple(x.shape)}; "
            f"received {tuple(mask.shape)}. Expand or slice it to the tokens that this site sees."
        )


def unmasked_rows(x: Tensor, mask: Tensor | None, *, first: int = 0, every: int = 1) -> Tensor:
    """Every so many tokens of `x` (..., D), from the `first` on, as rows (N, D), without those that are masked."""
    rows = x.reshape(-1, x.shape[-1])[first::every]
    if mask is None:
        return rows
    # What inference mode has made has no version that would tell of changes in place.
    unversioned = mask.is_inference()
    kept = _unmasked(mask, first, every) if unversioned else _unmasked_once(mask, mask._version, first, every)
    return rows.index_select(0, kept.to(rows.device))


def _unmasked(mask: Tensor, first: int, every: int) -> Tensor:
    """Which of every so many tokens count; a device is waited for."""
    return mask.reshape(-1)[first::every].nonzero().squeeze(1)


@lru_cache(maxsize=4)
def _unmasked_once(mask: Tensor, version: int, first: int, every: int) -> Tensor:
    """The same, found out once for all sites that this version of the very same mask is given to."""
    return _unmasked(mask, first, every)


class ActivationStatistics:
    """Streaming per-channel mean and population standard deviation (ddof 0) of one layer's outputs.

    State: `count` tokens seen, running mean (D,) and sum of squared deviations (D,), in float64 where the device has
        it, on that of the last batch: nothing waits for the device. A batch is reduced in float32 (float64 where it is
        in float64) about what the mean has come to, the first one about its own: near enough for nothing to cancel, and
        the batch's own mean, found in the deviations, would take another pass over it.

    Args:
        width: Channels, D.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.count = 0
        self._mean = torch.zeros(width, dtype=torch.float64)
        self._squares = torch.zeros(width, dtype=torch.float64)

    @torch.no_grad()
    def update(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Take in a batch.

        Args:
            x: Activations, (..., D).
            mask: True (or non-zero) where a token counts, shape `x.shape[:-1]`; None counts all.

        Raises:
            ValueError: If a shape does not fit.
        """
        check_rows(x, mask, self.width)
        rows = wide(unmasked_rows(x, mask))  # (N, D)
        count = rows.shape[0]
        if count == 0:
            return
        running = accumulation_dtype(x.device)
        centre = self._mean.to(rows) if self.count else rows.mean(0)
        deviations = rows - centre if mask is None else rows.sub_(centre)  # what a mask selects is a copy
        offset = deviations.sum(0).to(running) / count  # of the batch's mean from the centre
        squares = deviations.square_().sum(0).to(running) - count * offset.square()
        self._merge(count, centre.to(running) + offset, squares.clamp_(min=0))  # of equal tokens it rounds to about 0

    def merge(self, other: "ActivationStatistics") -> None:
        """Take in everything that `other` has seen (another shard or rank); `other` is left as it is.

        Raises:
            ValueError: If the widths differ.
        """
        if other.width != self.width:
            raise ValueError(f"Only statistics of one width merge: {self.width} here, {other.width} given.")
        device = self._mean.device
        self._merge(other.count, other._mean.to(device), other._squares.to(device))

    def _merge(self, count: int, mean: Tensor, squares: Tensor) -> None:
        if count == 0:
            return
        total = self.count + count
        before = self._mean.to(mean)
        delta = mean - before
        self._mean = before + delta * (count / total)
        self._squares = self._squares.to(squares) + squares + delta.square() * (self.count * count / total)
        self.count = total

    @property
    def mean(self) -> Tensor:
        """Mean, (D,), float64 where the device has it.

        Raises:
            ValueError: If no token was seen.
        """
        self._require_tokens()
        return self._mean

    @property
    def std(self) -> Tensor:
        """Population standard deviation, (D,), float64 where the device has it.

        Raises:
            ValueError: If no token was seen.
        """
        self._require_tokens()
        return (self._squares / self.count).sqrt()

    def _require_tokens(self) -> None:
        if self.count == 0:
            raise ValueError("No unmasked token was seen, so there are no moments; call update() first.")


class SecondMoment:
    """Streaming second moment `E[x x^T]` of a linear map's inputs (not centred: a constant input is a direction too).

    State: `count` tokens seen and the running sum in `dtype`, on the device of the first batch: it is symmetric, so of
    each `BLOCK` rows only the columns from their first one on, (BLOCK, in), (BLOCK, in - BLOCK), ... Tokens of small
    batches wait, at most `TOGETHER`, for those of the next. Products run in float32 (float64 for float64 inputs), never
    in TF32 or half precision.

    Args:
        width: Input width, in.
        dtype: Of the running sum. MPS has no float64: pass `torch.float32` there.
        unit: Of `x / |x|` instead (0 stays 0): each token counts the same, however large its activations are.
        every: Takes in every so many tokens of a batch, masked ones counted and left out, of the next batch others: the
            n-th begins with token `n mod every`.
    """

    def __init__(self, width: int, *, dtype: torch.dtype = torch.float64, unit: bool = False, every: int = 1) -> None:
        self.width = width
        self.dtype = dtype
        self.unit = unit
        self.every = every
        self._batches = 0
        self.count = 0
        self._sum: list[Tensor] = []
        self._waiting: Tensor | None = None  # (TOGETHER, in), of which the first `_waiting_count` rows are tokens
        self._waiting_count = 0

    @torch.no_grad()
    def update(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Take in a batch.

        Args:
            x: Inputs, (..., in).
            mask: True (or non-zero) where a token counts, shape `x.shape[:-1]`; None counts all.

        Raises:
            ValueError: If a shape does not fit, or the device lacks the running sum's dtype.
        """
        check_rows(x, mask, self.width)
        if x.device.type == "mps" and self.dtype == torch.float64:
            raise ValueError("MPS has no float64 for the running sum; pass dtype=torch.float32.")
        first = self._batches % self.every
        self._batches += 1
        rows = wide(unmasked_rows(x, mask, first=first, every=self.every))  # (N, in)
        if rows.shape[0] == 0:
            return
        self.count += rows.shape[0]
        if rows.shape[0] > TOGETHER // 2:
            self._add(rows)
        else:
            self._wait(rows)

    def merge(self, other: "SecondMoment") -> None:
        """Take in everything that `other` has seen (another shard or rank); `other` is left as it is.

        Raises:
            ValueError: If the widths differ, or one is of unit inputs and the other is not.
        """
        if other.width != self.width:
            raise ValueError(f"Only second moments of one width merge: {self.width} here, {other.width} given.")
        if other.unit != self.unit:
            raise ValueError("Only second moments of one kind merge: one here is of unit inputs, the other is not.")
        other._add_waiting()
        if not other._sum:
            return
        self._begin(other._sum[0].device)
        for kept, added in zip(self._sum, other._sum, strict=True):
            kept += added.to(kept.device)
        self.count += other.count

    @property
    def value(self) -> Tensor:
        """The second moment, (in, in), symmetric, in the running sum's dtype and on its device.

        Raises:
            ValueError: If no token was seen.
        """
        self._add_waiting()
        if not self._sum:
            raise ValueError("No unmasked token was seen, so there is no second moment; call update() first.")
        upper = self._sum[0].new_zeros(self.width, self.width)
        for kept in self._sum:
            i = self.width - kept.shape[1]
            upper[i : i + len(kept), i:] = kept
        mirrored = upper + upper.T
        for kept in self._sum:  # blocks on the diagonal are there twice: a product is symmetric only up to rounding
            i = self.width - kept.shape[1]
            mirrored[i : i + len(kept), i : i + len(kept)] /= 2
        return mirrored.div_(self.count)

    @property
    def nbytes(self) -> int:
        """Memory that the running sum and the tokens that wait take."""
        return sum(kept.nbytes for kept in self._sum) + (0 if self._waiting is None else self._waiting.nbytes)

    def _wait(self, rows: Tensor) -> None:
        waiting = self._waiting
        if waiting is None or (waiting.dtype, waiting.device) != (rows.dtype, rows.device):
            self._add_waiting()
            self._waiting = waiting = rows.new_empty(TOGETHER, self.width)
        elif self._waiting_count + len(rows) > TOGETHER:
            self._add_waiting()
        waiting[self._waiting_count : self._waiting_count + len(rows)] = rows
        self._waiting_count += len(rows)

    @torch.no_grad()
    def _add_waiting(self) -> None:
        if self._waiting is not None and self._waiting_count:
            self._add(self._waiting[: self._waiting_count])
            self._waiting_count = 0

    def _add(self, rows: Tensor) -> None:
        if self.unit:
            rows = normalize(rows, dim=1)
        self._begin(rows.device)
        with full_precision_matmul(rows.device.type):
            for i, kept in zip(range(0, self.width, BLOCK), self._sum, strict=True):
                kept += (rows[:, i : i + BLOCK].T @ rows[:, i:]).to(kept.device)

    def _begin(self, device: torch.device) -> None:
        if not self._sum:
            starts = range(0, self.width, BLOCK)
            sizes = [(min(BLOCK, self.width - i), self.width - i) for i in starts]
            self._sum = [torch.zeros(size, dtype=self.dtype, device=device) for size in sizes]
