"""Sites: the places of a network that are read and written, under TransformerLens's hook names and labels.

| site | name | label |
|---|---|---|
| residual stream | `blocks.2.hook_resid_pre`, `…_mid`, `…_post` | `2_pre`, `2_mid`, `2_post` |
| embeddings | `hook_embed`, `hook_pos_embed` | `embed`, `pos_embed` |
| sublayer outputs | `blocks.2.hook_attn_out`, `blocks.2.hook_mlp_out` | `2_attn_out`, `2_mlp_out` |
| after the final LayerNorm | `ln_final.hook_normalized`, before its gains and offsets | `ln_final` |
| the same, on a bridge | `ln_final.hook_out`, after its gains and offsets | `ln_final` |
| a recurrent layer's states and output | `blocks.2.hook_hidden`, `…_cell`, `…_output` | `2_hidden`, `2_cell`, … |
| all heads of a layer side by side | `blocks.2.attn.hook_z` | `2_z` |
| a single head | `blocks.2.attn.hook_z[1]` | `L2H1` |

Any other hook with one activation per word and position is a site too, under its own name.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import Any, TypeAlias

from jaxtyping import Float
from torch import Tensor

from msp_lens._checks import checked

# A name, label, glob or "all"; a function of the hook's name; a sequence of these, in which a sequence within is a
# group to concatenate; a mapping of names to groups; None, the residual stream.
Sites: TypeAlias = str | Callable[[str], bool] | Sequence[Any] | Mapping[str, Any] | None

# What "all" takes of each layer, in the order of the forward pass.
_PARTS = (
    *("hook_resid_pre", "hook_cell", "hook_hidden"),
    *("hook_attn_out", "hook_resid_mid", "hook_mlp_out", "hook_resid_post", "hook_output"),
)
# [batch, head, query, key]: not the activation of a position, though it may have the shape of one.
_ATTENTION = re.compile(r".*hook_(pattern|attn_scores)")
_HEAD = re.compile(r"(.+)\[(\d+|\*)\]")


def is_attention(hook: str) -> bool:
    """Whether a hook's activations belong to pairs of positions, `[batch, head, query, key]`, and not to positions."""
    return _ATTENTION.fullmatch(hook) is not None


@dataclass(frozen=True)
class Site:
    """A hook, or one head of a hook that has heads.

    Example:
        >>> site = Site.parse("blocks.2.attn.hook_z[1]")
        >>> site.hook, site.head, site.label
        ('blocks.2.attn.hook_z', 1, 'L2H1')
    """

    hook: str
    head: int | None = None

    @classmethod
    def parse(cls, name: str) -> Site:
        """The site of a full name; `SiteIndex.find` resolves labels and globs."""
        found = _HEAD.fullmatch(name)
        return cls(found[1], int(found[2])) if found and found[2].isdigit() else cls(name)

    @property
    def name(self) -> str:
        """The hook's name, with the head's number in brackets if it is one head."""
        return self.hook if self.head is None else f"{self.hook}[{self.head}]"

    @property
    def label(self) -> str:
        """The short label, in TransformerLens's style."""
        return site_label(self.name)

    def is_of_heads(self, activation: Tensor) -> bool:
        """Whether the hook's activation is `[batch, pos, head, feature]`, or should be."""
        return self.head is not None or (activation.ndim == 4 and not is_attention(self.hook))

    def has_no_words(self, activation: Tensor) -> bool:
        """Whether it is a positional embedding that comes once for all words, `[pos, d_model]`."""
        return activation.ndim == 2 and self.label == "pos_embed"

    def take(self, activation: Tensor) -> Float[Tensor, "batch pos feature"]:
        """The site's features in its hook's activation: the head's, or those of all heads side by side. Not copied.

        It raises `ValueError` if the activation's shape does not fit the site.
        """
        shape = tuple(activation.shape)
        if self.has_no_words(activation):
            return activation.unsqueeze(0)
        if activation.ndim not in (3, 4) or is_attention(self.hook):
            rule = "a site's are [batch, pos, d_model], or [batch, pos, head, d_head]. Choose another site."
            raise ValueError(f"{self.name} has activations of shape {shape}; {rule}")
        if self.head is None:
            return activation if activation.ndim == 3 else activation.flatten(2)
        if activation.ndim == 3 or self.head >= shape[2]:
            heads = "no heads" if activation.ndim == 3 else f"heads 0 to {shape[2] - 1}"
            raise ValueError(f"{self.name}: the hook's activations, of shape {shape}, have {heads}.")
        return activation[:, :, self.head]

    def put(self, activation: Tensor, features: Float[Tensor, "batch pos feature"]) -> Tensor:
        """A new activation of the hook, with the site's features replaced."""
        if self.head is None:
            return features.reshape(activation.shape)
        result = activation.clone()
        result[:, :, self.head] = features
        return result


@checked
@cache
def site_label(name: str) -> str:
    """A site's short label, in TransformerLens's style; the name itself if it has no label.

    Example:
        >>> [site_label(name) for name in ("blocks.2.hook_resid_post", "ln_final.hook_out", "hook_embed")]
        ['2_post', 'ln_final', 'embed']
    """
    labels = (
        (r"hook_(embed|pos_embed)", "{0}"),
        (r"blocks\.(\d+)\.hook_resid_(pre|mid|post)", "{0}_{1}"),
        (r"blocks\.(\d+)\.hook_(attn_out|mlp_out|hidden|cell|output)", "{0}_{1}"),
        (r"blocks\.(\d+)\.attn\.hook_([qkvz])", "{0}_{1}"),
        (r"blocks\.(\d+)\.attn\.hook_z\[(\d+)\]", "L{0}H{1}"),
        (r"ln_final\..*", "ln_final"),
    )
    for pattern, label in labels:
        if found := re.fullmatch(pattern, name):
            return label.format(*found.groups())
    return name


class SiteIndex:
    """The sites of a model, or of a cache, by name, label and pattern.

    Args:
        places: Each name's place, as any value that tells places apart. Names of one hook point share a place.
        n_heads: Heads in a layer, if known.
        normalizes: Whether there is a final LayerNorm that does anything.
        of: Whose sites they are, for messages.
    """

    def __init__(
        self,
        places: Mapping[str, Hashable],
        *,
        n_heads: int | None = None,
        normalizes: bool = True,
        of: str = "The model",
    ) -> None:
        self.names = sorted(places, key=_order)
        self.n_heads = n_heads
        self.of = of
        self._places = dict(places)
        # A bridge's `ln_final.hook_normalized` is off the path to the logits; its `hook_out` is on it.
        final = next((name for name in ("ln_final.hook_out", "ln_final.hook_normalized") if name in places), None)
        self._final = [final] if final and normalizes else []
        self._layers = sorted({int(found[1]) for name in places if (found := re.match(r"blocks\.(\d+)\.", name))})
        labeled = {site_label(name): name for name in self.names if not name.startswith("ln_final.")}
        labeled |= {"ln_final": final} if final else {}
        self.labels = {label: name for label, name in labeled.items() if label != name}
        self._label_of = {name: label for label, name in self.labels.items()}
        posts = [name for name in self.names if re.fullmatch(r"blocks\.\d+\.hook_(resid_post|output)", name)]
        self.aliases = {"final_post": posts[-1]} if posts else {}

    @property
    def residual(self) -> tuple[str, ...]:
        """The residual stream before the first layer, after each layer, and after the final LayerNorm.

        Of a recurrent network, the embedding and the states of each layer, which are what it carries on.
        """
        first = "blocks.0.hook_resid_pre"
        is_recurrent = any(name.endswith(".hook_hidden") for name in self._places)
        if is_recurrent and first not in self._places:
            first = "hook_embed"
        carried = ("hook_cell", "hook_hidden", "hook_resid_post") if is_recurrent else ("hook_resid_post",)
        blocks = [first, *(f"blocks.{layer}.{part}" for layer in self._layers for part in carried)]
        sites = [name for name in blocks if name in self._places] + self._final
        if not sites:
            raise ValueError(
                f"{self.of} has no residual-stream hooks (blocks.N.hook_resid_pre/post); name its sites with sites=. "
                f"Its hooks are {_listed(self.names)}."
            )
        return tuple(sites)

    @property
    def all(self) -> tuple[str, ...]:
        """The residual stream and what each sublayer adds to it, in the order of the forward pass."""
        # A later layer's hook_resid_pre is the hook_resid_post of the layer before.
        parts = [f"blocks.{layer}.{part}" for layer in self._layers for part in _PARTS[bool(layer) :]]
        return tuple([name for name in parts if name in self._places] + self._final) or self.residual

    def find(self, sites: Sites) -> tuple[str, ...]:
        """The full names of all requested sites, including those of groups, each once; see `models.find_sites`."""
        return tuple(dict.fromkeys(name for group in self.groups(sites).values() for name in group))

    def groups(self, sites: Sites) -> dict[str, tuple[str, ...]]:
        """Which sites to read together, by label, such as `"1_post+2_post"`; see `models.site_groups`."""
        if isinstance(sites, Mapping):
            groups = {str(label): self._members(members, sites) for label, members in sites.items()}
        else:
            groups: dict[str, tuple[str, ...]] = {}
            together = [item for item in _items(sites) if _is_group(item)]
            alone = [item for item in _items(sites) if not _is_group(item)]
            for name in self._members(alone, sites) if alone or not together else ():
                label = site_label(name)
                # Two names with one label keep their names.
                groups[label if label not in groups else name] = (name,)
            for item in together:
                members = self._members(item, sites)
                label = "+".join(site_label(name) for name in members)
                if label in groups:
                    raise ValueError(f"sites={_shown(sites)}: {label} is asked for twice; name it once.")
                groups[label] = members
        if not groups:
            raise ValueError(f"sites={_shown(sites)}: name at least one site, and none twice.")
        return groups

    def _members(self, sites: Any, whole: Any) -> tuple[str, ...]:
        """The sites of one group, in the order given; a pattern adds those that are not named in full."""
        found: dict[str, None] = {}
        exact: list[str] = []
        for item in _items(sites):
            if isinstance(item, str) and item != "all" and (name := self._exact(item)):
                exact.append(name)
                found[name] = None
            else:
                found |= dict.fromkeys(self._matching(item))
        named = [self._place_of(name) for name in exact]
        if not found or len(set(named)) != len(named):
            raise ValueError(f"sites={_shown(whole)}: name at least one site, and none twice.")
        if attention := next(filter(_ATTENTION.fullmatch, found), None):
            holds = "[batch, head, query, key], not an activation at a position"
            raise ValueError(f"{attention} holds {holds}: choose another site.")
        return tuple(name for name in found if name in exact or self._place_of(name) not in named)

    def site(self, spelling: str) -> Site:
        """The site with this name or label; `KeyError` if there is none, or it is a pattern."""
        name = self._exact(spelling)
        if name is None:
            raise KeyError(f"{spelling!r} is a pattern: name one site, e.g. {self._matching(spelling)[0]!r}.")
        return self._parsed(name)

    def _exact(self, spelling: str) -> str | None:
        """The full name for a name or label; `None` for a pattern; `KeyError` for anything else."""
        if spelling in self._places:
            return spelling
        if name := self.labels.get(spelling) or self.aliases.get(spelling):
            return name
        label = re.fullmatch(r"L(\d+)H(\d+)", spelling)
        site = Site(f"blocks.{label[1]}.attn.hook_z", int(label[2])) if label else Site.parse(spelling)
        hook = self.labels.get(site.hook, site.hook)
        if site.head is not None and hook in self._places:
            if (n_heads := self._heads(hook)) is not None and site.head >= n_heads:
                raise KeyError(f"{self.of} has no site {spelling!r}: {hook} has heads 0 to {n_heads - 1}.")
            return Site(hook, site.head).name
        if re.search(r"[*?\[]", spelling):
            return None
        raise KeyError(f"{self.of} has no site {spelling!r}{self._near(spelling)}; {self._listing()}.")

    def _matching(self, pattern: Any) -> Sequence[str]:
        """The sites that a glob, a function or `"all"` selects: in the order of the forward pass, each place once."""
        if pattern is None or pattern == "all":
            return self.residual if pattern is None else self.all
        if isinstance(pattern, str):
            matched = self._globbed(pattern)
        elif callable(pattern):
            matched = self._once(name for name in self.names if pattern(name))
        else:
            raise TypeError(
                f"sites: {pattern!r} is a {type(pattern).__name__}; give names, labels, globs, functions of a hook's "
                "name, or one level of sequences of them."
            )
        if not matched:
            shown = f"{pattern!r}{self._near(pattern)}" if isinstance(pattern, str) else "that function"
            raise KeyError(f"{self.of} has no site that matches {shown}; {self._listing()}.")
        return matched

    def _globbed(self, pattern: str) -> list[str]:
        in_brackets = _HEAD.fullmatch(pattern)
        by_label = re.fullmatch(r"L[\d*?\[\]-]+H.*", pattern) is not None
        if not in_brackets and not by_label:
            # "*_post" means the labels, not a layer's mlp.hook_post.
            labeled = [name for name in self.names if fnmatchcase(self._label_of.get(name, ""), pattern)]
            return self._once(labeled or [name for name in self.names if fnmatchcase(name, pattern)])
        hooks = in_brackets[1] if in_brackets and not by_label else "blocks.*.attn.hook_z"
        heads: list[Site] = []
        for hook in self._once(name for name in self.names if fnmatchcase(name, hooks)):
            if (n_heads := self._heads(hook)) is None:
                raise ValueError(
                    f"sites: {pattern!r} asks for heads, but {self.of.lower()} does not say how many it has "
                    "(cfg.n_heads): name each, e.g. 'blocks.0.attn.hook_z[0]'."
                )
            heads += [Site(hook, head) for head in range(n_heads)]
        if by_label:
            return [site.name for site in heads if fnmatchcase(site.label, pattern)]
        return [site.name for site in heads if in_brackets and in_brackets[2] in ("*", str(site.head))]

    def _heads(self, hook: str) -> int | None:
        # Keys and values may have fewer heads than queries; the activation will show how many.
        return None if hook.endswith(("hook_k", "hook_v")) else self.n_heads

    def _parsed(self, name: str) -> Site:
        return Site(name) if name in self._places else Site.parse(name)

    def _place_of(self, name: str) -> tuple[Hashable, int | None]:
        site = self._parsed(name)
        return self._places[site.hook], site.head

    def _once(self, names: Iterable[str]) -> list[str]:
        """One name for each place: the one with a label, else the first."""
        kept: dict[Hashable, str] = {}
        for name in names:
            twin = kept.setdefault(self._places[name], name)
            if name in self._label_of and twin not in self._label_of:
                kept[self._places[name]] = name
        return sorted(kept.values(), key=self.names.index)

    def _listing(self) -> str:
        """How to see what there is, for a message."""
        try:
            return f"msp.find_sites(model, 'all') lists {len(self.all)}"
        except ValueError:
            return f"its hooks are {_listed(self.names)}"

    def _near(self, spelling: str) -> str:
        """The three nearest spellings, for a message."""
        near = difflib.get_close_matches(spelling, [*self.labels, *self.aliases, *self.names], n=3, cutoff=0.0)
        return f"; the nearest are {', '.join(near)}" if near else ""


def _is_group(item: Any) -> bool:
    return isinstance(item, Sequence) and not isinstance(item, str)


def _items(sites: Any) -> list[Any]:
    return list(sites) if _is_group(sites) else [sites]


def _order(name: str) -> tuple[float, int]:
    """Sorts names in the order of the forward pass, as far as the names show it."""
    if name in ("hook_embed", "hook_pos_embed"):
        return -1.0, 0
    found = re.match(r"blocks\.(\d+)\.(.*)", name)
    if not found:
        return math.inf, 0
    layer, part = int(found[1]), found[2]
    if part in _PARTS:
        return layer, 2 * _PARTS.index(part)
    between = "hook_hidden" if "attn" in part or part.startswith("ln1") else "hook_resid_mid"
    return layer, 2 * _PARTS.index(between) + 1


def _shown(sites: Any) -> str:
    return repr(list(sites) if _is_group(sites) else sites)


def _listed(names: Iterable[str], limit: int = 12) -> str:
    shown = list(names)
    more = f" and {len(shown) - limit} more (model.hook_dict)" if len(shown) > limit else ""
    return ", ".join(shown[:limit]) + more
