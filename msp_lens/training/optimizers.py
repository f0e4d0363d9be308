"""What moves the weights: torch's optimizers by name, and a running average of where the weights have been."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from msp_lens.models.hooked import HookedModel
from msp_lens.training.config import TrainingConfig

# The average's decay after n steps is at most (1 + n) / (FORGETTING + n): it soon forgets where training began.
FORGETTING = 10
# Its authors'.
MUON_MOMENTUM = 0.95


class WeightOptimizer:
    """The optimizer or optimizers that a config names, over a model's weights.

    Muon (Jordan et al. 2024) replaces a matrix's momentum by the nearest orthogonal matrix, and is for the matrices of
    the blocks, each head's one by one; AdamW moves the rest: embeddings, unembedding, biases, LayerNorms. Its updates
    are scaled to AdamW's size, so that both take the same learning rate (Liu et al. 2025, arXiv 2502.16982).

    Raises:
        ValueError: if `"muon"` was asked for and this torch lacks it, or the model has no blocks.
    """

    def __init__(self, model: HookedModel, config: TrainingConfig) -> None:
        named = cast(Any, model).named_parameters()
        parameters = {name: parameter for name, parameter in named if parameter.requires_grad}
        self._matrices: list[tuple[nn.Parameter, list[Tensor]]] = []
        # Foreach kernels are off by default on the CPU, where many small parameters make them worthwhile.
        shared: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
        if config.optimizer == "sgd":
            self._parts: list[torch.optim.Optimizer] = [
                torch.optim.SGD(parameters.values(), momentum=config.momentum or 0.0, foreach=True, **shared)
            ]
            return
        self._parts = []
        if config.optimizer == "muon":
            matrices = [parameters.pop(name) for name in list(parameters) if _is_block_matrix(name, parameters[name])]
            if not matrices or not hasattr(torch.optim, "Muon"):
                lacks = "torch.optim.Muon needs torch ≥ 2.9" if matrices else "the model has no matrices in blocks"
                raise ValueError(f"TrainingConfig(optimizer='muon'): {lacks}; choose 'adamw'.")
            self._matrices = [(matrix, _heads(matrix)) for matrix in matrices]
            momentum = MUON_MOMENTUM if config.momentum is None else config.momentum
            heads = [head for _, views in self._matrices for head in views]
            self._parts.append(torch.optim.Muon(heads, momentum=momentum, adjust_lr_fn="match_rms_adamw", **shared))
        self._parts.append(torch.optim.AdamW(parameters.values(), betas=config.betas, fused=True, **shared))

    def set_learning_rate(self, rate: float) -> None:
        """The learning rate of the steps to come."""
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = rate

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for part in self._parts:
            part.zero_grad(set_to_none=True)
        for matrix, _ in self._matrices:
            matrix.grad = None

    def step(self) -> None:
        """Move the weights by their gradients."""
        for matrix, heads in self._matrices:
            for head, gradient in zip(heads, _heads(matrix.grad), strict=True):
                head.grad = gradient
        for part in self._parts:
            part.step()

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What is remembered from step to step, by optimizer, parameter and name."""
        return {
            f"{number}.{index}.{key}": value
            for number, part in enumerate(self._parts)
            for index, remembered in part.state_dict()["state"].items()
            for key, value in remembered.items()
            if isinstance(value, Tensor)
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Remember saved `tensors`; all else follows from the config."""
        states: list[dict[int, dict[str, Tensor]]] = [{} for _ in self._parts]
        for name, tensor in tensors.items():
            number, index, key = name.split(".")
            states[int(number)].setdefault(int(index), {})[key] = tensor
        for part, state in zip(self._parts, states, strict=True):
            part.load_state_dict({"state": state, "param_groups": part.state_dict()["param_groups"]})


class WeightAverage:
    """An exponential moving average of a model's weights.

    Args:
        model: Whose weights.
        decay: How much of the average stays at each step.
    """

    def __init__(self, model: HookedModel, decay: float) -> None:
        self.decay = decay
        self._tensors = [parameter.detach().clone() for parameter in model.parameters()]

    def update(self, model: HookedModel, step: int) -> None:
        """Take in the weights after step 1, 2 and so on."""
        decay = min(self.decay, (1 + step) / (FORGETTING + step))
        for tensor, parameter in zip(self._tensors, model.parameters(), strict=True):
            tensor.lerp_(parameter.detach(), 1 - decay)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The average by the parameters' numbers."""
        return {str(index): tensor for index, tensor in enumerate(self._tensors)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from saved `tensors`."""
        for index, tensor in enumerate(self._tensors):
            tensor.copy_(tensors[str(index)])

    def copy_to(self, model: HookedModel) -> None:
        """Give the model the averaged weights."""
        _copy(self._tensors, model)

    @contextmanager
    def in_force(self, model: HookedModel) -> Iterator[None]:
        """Within, the model has the averaged weights; afterwards its own again."""
        own = [parameter.detach().clone() for parameter in model.parameters()]
        self.copy_to(model)
        try:
            yield
        finally:
            _copy(own, model)


def _is_block_matrix(name: str, parameter: nn.Parameter) -> bool:
    # A HookedTransformer's biases have an axis of heads too, and are called b_Q and so on.
    in_a_block = re.search(r"\.\d+\.", name) is not None
    return in_a_block and parameter.ndim in (2, 3) and not name.rsplit(".", 1)[-1].startswith("b")


def _heads(tensor: Tensor | None) -> list[Tensor]:
    """The matrices in a weight, `[head, row, column]` or one alone, as views of it."""
    if tensor is None:
        raise ValueError("A weight of the model has no gradient: it takes no part in its predictions. Freeze it.")
    return list(tensor.detach().unbind()) if tensor.ndim == 3 else [tensor.detach()]


def _copy(tensors: list[Tensor], model: HookedModel) -> None:
    with torch.no_grad():
        for parameter, tensor in zip(model.parameters(), tensors, strict=True):
            parameter.copy_(tensor)
