"""Teach a network a new task without it forgetting the old one, in plain torch. Runs in seconds on one core:

    python examples/plain_torch.py

An MLP learns to classify (the knowledge), then to regress on other inputs (the new task) in three ways that
differ in the optimizer alone: AdamW on everything, AdamW on the new head only, AegisAdamW on everything. The old
head is not trained again, so what the classifier still gets right is what the backbone has kept.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from aegis_policy.aegis import AegisAdamW, AnchorCollector

WIDTH, CLASSES, LR = 64, 8, 3e-3


class Net(nn.Module):
    """A shared backbone with a head for the old task and one for the new."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(32, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU())
        self.old_head = nn.Linear(WIDTH, CLASSES)
        self.new_head = nn.Linear(WIDTH, 2)


def old_task(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Clusters in 8 of the 32 input dimensions, one class each."""
    labels = torch.randint(CLASSES, (count,), generator=generator)
    x = torch.zeros(count, 32)
    x[:, :8] = 2 * torch.eye(CLASSES)[labels] + 0.5 * torch.randn(count, 8, generator=generator)
    return x, labels


def new_task(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A smooth function of inputs that use all dimensions, those of the old task too."""
    x = torch.randn(count, 32, generator=generator)
    return x, torch.stack([torch.sin(x[:, 6:14].sum(1) / 2), torch.cos(x[:, 10:18].sum(1) / 2)], dim=1)


def pretrained(generator: torch.Generator) -> Net:
    """A network that knows the old task."""
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR)
    for _ in range(300):
        x, labels = old_task(128, generator)
        optimizer.zero_grad()
        cross_entropy(net.old_head(net.backbone(x)), labels).backward()
        optimizer.step()
    return net


def finetune(net: Net, optimizer: torch.optim.Optimizer, steps: int = 1000) -> None:
    """The ordinary loop, the same for all three."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x, y = new_task(128, generator)
        optimizer.zero_grad()
        mse_loss(net.new_head(net.backbone(x)), y).backward()
        optimizer.step()


def naive(net: Net) -> torch.optim.Optimizer:
    """AdamW on the backbone and the new head."""
    return torch.optim.AdamW([*net.backbone.parameters(), *net.new_head.parameters()], lr=LR)


def head_only(net: Net) -> torch.optim.Optimizer:
    """AdamW on the new head: nothing can be forgotten, and the backbone learns nothing."""
    return torch.optim.AdamW(net.new_head.parameters(), lr=LR)


def aegis(net: Net) -> torch.optim.Optimizer:
    """AdamW on the backbone, in the directions that the old task's inputs leave open, and on the new head."""
    linears = {f"{name}.weight": m for name, m in net.backbone.named_modules() if isinstance(m, nn.Linear)}
    with AnchorCollector(net.backbone, linears=linears) as collector, torch.no_grad():
        net.backbone(old_task(2000, torch.Generator().manual_seed(2))[0])
    projectors = collector.anchor().projectors(energy=0.999)
    for name, parameter in net.backbone.named_parameters():
        parameter.requires_grad_(name in projectors)  # biases are no linear maps: frozen
    protected = {
        "params": [net.backbone.get_parameter(name) for name in projectors],
        "projectors": list(projectors.values()),
        "layer": "backbone",
    }
    return AegisAdamW([protected, {"params": net.new_head.parameters()}], lr=LR, projection="subspace")


@torch.no_grad()
def scores(net: Net) -> tuple[float, float]:
    """Accuracy on the old task and mean squared error on the new one, on samples not trained on."""
    generator = torch.Generator().manual_seed(3)
    x, labels = old_task(4000, generator)
    accuracy = (net.old_head(net.backbone(x)).argmax(1) == labels).float().mean().item()
    x, y = new_task(4000, generator)
    return accuracy, mse_loss(net.new_head(net.backbone(x)), y).item()


def main() -> None:
    """Train the three and print what each has kept and learned."""
    torch.manual_seed(0)
    start = pretrained(torch.Generator().manual_seed(0))
    print(f"{'':24} old task: accuracy   new task: error")
    print(f"{'before':24} {scores(start)[0]:18.3f}")
    for name, make in (("AdamW", naive), ("AdamW, new head only", head_only), ("AegisAdamW", aegis)):
        net = copy.deepcopy(start)
        finetune(net, make(net))
        accuracy, error = scores(net)
        print(f"{name:24} {accuracy:18.3f} {error:17.3f}")


if __name__ == "__main__":
    main()
