"""Gradient checkpointing of transformer layers that fill a key/value cache.

What a layer computes inside is not kept for the backward pass but computed again when it comes (arXiv 1604.06174):
less memory, for one more run of the layer with each backward pass. transformers' own switch takes the cache away from
the layers, and the action expert lives on that cache. Here each run of a layer, the first and the repeated ones, gets a
private copy of the cache as it was before the layer. What the first run appended becomes the cache, with its gradients;
what a repeated run appends is dropped.

Hooks on a layer see its first run alone, those on modules inside it see every run.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer


def checkpointable(model: nn.Module) -> list[nn.Module]:
    """The layers of a transformers model that may be run again: those that it marks itself, towers and decoder."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


@contextmanager
def recompute_in_backward(layers: Iterable[nn.Module]) -> Iterator[None]:
    """While the context is open, the layers keep nothing for the backward pass but what they were given.

    Their parameters, names and outputs stay as they are; without gradients the layers run as ever. The backward pass
    may come after the context has been left.
    """
    replaced: list[tuple[nn.Module, Any]] = []
    try:
        for layer in layers:
            replaced.append((layer, vars(layer).get("forward")))
            layer.forward = partial(_run, layer.forward)  # on the instance, before the class's method
        yield
    finally:
        for layer, before in replaced:
            if before is None:
                del layer.forward
            else:
                layer.forward = before


def _run(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    names = [name for name, value in kwargs.items() if isinstance(value, Cache)]
    if not names:
        if any(isinstance(value, Cache) for value in args):
            raise TypeError(
                f"{forward} is given its cache by position; gradient checkpointing exchanges it and finds it by name "
                "alone. Train this backbone with --policy.gradient_checkpointing=false."
            )
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)
    cache = kwargs.pop(names[0])
    before = _private(cache)
    filled: list[Any] | None = []

    def run(*args: Any, **kwargs: Any) -> Any:
        private = _private(before)
        output = forward(*args, **{names[0]: private}, **kwargs)
        if filled is not None:
            filled.extend(private.layers)
        return output

    output = checkpoint(run, *args, use_reentrant=False, **kwargs)
    cache.layers = filled
    # The graph holds on to `run`: were it to hold what the layer appended, it would hold itself, and never be freed.
    filled = None
    return output


def _private(cache: Cache) -> Cache:
    """A cache with the same contents to which a layer may append: appending replaces a layer's tensors."""
    private = copy(cache)
    private.layers = [copy(layer) for layer in cache.layers]
    return private
