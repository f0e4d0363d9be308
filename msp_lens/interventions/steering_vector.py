"""A belief as a steering vector: a constant step of the residual stream, to keep, exchange and use elsewhere.

    v = (b' - b) D        D = Σ_bb⁺ Σ_bh, the probe's decoder

Adding v is what `steer` does where the belief held is known to be b. It moves the mean activation given b to the mean
activation given b', and the belief that the probe reads by v W, whatever the activation.
"""

from __future__ import annotations

import json
import math
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from msp_lens._checks import checked
from msp_lens._files import check_tensors, read_entry, read_tensors, write_tensors
from msp_lens._values import Value
from msp_lens.models.hooked import HookedModel, HookFunction, checked_hook
from msp_lens.models.positions import Position, at_positions, check_position, widened, writing
from msp_lens.probing.belief_probe import BeliefProbe, Finite

_HEADER = "msp_lens_steering_vector"
# What Neuronpedia takes as the strength of a vector, either way.
_MOST_STRENGTH = 100.0


class _Saved(TypedDict):
    """What a file says of its vector."""

    site: str
    belief: list[Finite]
    current: list[Finite]
    read_change: list[Finite]
    provenance: dict[str, Any]


@dataclass(frozen=True, eq=False)
class SteeringVector(Value):
    """A constant step of one site's activation that writes a belief: `h + strength · vector`.

    It is a hook of TransformerLens's: `model.run_with_hooks(tokens, fwd_hooks=[(v.site, v)])` adds it everywhere,
    `v.hook(position)` and `v.steer(model, position=…)` only there.

    Attributes:
        site: The hook name that it is added at.
        vector: The step, in float32, as most networks have their activations.
        belief: The belief b' that it writes.
        current: The belief b that it starts from.
        read_change: By how much the belief that the probe reads changes, at strength 1. It falls short of
            `belief - current` as far as the probe errs.
        provenance: What the probe was fitted on: the process, the fingerprints of process and model, the weighting.
    """

    site: str
    vector: Float32[Tensor, "d_model"]
    belief: Float64[Tensor, "state"]
    current: Float64[Tensor, "state"]
    read_change: Float64[Tensor, "state"]
    provenance: dict[str, Any]

    @property
    def norm(self) -> float:
        """The length of the step, at strength 1."""
        return float(self.vector.double().norm())

    def __call__(
        self, activation: Float[Tensor, "*batch d_model"], hook: Any = None
    ) -> Float[Tensor, "*batch d_model"]:
        """The activation with the vector added everywhere, in its own dtype and on its device."""
        return self._added(activation, 1.0)

    def _added(self, activation: Tensor, strength: float) -> Tensor:
        if activation.shape[-1] != len(self.vector):
            raise ValueError(
                f"The activation has {activation.shape[-1]} features, this vector at {self.site} has "
                f"{len(self.vector)}: use it on a model of the same width."
            )
        wide = widened(activation)
        return (wide + strength * self.vector.to(wide)).to(activation.dtype)

    @checked
    def hook(self, position: Position = None, *, strength: Finite = 1.0) -> HookFunction:
        """The step as `hook(activation, hook)`, at some positions; see `applying` for what positions may be."""
        check_position(position, None)
        return checked_hook(self.site, at_positions(lambda h, _: self._added(h, strength), position, None))

    @checked
    def steer(
        self, model: HookedModel, *, position: Position = None, strength: Finite = 1.0
    ) -> AbstractContextManager[None]:
        """Run the model with the step added inside a `with` block; positions as for `applying`.

        Raises:
            KeyError: if the model lacks the site.
            ValueError: if a position is outside the model's context, or the model has another width.
        """
        return writing(model, {self.site: lambda h, _: self._added(h, strength)}, position)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON-ready values."""
        lists = {name: getattr(self, name).tolist() for name in ("vector", "belief", "current", "read_change")}
        return {"site": self.site, **lists, "provenance": self.provenance}

    @checked
    def to_neuronpedia(self, model_id: str, *, label: str | None = None) -> dict[str, Any]:
        """The vector as Neuronpedia's `POST /api/vector/new` takes it, JSON-ready.

        Neuronpedia adds a vector, times its strength, to the residual stream at the input of a layer. So a site after
        layer L becomes the input of layer L + 1, which is the same activation. The vector has length 1 and the strength
        is the step's length, up to 100, the most that Neuronpedia takes: at its default strength it makes the whole
        step.

        Args:
            model_id: What Neuronpedia calls the model, such as `"gpt2-small"`.
            label: What to call the vector there; by default the belief, or the value of the label, that it writes.

        Raises:
            ValueError: if the site is not the residual stream between layers, or the vector is 0.
        """
        found = re.fullmatch(r"blocks\.(\d+)\.hook_resid_(pre|post)", self.site)
        if found is None:
            raise ValueError(
                f"Neuronpedia steers at the input of a layer, and {self.site} is none: take the probe of a site like "
                "blocks.5.hook_resid_pre."
            )
        if self.norm == 0:
            raise ValueError("The vector is 0, since belief and current are the same: give two that differ.")
        strength = min(self.norm, _MOST_STRENGTH)
        written = ", ".join(f"{share:.3g}" for share in self.belief.tolist())
        return {
            "modelId": model_id,
            "layerNumber": int(found[1]) + (found[2] == "post"),
            "hookType": "hook_resid_pre",
            "vector": (self.vector.double() / strength).tolist(),
            "vectorDefaultSteerStrength": strength,
            "vectorLabel": label if label is not None else f"{self.provenance.get('reads', 'belief')} ({written})",
        }

    @checked
    def save(self, path: str | Path) -> Path:
        """Write it atomically to a safetensors file: one tensor, called by its hook name, and the rest in the header.

        Without msp_lens, `safetensors.torch.load_file(path)` gives `{hook name: vector}`.
        """
        rest = {name: value for name, value in self.to_dict().items() if name != "vector"}
        try:
            text = json.dumps(rest, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"provenance: {error}; give values that JSON has.") from None
        write_tensors(path, {self.site: self.vector.contiguous()}, {_HEADER: text})
        return Path(path)

    @classmethod
    @checked
    def load(cls, path: str | Path) -> SteeringVector:
        """Load a vector that `save` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is damaged, or holds something else.
        """
        tensors, header = read_tensors(Path(path))
        saved = read_entry(header, _HEADER, _Saved, path)
        check_tensors(tensors, {saved["site"]: (None,)}, path, dtype=torch.float32)
        names = ("belief", "current", "read_change")
        if len({len(saved[name]) for name in names}) > 1:
            raise ValueError(f"{path}: {', '.join(names)} are not of as many states. It is damaged: create it again.")
        beliefs = {name: torch.tensor(saved[name], dtype=torch.float64) for name in names}
        return cls(saved["site"], tensors[saved["site"]], **beliefs, provenance=saved["provenance"])

    def __repr__(self) -> str:
        ends = (", ".join(f"{share:.3g}" for share in each.tolist()) for each in (self.current, self.belief))
        before, after = ends
        return f"SteeringVector(({before}) → ({after}) at {self.site}, length {self.norm:.4g})"


@checked
def steering_vector(
    probe: BeliefProbe, belief: Float64[Tensor, "state"], *, current: Float64[Tensor, "state"] | None = None
) -> SteeringVector:
    """The constant step `(b' - b) D` that `steer(probe, current=b)` adds to write b', as a vector to keep and exchange.

    Unlike `steer` it does not look at the activation, so where the network holds another belief than b, it ends up at
    another than b'. Success does not prove that the network uses its belief: compare with a placebo of the same length,
    as `intervene` does.

    Args:
        probe: The probe of one site.
        belief: The belief b' to write.
        current: The belief b to start from; by default the mean belief.

    Raises:
        ValueError: if a belief is none of the probe's process, or the probe reads several sites.

    Example:
        >>> from msp_lens.processes.catalog import z1r
        >>> from msp_lens.models import ModelConfig, build_model
        >>> from msp_lens.probing import probe
        >>> model = build_model(ModelConfig(d_vocab=2, n_layers=1, d_model=8, n_ctx=4), seed=1)
        >>> report = probe(model, z1r(), controls=False, progress=False)
        >>> steering_vector(report["0_pre"], [1, 0, 0], current=[0, 1, 0])
        SteeringVector((0, 1, 0) → (1, 0, 0) at blocks.0.hook_resid_pre, length ...)
    """
    if len(probe.sites) != 1:
        raise ValueError(
            f"{probe!r} reads {len(probe.sites)} sites at once, and a vector is added at one: take the probe of one "
            f"site, e.g. report[{probe.sites[-1]!r}]."
        )
    after = probe.checked_belief(belief)
    before = probe.belief_mean if current is None else probe.checked_belief(current)
    step = (after - before) @ probe.decoder
    kept = ("process", "process_fingerprint", "model_fingerprint", "weighting", "target", "part")
    provenance = {name: probe.provenance[name] for name in kept if name in probe.provenance}
    provenance["reads"] = probe.reads.name
    if not math.isfinite(float(step.norm())):
        raise ValueError(f"{probe!r} has a decoder that is not finite: probe the model again.")
    return SteeringVector(probe.sites[0], step.float(), after, before, step @ probe.read_map.weights, provenance)
