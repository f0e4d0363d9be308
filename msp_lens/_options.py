"""What commands of `msp-lens` share: options, and the process and the model that they name.

Heavy imports happen inside the functions, so that `--help` is quick.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from msp_lens._commands import check_exists, usage
from msp_lens._completion import (
    complete_device,
    complete_edit,
    complete_model,
    complete_parameter,
    complete_preset,
    complete_process,
    complete_site,
    complete_target,
)
from msp_lens._names import from_menu

if TYPE_CHECKING:
    from msp_lens.models.model_files import Checkpoint
    from msp_lens.probing.probe_tables import ProbeTables
    from msp_lens.processes.process import Process


def expanded(text: str) -> Path:
    """A path, with ~ for the home folder."""
    return Path(text).expanduser()


_PROCESS_HELP = "A process of the catalog; msp-lens processes lists them."
_WEIGHTING_HELP = "How much each prefix counts: probability, sequence (as in the paper) or prefix."
_SEED_HELP = "Seed of everything random."
_PRESET_HELP = "Recipe of model and training: quick, paper or shai2024; rnn, gru, lstm or ssm; tiny to try it out."
_SITE_HELP = "A hook name, a label such as 2_post, a glob such as '*_mid', or all. Repeatable."
_EDIT_HELP = "An edit such as steer, patch or erase. Repeatable. By default several."
_TARGET_HELP = "The belief to write, such as another-word or vertex. Repeatable."
_OTHER_HELP = "A process of the catalog. By default the one the model was trained on."
_PARAMETER_HELP = "A parameter of the process, as name=value. Repeatable."
ProcessName = Annotated[str, typer.Argument(help=_PROCESS_HELP, autocompletion=complete_process)]
Parameters = Annotated[
    list[str] | None, typer.Option("--param", "-p", help=_PARAMETER_HELP, autocompletion=complete_parameter)
]
Preset = Annotated[str, typer.Option(help=_PRESET_HELP, autocompletion=complete_preset)]
ModelPath = Annotated[
    Path,
    typer.Argument(
        parser=expanded, help="A saved model: a run's folder, or a .safetensors file.", autocompletion=complete_model
    ),
]
RunFolder = Annotated[
    Path, typer.Argument(parser=expanded, help="The folder of a training.", autocompletion=complete_model)
]
OtherProcess = Annotated[str | None, typer.Option("--process", help=_OTHER_HELP, autocompletion=complete_process)]
Sites = Annotated[list[str] | None, typer.Option("--site", "-s", help=_SITE_HELP, autocompletion=complete_site)]
Edits = Annotated[list[str] | None, typer.Option("--edit", help=_EDIT_HELP, autocompletion=complete_edit)]
Targets = Annotated[list[str] | None, typer.Option("--target", help=_TARGET_HELP, autocompletion=complete_target)]
WeightingName = Literal["probability", "sequence", "prefix"]
Weighting = Annotated[WeightingName, typer.Option(help=_WEIGHTING_HELP)]
LAST_SEED = 2**63 - 1
Seed = Annotated[int, typer.Option(min=0, max=LAST_SEED, help=_SEED_HELP)]
RunWeighting = Annotated[
    WeightingName | None, typer.Option("--weighting", help=f"{_WEIGHTING_HELP} By default as in the run.")
]
RunSeed = Annotated[
    int | None, typer.Option("--seed", min=0, max=LAST_SEED, help=f"{_SEED_HELP} By default as in the run.")
]
Device = Annotated[str, typer.Option(help="Device of the model: cpu, cuda, …", autocompletion=complete_device)]
AsJson = Annotated[bool, typer.Option("--json", help="Print the results as JSON.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print every table with all its notes.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Picture = Annotated[
    Path | None, typer.Option("--plot", parser=expanded, help="Save a picture to this file (.png, .svg or .pdf).")
]


def named_process(name: str, parameters: list[str] | None) -> Process:
    """A process of the catalog, with parameters each given as name=value."""
    from msp_lens.processes import build_process

    values: dict[str, Any] = {}
    for pair in parameters or []:
        key, _, value = pair.partition("=")
        if key in values:
            raise ValueError(f"--param {pair}: {key} is given twice, give it once.")
        try:
            numbers = [float(part) for part in value.split(",")]
        except ValueError:
            raise ValueError(f"--param {pair}: give name=number, for example --param x=0.05.") from None
        values[key] = numbers if "," in value else numbers[0]
    return build_process(name, values)


def named_model(
    path: Path, name: str | None, parameters: list[str] | None, device: str, sites: list[str] | None
) -> tuple[Checkpoint, Process]:
    """The model, and the process: the one named, or else the one it was trained on. The model has the sites."""
    loaded, chosen = model_and_known(path, name, parameters, device, sites)
    with usage():
        if chosen is None:
            raise ValueError(f"{path} does not say what process it was trained on: give --process (and --param).")
    return loaded, chosen


def model_and_known(
    path: Path, name: str | None, parameters: list[str] | None, device: str, sites: list[str] | None = None
) -> tuple[Checkpoint, Process | None]:
    """As `named_model`; the process is `None` if nobody names it."""
    from msp_lens.models import find_sites, load_checkpoint

    with usage():
        if parameters and name is None:
            raise ValueError("--param without --process: name the process that the parameters are of.")
        chosen = named_process(name, parameters) if name is not None else None
        check_exists(path)
    loaded = load_checkpoint(path, device=device)
    with usage():
        find_sites(loaded.model, chosen_sites(sites))
    return loaded, chosen or loaded.process


def options_of_run(path: Path, weighting: str | None, seed: int | None) -> dict[str, Any]:
    """The weighting and seed given, or else those of the model's run."""
    from msp_lens.experiments.study import run_options

    given = {"weighting": weighting, "seed": seed}
    return run_options(path) | {name: value for name, value in given.items() if value is not None}


def named_on(menu: Iterable[str], names: list[str] | None) -> list[str] | None:
    """Edits or targets as the library calls them, also where they were written as one word: donor-belief."""
    return [from_menu(name, menu) for name in names] if names else None


def chosen_sites(sites: list[str] | None) -> Any:
    """The sites as the library takes them."""
    return "all" if sites == ["all"] else sites or None


def best_read(report: ProbeTables, process: Process) -> list[str]:
    """Where a belief is read best, beside the best control: the answer of a probe in a sentence or two."""
    from msp_lens._tables import skill_text

    best, name = report.best_site, process.title
    control, skill = report.controls.best(best.label), report.skill(best.label)
    found = f"The belief of {name} is read best at {best.label}: R² {best.scores.held_out.r2:.4f}, held out"
    if control is None or math.isnan(skill):
        return [f"{found}."]
    beside = f"the best control ({control.name}) reaches {control.held_out.r2:.4f}"
    if skill <= 0:
        return [f"{found}, which is no more than a control explains: {beside} (skill {skill_text(skill)})."]
    return [f"{found}; {beside}. Of what that leaves, the network explains {skill_text(skill)} (skill)."]


def listed_numbers(text: str | None) -> list[int] | None:
    """Numbers of states given as 2,3,4, if any are."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise ValueError(f"--states {text}: give numbers from 1, such as 2,3,4.")
    return [int(part) for part in parts]
