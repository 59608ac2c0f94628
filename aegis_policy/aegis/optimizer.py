"""AdamW whose protected layers respect an anchor, in one of five ways.

A parameter group with `"layer": name` is (a part of) one protected layer; all other groups get plain AdamW,
bit for bit. Let `g` be a layer's gradient, `a` its anchor gradient (`param.anchor_grad`), and `D` the
displacement that AdamW makes, with everything in it:

    D = -lr (m^ / (sqrt(v^) + eps) + weight_decay W)

    "gradient"   g <- project_layer(g, a), then AdamW       the paper; Adam's preconditioner and the decay undo it
    "first_moment"  project_layer(g, a) for Adam's m, g     arXiv 2604.22407: a projected gradient shrinks v too, which
                    itself for its v                        makes Adam's step larger where less is left
    "update"     D <- -project_layer(-D, a)                 <D, a> <= 0: to first order the step that is taken
                                                            does not raise the anchor penalty
    "subspace"   D <- D P, each weight by its own P         D x = 0 for every anchor input x in the closed span
    "subspace_gradient"  g <- g P, then AdamW               the same P too early: a step of Adam's is no multiple of
                                                            its gradient and has left the open span again

The displacement is measured (weights after minus weights before), so whatever AdamW does is inside the guard.
That costs a copy of one layer's weights at a time, and for a subspace the product of a step and its projector, or of
several steps together (`projection_every`). Adam's moments are those of the unprojected gradient in "update" and
"subspace".

Rounding: products and projections run in float32 or better; adding to the weight rounds to the weight's
dtype, so the guarantees hold to `eps(dtype) ||W||` a step. In bfloat16 weights that is as large as a step:
keep float32 weights (mixed precision does).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from aegis_policy.aegis.accumulation import Accumulation
from aegis_policy.aegis.adamw import adamw_step
from aegis_policy.aegis.anchor_gradient import (
    anchor_gradient,
    complete_over_ranks,
    drop_anchor_gradients,
    take_averaged,
)
from aegis_policy.aegis.finite import ON_NONFINITE, may_step
from aegis_policy.aegis.precision import wide
from aegis_policy.aegis.projection import ProjectionReport, project_layer, report_of
from aegis_policy.aegis.protected_group import SUBSPACES, check_protected, no_anchor_gradient, no_projector
from aegis_policy.aegis.restrictions import Restrictions
from aegis_policy.aegis.shards import local

PROJECTIONS = ("gradient", "first_moment", "update", *SUBSPACES)


class AegisAdamW(torch.optim.AdamW):
    """Drop-in for `torch.optim.AdamW` that protects the groups marked as layers.

    Group keys beyond AdamW's own (only `"layer"` stays in `state_dict`, which is therefore JSON-able but for
    the state's tensors):
        layer: Name of the protected layer. Groups of one name are one layer.
        projectors: For a subspace: one `P` (in, in) a parameter, a `Projector` or the matrix itself, parallel to
            `params`; None only for frozen parameters. A weight of more than two dimensions counts as (out, rest).
        guard: An object whose `attach(optimizer)` is called once, when the optimizer is ready.

    Without a subspace the anchor gradient is read from `param.anchor_grad`, which `step` and `zero_grad` set
    back to None: a step that a loss scaler skips leaves none behind. Its scale is free. A parameter whose
    `anchor_grad` is None does not influence the penalty and takes AdamW's own step; a layer that has none at
    all is an error.

    Where torch.distributed is initialised, `step` is called on all ranks or on none. It averages the anchor
    gradients over the ranks (one that sets none adds nothing), and the first takes the projectors of rank 0, so
    that replicas stay bit-identical. Parameters may be DTensors (`fully_shard`): their gradients are everybody's
    already, `anchor_grad` is sharded alike, products are summed over the shards, and a subspace sends no weights.

    State beyond AdamW's: the projectors (they follow their parameter's device), the last step's reports and
    `skipped_steps`, those that `on_nonfinite="skip"` left out.

    Args:
        params: Parameters or parameter groups, as for any torch optimizer.
        lr: Learning rate.
        betas: Decay rates of Adam's moments.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled weight decay; inside the guard in "update" and "subspace".
        amsgrad: As in `torch.optim.AdamW`.
        projection: One of `PROJECTIONS`.
        projection_every: Under "subspace", steps that are restricted together (`accumulation`). Above 1, weights are
            restricted after every so many steps and while `put_in_force(True)` holds; save and act then.
        on_nonfinite: Before anything is written, nan or inf in a gradient raises ("stop") or leaves the step
            out ("skip"). None does not look, as torch, and spares the synchronisation.
        maximize: As in `torch.optim.AdamW`; not for protected layers.
        foreach: As in `torch.optim.AdamW`.
        capturable: As in `torch.optim.AdamW`.
        fused: As in `torch.optim.AdamW`.
        fused_on_cpu: Whether None fuses on a CPU too. Of no group, so that saved state fits any device.

    Raises:
        ValueError: If a group asks for something that the projection cannot protect; the message names the
            remedy.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        projection: str = "gradient",
        projection_every: int = 1,
        on_nonfinite: str | None = "stop",
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        fused: bool | None = None,
        fused_on_cpu: bool = False,
    ) -> None:
        if projection not in PROJECTIONS:
            raise ValueError(f"projection is one of {', '.join(PROJECTIONS)}; received {projection!r}.")
        if on_nonfinite not in (*ON_NONFINITE, None):
            raise ValueError(f"on_nonfinite is {', '.join(ON_NONFINITE)} or None; received {on_nonfinite!r}.")
        if projection_every < 1 or (projection_every > 1 and projection != "subspace"):
            raise ValueError(
                'projection_every is a number of steps, above 1 only with projection="subspace", whose projectors '
                f"are linear; received {projection_every} with {projection!r}. Leave it at 1."
            )
        self.projection = projection
        self._accumulation = Accumulation(projection_every) if projection_every > 1 else None
        self.on_nonfinite = on_nonfinite
        self.skipped_steps = 0
        self.fused_on_cpu = fused_on_cpu
        self._restrictions = Restrictions()
        self._layer_reports: dict[str, ProjectionReport] = {}
        self._guards: list[Any] | None = []  # None once attached
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
            fused=fused,
        )
        # A fused AdamW would be handed scaled gradients; a projection wants them unscaled and overflows gone.
        self._step_supports_amp_scaling = False
        guards, self._guards = self._guards, None
        for guard in guards:
            guard.attach(self)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; see the class for the keys of a protected one. The caller's dictionary is left as it is."""
        group = dict(param_group)
        projectors, guard = group.pop("projectors", None), group.pop("guard", None)
        layer = group.get("layer")
        super().add_param_group(group)
        added = self.param_groups[-1]
        if layer is None:
            if projectors is not None:
                raise ValueError('A group with projectors is protected, so it is named: add "layer": "...".')
        else:
            check_protected(added, projectors, projection=self.projection)
            if self._accumulation is not None:
                self._accumulation.require_whole(added["params"])
            if self.projection in SUBSPACES:
                self._restrictions.add(added["params"], projectors)
        self._attach_later_or_now(guard)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step, each protected layer through its projection.

        Args:
            closure: Re-evaluates the model and returns the loss; runs before any gradient is read.

        Returns:
            What the closure returned, or None.

        Raises:
            RuntimeError: Before anything has moved, if a protected layer has gradients and no anchor gradient
                (without a subspace) or a parameter without a projector (with one).
            FloatingPointError: Before anything has moved too, see `on_nonfinite`.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.projection not in SUBSPACES:
            complete_over_ranks([p for g in self.param_groups if g.get("layer") is not None for p in g["params"]])
        layers = self._layers_with_gradients()
        if self.projection in SUBSPACES:
            self._require_projectors(layers)
            self._restrictions.agree()
        else:
            self._require_anchor_gradients(layers)
        if not may_step(self.param_groups, layers, on_nonfinite=self.on_nonfinite):
            self.skipped_steps += 1
            return loss
        self.put_in_force(False)
        for group in self.param_groups:
            if group.get("layer") is None:
                adamw_step(self, group)
        if self._accumulation is not None:
            self._accumulate(layers)
            return loss
        take = {
            "gradient": self._gradient_step,
            "first_moment": self._first_moment_step,
            "update": self._update_step,
            "subspace": self._subspace_step,
            "subspace_gradient": self._subspace_gradient_step,
        }
        self._layer_reports = {layer: take[self.projection](groups) for layer, groups in layers.items()}
        return loss

    @torch.no_grad()
    def put_in_force(self, restricted: bool) -> None:
        """Has protected weights be restricted ones, to act with or to save, or again those that learn.

        They differ between two projections only, under `projection_every` above 1; `step` begins with the latter.
        """
        if self._accumulation is None:
            return
        layers = self._protected()
        if not restricted:
            self._accumulation.release()
        elif self._accumulation.hold(layers, self.state):
            self._accumulation.restrict(layers, self.state, self._restrictions)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in torch, and the anchor gradients go with the gradients that they belong to."""
        super().zero_grad(set_to_none)
        drop_anchor_gradients(p for group in self.param_groups for p in group["params"])

    @property
    def last_report(self) -> dict[str, float]:
        """Of the last step, means over the protected layers; reading it is what synchronises with the device.

        `energy_shed`: share of the squared norm that was removed; `projected_share`: share of layers from
        which anything was removed; `closed_share`: share of the input directions that are closed for good,
        mean over weights (0 without a subspace); `cosine`: between task and anchor direction (absent
        with one). Empty before the first step and without protected layers.
        """
        reports = list(self._layer_reports.values())
        if not reports:
            return {}
        mean = {
            "energy_shed": _mean([r.energy_shed for r in reports]),
            "projected_share": _mean([r.conflict for r in reports]),
            "closed_share": self._restrictions.closed_share,
        }
        cosines = [r.cosine for r in reports if r.cosine is not None]
        return mean | ({"cosine": _mean(cosines)} if cosines else {})

    @property
    def layer_reports(self) -> dict[str, ProjectionReport]:
        """Of the last step, by layer; the entries are tensors."""
        return dict(self._layer_reports)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch, and the layers must be the same ones.

        Raises:
            ValueError: If the saved groups are not the same layers in the same order: loading would take the
                protection away.
        """
        saved = [g.get("layer") for g in state_dict["param_groups"]]
        own = [g.get("layer") for g in self.param_groups]
        if len(saved) == len(own) and saved != own:
            raise ValueError(
                f"A saved optimizer fits the same protected layers; it has {saved} and this one {own}. "
                "Resume with the settings the checkpoint was trained with, or start with a fresh optimizer."
            )
        super().load_state_dict(state_dict)
        if self._accumulation is not None:
            self._accumulation.after_load(self.state)

    def __getstate__(self) -> dict[str, Any]:
        kept = "projection on_nonfinite skipped_steps _accumulation _restrictions _layer_reports _guards"
        return super().__getstate__() | {name: self.__dict__[name] for name in kept.split()}

    def _gradient_step(self, groups: list[dict[str, Any]]) -> ProjectionReport:
        params = [p for p in _stepped(groups) if anchor_gradient(p) is not None]
        projected, report = project_layer([p.grad for p in params], take_averaged(params))
        for p, g in zip(params, projected, strict=True):
            p.grad.copy_(g)  # in place: DDP's gradients are views into its buckets
        for group in groups:
            adamw_step(self, group)
        return report

    def _first_moment_step(self, groups: list[dict[str, Any]]) -> ProjectionReport:
        params = [p for p in _stepped(groups) if anchor_gradient(p) is not None]
        projected, report = project_layer([p.grad for p in params], take_averaged(params))
        changes = {p: g - p.grad for p, g in zip(params, projected, strict=True)}
        for group in groups:
            beta1 = group["betas"][0]
            self._init_group(group, *([] for _ in range(6)))  # Adam's state, before its first step
            for p in group["params"]:
                if p in changes:
                    # AdamW makes m <- beta1 m + (1 - beta1) g of it: with this in m, that is the projected g's.
                    self.state[p]["exp_avg"].add_(changes[p], alpha=(1 - beta1) / beta1)
            adamw_step(self, group)
        return report

    def _update_step(self, groups: list[dict[str, Any]]) -> ProjectionReport:
        params = [p for p in _stepped(groups) if anchor_gradient(p) is not None]
        anchors = take_averaged(params)
        before = [p.clone(memory_format=torch.preserve_format) for p in params]
        for group in groups:
            adamw_step(self, group)
        descent = [wide(b) - wide(p) for b, p in zip(before, params, strict=True)]
        projected, report = project_layer(descent, anchors)
        for p, b, u in zip(params, before, projected, strict=True):
            p.copy_(torch.where(report.conflict, (wide(b) - u).to(p.dtype), p))
        return report

    def _subspace_step(self, groups: list[dict[str, Any]]) -> ProjectionReport:
        params = _stepped(groups)
        before = [local(p).clone(memory_format=torch.preserve_format) for p in params]
        for group in groups:
            adamw_step(self, group)
        norms = []
        for p, b in zip(params, before, strict=True):
            allowed, squares = self._restrictions.apply(p, wide(local(p)) - wide(b))
            local(p).copy_(allowed.add_(wide(b)))
            norms.append(squares)
        return report_of(norms, params)

    def _accumulate(self, layers: dict[str, list[dict[str, Any]]]) -> None:
        """AdamW's own step; what it and those before it have added up to is restricted when it is time."""
        assert self._accumulation is not None, "asked by the caller"
        groups = [group for members in layers.values() for group in members]
        origins = self._accumulation.origins(_stepped(groups), self.state)
        for group in groups:
            adamw_step(self, group)
        self._accumulation.begin(origins, self.state)
        self._accumulation.pending += 1
        if self._accumulation.due:
            self._layer_reports = self._accumulation.restrict(self._protected(), self.state, self._restrictions)
            self._accumulation.pending = 0

    def _protected(self) -> dict[str, list[Tensor]]:
        layers: dict[str, list[Tensor]] = defaultdict(list)
        for group in self.param_groups:
            if group.get("layer") is not None:
                layers[group["layer"]] += group["params"]
        return layers

    def _subspace_gradient_step(self, groups: list[dict[str, Any]]) -> ProjectionReport:
        params = _stepped(groups)
        norms = []
        for p in params:
            allowed, squares = self._restrictions.apply(p, wide(local(p.grad)))
            local(p.grad).copy_(allowed)  # in place: DDP's gradients are views into its buckets
            norms.append(squares)
        for group in groups:
            adamw_step(self, group)
        return report_of(norms, params)

    def _layers_with_gradients(self) -> dict[str, list[dict[str, Any]]]:
        layers: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for group in self.param_groups:
            if group.get("layer") is not None:
                layers[group["layer"]].append(group)
        return {layer: groups for layer, groups in layers.items() if _stepped(groups)}

    def _require_anchor_gradients(self, layers: dict[str, list[dict[str, Any]]]) -> None:
        for layer, groups in layers.items():
            if all(anchor_gradient(p) is None for p in _stepped(groups)):
                raise RuntimeError(no_anchor_gradient(layer))

    def _require_projectors(self, layers: dict[str, list[dict[str, Any]]]) -> None:
        for layer, groups in layers.items():
            for p in _stepped(groups):
                if p not in self._restrictions:
                    raise RuntimeError(no_projector(layer, p))

    def _attach_later_or_now(self, guard: Any) -> None:
        if guard is None:
            return
        if self._guards is None:
            guard.attach(self)
        elif not any(g is guard for g in self._guards):
            self._guards.append(guard)


def _stepped(groups: list[dict[str, Any]]) -> list[Any]:
    """The parameters that AdamW will move: those with a gradient."""
    return [p for group in groups for p in group["params"] if p.grad is not None]


def _mean(values: list[Tensor]) -> float:
    device = values[0].device
    return torch.stack([v.to(device=device, dtype=torch.float32) for v in values]).mean().item()
