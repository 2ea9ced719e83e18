"""The optimizer of all our training runs: Muon for matrices, AdamW for the rest.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) replaces a matrix's momentum
by the nearest orthogonal matrix, so that weak directions (a colour axis, a rare class) learn as
fast as strong ones. The encoder reached 22 dB in 200 steps with it and in 1,200 with AdamW.
"""

from __future__ import annotations

from typing import Any


def orthogonalize(matrix: Any, steps: int = 5) -> Any:
    """The nearest (semi-)orthogonal matrix of a 2-D tensor, by a quintic Newton-Schulz iteration.

    Runs in bfloat16. Singular values end within about 0.7 to 1.2, which is near enough.
    """
    import torch

    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.to(torch.bfloat16)
    x = x / (x.norm() + 1e-7)
    transposed = x.shape[0] > x.shape[1]
    if transposed:
        x = x.T
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if transposed else x


class MuonAdamW:
    """Muon for weights of two or more dimensions, fused AdamW for the others.

    Args:
        parameters: All parameters; convolution kernels count as (out, in * height * width), and
            depthwise ones go to AdamW.
        lr: Muon's learning rate; its updates have unit root mean square per entry times 0.2, which
            is AdamW's scale (Liu et al. 2025, arXiv 2502.16982), so one rate serves both.
        weight_decay: Decoupled, on matrices only.
        skip: Parameters to give to AdamW whatever their shape (embeddings, first and last layers).
    """

    def __init__(
        self,
        parameters: list[Any],
        lr: float,
        weight_decay: float = 0.01,
        skip: tuple[Any, ...] = (),
    ) -> None:
        import torch

        skipped = {id(p) for p in skip}
        self.matrices = [
            p for p in parameters if p.ndim >= 2 and p.shape[1] > 1 and id(p) not in skipped
        ]
        taken = {id(p) for p in self.matrices}
        rest = [p for p in parameters if id(p) not in taken]
        self.lr, self.weight_decay, self.momentum = lr, weight_decay, 0.95
        self.buffers = [torch.zeros_like(p) for p in self.matrices]
        self.adamw = torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True)

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of both parts."""
        self.lr = lr
        for group in self.adamw.param_groups:
            group["lr"] = lr

    def step(self) -> None:
        """One update from the gradients in place."""
        import torch

        with torch.no_grad():
            for p, buffer in zip(self.matrices, self.buffers, strict=True):
                buffer.lerp_(p.grad, 1 - self.momentum)
                update = p.grad.lerp(buffer, self.momentum)  # Nesterov
                flat = orthogonalize(update.reshape(len(p), -1)).to(p.dtype)
                scale = 0.2 * max(flat.shape) ** 0.5
                p.mul_(1 - self.lr * self.weight_decay)
                p.add_(flat.reshape(p.shape), alpha=-self.lr * scale)
        self.adamw.step()

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for p in self.matrices:
            p.grad = None
        self.adamw.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        """All moments, as named tensors."""
        state = {f"muon.{i}": b for i, b in enumerate(self.buffers)}
        for i, p in enumerate(self._rest()):
            for key, value in self.adamw.state[p].items():
                state[f"adamw.{i}.{key}"] = value
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        """Take moments that `state` gave."""
        for i, buffer in enumerate(self.buffers):
            buffer.copy_(state[f"muon.{i}"])
        for i, p in enumerate(self._rest()):
            self.adamw.state[p] = {
                key: state[f"adamw.{i}.{key}"].to(p.device)
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"adamw.{i}.{key}" in state  # none before the first step
            }

    def _rest(self) -> list[Any]:
        return [p for group in self.adamw.param_groups for p in group["params"]]
