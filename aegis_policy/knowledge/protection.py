"""Carries the anchor to the optimizer: parameter groups, projectors, anchor gradients.

lerobot-train has no hook between backward and step. So the task gradient arrives in `.grad`, the anchor gradient beside
it in `.anchor_grad`, and `AegisAdamW` projects in `step()`, after data-parallel reduction and clipping. An optimizer
that knows nothing of this would train unprotected: it never attaches the guard, and the policy refuses to go on.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from aegis_policy.aegis import (
    SUBSPACES,
    AegisAdamW,
    Closes,
    GaussianAnchor,
    Projector,
    backward_beside,
    on_every_rank,
)
from aegis_policy.knowledge.in_place import require_in_place
from aegis_policy.knowledge.trainable import layer_of


class Protection:
    """The protected layers of one backbone, and the optimizer that keeps them.

    State: `optimizer`, None until an `AegisAdamW` has been built from `groups`; whether it has taken a step that the
    policy has not counted; the anchor gradient that is kept.

    Args:
        module: Whose parameters they are.
        parameters: Qualified name -> parameter that learns.
        anchor: What must not be undone.
        projection: One of `PROJECTIONS`.
        closes: Under a subspace, how much of it is closed.
    """

    def __init__(
        self,
        module: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        anchor: GaussianAnchor,
        *,
        projection: str,
        closes: Closes,
    ):
        self.parameters = dict(parameters)
        self._module = module
        self._shapes = {name: p.shape for name, p in parameters.items()}
        self._in_place = False
        self.anchor = anchor
        self.projection = projection
        self.closes = closes
        self.optimizer: AegisAdamW | None = None
        self._uncounted = False
        self._last: dict[nn.Parameter, Tensor | None] = {}
        self._last_is_finite: Tensor | bool = False

    @property
    def needs_anchor_gradient(self) -> bool:
        """Whether each step wants the gradient of the distance to the reference."""
        return self.projection not in SUBSPACES

    def projectors(self) -> dict[str, Projector]:
        """Under a subspace: name of a parameter -> its projector, of these parameters at least."""
        device = next(iter(self.parameters.values())).device
        return self.anchor.projectors(weights=set(self.parameters), device=device, **self.closes)

    def groups(self, options: Callable[[str], dict[str, Any]] = lambda name: {}) -> list[dict[str, Any]]:
        """One parameter group a protected layer, for `AegisAdamW`.

        Args:
            options: From the name of a layer's first parameter to what its group has beyond, such as `lr`.
        """
        self.parameters = {name: self._module.get_parameter(name) for name in self.parameters}  # as they are now
        projectors = self.projectors() if self.projection in SUBSPACES else {}
        layers: dict[str, list[str]] = {}
        for name in self.parameters:
            layers.setdefault(layer_of(name), []).append(name)
        groups = []
        for layer, names in layers.items():
            group = {"layer": layer, "params": [self.parameters[n] for n in names], "guard": self}
            group |= options(names[0])
            if self.projection in SUBSPACES:
                group["projectors"] = [projectors[n] for n in names]
            groups.append(group)
        return groups

    def attach(self, optimizer: AegisAdamW) -> None:
        """Called by `AegisAdamW` when it takes over the groups.

        Raises:
            ValueError: If it projects otherwise than the policy asks for.
        """
        if optimizer.projection != self.projection:
            raise ValueError(
                f"The policy asks for the projection {self.projection!r}, its optimizer is set to "
                f"{optimizer.projection!r}. A resumed training takes the optimizer's options from the checkpoint: give "
                f"--optimizer.projection={self.projection} too (and --optimizer.projection_every, if that changes)."
            )
        self.optimizer = optimizer
        self._in_place = False
        self._uncounted = False
        optimizer.register_step_post_hook(lambda *_: self._note_step())

    def require_attached(self) -> None:
        """Refuses to train unprotected.

        Raises:
            RuntimeError: If the optimizer was not built from `groups`, weights have been replaced since, or nobody
                counts its steps.
        """
        if self.optimizer is None:
            raise RuntimeError(
                "knowledge=aegis keeps the anchor inside the optimizer's step, but no AegisAdamW was built from this "
                "policy's parameter groups. With lerobot-train leave --use_policy_training_preset at true (and drop "
                "--optimizer.type). In your own loop: optimizer = policy.config.get_optimizer_preset()"
                ".build(policy.get_optim_params()), and policy.update() after each step. To train unprotected on "
                "purpose: --policy.knowledge=none."
            )
        if self._uncounted:
            raise RuntimeError(
                "The optimizer has taken a step that the policy was not told of: what comes every few steps, such as "
                "the recipe's distillation, would never come. Call policy.update() after each optimizer.step(), as "
                "lerobot-train does."
            )
        if not self._in_place:  # wrapping happens once, before the first step
            require_in_place(self._module, self.parameters, self._shapes, anchor_gradient=self.needs_anchor_gradient)
        self._in_place = True

    def count_step(self) -> None:
        """The policy has counted the optimizer's step."""
        self._uncounted = False

    def _note_step(self) -> None:
        self._uncounted = True

    def put_in_force(self, restricted: bool) -> None:
        """Has the weights be restricted ones, or those that learn; see `AegisAdamW.put_in_force`."""
        if self.optimizer is not None:
            self.optimizer.put_in_force(restricted)

    def leave_anchor_gradient(self, loss: Tensor, distance: Tensor, *, keep: bool = False) -> None:
        """The gradient of the distance to the reference into `.anchor_grad` of each protected parameter, when the
        backward pass of the loss begins; see `backward_beside`.

        Args:
            loss: What is trained on, with its graph.
            distance: (), with its graph.
            keep: Whether to hold on to the gradient for `repeat_anchor_gradient`: a copy of the protected weights.
        """

        def remember(finite: Tensor) -> None:
            self._last = {p: getattr(p, "anchor_grad", None) for p in self.parameters.values()}
            self._last_is_finite = finite

        self._last = {}
        backward_beside(loss, distance, self.parameters.values(), done=remember if keep else None)

    def repeat_anchor_gradient(self, loss: Tensor) -> bool:
        """The gradient that was kept once more, when the backward pass of the loss begins; False if there is none."""
        last = self._last
        device = next(iter(self.parameters.values())).device
        kept = torch.as_tensor(self._last_is_finite if last else False, device=device)
        # A reference is asked on all ranks or on none. A device has long known: the step before has been logged.
        if not on_every_rank(kept):
            return False

        def leave(_: Tensor) -> None:
            for parameter, gradient in last.items():
                if getattr(parameter, "anchor_grad", None) is None:  # a step of several micro-batches has it already
                    parameter.anchor_grad = gradient  # type: ignore[attr-defined]

        loss.register_hook(leave)
        return True

    def report(self) -> dict[str, float]:
        """Energy shed, share of layers projected, share of directions closed in the last step; empty before it."""
        if self.optimizer is None:
            return {}
        return {k: float(v) for k, v in self.optimizer.last_report.items()}

    def layer_report(self) -> dict[str, dict[str, float]]:
        """Layer -> conflict, energy shed and (where there is one) cosine in the last step; empty before it."""
        if self.optimizer is None:
            return {}
        return {
            layer: {key: float(value) for key, value in vars(report).items() if value is not None}
            for layer, report in self.optimizer.layer_reports.items()
        }
