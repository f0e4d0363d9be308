"""Check a model before it is read and edited: cheap, by a few short forward passes, with nothing left behind.

What probes and interventions take for granted is tried: that a hook sees what the network computes with, that an edit
there changes what follows and a hook that changes nothing changes nothing, and that no position sees later tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias
from weakref import WeakSet

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from msp_lens._checks import Seed, checked
from msp_lens._tables import TableView
from msp_lens._values import Value
from msp_lens.models.hooked import (
    HookedModel,
    check_reads_tokens,
    config_value,
    context_length,
    evaluating,
    model_device,
    site_index,
    unwrapped,
    vocabulary_size,
)
from msp_lens.models.sites import Sites, is_attention, site_label

Verdict: TypeAlias = Literal["as it should be", "to know", "problem"]

# Models that were found to be causal: their architecture is, whatever their weights.
_CAUSAL: WeakSet[Any] = WeakSet()
_LENGTH, _N_WORDS = 8, 2
# How many sites are edited in one forward pass, each in a word of its own.
_AT_ONCE = 16


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: What was checked.
        verdict: How it is.
        told: What was found, as a sentence.
    """

    check: str
    verdict: Verdict
    told: str


@dataclass(frozen=True, eq=False, repr=False)
class ModelCheck(Value, TableView):
    """What `check_model` found: whether the model can be read and edited, and what to know before.

    Attributes:
        model: The model's class.
        sites: The sites that were tried.
        findings: One for each check.
        is_causal: Whether no activation depends on later tokens; `None` if that could not be tried.
        identity_is_exact: Whether hooks that return a copy of their input leave the output as it was, bit by bit.
    """

    model: str
    sites: tuple[str, ...]
    findings: tuple[Finding, ...]
    is_causal: bool | None = None
    identity_is_exact: bool | None = None

    _prose = ("verdict", "what was found")

    @property
    def problems(self) -> tuple[str, ...]:
        """What stands in the way of reading or editing the model; empty if nothing does."""
        return tuple(each.told for each in self.findings if each.verdict == "problem")

    def __getitem__(self, check: str) -> Finding:
        """What one check found; `KeyError` if there is no such check."""
        for each in self.findings:
            if each.check == check:
                return each
        raise KeyError(f"There is no check {check!r}; there are {', '.join(each.check for each in self.findings)}.")

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each check."""
        rows = [{"check": each.check, "verdict": each.verdict, "what was found": each.told} for each in self.findings]
        return pd.DataFrame(rows, columns=["check", "verdict", "what was found"]).set_index("check")

    def summary(self) -> list[str]:
        """Whether anything stands in the way, in a sentence."""
        if not self.problems:
            return ["Nothing stands in the way of reading and editing this model."]
        count = "One problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        return [f"{count}: what is read from this model, or done to it, may not be what it seems."]

    def _title(self) -> str:
        return f"Check of a {self.model} at {len(self.sites)} sites"

    def _display(self) -> pd.DataFrame:
        return self.to_dataframe()


@checked
def check_model(
    model: HookedModel, *, sites: Sites = None, tokens: Int[Tensor, "word pos"] | None = None, seed: Seed = 0
) -> ModelCheck:
    """Whether the model can be read and edited, by some ten short forward passes in evaluation mode.

    Hooks, modes and random states are left as they were. Nothing is raised for what is found: see `problems`.

    Args:
        model: Any hooked model.
        sites: The sites to try, as for `find_sites`; by default the residual stream, or, of a model without those
            hooks, every hook with an activation for each word and position.
        tokens: Words to try them on; by default two of up to eight random tokens.
        seed: Seed of the tokens and of the edits.

    Raises:
        KeyError, ValueError: if the model has no such site, or cannot read the tokens.
    """
    model = unwrapped(model)
    generator = torch.Generator().manual_seed(seed)
    index = site_index(model)
    names = tuple(index.names) if sites is None and not _has_residual_stream(index) else index.find(sites)
    hooks = tuple(dict.fromkeys(index.site(name).hook for name in names))
    words = _words(model, tokens, generator)
    found = [_about_tokens(model), _about_numbers(model)]
    kind = type(model).__name__
    try:
        output, again = _run(model, words), _run(model, words)
    except (RuntimeError, IndexError, TypeError, ValueError, KeyError) as error:
        told = f"It cannot read tokens of shape {tuple(words.shape)}: {type(error).__name__}: {error}".rstrip(".") + "."
        return ModelCheck(kind, names, (Finding("output", "problem", told), *found))
    found.insert(0, _about_output(model, output, words))
    if not isinstance(output, Tensor):
        return ModelCheck(kind, names, tuple(found))
    if not _same(output, again):
        told = "Two passes over the same tokens give different outputs in evaluation mode: make it deterministic."
        found.append(Finding("determinism", "problem", told))
    parts = [f"blocks.{layer}.{part}" for layer in range(_n_layers(index.names)) for part in _PARTS]
    wanted = (*hooks, *(name for name in parts if name in index.names and name not in hooks))
    seen, about_hooks = _about_hooks(model, words, wanted, hooks)
    found.append(about_hooks)
    hooks = tuple(name for name in hooks if name in seen)
    identity = _about_identity(model, words, hooks, output)
    found += [identity, _about_edits(model, words[:1], hooks, generator), _about_sums(model, seen)]
    leak = _leak(model, words, hooks)
    causality = Finding("causality", "as it should be", "No activation depends on later tokens.")
    found.append(causality if leak is None else Finding("causality", "problem", f"{leak}. {_NOT_CAUSAL}"))
    found.append(_about_padding(model, words))
    return ModelCheck(kind, names, tuple(found), leak is None, identity.verdict == "as it should be")


@checked
def check_causal(model: HookedModel, *, tokens: Int[Tensor, "word pos"] | None = None, seed: Seed = 0) -> None:
    """Raise `ValueError` if an activation depends on later tokens: a prefix then has no activation of its own.

    It takes two short forward passes, the first time that a causal model is asked about.

    Args:
        model: Any hooked model.
        tokens: Words to try it on, of at least two tokens; by default two of up to eight random tokens.
        seed: Seed of the tokens.

    Example:
        >>> from msp_lens.models.build import ModelConfig, build_model
        >>> check_causal(build_model(ModelConfig(d_vocab=3)))
        >>> both_ways = ModelConfig(d_vocab=3).to_dict() | {"attention_dir": "bidirectional"}
        >>> check_causal(build_model(both_ways))
        Traceback (most recent call last):
        ...
        ValueError: The model is not causal: ...
    """
    model = unwrapped(model)
    if model in _CAUSAL:
        return
    index = site_index(model)
    hooks = index.residual if _has_residual_stream(index) else tuple(index.names)
    words = _words(model, tokens, torch.Generator().manual_seed(seed))
    if (leak := _leak(model, words, [index.site(name).hook for name in hooks])) is not None:
        raise ValueError(f"The model is not causal: {leak[0].lower()}{leak[1:]}. {_NOT_CAUSAL}")
    _CAUSAL.add(model)


_PARTS = ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post")
_NOT_CAUSAL = (
    "A prefix then has no activation of its own, and what is read there is about the tokens so far: mask later "
    'tokens (attention_dir="causal"), or give whole words with targets of your own as LabelledTokens.'
)


def _has_residual_stream(index: Any) -> bool:
    return any(name.endswith(("hook_resid_pre", "hook_resid_post")) for name in index.names)


def _n_layers(names: Sequence[str]) -> int:
    return 1 + max((int(name.split(".")[1]) for name in names if name.endswith("hook_resid_post")), default=-1)


def _words(model: HookedModel, tokens: Tensor | None, generator: torch.Generator) -> Int[Tensor, "word pos"]:
    if tokens is not None:
        check_reads_tokens(model, tokens)
        return tokens.to(model_device(model))
    length = min(_LENGTH, context_length(model) or _LENGTH)
    drawn = torch.randint(vocabulary_size(model) or 2, (_N_WORDS, length), generator=generator)
    return drawn.to(model_device(model))


def _run(
    model: HookedModel, words: Tensor, hooks: Mapping[str, Callable[[Tensor], Tensor | None]] | None = None
) -> Any:
    pairs = [(name, lambda activation, hook, act=act: act(activation)) for name, act in (hooks or {}).items()]
    with evaluating(model), model.hooks(fwd_hooks=pairs):
        return model(words)


def _captured(
    model: HookedModel, words: Tensor, hooks: Sequence[str]
) -> tuple[dict[str, list[tuple[Tensor, Tensor]]], Any]:
    """At each hook, every time that it was reached: the activation itself and how it was then. And the output."""
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in hooks}

    def capture(name: str) -> Callable[[Tensor], None]:
        return lambda activation: seen[name].append((activation, activation.detach().clone()))

    output = _run(model, words, {name: capture(name) for name in hooks})
    return seen, output


def _once(model: HookedModel, words: Tensor, hooks: Sequence[str]) -> dict[str, Tensor]:
    """What each hook held last, and the output, if that is by position."""
    seen, output = _captured(model, words, hooks)
    by_position = {"the output": output.detach()} if isinstance(output, Tensor) and output.ndim > 1 else {}
    return {name: times[-1][1] for name, times in seen.items() if times} | by_position


def _same(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and torch.allclose(first, second, rtol=0, atol=0, equal_nan=True)


def _rounding(values: Tensor) -> float:
    """What sums of such numbers may differ by, if they are taken in another order."""
    return 8 * torch.finfo(values.dtype).eps * float(values.abs().max()) if values.is_floating_point() else 0.0


def _change(first: Tensor, second: Tensor) -> float:
    return float((first.double() - second.double()).abs().max()) if first.numel() else 0.0


def _listed(hooks: Sequence[str]) -> str:
    labels = [site_label(name) for name in hooks]
    return ", ".join(labels[:8]) + (f" and {len(labels) - 8} more" if len(labels) > 8 else "")


def _about_hooks(
    model: HookedModel, words: Tensor, wanted: Sequence[str], hooks: Sequence[str]
) -> tuple[dict[str, Tensor], Finding]:
    """What the hooks hold, of those reached once with one activation for each word and position; the rest is told."""
    captured, _ = _captured(model, words, wanted)
    missed = [name for name in hooks if not captured[name]]
    twice = [name for name in hooks if len(captured[name]) > 1]
    whole = {name: times[0] for name, times in captured.items() if len(times) == 1 and not is_attention(name)}
    whole = {name: pair for name, pair in whole.items() if pair[1].shape[:2] == words.shape}
    changed = [name for name in whole if name in hooks and not _same(*whole[name])]
    told = [f"{_listed(missed)} never reached"] if missed else []
    told += [f"{_listed(twice)} reached several times in one pass"] if twice else []
    if changed:
        told.append(f"{_listed(changed)} written over after the hook, so that what is read is no longer what was there")
    now = {name: then for name, (_, then) in whole.items()}
    # Hooks that nobody named may be unused, such as those of attention results.
    is_problem = bool(changed or twice or (missed and _n_layers(hooks)))
    if told:
        verdict: Verdict = "problem" if is_problem else "to know"
        return now, Finding("hooks", verdict, f"Hooks: {'; '.join(told)}.")
    return now, Finding("hooks", "as it should be", f"{len(hooks)} hooks are reached once each: {_listed(hooks)}.")


def _about_identity(model: HookedModel, words: Tensor, hooks: Sequence[str], output: Tensor) -> Finding:
    if not hooks:
        return Finding("identity", "problem", "No hook has one activation for each word and position: name its sites.")
    patched = _run(model, words, dict.fromkeys(hooks, torch.clone))
    if _same(patched, output):
        told = "Hooks that return a copy of their input leave the output as it was, bit by bit."
        return Finding("identity", "as it should be", told)
    guilty = [name for name in hooks if not _same(_run(model, words, {name: torch.clone}), output)]
    told = f"Hooks that return a copy of their input change the output by up to {_change(patched, output):.1e} "
    told += f"({_listed(guilty) or 'only together'}): edits there do more than they say."
    return Finding("identity", "problem", told)


def _about_edits(model: HookedModel, word: Tensor, hooks: Sequence[str], generator: torch.Generator) -> Finding:
    """Whether an edit at each site changes the output: each in a word of its own, a few in one pass."""
    idle: list[str] = []

    def noisy(row: int) -> Callable[[Tensor], Tensor]:
        def edit(activation: Tensor) -> Tensor:
            edited = activation.clone()
            noise = torch.randn(edited[row].shape, generator=generator).to(edited)
            edited[row] = edited[row] + noise * (1 + edited[row].abs().mean())
            return edited

        return edit

    for start in range(0, len(hooks), _AT_ONCE):
        some = hooks[start : start + _AT_ONCE]
        edits = {name: noisy(row) for row, name in enumerate(some)}
        output = _run(model, word.expand(len(some) + 1, -1), edits)
        unedited = output[-1]
        idle += [name for row, name in enumerate(some) if _change(output[row], unedited) <= _rounding(unedited)]
    if idle:
        told = f"Edits at {_listed(idle)} do not change the output: they are off the path to it."
        return Finding("edits", "problem", told)
    return Finding("edits", "as it should be", "An edit at any of these sites changes the output.")


def _about_sums(model: HookedModel, seen: Mapping[str, Tensor]) -> Finding:
    """Whether resid_pre + attn_out + mlp_out = resid_post in each layer."""
    wrong: list[str] = []
    tried = 0
    for layer in range(_n_layers(list(seen))):
        at = {part: seen.get(f"blocks.{layer}.{part}") for part in _PARTS}
        pre, attention, mlp, post = (at[part] for part in _PARTS)
        if pre is None or attention is None or post is None:
            continue
        tried += 1
        total = pre.double() + attention.double() + (0 if mlp is None else mlp.double())
        if _change(total, post) > 4 * _rounding(post):
            wrong.append(f"layer {layer} by {_change(total, post):.1e}")
    if not tried:
        return Finding("sums", "to know", "There are no hooks to compare the residual stream with what is added to it.")
    if not wrong:
        told = f"resid_pre + attn_out + mlp_out = resid_post in all {tried} layers, but for rounding."
        return Finding("sums", "as it should be", told)
    missed = f"resid_pre + attn_out + mlp_out is not resid_post ({', '.join(wrong[:4])})"
    if reason := _why_no_sum(model):
        return Finding("sums", "to know", f"{missed}; the architecture does not promise it: {reason}.")
    return Finding("sums", "problem", f"{missed}: a sublayer's hook does not hold what the sublayer adds.")


def _why_no_sum(model: HookedModel) -> str | None:
    """What of the architecture stands between a sublayer's hook and the residual stream."""
    normalizes = any("ln1_post" in name or "ln2_post" in name for name in model.hook_dict)
    if normalizes or config_value(model, "use_normalization_before_and_after"):
        return "sublayers' outputs are normalized before they are added"
    if config_value(model, "do_layer_norm_before", True) is False:
        return "the residual stream is normalized after each sublayer"
    if (config_value(model, "residual_multiplier") or 1) != 1:
        return "sublayers' outputs are scaled before they are added"
    if config_value(model, "num_experts") and not any(name.endswith("hook_mlp_out") for name in model.hook_dict):
        return "experts have no hook_mlp_out"
    return None


def _leak(model: HookedModel, words: Tensor, hooks: Sequence[str]) -> str | None:
    """What changes at a position if only later tokens do; `None` if nothing does."""
    if words.shape[1] < 2:
        return None
    half = words.shape[1] // 2
    changed = words.clone()
    d_vocab = vocabulary_size(model) or int(words.max()) + 1
    # Every later token becomes another one, if there is another.
    changed[:, half:] = (words[:, half:] + 1) % max(d_vocab, 2)
    passes = [_once(model, each, hooks) for each in (words, changed)]
    for name, before in passes[0].items():
        after = passes[1].get(name)
        if after is None or before.shape != after.shape or before.shape[:2] != words.shape or is_attention(name):
            continue
        by_position = (before[:, :half].double() - after[:, :half].double()).abs().flatten(2).amax(dim=(0, 2))
        if float(by_position.max()) > _rounding(before) / 2:
            where = int(by_position.argmax())
            what = name if name == "the output" else site_label(name)
            return f"At position {where}, {what} changes by {float(by_position[where]):.1e} if only later tokens do"
    return None


def _about_output(model: HookedModel, output: Any, words: Tensor) -> Finding:
    if not isinstance(output, Tensor):
        told = f"It returns a {type(output).__name__}, not a tensor of logits: wrap it so that it returns logits."
        return Finding("output", "problem", told)
    shape, d_out = tuple(output.shape), config_value(model, "d_vocab_out")
    d_out = d_out if d_out and d_out > 0 else vocabulary_size(model)
    if output.ndim != 3 or output.shape[:2] != words.shape or not output.is_floating_point():
        told = f"Its output is {output.dtype} of shape {shape} for tokens of shape {tuple(words.shape)}"
        return Finding("output", "problem", f"{told}: logits are [word, pos, token].")
    if not bool(torch.isfinite(output).all()):
        return Finding("output", "problem", "Its output holds NaN or infinity: load weights from before it diverged.")
    sums = output.double().sum(dim=-1)
    if (
        output.shape[-1] > 1
        and bool((output >= 0).all())
        and bool(torch.isclose(sums, torch.ones_like(sums), atol=1e-2).all())
    ):
        return Finding("output", "problem", "Its output looks like probabilities: return logits, or their logarithms.")
    if d_out is not None and shape[-1] != d_out:
        told = f"It predicts {shape[-1]} tokens, and its config says {d_out}: its output may be no logits."
        return Finding("output", "problem", told)
    return Finding("output", "as it should be", f"It returns logits of {shape[-1]:,} tokens at each position.")


def _about_tokens(model: HookedModel) -> Finding:
    """The vocabulary, the context, and BOS."""
    d_vocab, n_ctx, tokenizer = vocabulary_size(model), context_length(model), getattr(model, "tokenizer", None)
    reads = f"It reads {d_vocab:,} tokens" if d_vocab else "It does not say how many tokens it reads (cfg.d_vocab)"
    sentences = [f"{reads} in contexts of {f'up to {n_ctx:,}' if n_ctx else 'any length, as far as it says'}"]
    if tokenizer is None:
        return Finding("vocabulary", "to know", f"{sentences[0]}. It has no tokenizer.")
    size, bos = len(tokenizer), getattr(tokenizer, "bos_token_id", None)
    sentences.append(f"Its tokenizer has {size:,}, {'no BOS' if bos is None else f'BOS is token {bos}'}")
    if config_value(model, "default_prepend_bos") and bos is not None:
        sentences.append(f"By itself it reads text after BOS; tokens are read as they are: give TokenMap(bos={bos})")
    if d_vocab and size > d_vocab:
        sentences.append("Tokens beyond the model's vocabulary cannot be read")
    return Finding("vocabulary", "problem" if d_vocab and size > d_vocab else "to know", ". ".join(sentences) + ".")


def _about_numbers(model: HookedModel) -> Finding:
    weights = list(model.parameters())
    dtypes = sorted({str(each.dtype).removeprefix("torch.") for each in weights})
    devices = sorted({"disk or elsewhere until needed" if each.is_meta else str(each.device) for each in weights})
    count = sum(each.numel() for each in weights)
    told = f"{count:,} weights in {' and '.join(dtypes) or 'no dtype'} on {' and '.join(devices) or 'no device'}."
    return Finding("weights", "to know", told)


def _about_padding(model: HookedModel, words: Tensor) -> Finding:
    """Whether padding tokens before or after a word change what the model says of it."""
    pad = getattr(getattr(model, "tokenizer", None), "pad_token_id", None)
    n_pads = words.shape[1] // 4
    if pad is None or n_pads == 0:
        return Finding("padding", "to know", "It has no padding token: words in one batch are of one length.")
    word = words[:, n_pads:]
    pads = torch.full_like(words[:, :n_pads], pad)
    alone = _run(model, word)
    right = _run(model, torch.cat([word, pads], dim=1))[:, : word.shape[1]]
    left = _run(model, torch.cat([pads, word], dim=1))[:, n_pads:]
    wrong = [side for side, each in (("after", right), ("before", left)) if _change(each, alone) > 4 * _rounding(alone)]
    if not wrong:
        return Finding(
            "padding", "as it should be", f"Padding (token {pad}) changes nothing, before a word or after it."
        )
    told = f"Padding (token {pad}) {' and '.join(wrong)} a word changes what the model says of it"
    remedy = "pad after words" if wrong == ["before"] else "give words of one length"
    return Finding("padding", "to know", f"{told}: {remedy}.")
