"""The directions in which a linear map may move without changing its response to the anchor's inputs.

With `Sigma = E[x x^T]` (in x in) the second moment of the inputs that the anchor data feed to `W` (out x in), or of
these inputs scaled to length one so that no token owns the energy, a step is restricted to

    dW <- dW P      hard:  P = I - U U^T            U: leading eigenvectors that carry `energy` of trace(Sigma)
                    soft:  P = (I + Sigma / e)^-1    e = epsilon * trace(Sigma) / in   (relative to the mean eigenvalue)

so that `dW x = 0` for every `x` in the span of `U` (hard), or is shrunk by `e / (e + lambda)` along an
eigenvector (soft). The null-space projection is that of Adam-NSCL (arXiv 2103.07113), applied here to the
step really taken.
"""

import torch
from torch import Tensor

from aegis_policy.aegis.precision import at_least_float32
from aegis_policy.aegis.projector import Projector

# Up to this width two thin matrix products take as long as one with the matrix, which is small anyway
# (benchmarks/subspace.py).
SMALL = 256


def subspace_projector(second_moment: Tensor, *, energy: float | None = None, epsilon: float | None = None) -> Tensor:
    """The matrix `P` by which a step of a linear map is multiplied from the right.

    Computed in float64 (on the CPU for MPS tensors). To the hard form, eigenvalues below `sqrt(in) * eps *
    lambda_max`, with `eps` that of `second_moment`'s dtype, are its rounding noise: `energy=1` closes the
    span of what was seen and no more. Without any energy (`second_moment` zero) nothing is closed and `P =
    I`.

    Args:
        second_moment: `E[x x^T]`, (in, in), symmetric and positive semi-definite.
        energy: Hard form: close the fewest leading eigenvectors that carry at least this share of the trace,
            in [0, 1].
        epsilon: Soft form: softness relative to the mean eigenvalue, > 0. Smaller closes more.

    Returns:
        `P`, (in, in), symmetric, on the same device, float32 (float64 for float64 inputs).

    Raises:
        ValueError: Unless exactly one of `energy` and `epsilon` is given and in range, and the matrix is
            square and finite.
    """
    vectors, shrink = _closed_directions(second_moment, energy, epsilon)
    # Written as I minus the closed part, so that nothing closed is exactly the identity.
    identity = torch.eye(len(vectors), dtype=vectors.dtype, device=vectors.device)
    return _like(second_moment, identity - (vectors * shrink) @ vectors.T)


def compact_projector(second_moment: Tensor, *, energy: float | None = None, epsilon: float | None = None) -> Projector:
    """The same `P` in the form that costs least; arguments and errors are those of `subspace_projector`."""
    if energy is None or len(second_moment) <= SMALL:
        return Projector(subspace_projector(second_moment, energy=energy, epsilon=epsilon), "matrix")
    vectors, closed = _closed_directions(second_moment, energy, epsilon)
    return Projector.of_directions(_like(second_moment, vectors), closed.bool().to(second_moment.device))


def closed_share(projector: Tensor | Projector) -> float:
    """Share of the directions that a projector closes, `1 - trace(P) / in`, in [0, 1]."""
    return (projector if isinstance(projector, Projector) else Projector(projector, "matrix")).closed_share


def _closed_directions(second_moment: Tensor, energy: float | None, epsilon: float | None) -> tuple[Tensor, Tensor]:
    """Eigenvectors (in, in) in float64, and how much of each is closed (in,)."""
    _check(second_moment, energy, epsilon)
    sigma = second_moment.detach()
    wide = (sigma.cpu() if sigma.device.type == "mps" else sigma).double()
    values, vectors = torch.linalg.eigh((wide + wide.T) / 2)
    # Rounding makes eigenvalues of a singular matrix slightly negative, which the soft form could divide by.
    values = values.clamp(min=0)
    noise = len(wide) ** 0.5 * torch.finfo(at_least_float32(sigma.dtype)).eps * values[-1]
    return vectors, _closed_hard(values, energy, noise) if energy is not None else _closed_soft(values, epsilon)


def _like(second_moment: Tensor, value: Tensor) -> Tensor:
    """Rounded once, to where and in what precision projectors are kept."""
    return value.to(device=second_moment.device, dtype=at_least_float32(second_moment.dtype))


def _closed_hard(values: Tensor, energy: float, noise: Tensor) -> Tensor:
    """1 for the leading eigenvalues that carry `energy` of the sum, 0 for the others; ascending as from `eigh`."""
    descending = torch.where(values > noise, values, 0.0).flip(0)
    carried = descending.cumsum(0)
    # A direction is needed as long as those before it carry less than was asked. The second condition drops
    # directions without energy, which the rounding of the cumulative sum could ask for at energy = 1.
    needed = (carried - descending < energy * carried[-1]) & (descending > 0)
    return needed.to(values.dtype).flip(0)


def _closed_soft(values: Tensor, epsilon: float | None) -> Tensor:
    """lambda / (e + lambda), e being `epsilon` times the mean eigenvalue; 0 where there is no energy at all."""
    assert epsilon is not None
    softness = epsilon * values.mean()
    return torch.where(values > 0, values / (softness + values), 0.0)


def _check(second_moment: Tensor, energy: float | None, epsilon: float | None) -> None:
    if (energy is None) == (epsilon is None):
        raise ValueError(
            "Give exactly one of energy (hard: share of the anchor's energy to close, e.g. 0.99) and "
            f"epsilon (soft: relative to the mean eigenvalue, e.g. 0.1); received energy={energy}, "
            f"epsilon={epsilon}."
        )
    if energy is not None and not 0 <= energy <= 1:
        raise ValueError(f"energy is a share in [0, 1]; received {energy}. For example energy=0.99.")
    if epsilon is not None and not 0 < epsilon < float("inf"):
        raise ValueError(f"epsilon is a positive number; received {epsilon}. For example epsilon=0.1.")
    if second_moment.ndim != 2 or second_moment.shape[0] != second_moment.shape[1]:
        raise ValueError(f"A second moment is a square (in, in) matrix; received {tuple(second_moment.shape)}.")
    if not torch.isfinite(second_moment).all():
        raise ValueError(
            "The second moment has entries that are not finite, so some anchor input was inf or NaN. Run "
            "the anchor pass in float32 or bfloat16, or find the sample that overflows."
        )
