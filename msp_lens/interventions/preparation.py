"""What every experiment prepares and checks before it runs the model: its probes, its words and its positions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from msp_lens._names import meant
from msp_lens._tables import nats_text
from msp_lens.data import BeliefDataset, TokenMap, words
from msp_lens.data.belief_dataset import default_count
from msp_lens.data.labelled import BELIEF
from msp_lens.models import hooked
from msp_lens.models.hooked import HookedModel, unwrapped
from msp_lens.models.model_files import model_fingerprint
from msp_lens.models.positions import check_position
from msp_lens.models.symbol_reader import SymbolReader, reading_symbols
from msp_lens.probing.belief_probe import BeliefProbe
from msp_lens.probing.probe_report import ProbeReport
from msp_lens.processes.process import Process

ALL_SITES = "all sites"

Probes = ProbeReport | BeliefProbe | Sequence[BeliefProbe]


def over_words(
    model: HookedModel,
    data: Process | BeliefDataset,
    probes: Probes,
    n_words: int | None,
    seed: int,
    *,
    most: int = 20_000,
    predicts: bool = False,
    refuse: Callable[[Process, int, list[BeliefProbe]], None] | None = None,
) -> tuple[HookedModel, BeliefDataset, list[BeliefProbe], str, dict[str, Any]]:
    """What an experiment over whole words needs.

    That is the model as it reads symbols, the words, probes of single sites, a description and the provenance.

    A dataset is taken as given; of a process, all words of a length, or `n_words` drawn if there are more (by default
    `most`, or fewer long ones). The model is not run, and all is checked before words are drawn: `ValueError` if an
    option is too small, or a probe or the model does not fit; `KeyError` if a site is missing. `refuse` raises what the
    experiment itself objects to in the process, the length of words and the probes.
    """
    model, process, n_ctx = reading(model, data, probes)
    n_ctx = hooked.word_length(model, n_ctx, otherwise="a dataset")
    hooked.check_fits(model, process, n_ctx, predicts=predicts)
    chosen = single_site_probes(model, process, probes)
    if refuse is not None:
        refuse(process, n_ctx, chosen)
    if isinstance(data, BeliefDataset):
        dataset = replace(data, token_map=None)
    else:
        dataset = words(process, n_ctx=n_ctx, max_words=n_words or default_count(n_ctx, most), seed=seed)
    count = "every possible word" if dataset.is_population else f"{len(dataset):,} distinct sampled words"
    sizes = {"words": len(dataset), "is_population": dataset.is_population}
    provenance = {"process": process.to_dict(), **sizes, "seed": seed, **map_provenance(model)}
    return model, dataset, chosen, f"{process!r}; {count} of {dataset.n_ctx} tokens", provenance


def reading(
    model: HookedModel, data: Process | BeliefDataset, probes: Probes
) -> tuple[HookedModel, Process, int | None]:
    """The model as it reads the process's symbols, the process, and the length of words.

    The token map is the dataset's; of a process, the one that the probes were fitted through. The length is the
    dataset's, or else that of the words that the probes were fitted on, as far as it fits in the model's context.
    """
    if isinstance(data, BeliefDataset):
        return reading_symbols(model, data.token_map), data.process, data.n_ctx
    reader = reading_symbols(model, next(filter(None, map(_token_map, _listed(probes))), None))
    lengths = [each for each in (hooked.context_length(reader), _words_length(probes)) if each is not None]
    return reader, data, min(lengths, default=None)


def log_probabilities(logits: Float[Tensor, "row d_vocab"], n_tokens: int) -> Float64[Tensor, "row token"]:
    """The log-probabilities of a process's tokens, among all that the model has."""
    return logits.cpu().double().log_softmax(dim=-1)[:, :n_tokens]


def map_provenance(model: HookedModel) -> dict[str, Any]:
    """The token map through which the model reads symbols, if there is one."""
    return {"token_map": model.token_map.to_dict()} if isinstance(model, SymbolReader) else {}


def _token_map(probe: BeliefProbe) -> TokenMap | None:
    """The token map that a probe was fitted through; `None` if symbols are the model's tokens."""
    saved = probe.provenance.get("token_map")
    found = TokenMap.from_dict(saved) if saved is not None else None
    return None if found is None or found.is_identity else replace(found, include_prior=False)


def _listed(probes: Probes) -> list[BeliefProbe]:
    if isinstance(probes, ProbeReport):
        return list(probes.probes)
    return [probes] if isinstance(probes, BeliefProbe) else list(probes)


def _words_length(probes: Probes) -> int | None:
    """The length of the words that all the probes were fitted on, if they record any."""
    return min((each.provenance["n_ctx"] for each in _listed(probes) if "n_ctx" in each.provenance), default=None)


def from_menu(menu: Mapping[str, Any], asked: str | Sequence[str] | Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The entries asked for by name; a mapping brings its own. An unknown name raises `KeyError`."""
    if isinstance(asked, Mapping):
        return dict(asked)
    names = [asked] if isinstance(asked, str) else list(asked)
    for name in names:
        if name not in menu:
            own = "{name: maker} for your own" if kind == "edit" else "{name: belief}"
            raise KeyError(f"No {kind} {name!r}; there are {', '.join(menu)}, or give {own}.{meant(name, menu)}")
    return {name: menu[name] for name in names}


def group_label(group: Sequence[BeliefProbe]) -> str:
    """The name in tables of the sites that are edited together."""
    return group[0].label if len(group) == 1 else ALL_SITES


def single_site_probes(model: HookedModel, process: Process, probes: Probes) -> list[BeliefProbe]:
    """The probes of single sites, checked without running the model.

    `ValueError` if there is none, one reads several sites or belongs to another model or process, or two read the same
    site; `KeyError` if the model lacks a probe's site.
    """
    if isinstance(probes, ProbeReport):
        chosen = [probe for probe in probes.probes if len(probe.sites) == 1]
    else:
        chosen = [probes] if isinstance(probes, BeliefProbe) else list(probes)
    for probe in chosen:
        if len(probe.sites) > 1:
            raise ValueError(
                f"{probe!r} reads {len(probe.sites)} sites, and an edit changes one: give probes of single sites."
            )
    if not chosen:
        raise ValueError("probes is empty: give a report, or at least one probe of a single site.")
    sites = [site for probe in chosen for site in hooked.find_sites(model, probe.sites)]
    if twice := [site for site in sites if sites.count(site) > 1]:
        raise ValueError(f"probes: two of them read {twice[0]}: give one probe of each site.")
    fingerprint = model_fingerprint(model)
    for probe in chosen:
        known, reads = probe.provenance.get, probe.reads
        is_of_beliefs = known("source") not in ("tokens", "text") or probe.n_states == process.n_states
        is_named = known("target", BELIEF) != BELIEF or (known("part") is not None and not reads.is_belief)
        if is_named or not is_of_beliefs:
            raise ValueError(
                f"{probe!r} reads the {reads.name} of labelled tokens, and experiments write beliefs of a process, "
                "which say what the network should predict. Write the value yourself: "
                f"`with {probe.steering}:` around model(tokens); or give probes of msp.probe(model, {process.name})."
            )
        if (part := known("part")) is not None:
            raise ValueError(
                f"{probe!r} reads {part!r}, a part of the belief, and experiments write whole beliefs: give the report "
                "itself, or write the part yourself: `with probe.steer(model, belief):` around model(tokens)."
            )
        if probe.n_states != process.n_states or known("process_fingerprint") not in (None, process.fingerprint):
            raise ValueError(f"{probe!r} was fitted on another process than {process!r}: fit it on this one.")
        if known("model_fingerprint") not in (None, fingerprint):
            raise ValueError(
                f"{probe!r} was fitted on a model with other weights (fingerprint {known('model_fingerprint')}, this "
                f"model's is {fingerprint}): probe this model first."
            )
        if (own := _token_map(probe)) != (used := _map_in_use(model)):
            raise ValueError(
                f"{probe!r} was fitted on symbols read {_through(own)}, and this experiment reads them "
                f"{_through(used)}: give a dataset with the probes' token map, msp.words(process, n_ctx=…, "
                "token_map=…)."
            )
    return chosen


def _map_in_use(model: HookedModel) -> TokenMap | None:
    return replace(model.token_map, include_prior=False) if isinstance(model, SymbolReader) else None


def _through(token_map: TokenMap | None) -> str:
    return "as the model's tokens" if token_map is None else f"through {token_map}"


def in_firing_order(model: HookedModel, probes: Sequence[BeliefProbe]) -> list[BeliefProbe]:
    """The probes in the order in which a forward pass reaches their sites, found by making one."""
    fired: dict[str, None] = {}

    def note(name: str) -> Any:
        return lambda activation, hook: fired.setdefault(name)

    model, index = unwrapped(model), hooked.site_index(model)
    # A hook may have several heads that are sites.
    hooks = [index.site(probe.sites[0]).hook for probe in probes]
    with hooked.evaluating(model), model.hooks(fwd_hooks=[(hook, note(hook)) for hook in dict.fromkeys(hooks)]):
        model(torch.zeros(1, 1, dtype=torch.int64, device=hooked.model_device(model)))
    order = [*dict.fromkeys([*fired, *hooks])]
    return [probe for _, probe in sorted(zip(hooks, probes, strict=True), key=lambda pair: order.index(pair[0]))]


def untrained_end(regret: Float64[Tensor, "pos"], first: int = 0) -> list[str]:
    """A sentence, if regret shows that the last position was never trained: it is ten times that of any other.

    A network trained to predict the tokens of words of `n_ctx` tokens has no target at the last. `first` is the
    position from which on the regret is known.
    """
    if len(regret) < 2 or not regret[-1] > max(10 * float(regret[:-1].max()), 0.01):
        return []
    at, last, others = first + len(regret) - 1, float(regret[-1]), float(regret[:-1].max())
    where = f"from {first} to {at - 1}" if first else "before it"
    return [
        f"The last position, {at}, was probably never trained: regret there is {nats_text(last)} nats, and at most "
        f"{nats_text(others)} {where}. Leave it out: give msp.words(process, n_ctx={at}) in place of the process."
    ]


def chosen_positions(positions: int | Sequence[int] | None, n_ctx: int | None) -> list[int]:
    """The positions to edit, counted from the start; by default one, three quarters into the words.

    `ValueError` if one is outside the words or given twice, there is none, or there is no default.
    """
    if positions is None:
        if n_ctx is None:
            raise ValueError("The model does not say how long its context is (cfg.n_ctx): give positions=.")
        positions = n_ctx * 3 // 4
    wanted = [positions] if isinstance(positions, int) else list(positions)
    check_position(wanted, n_ctx)
    if not wanted or (n_ctx is None and min(wanted) < 0):
        raise ValueError(f"positions={wanted}: give at least one, counted from the start.")
    from_start = [position % n_ctx if n_ctx else position for position in wanted]
    if len(set(from_start)) < len(from_start):
        raise ValueError(f"positions={wanted}: give none twice (negative ones count from the end).")
    return from_start
