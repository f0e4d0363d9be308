"""A word token by token, as HTML: colored by belief, and circuitsvis's views of attention and of read-outs.

Every view is self-contained and fetches nothing. Those of circuitsvis carry its script, 1.3 MB each.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from msp_lens._checks import checked
from msp_lens._extras import from_extra
from msp_lens._files import write_atomically
from msp_lens._templates import render_template
from msp_lens.figures.projections import belief_colors, check_drawable, check_states
from msp_lens.figures.style import THEMES, ThemeName, one_for_each


@dataclass(frozen=True)
class Html:
    """A piece of HTML that a notebook shows.

    Attributes:
        html: The markup.
        title: What it shows.
    """

    html: str = field(repr=False)
    title: str

    def _repr_html_(self) -> str:
        return self.html

    def __str__(self) -> str:
        return self.html

    @checked
    def save(self, path: str | Path) -> Path:
        """Write it as a page for a browser, atomically."""
        head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(self.title)}</title>'
        write_atomically(path, f"{head}<body>{self.html}</body></html>\n")
        return Path(path)


@checked
def word_view(
    tokens: Sequence[str],
    beliefs: Mapping[str, Float[Tensor, "pos state"]],
    *,
    states: Sequence[str] | None = None,
    among: Float[Tensor, "prefix state"] | None = None,
    theme: ThemeName = "light",
) -> Html:
    """A word in the colors of beliefs, with a line for the true beliefs, say, and one for those read at each site.

    Under each token is the likeliest state with its probability; the whole belief shows on hover. `beliefs` maps each
    line's title to the belief after each token; for more than three states, `among` sets the colors (`belief_colors`).

    Raises:
        ValueError: if there is no line, a belief is not finite, or a line does not have a belief for each token.

    Example:
        >>> import torch
        >>> print(word_view(["1", "1"], {"true": torch.eye(3)[:2]}, states=["0", "1", "R"]).title)
        1 1
    """
    look = THEMES[theme]
    one_for_each(beliefs=beliefs)
    first = next(iter(beliefs.values()))
    check_states(states, first.shape[1])
    for name, values in beliefs.items():
        check_drawable(f"beliefs[{name!r}]", values)
        _check_length(len(tokens), len(values), f"beliefs[{name!r}]")
        _check_length(first.shape[1], values.shape[1], f"beliefs[{name!r}]'s second axis", of="state")
    names = list(states) if states is not None else [str(i) for i in range(first.shape[1])]
    lines = []
    for name, values in beliefs.items():
        colors = belief_colors(values, among=first if among is None else among).tolist()
        cells = [_cell(*parts, names) for parts in zip(tokens, values.tolist(), colors, strict=True)]
        lines.append((name, cells))
    markup = render_template("msp_lens.figures", "word.html", look=look, positions=range(len(tokens)), lines=lines)
    return Html(markup, " ".join(tokens))


def _cell(token: str, belief: Sequence[float], color: Sequence[float], states: Sequence[str]) -> dict[str, object]:
    red, green, blue = (round(255 * channel) for channel in color)
    likeliest = max(range(len(states)), key=belief.__getitem__)
    probability = f"{belief[likeliest]:.2f}".replace("0.", ".", 1)
    return {
        "token": token,
        "belief": ", ".join(f"{state} {p:.3f}" for state, p in zip(states, belief, strict=True)),
        "likeliest": f"{states[likeliest]} {probability}",
        "rgb": (red, green, blue),
        # Dark letters on light colors and the other way round, by luminance.
        "ink": "#000" if 0.299 * red + 0.587 * green + 0.114 * blue > 130 else "#fff",
    }


@checked
def attention_view(tokens: Sequence[str], pattern: Float[Tensor, "head query key"]) -> Html:
    """Circuitsvis's view of one layer's attention: how much each position attends to earlier ones, head by head.

    Args:
        tokens: The word; shown with their positions, since tokens recur.
        pattern: One word's attention, as `cache["pattern", layer][word]` gives it.

    Raises:
        ValueError: if the pattern is not square, a row and a column for each token.
        ImportError: if circuitsvis is not installed.
    """
    with _circuitsvis():
        from circuitsvis.attention import attention_patterns

    for axis, size in (("rows", pattern.shape[1]), ("columns", pattern.shape[2])):
        _check_length(len(tokens), size, f"pattern's {axis}")
    numbered = [f"{position}: {token}" for position, token in enumerate(tokens)]
    view = attention_patterns(tokens=numbered, attention=pattern.detach().cpu().float())
    return Html(_well_formed(view.local_src), f"Attention over {' '.join(tokens)}")


@checked
def readout_view(
    tokens: Sequence[str], readouts: Float[Tensor, "site pos state"], *, sites: Sequence[str], states: Sequence[str]
) -> Html:
    """Circuitsvis's view of the belief read at each site after each token, shaded by the state of your choice.

    Raises:
        ValueError: if the numbers of tokens, sites or states are not the read-outs'.
        ImportError: if circuitsvis is not installed.
    """
    with _circuitsvis():
        from circuitsvis.activations import text_neuron_activations

    _check_length(len(tokens), readouts.shape[1], "readouts' second axis")
    _check_length(len(sites), readouts.shape[0], "readouts' first axis", of="site")
    _check_length(len(states), readouts.shape[2], "readouts' third axis", of="state")
    view = text_neuron_activations(
        tokens=list(tokens),
        activations=readouts.detach().cpu().float().permute(1, 0, 2),
        first_dimension_name="Site",
        second_dimension_name="State",
        first_dimension_labels=list(sites),
        second_dimension_labels=list(states),
    )
    return Html(_well_formed(view.local_src), f"Read-outs over {' '.join(tokens)}")


@checked
def belief_view(tokens: Sequence[str], beliefs: Float[Tensor, "pos state"], *, states: Sequence[str]) -> Html:
    """Circuitsvis's view of one belief after each token, shaded by the probability of the state of your choice.

    Raises:
        ValueError: if the numbers of tokens or states are not the beliefs'.
        ImportError: if circuitsvis is not installed.
    """
    with _circuitsvis():
        from circuitsvis.tokens import colored_tokens_multi

    check_drawable("beliefs", beliefs)
    _check_length(len(tokens), beliefs.shape[0], "beliefs' first axis")
    _check_length(len(states), beliefs.shape[1], "beliefs' second axis", of="state")
    view = colored_tokens_multi(list(tokens), beliefs.detach().cpu().float(), labels=list(states))
    return Html(_well_formed(view.local_src), f"Beliefs over {' '.join(tokens)}")


def _circuitsvis() -> AbstractContextManager[None]:
    return from_extra("notebook", purpose="This view", packages=("circuitsvis",))


def _well_formed(markup: str) -> str:
    """Circuitsvis's view with its element closed as in HTML, and names that cannot end its script.

    It closes its element as in XML, and HTML would take everything that follows to be inside it. It writes the names
    into a script as JSON, in one line, where "</script>" would end the script and be followed as HTML.
    """
    *before, properties, end, close = markup.split("\n")
    if not json.loads(properties):
        raise ValueError("Circuitsvis wrote no properties into its view: report this with your version of it.")
    markup = "\n".join([*before, properties.replace("<", r"\u003c"), end, close])
    return re.sub(r'^(<div id="[^"]+"[^>]*)/>', r"\1></div>", markup, count=1)


def _check_length(expected: int, found: int, what: str, *, of: str = "token") -> None:
    # Circuitsvis accepts a mismatch silently and draws something else.
    if expected != found:
        raise ValueError(f"{what} has length {found} and there are {expected} {of}s: give one for each {of}.")
