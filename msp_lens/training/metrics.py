"""What is recorded as training goes on: sums over the steps since the last record."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from msp_lens.models.hooked import HookedModel


class MetricSums:
    """Loss and regret of the steps since the last record, in float64.

    Args:
        n_ctx: Positions that the model predicts from.
    """

    def __init__(self, n_ctx: int) -> None:
        self.loss = torch.zeros((), dtype=torch.float64)
        self.regret: Float64[Tensor, "pos"] = torch.zeros(n_ctx, dtype=torch.float64)
        self.steps = torch.zeros((), dtype=torch.int64)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The sums, to be saved."""
        return {"loss": self.loss, "regret": self.regret, "steps": self.steps}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from saved sums."""
        self.loss, self.regret, self.steps = (tensors[name].clone() for name in ("loss", "regret", "steps"))

    def add(self, loss: Float[Tensor, ""], regret: Float[Tensor, "pos"]) -> None:
        """Take in one step's."""
        self.loss += loss.cpu()
        self.regret += regret.cpu()
        self.steps += 1

    def record(self, optimum: float) -> dict[str, Any]:
        """Means over the steps; the loss ratio is (least possible loss + regret) / least possible loss."""
        n_steps = int(self.steps)
        by_position = self.regret / n_steps
        regret = float(by_position.mean())
        return {
            "loss": float(self.loss) / n_steps,
            "regret": regret,
            "regret_by_position": by_position.tolist(),
            "loss_ratio": (optimum + regret) / optimum if optimum > 0 else None,
        }


def gradient_norm(model: HookedModel) -> float:
    """The norm of the whole gradient."""
    return _norm([parameter.grad for parameter in model.parameters() if parameter.grad is not None])


def weight_norm(model: HookedModel) -> float:
    """The norm of all weights together."""
    return _norm([parameter.detach() for parameter in model.parameters()])


def is_finite(model: HookedModel) -> bool:
    """Whether every weight is a finite number."""
    return math.isfinite(weight_norm(model))


def _norm(tensors: list[Tensor]) -> float:
    return float(torch.stack([torch.linalg.vector_norm(tensor) for tensor in tensors]).norm()) if tensors else 0.0
