"""Muon: orthogonal updates for the weights of convolutions. Jordan et al., 2024. https://kellerjordan.github.io/posts/muon

The momentum of a weight, seen as a matrix (C_out, C_in K K), is replaced by the nearest matrix whose singular values
are about equal, which a few Newton-Schulz iterations find. PyTorch's `torch.optim.Muon` takes matrices only, computes
in bfloat16 on every processor, and lets norms grow. Here a weight keeps the norm that it starts with: before a batch
norm the norm changes nothing but the learning rate, and step sizes of quantizers keep their meaning.

Rates, momentum and iterations are those of https://github.com/KellerJordan/cifar10-airbench, which sets all norms to
the square root of C_out: there, as here, an update has `lr` times the norm of the weight.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

COEFFICIENTS = 3.4445, -4.7750, 2.0315  # of the quintic iteration; the slope at 0 is as large as possible


class Muon(torch.optim.Optimizer):
    """For weights (C_out, C_in, K, K) whose layers a batch norm follows; not for depthwise layers and classifiers."""

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict],
        lr: float = 0.2,
        momentum: float = 0.6,
        iterations: int = 3,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__(params, dict(lr=lr, momentum=momentum, iterations=iterations))
        self.dtype = dtype  # of the iterations; no part of the state, like the number of threads

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # as all of torch's
        """Update all weights that have gradients. `closure` is not supported."""
        assert closure is None
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum_buffer"], state["norm"] = torch.zeros_like(weight.grad), weight.norm()
                buffer: Tensor = state["momentum_buffer"].mul_(group["momentum"]).add_(weight.grad)
                update = weight.grad.add(buffer, alpha=group["momentum"]).flatten(1)  # Nesterov's
                update = orthogonal(update.to(self.dtype), group["iterations"]).to(weight.dtype)
                factor = state["norm"] / min(update.shape) ** 0.5  # the norm of an orthogonal matrix
                weight.mul_(state["norm"] / weight.norm().clamp(min=1e-12)).sub_(
                    group["lr"] * factor * update.view_as(weight)
                )


def orthogonal(matrix: Tensor, iterations: int) -> Tensor:
    """About U V^T of `matrix` (m, n) = U S V^T: singular values between 0.7 and 1.2 after five iterations."""
    a, b, c = COEFFICIENTS
    x = matrix / (matrix.norm() + 1e-7)
    if tall := x.shape[0] > x.shape[1]:
        x = x.T
    for _ in range(iterations):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
