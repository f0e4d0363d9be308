"""The commands of `msp-lens` that make a whole experiment, and write its page: run, report, reproduce.

Heavy imports happen inside the commands, so that `--help` is quick.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from msp_lens._commands import check_exists, command, is_watched, show, tell_how_to_call, usage
from msp_lens._completion import complete_paper
from msp_lens._options import (
    AsJson,
    Debug,
    Device,
    Parameters,
    Preset,
    ProcessName,
    RunFolder,
    RunSeed,
    RunWeighting,
    Seed,
    Verbose,
    Weighting,
    expanded,
    named_process,
)

if TYPE_CHECKING:
    from msp_lens.experiments.study import Study


def run(
    process: ProcessName,
    param: Parameters = None,
    preset: Preset = "quick",
    out: Annotated[
        Path | None, typer.Option(parser=expanded, help="Folder for the results. By default a new one in runs/.")
    ] = None,
    seed: Seed = 0,
    seeds: Annotated[
        int, typer.Option(min=1, help="Number of networks to train and probe, to see how scores depend on the seed.")
    ] = 1,
    weighting: Weighting = "probability",
    device: Device = "cpu",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that OUT holds.")] = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Train, probe, intervene, and write a report: the whole experiment.

    Interrupted, it goes on when the same command is run again.

    Example: msp-lens run mess3 --param x=0.05 --param a=0.85 --out runs/mess3
    """
    with command(debug) as place:
        from msp_lens.experiments import study as studies

        with usage(device=device):
            chosen = named_process(process, param)
            what: dict[str, Any] = {"preset": preset, "weighting": weighting, "seed": seed, "seeds": seeds}
            config = studies.run_config(chosen, **what)
            if out is not None and not overwrite and (page := out / studies.PAGE_FILE).exists():
                other = next(new for k in range(2, 10_000) if not (new := out.with_name(f"{out.name}-{k}")).exists())
                raise ValueError(
                    f"--out {out} already holds a run: open {page}, give another folder (--out {other}), or replace it "
                    "with --overwrite."
                )
            place.folder = studies.choose_folder(out, chosen.name, overwrite=overwrite, config=config)
        how: dict[str, Any] = {"overwrite": overwrite, "device": device, "progress": is_watched()}
        _show_study(studies.run(chosen, out=place.folder, **what, **how), verbose, as_json)
        tell_how_to_call()


def report(
    run: RunFolder,
    weighting: RunWeighting = None,
    seed: RunSeed = None,
    device: Device = "cpu",
    verbose: Verbose = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Probe and steer a trained model, and write its report.html; an earlier report is replaced.

    Example: msp-lens report runs/rrxor
    """
    with command(debug) as place:
        from msp_lens.experiments import study as studies

        with usage(device=device):
            check_exists(run)
        place.folder, place.again = run, "run the same command again: it begins anew"
        options: dict[str, Any] = {"weighting": weighting, "seed": seed, "device": device, "progress": is_watched()}
        _show_study(studies.report(run, **options), verbose, as_json)


def reproduce(
    name: Annotated[
        str | None,
        typer.Argument(help="The paper to reproduce. Without one, they are listed.", autocompletion=complete_paper),
    ] = None,
    small: Annotated[
        bool, typer.Option("--small", help="Run in minutes, on smaller settings that the page names.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(parser=expanded, help="Folder for the page. By default runs/NAME or runs/NAME-small.")
    ] = None,
    checkpoints: Annotated[
        Path | None,
        typer.Option(parser=expanded, help="Folder of trained networks to use; those that it lacks are trained."),
    ] = None,
    n_jobs: Annotated[int, typer.Option(min=-1, help="Networks to train at once; -1 for one on each core.")] = -1,
    device: Device = "cpu",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Reproduce a paper: train its networks, measure its claims, and write a page of published beside measured.

    Called again, it continues, and trains only what is missing.

    Example: msp-lens reproduce shai2024 --small
    """
    with command(debug) as place:
        from msp_lens._tables import to_text
        from msp_lens.experiments.reproduce import papers_to_reproduce, place_of_reproduction
        from msp_lens.experiments.reproduce import reproduce as reproduce_paper

        if name is None:
            table = papers_to_reproduce()
            notes = [
                "To reproduce one: msp-lens reproduce shai2024 --small. Times are those of two cores. Full sizes are "
                "the papers' own; a cluster can train their networks: see msp_lens.experiments.reproduce."
            ]
            listed = to_text(table, title="Papers to reproduce", notes=notes, left=list(table.columns))
            show(listed, table.reset_index().to_dict("records"), as_json)
            return
        with usage(device=device):
            place.folder = place_of_reproduction(name, small=small, out=out)
        options: dict[str, Any] = {"n_jobs": n_jobs, "device": device, "progress": is_watched()}
        found = reproduce_paper(name, small=small, out=place.folder, checkpoints=checkpoints, **options)
        show(found, found.to_dict() | {"page": str(found.page)}, as_json)


def _show_study(study: Study, verbose: bool, as_json: bool) -> None:
    from msp_lens._files import read_json
    from msp_lens.experiments.study import REPORT_FILE

    shown = study.details() if verbose else f"{study}\n\nEvery table is in the report; --verbose prints them here."
    show(shown, read_json(study.folder / REPORT_FILE) | {"page": str(study.page)}, as_json)
