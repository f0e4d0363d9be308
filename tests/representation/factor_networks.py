"""Networks that hold the exact beliefs about a world's factors, in different ways, and predict from what they hold."""

import torch
from torch import nn
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

import msp_lens as msp


class FactorNetwork(HookedRootModule):
    """Holds beliefs at `hook_beliefs` in `d_model` dimensions and predicts by reading them there.

    `"factored"`: each factor's belief in a subspace of its own. `"shared"`: all in one subspace, added up. `"joint"`:
    the joint belief.
    """

    def __init__(self, world, kind, *, d_model=24):
        super().__init__()
        self.world, self.kind = world, kind
        self.has_bos = isinstance(world, msp.processes.WithBos)
        self.factors = (world.process if self.has_bos else world).factors
        self.scale = nn.Parameter(torch.ones(1))
        self.hook_beliefs = HookPoint()
        widths = {"factored": sum(part.shape[-1] for part in world.parts(world.initial).values())}
        widths |= {"shared": self.factors[0].n_states, "joint": world.n_states}
        generator = torch.Generator().manual_seed(0)
        basis = torch.linalg.qr(torch.randn(d_model, d_model, dtype=torch.float64, generator=generator))[0]
        self.directions = basis[: widths[kind]]
        self.setup()

    def forward(self, tokens):
        beliefs = msp.filter_beliefs(self.world, tokens)
        parts = list(self.world.parts(beliefs).values())
        if self.kind == "joint":
            return (self._held(beliefs) @ self.world.emissions).clamp(min=1e-12).log()
        if self.kind == "shared":
            mean = self._held(sum(parts)) / len(parts)
            read = [mean] * len(parts)
        else:
            read = self._held(torch.cat(parts, dim=-1)).split([part.shape[-1] for part in parts], dim=-1)
        logits = torch.zeros(*tokens.shape, 1, dtype=torch.float64)
        for factor, belief in zip(self.factors, read, strict=True):
            own = (belief @ factor.emissions).clamp(min=1e-12).log()
            logits = (logits.unsqueeze(-1) + own.unsqueeze(-2)).flatten(-2)
        return torch.nn.functional.pad(logits, (0, 1), value=-30.0) if self.has_bos else logits

    def _held(self, beliefs):
        """Written into the hook's activation, and read from there."""
        return self.hook_beliefs(beliefs @ self.directions * self.scale) @ self.directions.T
