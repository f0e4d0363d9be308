"""The optimizers by name, and a running average of the weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from msp_lens.models.hooked import HookedModel
from msp_lens.training.config import TrainingConfig


class WeightOptimizer:
    """The optimizer or optimizers that a config names, over a model's weights.

    Muon (Jordan et al. 2024) replaces a matrix's momentum by the nearest orthogonal matrix. It updates the matrices of
    the blocks, each head separately, and AdamW the rest: embeddings, unembedding, biases, LayerNorms. Muon's updates
    are scaled to AdamW's size, so both use one learning rate (Liu et al. 2025, arXiv 2502.16982).
    """

    def __init__(self, model: HookedModel, config: TrainingConfig) -> None:
        named = cast(nn.Module, model).named_parameters()
        parameters = {name: parameter for name, parameter in named if parameter.requires_grad}
        shared: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
        self._parts: list[torch.optim.Optimizer] = []
        self._matrices: list[tuple[nn.Parameter, list[Tensor]]] = []
        if config.optimizer == "sgd":
            # Foreach kernels are off by default on the CPU, where many small parameters make them worthwhile.
            momentum = config.momentum or 0.0
            self._parts.append(torch.optim.SGD(parameters.values(), momentum=momentum, foreach=True, **shared))
            return
        if config.optimizer == "muon":
            matrices = [parameters.pop(name) for name in list(parameters) if _is_block_matrix(name, parameters[name])]
            if not matrices or not hasattr(torch.optim, "Muon"):
                lacks = "torch.optim.Muon needs torch ≥ 2.9" if matrices else "the model has no matrices in blocks"
                raise ValueError(f"optimizer='muon': {lacks}; choose 'adamw'.")
            self._matrices = [(matrix, _heads(matrix)) for matrix in matrices]
            heads = [head for _, views in self._matrices for head in views]
            # .95 is the value of Muon's authors.
            momentum = 0.95 if config.momentum is None else config.momentum
            self._parts.append(torch.optim.Muon(heads, momentum=momentum, adjust_lr_fn="match_rms_adamw", **shared))
        self._parts.append(torch.optim.AdamW(parameters.values(), betas=config.betas, fused=True, **shared))

    def zero_grad(self) -> None:
        """Clear the gradients."""
        for part in self._parts:
            part.zero_grad(set_to_none=True)
        for matrix, _ in self._matrices:
            matrix.grad = None

    def step(self, learning_rate: float | None = None) -> None:
        """Update the weights from their gradients; the learning rate stays in force until another is given."""
        for matrix, heads in self._matrices:
            for head, gradient in zip(heads, _heads(matrix.grad), strict=True):
                head.grad = gradient
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = group["lr"] if learning_rate is None else learning_rate
            part.step()

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The optimizers' memory, by optimizer, parameter and name."""
        return {
            f"{number}.{index}.{key}": value
            for number, part in enumerate(self._parts)
            for index, remembered in part.state_dict()["state"].items()
            for key, value in remembered.items()
            if isinstance(value, Tensor)
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from saved `tensors`; the rest follows from the config."""
        states: list[dict[int, dict[str, Tensor]]] = [{} for _ in self._parts]
        for name, tensor in tensors.items():
            number, index, key = name.split(".")
            states[int(number)].setdefault(int(index), {})[key] = tensor
        for part, state in zip(self._parts, states, strict=True):
            part.load_state_dict(part.state_dict() | {"state": state})


class WeightAverage:
    """An exponential moving average of a model's weights.

    torch's AveragedModel would deep-copy the model; a deep-copied TransformerBridge shares closures with the original.
    The part `decay` of the average stays at each step; without one, the model's own weights are in force.
    """

    def __init__(self, model: HookedModel, decay: float | None) -> None:
        self.decay = decay
        # Named by the parameters' numbers.
        self.tensors = {str(index): weight for index, weight in enumerate(_copied(model))} if decay is not None else {}

    def update(self, model: HookedModel, step: int) -> None:
        """Add the weights after step 1, 2, …; early on the decay is smaller, to forget the initial weights soon."""
        if self.decay is not None:
            decay = min(self.decay, (1 + step) / (10 + step))
            get_ema_multi_avg_fn(decay)(list(self.tensors.values()), list(model.parameters()), None)

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from saved `tensors`."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])

    def copy_to(self, model: HookedModel) -> None:
        """Give the model the averaged weights, if there are any."""
        if self.tensors:
            _fill(model, self.tensors.values())

    @contextmanager
    def in_force(self, model: HookedModel) -> Iterator[None]:
        """Within this context the model has the averaged weights; afterwards it has its own again."""
        own = _copied(model)
        self.copy_to(model)
        try:
            yield
        finally:
            _fill(model, own)


def _is_block_matrix(name: str, parameter: nn.Parameter) -> bool:
    # A HookedTransformer's biases (b_Q and so on) have an axis of heads, too.
    is_bias = name.rsplit(".", 1)[-1].startswith("b")
    return re.search(r"\.\d+\.", name) is not None and parameter.ndim in (2, 3) and not is_bias


def _heads(tensor: Tensor | None) -> list[Tensor]:
    """The matrices in a weight `[head, row, column]`, or the one matrix that it is, as views."""
    if tensor is None:
        raise ValueError("A weight of the model has no gradient, so no prediction depends on it: freeze it.")
    return list(tensor.detach().unbind()) if tensor.ndim == 3 else [tensor.detach()]


def _copied(model: HookedModel) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


@torch.no_grad()
def _fill(model: HookedModel, values: Iterable[Tensor]) -> None:
    for parameter, value in zip(model.parameters(), values, strict=True):
        parameter.copy_(value)
