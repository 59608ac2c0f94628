"""The directions in which a linear map may move without changing its response to the anchor's inputs.

With `Sigma = E[x x^T]` (in x in) the second moment of the inputs that the anchor data feed to `W` (out x in), or of
these inputs scaled to length one so that no token owns the energy, a step is restricted to

    dW <- dW P      hard:  P = I - U U^T            U: leading eigenvectors that carry `energy` of trace(Sigma), or
                                                       are the share `directions` of all
                    soft:  P = (I + Sigma / e)^-1    e = epsilon * trace(Sigma) / in   (relative to the mean eigenvalue)

so that `dW x = 0` for every `x` in the span of `U` (hard), or is shrunk by `e / (e + lambda)` along an
eigenvector (soft). The null-space projection is that of Adam-NSCL (arXiv 2103.07113), applied here to the
step really taken.
"""

from typing import TypedDict, Unpack

import torch
from torch import Tensor

from aegis_policy.aegis.precision import at_least_float32
from aegis_policy.aegis.projector import Projector

# Up to this width two thin matrix products take as long as one with the matrix, which is small anyway
# (benchmarks/subspace.py).
SMALL = 256


class Closes(TypedDict, total=False):
    """How much a subspace closes: exactly one of these, the others left out or None.

    Attributes:
        energy: Hard form: the fewest leading eigenvectors that carry at least this share of the trace, in [0, 1].
        directions: Hard form: this share of the eigenvectors, rounded to a whole number, the leading ones, in [0, 1].
            The same share is as many of a wide input as of a narrow one, whose energy falls off more slowly.
        epsilon: Soft form: softness relative to the mean eigenvalue, > 0. Smaller closes more.
    """

    energy: float | None
    directions: float | None
    epsilon: float | None


def subspace_projector(second_moment: Tensor, **closes: Unpack[Closes]) -> Tensor:
    """The matrix `P` by which a step of a linear map is multiplied from the right.

    Computed in float64 (on the CPU for MPS tensors). To the hard form, eigenvalues below `sqrt(in) * eps *
    lambda_max`, with `eps` that of `second_moment`'s dtype, are its rounding noise: `energy=1` and `directions=1`
    close the span of what was seen and no more. Without any energy (`second_moment` zero) nothing is closed and `P =
    I`.

    Args:
        second_moment: `E[x x^T]`, (in, in), symmetric and positive semi-definite.
        closes: One of `Closes`, such as `energy=0.99`.

    Returns:
        `P`, (in, in), symmetric, on the same device, float32 (float64 for float64 inputs).

    Raises:
        ValueError: Unless exactly one of `Closes` is given and in range, and the matrix is square and finite.
    """
    vectors, shrink = _closed_directions(second_moment, closes)
    # Written as I minus the closed part, so that nothing closed is exactly the identity.
    identity = torch.eye(len(vectors), dtype=vectors.dtype, device=vectors.device)
    return _like(second_moment, identity - (vectors * shrink) @ vectors.T)


def compact_projector(second_moment: Tensor, **closes: Unpack[Closes]) -> Projector:
    """The same `P` in the form that costs least; arguments and errors are those of `subspace_projector`."""
    if closes.get("epsilon") is not None or len(second_moment) <= SMALL:
        return Projector(subspace_projector(second_moment, **closes), "matrix")
    vectors, closed = _closed_directions(second_moment, closes)
    return Projector.of_directions(_like(second_moment, vectors), closed.bool().to(second_moment.device))


def closed_share(projector: Tensor | Projector) -> float:
    """Share of the directions that a projector closes, `1 - trace(P) / in`, in [0, 1]."""
    return (projector if isinstance(projector, Projector) else Projector(projector, "matrix")).closed_share


def _closed_directions(second_moment: Tensor, closes: Closes) -> tuple[Tensor, Tensor]:
    """Eigenvectors (in, in) in float64, and how much of each is closed (in,)."""
    _check(second_moment, closes)
    sigma = second_moment.detach()
    wide = (sigma.cpu() if sigma.device.type == "mps" else sigma).double()
    values, vectors = torch.linalg.eigh((wide + wide.T) / 2)
    # Rounding makes eigenvalues of a singular matrix slightly negative, which the soft form could divide by.
    values = values.clamp(min=0)
    if (epsilon := closes.get("epsilon")) is not None:
        return vectors, _closed_soft(values, epsilon)
    noise = len(wide) ** 0.5 * torch.finfo(at_least_float32(sigma.dtype)).eps * values[-1]
    seen = torch.where(values > noise, values, 0.0)
    if (energy := closes.get("energy")) is not None:
        return vectors, _carrying(seen, energy)
    share = closes["directions"]
    assert share is not None, "checked above"
    leading = torch.arange(len(seen), device=seen.device) >= len(seen) - round(share * len(seen))
    return vectors, (leading & (seen > 0)).to(seen.dtype)


def _like(second_moment: Tensor, value: Tensor) -> Tensor:
    """Rounded once, to where and in what precision projectors are kept."""
    return value.to(device=second_moment.device, dtype=at_least_float32(second_moment.dtype))


def _carrying(values: Tensor, energy: float) -> Tensor:
    """1 for the leading eigenvalues that carry `energy` of the sum, 0 for the others; ascending as from `eigh`."""
    descending = values.flip(0)
    carried = descending.cumsum(0)
    # A direction is needed as long as those before it carry less than was asked. The second condition drops
    # directions without energy, which the rounding of the cumulative sum could ask for at energy = 1.
    needed = (carried - descending < energy * carried[-1]) & (descending > 0)
    return needed.to(values.dtype).flip(0)


def _closed_soft(values: Tensor, epsilon: float) -> Tensor:
    """lambda / (e + lambda), e being `epsilon` times the mean eigenvalue; 0 where there is no energy at all."""
    softness = epsilon * values.mean()
    return torch.where(values > 0, values / (softness + values), 0.0)


def _check(second_moment: Tensor, closes: Closes) -> None:
    given = {name: value for name, value in closes.items() if value is not None}
    if len(given) != 1:
        raise ValueError(
            "Give exactly one of energy (hard: share of the anchor's energy to close, e.g. 0.99), directions (hard: "
            "share of the input directions to close, e.g. 0.3) and epsilon (soft: relative to the mean eigenvalue, "
            f"e.g. 0.1); received {given or 'none'}."
        )
    for name, share, usual in (
        ("energy", closes.get("energy"), 0.99),
        ("directions", closes.get("directions"), 0.3),
    ):
        if share is not None and not 0 <= share <= 1:
            raise ValueError(f"{name} is a share in [0, 1]; received {share}. For example {name}={usual}.")
    if (epsilon := closes.get("epsilon")) is not None and not 0 < epsilon < float("inf"):
        raise ValueError(f"epsilon is a positive number; received {epsilon}. For example epsilon=0.1.")
    if second_moment.ndim != 2 or second_moment.shape[0] != second_moment.shape[1]:
        raise ValueError(f"A second moment is a square (in, in) matrix; received {tuple(second_moment.shape)}.")
    if not torch.isfinite(second_moment).all():
        raise ValueError(
            "The second moment has entries that are not finite, so some anchor input was inf or NaN. Run "
            "the anchor pass in float32 or bfloat16, or find the sample that overflows."
        )
