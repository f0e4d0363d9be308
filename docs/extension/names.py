"""Names in the text and in signatures lead to their entries, here or in another library's documentation.

A name is written as users write it: `msp.probe`, `Process`, `Process.sample`, `Tensor`. One without an entry stays as
it is: in code that is set in backticks anything may stand.
"""

import importlib
import pkgutil
import re
from functools import cache

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext import intersphinx
from sphinx.transforms import SphinxTransform

import msp_lens

# In the order of their floors: the first room that lists a name is where it is documented.
ROOMS = (
    *("moments", "processes", "beliefs", "data", "models", "training", "controls", "probing", "interventions"),
    *("representation", "inference", "formation", "experiments", "figures"),
)
# Names as annotations and guides use them.
ELSEWHERE = {
    "Tensor": "torch.Tensor",
    "Generator": "torch.Generator",
    "torch._C.Generator": "torch.Generator",
    "Module": "torch.nn.Module",
    "nn.Module": "torch.nn.Module",
    "DataFrame": "pandas.DataFrame",
    "Figure": "matplotlib.figure.Figure",
    "Axes": "matplotlib.axes.Axes",
    "PlotlyFigure": "plotly.graph_objects.Figure",
    "ndarray": "numpy.ndarray",
    "np.ndarray": "numpy.ndarray",
    "HookedTransformer": "transformer_lens.HookedTransformer",
    "HookedRootModule": "transformer_lens.HookedRootModule",
    "HookPoint": "transformer_lens.HookPoint",
    "ActivationCache": "transformer_lens.ActivationCache",
    "TransformerBridge": "transformer_lens.model_bridge.TransformerBridge",
    "RegressorMixin": "sklearn.base.RegressorMixin",
    "BaseEstimator": "sklearn.base.BaseEstimator",
    "Callable": "collections.abc.Callable",
    "Iterable": "collections.abc.Iterable",
    "Iterator": "collections.abc.Iterator",
    "Mapping": "collections.abc.Mapping",
    "Sequence": "collections.abc.Sequence",
    "AbstractContextManager": "contextlib.AbstractContextManager",
    "Any": "typing.Any",
    "Literal": "typing.Literal",
    "Path": "pathlib.Path",
    **{name: f"jaxtyping.{name}" for name in ("Bool", "Float", "Float32", "Float64", "Int", "Int64", "Shaped", "Num")},
}
NAME = re.compile(r"(?:msp(?:_lens)?\.)?(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*(?=$|\()")


@cache
def homes() -> dict[str, str]:
    """For each public name, the room that documents it: its own where that lists it, else the first that does."""
    found: dict[str, str] = {}
    for room in ROOMS:
        module = importlib.import_module(f"msp_lens.{room}")
        for name in module.__all__:
            own = str(getattr(getattr(module, name), "__module__", "")).split(".")[:2]
            if name not in found or own == ["msp_lens", room]:
                found[name] = room
    return found


@cache
def internal() -> frozenset[str]:
    """Names that some module of the library defines, public or not."""
    names: set[str] = set()
    for module in pkgutil.walk_packages(msp_lens.__path__, "msp_lens."):
        if not module.name.endswith("__main__"):
            names |= set(vars(importlib.import_module(module.name)))
    return frozenset(names)


def target(name: str) -> str | None:
    """The full name of something documented here.

    Example:
        >>> target("msp.probe"), target("Process.sample"), target("msp_lens.moments.solvers.Ridge"), target("nothing")
        ('msp_lens.probing.probe', 'msp_lens.processes.Process.sample', 'msp_lens.moments.Ridge', None)
    """
    parts = name.split(".")
    if parts[0] in ("msp", "msp_lens"):
        if len(parts) == 2 and parts[1] in ROOMS:
            return f"msp_lens.{parts[1]}"
        # Modules are passed over: what is documented is found by its name.
        parts = parts[1:]
        while parts and parts[0] not in homes() and len(parts) > 1:
            parts = parts[1:]
    elif parts[0] in ROOMS and len(parts) > 1:
        parts = parts[1:]
    return f"msp_lens.{homes()[parts[0]]}.{'.'.join(parts)}" if parts and parts[0] in homes() else None


class NamesInText(SphinxTransform):
    """Code in backticks that is a name, or a call, becomes a link if there is an entry for it."""

    default_priority = 400

    def apply(self, **options: object) -> None:
        """Replace the literals of a document."""
        for literal in list(self.document.findall(nodes.literal)):
            text, parent = literal.astext(), literal.parent
            found = NAME.match(text)
            if not found or isinstance(parent, nodes.reference | addnodes.pending_xref | nodes.title):
                continue
            name = found[0]
            # A single lower-case word is more often an argument than the function of the same name.
            if name in ELSEWHERE or (("." in name or "_" in name or name[0].isupper()) and target(name)):
                options = {"refdomain": "py", "reftype": "obj", "reftarget": name, "optional": True}
                link = addnodes.pending_xref("", **options, refdoc=self.env.docname, refexplicit=False)
                parent.replace(literal, link)
                link += literal


def resolve(app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, shown: nodes.Element):
    """Sphinx's event for a name that it does not find as it stands."""
    if node.get("refdomain") != "py":
        return None
    name = node["reftarget"]
    if name[:1] in "'\"":
        # The axes of an array.
        return shown
    domain = env.get_domain("py")
    for full in (target(name), f"msp_lens.{name}"):
        if full in domain.objects or full in getattr(domain, "modules", {}):
            return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", full, node, shown)
    node["reftarget"] = ELSEWHERE.get(name, name)
    if (link := intersphinx.resolve_reference_any_inventory(env, False, node, shown)) is not None:
        return link
    node["reftarget"] = name
    if node.get("optional") or name.split(".")[-1] in internal() or name.startswith("msp_lens."):
        return shown
    return None


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.add_transform(NamesInText)
    app.connect("missing-reference", resolve, priority=400)
    return {"parallel_read_safe": True}
