"""A projector of a subspace in the smallest form that holds it.

    closed   P = I - U U^T    U (in, k)         orthonormal basis of what is closed, where that is at most half
    open     P = V V^T        V (in, in - k)    orthonormal basis of what is open, where that is less
    matrix   P                P (in, in)        where every direction is closed a little (soft form)

With r = min(k, in - k) columns a step `D` (out, in) is restricted as `D - (D U) U^T` or `(D V) V^T`: 4 out in r
floating-point operations and `in r` numbers. The matrix takes 2 out in^2 and in^2, which is no fewer operations and at
least twice the memory.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from aegis_policy.aegis.ranks import take_from_first, world_size

FORMS = ("closed", "open", "matrix")


@dataclass(frozen=True, eq=False)
class Projector:
    """`P` (in, in), symmetric; `step @ projector` is `step P` for a step (out, in).

    Attributes:
        basis: (in, r) with orthonormal columns; (in, in), `P` itself, for "matrix".
        form: One of `FORMS`: what the basis spans.

    Raises:
        ValueError: For another form, or a basis that does not fit it.
    """

    basis: Tensor
    form: str

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(f"A projector's form is one of {', '.join(FORMS)}; received {self.form!r}.")
        shape = tuple(self.basis.shape)
        if len(shape) != 2 or (shape[1] > shape[0] if self.form != "matrix" else shape[1] != shape[0]):
            raise ValueError(
                "A basis is (in, r) with at most as many columns as rows, and the matrix form's is (in, in); "
                f"received {shape} for {self.form!r}."
            )

    @classmethod
    def of_directions(cls, vectors: Tensor, closed: Tensor) -> "Projector":
        """From an orthonormal basis of everything and what of it is closed.

        Args:
            vectors: (in, in), orthonormal columns.
            closed: (in,), true for the columns that are closed.
        """
        few = 2 * int(closed.sum()) <= len(closed)
        return cls(vectors[:, closed if few else ~closed].contiguous(), "closed" if few else "open")

    def __rmatmul__(self, step: Tensor) -> Tensor:
        if self.form == "matrix":
            return step @ self.basis
        inside = step @ self.basis  # (out, r)
        if self.form == "open":
            return inside @ self.basis.T
        return torch.addmm(step, inside, self.basis.T, alpha=-1)

    def matrix(self) -> Tensor:
        """`P` (in, in)."""
        if self.form == "matrix":
            return self.basis
        identity = torch.eye(len(self.basis), dtype=self.basis.dtype, device=self.basis.device)
        return identity @ self

    def to(self, *, device: torch.device, dtype: torch.dtype) -> "Projector":
        """On another device or in another dtype; itself where it is so already."""
        basis = self.basis.to(device=device, dtype=dtype)
        return self if basis is self.basis else Projector(basis, self.form)

    def of_first_rank(self) -> "Projector":
        """That of rank 0, the same to the last bit on all ranks, which must all call; itself in a single process.

        Its form and its rank may differ from this one's, where an eigenvalue lies on the threshold. Where they do not,
        this one's basis is overwritten.
        """
        if world_size() == 1:
            return self
        told = torch.tensor([FORMS.index(self.form), *self.basis.shape], device=self.device)
        take_from_first([told], device=self.device)
        form, *shape = told.tolist()
        same = (FORMS[form], *shape) == (self.form, *self.basis.shape)
        first = self if same else Projector(self.basis.new_empty(shape), FORMS[form])
        take_from_first([first.basis], device=self.device)
        return first

    @property
    def shape(self) -> tuple[int, int]:
        """Of `P`."""
        return len(self.basis), len(self.basis)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.basis.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the basis."""
        return self.basis.dtype

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return self.basis.nbytes

    @property
    def closed_share(self) -> float:
        """Share of the directions that are closed, `1 - trace(P) / in`, in [0, 1]."""
        if self.form == "matrix":
            return 1.0 - self.basis.diagonal().double().mean().item()
        width, rank = self.basis.shape
        return (rank if self.form == "closed" else width - rank) / width
