"""The command line, `msp-lens`. Results go to stdout, progress and errors to stderr.

Heavy imports happen inside the commands, so that `--help` is quick.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from msp_lens import _experiment_commands
from msp_lens._commands import OneLineGroup, check_exists, command, in_short, is_watched, show, show_version, usage
from msp_lens._names import meant
from msp_lens._options import (
    AsJson,
    Debug,
    Device,
    Edits,
    ModelPath,
    OtherProcess,
    Parameters,
    Picture,
    Preset,
    ProcessName,
    RunFolder,
    RunSeed,
    RunWeighting,
    Seed,
    Sites,
    Targets,
    Verbose,
    best_read,
    chosen_sites,
    expanded,
    listed_numbers,
    model_and_known,
    named_model,
    named_on,
    named_process,
    options_of_run,
)

app = typer.Typer(
    cls=OneLineGroup,
    help="Train a transformer on a hidden Markov process, find the beliefs in its residual stream, and steer them.\n\n"
    "To begin: msp-lens run mess3\n\n"
    "Results go to stdout, progress and errors to stderr. Exit codes: 0 success, 1 failure (one line says what is "
    "wrong and what to do), 2 wrong usage, 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """What all commands share; the help is that of `app`."""


app.command()(_experiment_commands.run)


@app.command()
def processes(as_json: AsJson = False, debug: Debug = False) -> None:
    """List the processes of the catalog: their size, entropy rate in nats, and number of mixed states.

    Example: msp-lens processes
    """
    with command(debug):
        from msp_lens._tables import to_text
        from msp_lens.beliefs.description import catalog_table, catalog_text

        notes = [
            "At their default parameters. To choose others: msp-lens run mess3 --param x=0.15 --param a=0.6.",
            "h: entropy rate; ≈ where its bounds leave the fourth decimal open. Mixed states: > where there are more, "
            "perhaps infinitely many. Seen in next token: how many dimensions of the beliefs show in next-token "
            "probabilities; where all of them do, a probe cannot tell beliefs from predictions.",
        ]
        table = catalog_table()
        shown = to_text(catalog_text(table), title="Processes", notes=notes)
        show(shown, table.reset_index().to_dict("records"), as_json)


@app.command()
def msp(
    process: ProcessName, param: Parameters = None, plot: Picture = None, as_json: AsJson = False, debug: Debug = False
) -> None:
    """Describe a process in theory: its mixed-state presentation, its entropies, and what a probe can tell apart.

    Example: msp-lens msp z1r --plot z1r.png
    """
    with command(debug, plot):
        from msp_lens.beliefs import describe

        with usage():
            chosen = named_process(process, param)
        found = describe(chosen)
        show(found, found.to_dict(), as_json, plot)


@app.command()
def train(
    process: ProcessName,
    param: Parameters = None,
    preset: Preset = "quick",
    out: Annotated[
        Path | None, typer.Option(parser=expanded, help="Folder for the model. By default runs/NAME.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Number of optimizer steps. By default the preset's.")
    ] = None,
    checkpoints: Annotated[
        int, typer.Option(min=0, help="Number of checkpoints to keep, most of them early, for msp-lens emergence.")
    ] = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start again from step 0 if OUT holds a training.")] = False,
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Train a network on a process. To resume an interrupted training, run the same command again.

    Example: msp-lens train rrxor --preset paper --checkpoints 12 --out runs/rrxor
    """
    with command(debug) as place:
        from dataclasses import replace

        from msp_lens._files import safe_name
        from msp_lens.experiments.study import training_numbers
        from msp_lens.training import recipe
        from msp_lens.training import train as train_model

        with usage(device=device):
            chosen = named_process(process, param)
            config = recipe(preset, chosen).training
            if steps is not None:
                config = replace(config, steps=steps)
            if checkpoints:
                config = replace(config, checkpoints="logarithmic", n_checkpoints=checkpoints)
            place.folder = out if out is not None else Path("runs") / safe_name(chosen.name)
            place.again = "run the same command again without --fresh" if fresh else place.again
            if place.folder.exists() and not place.folder.is_dir():
                raise ValueError(f"--out {place.folder} is a file: give a folder.")
        trained = train_model(
            chosen,
            preset=preset,
            config=config,
            seed=seed,
            device=device,
            out=place.folder,
            resume=not fresh,
            progress=is_watched(),
        )
        result = {"folder": str(place.folder), **training_numbers(trained)}
        show(f"{trained!r}\n\nModel: {place.folder}", result, as_json)


@app.command()
def probe(
    model: ModelPath,
    process: OtherProcess = None,
    param: Parameters = None,
    site: Sites = None,
    weighting: RunWeighting = None,
    split: Annotated[
        Literal["prefix", "sequence", "subtree", "block", "position"], typer.Option(help="What is held out together.")
    ] = "prefix",
    solver: Annotated[
        Literal["auto", "ols", "ridge", "reduced_rank"],
        typer.Option(help="How the maps are fitted: auto takes least squares or ridge by the number of rows."),
    ] = "auto",
    rank: Annotated[int | None, typer.Option(min=1, help="Rank of the maps, for reduced_rank.")] = None,
    untrained: Annotated[
        int, typer.Option(min=0, help="Number of untrained twins of the model to probe as controls.")
    ] = 0,
    part: Annotated[
        str | None, typer.Option(help="Show what reads this part of the belief: a factor, a component or 'component'.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(parser=expanded, help="Save the report to this file, for ProbeReport.load.")
    ] = None,
    plot: Picture = None,
    seed: RunSeed = None,
    device: Device = "cpu",
    verbose: Verbose = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Regress beliefs on the residual stream of a model, and compare with controls.

    Example: msp-lens probe runs/mess3 --site '*_post' --untrained 3 --plot fractal.png
    """
    with command(debug, plot):
        from msp_lens.moments import ReducedRank
        from msp_lens.probing import probe as probe_model
        from msp_lens.probing.parts import process_parts

        with usage(device=device, out=out):
            if (rank is not None) != (solver == "reduced_rank"):
                raise ValueError(
                    f"--rank {rank} with --solver {solver}: reduced_rank needs a rank, and only it has one."
                )
            solves = solver if rank is None else ReducedRank(rank)
        loaded, chosen = named_model(model, process, param, device, site)
        with usage():
            names = [each.name for each in process_parts(chosen)] if part is not None else []
            if part not in (None, *names):
                raise ValueError(
                    f"--part {part}: {chosen.name} has {', '.join(names) or 'no parts'}.{meant(part, names)}"
                )
        options = options_of_run(model, weighting, seed) | {"split": split, "solver": solves}
        options |= {"untrained": untrained, "progress": is_watched()}
        report = probe_model(loaded.model, chosen, sites=chosen_sites(site), **options)
        if out is not None:
            report.save(out)
        shown = report if part is None else report.parts[part]
        told = in_short(shown, best_read(shown, chosen), is_verbose=verbose)
        show(told, shown.to_dict(), as_json, plot, drawn=shown)


@app.command()
def intervene(
    model: ModelPath,
    process: OtherProcess = None,
    param: Parameters = None,
    site: Sites = None,
    weighting: RunWeighting = None,
    position: Annotated[
        list[int] | None,
        typer.Option(min=0, help="Position to edit. Repeatable. By default three quarters into the words."),
    ] = None,
    edit: Edits = None,
    target: Targets = None,
    n_words: Annotated[int, typer.Option(min=1, help="Number of pairs of a word and a target belief.")] = 2000,
    plot: Picture = None,
    seed: RunSeed = None,
    device: Device = "cpu",
    verbose: Verbose = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write beliefs into the residual stream, and see whether the network acts on them.

    Example: msp-lens intervene runs/mess3 --site 1_post --site 3_post --position 7 --edit steer --edit pseudo-inverse
    """
    with command(debug, plot):
        from msp_lens.interventions import EDITS, TARGETS
        from msp_lens.interventions import intervene as intervene_on
        from msp_lens.interventions.intervention_report import worse_than_placebo
        from msp_lens.interventions.menu import resolve_edits
        from msp_lens.interventions.preparation import chosen_positions
        from msp_lens.interventions.targets import resolve_targets
        from msp_lens.models.positions import context_length
        from msp_lens.probing import probe as probe_model

        with usage(device=device):
            edits, targets = named_on(EDITS, edit), named_on(TARGETS, target) or "another word"
            resolve_edits(edits)
            resolve_targets(targets)
        loaded, chosen = named_model(model, process, param, device, site)
        with usage():
            chosen_positions(position or None, context_length(loaded.model))
        options: dict[str, Any] = {**options_of_run(model, weighting, seed), "progress": is_watched()}
        report = probe_model(
            loaded.model, chosen, sites=chosen_sites(site), concatenate=False, controls=False, **options
        )
        asked: dict[str, Any] = {"positions": position or None, "edits": edits, "n_words": n_words}
        asked |= {"targets": targets, "seed": options["seed"], "progress": is_watched()}
        found = intervene_on(loaded.model, chosen, probes=report, **asked)
        # The first notes say what the edits did, and the stars in the table are explained.
        notes = [*found.notes[:2], *worse_than_placebo(found)]
        told = in_short(found, notes, is_verbose=verbose)
        show(told, found.to_dict(), as_json, plot, drawn=found)


@app.command()
def infer(
    model: ModelPath,
    process: OtherProcess = None,
    param: Parameters = None,
    states: Annotated[
        str | None,
        typer.Option(help="Numbers of states to try, such as 2,3,4. By default 1, 2, … until more stop helping."),
    ] = None,
    starts: Annotated[int, typer.Option(min=1, help="Number of random starts for each number of states.")] = 32,
    out: Annotated[
        Path | None, typer.Option(parser=expanded, help="Save what was found to this file, for Inference.load.")
    ] = None,
    plot: Picture = None,
    seed: RunSeed = None,
    device: Device = "cpu",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Infer the process that a model predicts from the model alone, and compare it with a known one.

    In the folder of a run or training, it also saves inference.json and inference.png, and renews report.html.

    Example: msp-lens infer runs/mess3 --states 2,3,4
    """
    with command(debug, plot):
        from msp_lens.experiments.run_inference import infer_run
        from msp_lens.inference import infer as infer_process
        from msp_lens.models.hooked import vocabulary_size

        with usage(device=device, out=out):
            numbers = listed_numbers(states)
        loaded, known = model_and_known(model, process, param, device)
        n_tokens = vocabulary_size(loaded.model)
        with usage():
            if process is not None and known is not None and known.n_tokens != n_tokens:
                raise ValueError(f"--process {process}: it has {known.n_tokens} tokens, the model {n_tokens}.")
        options: dict[str, Any] = {"n_states": numbers, "n_starts": starts, "progress": is_watched()}
        options["seed"] = options_of_run(model, None, seed)["seed"]
        is_folder = model.is_dir()
        found = infer_run(model, device=device, **options) if is_folder else infer_process(loaded.model, **options)
        if out is not None:
            found.save(out)
        if plot is not None:
            found.plot(against=known).savefig(plot)
        compared = found.compare(known) if known is not None and known.n_tokens == found.process.n_tokens else None
        values = {
            "process": found.process.to_dict(),
            "is_trusted": found.is_trusted,
            "doubts": found.doubts,
            "rank": found.rank.rank,
            "entropy_rate": found.entropy_rate,
            "candidates": found.to_dataframe().reset_index().to_dict("records"),
            "compared": compared.to_dataframe().to_dict() if compared is not None else None,
        }
        show("\n\n".join(map(repr, filter(None, (found, compared)))), values, as_json)


@app.command()
def emergence(
    run: RunFolder,
    site: Sites = None,
    weighting: RunWeighting = None,
    steer: Annotated[bool, typer.Option("--steer", help="Also steer at every checkpoint.")] = False,
    gif: Annotated[
        Path | None, typer.Option(parser=expanded, help="Save the movie of beliefs forming to this GIF.")
    ] = None,
    page: Annotated[
        Path | None, typer.Option(parser=expanded, help="Save the movie, with a slider, to this HTML file.")
    ] = None,
    plot: Picture = None,
    seed: RunSeed = None,
    device: Device = "cpu",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Probe every checkpoint of a training (kept with --checkpoints): how the geometry of beliefs forms.

    Example: msp-lens emergence runs/mess3 --gif forming.gif --plot curves.png
    """
    with command(debug, plot):
        from msp_lens.formation import emergence as probe_checkpoints
        from msp_lens.models import find_sites as check_sites
        from msp_lens.training import saved_checkpoints

        with usage(device=device, gif=gif, page=page):
            check_exists(run)
        checkpoints = saved_checkpoints(run)
        with usage():
            check_sites(checkpoints[0].load(device=device).model, chosen_sites(site))
        options: dict[str, Any] = {**options_of_run(checkpoints[0].path, weighting, seed), "progress": is_watched()}
        found = probe_checkpoints(checkpoints, sites=chosen_sites(site), interventions=steer, device=device, **options)
        if gif is not None or page is not None:
            movie = found.plot.movie(device=device)
            if gif is not None:
                movie.save_gif(gif)
            if page is not None:
                movie.save_html(page)
        show(found, found.to_dataframe().to_dict("records"), as_json, plot)


app.command()(_experiment_commands.report)
app.command()(_experiment_commands.reproduce)


def main() -> None:
    """Entry point of the `msp-lens` command."""
    # OpenMP's threads wait for each other by spinning, unless they are told otherwise before torch is loaded. Where
    # another program uses one of the cores, training then takes many times as long; where they do not spin at all,
    # waking them takes as long. To spin briefly is fast in both cases (`tests/benchmarks/what_was_tried.md`).
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "5000"
    app()


if __name__ == "__main__":
    main()
