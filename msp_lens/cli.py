"""The command line, `msp-lens`. Results go to stdout, progress and errors to stderr.

Heavy imports happen inside the commands, so that `--help` is quick.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from msp_lens.models.model_files import Checkpoint
    from msp_lens.processes.process import Process

app = typer.Typer(
    help="Train a transformer on a hidden Markov process, find the beliefs in its residual stream, steer them.\n\n"
    "Begin with: msp-lens run mess3\n\n"
    "Results go to stdout, progress and errors to stderr. Exit codes: 0 all went well, 1 it did not (one line "
    "says why, and the remedy), 2 wrong usage, 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

FAILED, INTERRUPTED = 1, 130


def _complete_process(incomplete: str) -> list[str]:
    from msp_lens.processes.registry import CATALOG

    return [name for name in CATALOG if name.startswith(incomplete)]


def _complete_preset(incomplete: str) -> list[str]:
    from msp_lens.training.presets import PRESETS

    return [name for name in PRESETS if name.startswith(incomplete)]


ProcessName = Annotated[
    str,
    typer.Argument(help="A process of the catalog: msp-lens processes lists them.", autocompletion=_complete_process),
]
Parameters = Annotated[
    list[str] | None,
    typer.Option("--param", "-p", help="A parameter of the process, as name=value; repeatable."),
]
ModelPath = Annotated[
    Path, typer.Argument(help="A model that msp-lens saved: the folder of a run, or a .safetensors file.")
]
OfProcess = Annotated[
    str | None,
    typer.Option(
        "--process",
        help="The process, if another than the model was trained on (or it is not said).",
        autocompletion=_complete_process,
    ),
]
Sites = Annotated[
    list[str] | None,
    typer.Option(
        "--site", "-s", help="A site: a hook name, a label such as 2_post, a glob such as '*_mid', or all; repeatable."
    ),
]
Weighting = Annotated[
    str, typer.Option(help="How much each prefix counts: probability, sequence (the paper's) or prefix.")
]
Preset = Annotated[
    str,
    typer.Option(help="Recipe of model and training: quick, paper or shai2024.", autocompletion=_complete_preset),
]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Device = Annotated[str, typer.Option(help="Where the model goes: cpu, cuda, …")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the results as JSON.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Picture = Annotated[Path | None, typer.Option("--plot", help="Also draw a picture to this file (.png, .svg or .pdf).")]


@app.command()
def run(
    process: ProcessName,
    param: Parameters = None,
    preset: Preset = "quick",
    out: Annotated[Path | None, typer.Option(help="Folder for the results; by default a new one under runs/.")] = None,
    seed: Seed = 0,
    weighting: Weighting = "probability",
    device: Device = "cpu",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run that OUT already holds.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Train, probe, intervene, and write a report: the whole experiment.

    Example: msp-lens run mess3 --param x=0.05 --param a=0.85 --out runs/mess3
    """
    with _errors(debug) as place:
        from msp_lens._files import read_json
        from msp_lens.experiments import study as studies

        chosen = _process(process, param)
        place.folder = studies.choose_folder(out, chosen.name, overwrite=overwrite)
        study = studies.run(
            chosen,
            preset=preset,
            weighting=weighting,  # pyright: ignore[reportArgumentType]  (checked by run)
            out=place.folder,
            overwrite=overwrite,
            seed=seed,
            device=device,
        )
        _show(study, read_json(study.folder / studies.REPORT_FILE) | {"page": str(study.page)}, as_json=as_json)


@app.command()
def processes(as_json: AsJson = False, debug: Debug = False) -> None:
    """List the named processes: size, entropy rate in nats, and how many mixed states there are.

    Example: msp-lens processes
    """
    with _errors(debug):
        from msp_lens._tables import to_text
        from msp_lens.beliefs import catalog_table

        notes = [
            "At their default parameters; give others as in: msp-lens run mess3 --param x=0.15 --param a=0.6.",
            "h: entropy rate. Seen in next token: how many of the beliefs' dimensions next-token probabilities show; "
            "where it is all of them, a probe alone cannot tell the two apart.",
        ]
        table = catalog_table()
        _show(to_text(table, title="Processes", notes=notes), table.reset_index().to_dict("records"), as_json=as_json)


@app.command()
def msp(
    process: ProcessName,
    param: Parameters = None,
    plot: Picture = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """What theory says of a process: its mixed-state presentation, its entropies, and what can be told apart.

    Example: msp-lens msp z1r --plot z1r.png
    """
    with _errors(debug):
        _check_picture(plot)
        from msp_lens.beliefs import describe

        chosen = _process(process, param)
        found = describe(chosen)
        if plot is not None:
            found.plot().savefig(plot)
        _show(found, found.to_dict(), as_json=as_json)


@app.command()
def train(
    process: ProcessName,
    param: Parameters = None,
    preset: Preset = "quick",
    out: Annotated[Path | None, typer.Option(help="Folder for the model; by default runs/NAME.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps, if other than the preset's.")] = None,
    checkpoints: Annotated[
        int, typer.Option(help="How many models to keep on the way, most of them early, for msp-lens emergence.")
    ] = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew where OUT holds a training.")] = False,
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Train a transformer on a process. Run the same again after an interruption and it goes on where it was.

    Example: msp-lens train rrxor --preset paper --checkpoints 12 --out runs/rrxor
    """
    with _errors(debug) as place:
        from dataclasses import replace

        from msp_lens.training import recipe
        from msp_lens.training import train as train_model

        chosen = _process(process, param)
        config = recipe(preset, chosen).training
        if steps is not None:
            config = replace(config, steps=steps)
        if checkpoints:
            config = replace(config, checkpoints="logarithmic", n_checkpoints=checkpoints)
        place.folder = out if out is not None else Path("runs") / chosen.name
        trained = train_model(
            chosen, preset=preset, config=config, seed=seed, device=device, out=place.folder, resume=not fresh
        )
        result = {
            "folder": str(place.folder),
            "regret_nats": trained.regret.tolist(),
            "optimum_nats": trained.optimum.tolist(),
            "seconds": trained.seconds,
        }
        _show(f"{trained!r}\n\nModel: {place.folder}", result, as_json=as_json)


@app.command()
def probe(
    model: ModelPath,
    process: OfProcess = None,
    param: Parameters = None,
    site: Sites = None,
    weighting: Weighting = "probability",
    split: Annotated[str, typer.Option(help="What is held out together: prefix, sequence or subtree.")] = "prefix",
    method: Annotated[str, typer.Option(help="ols, ridge, or reduced_rank.")] = "ols",
    rank: Annotated[int | None, typer.Option(help="Rank, for reduced_rank.")] = None,
    untrained: Annotated[int, typer.Option(help="How many untrained twins to set the probes beside.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Save the report to this file, for ProbeReport.load.")] = None,
    plot: Picture = None,
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Regress beliefs on the residual stream of a model, beside controls.

    Example: msp-lens probe runs/mess3 --site '*_post' --untrained 3 --plot fractal.png
    """
    with _errors(debug):
        _check_picture(plot)
        from msp_lens.probing import probe as probe_model

        loaded, chosen = _model(model, process, param, device)
        report = probe_model(
            loaded.model,
            chosen,
            sites=_sites(site),
            weighting=weighting,  # pyright: ignore[reportArgumentType]  (checked by probe)
            split=split,  # pyright: ignore[reportArgumentType]
            method=method,  # pyright: ignore[reportArgumentType]
            rank=rank,
            untrained=untrained,
            seed=seed,
        )
        if out is not None:
            report.save(out)
        if plot is not None:
            report.plot().savefig(plot)
        _show(report, report.to_dict(), as_json=as_json)


@app.command()
def intervene(
    model: ModelPath,
    process: OfProcess = None,
    param: Parameters = None,
    site: Sites = None,
    position: Annotated[
        list[int] | None, typer.Option(help="A position to write at; repeatable. By default three quarters in.")
    ] = None,
    edit: Annotated[
        list[str] | None, typer.Option(help="An edit, such as steer, patch or erase; repeatable. By default the usual.")
    ] = None,
    target: Annotated[list[str] | None, typer.Option(help="What belief is written; repeatable.")] = None,
    pairs: Annotated[int, typer.Option(help="Pairs of a word and a target belief.")] = 2000,
    plot: Picture = None,
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write beliefs into the residual stream, and see whether the network acts on them.

    Example: msp-lens intervene runs/mess3 --site 1_post --site 3_post --position 7 --edit steer --edit pseudo-inverse
    """
    with _errors(debug):
        _check_picture(plot)
        from msp_lens.interventions import intervene as intervene_on
        from msp_lens.probing import probe as probe_model

        loaded, chosen = _model(model, process, param, device)
        report = probe_model(loaded.model, chosen, sites=_sites(site), concatenate=False, controls=False, seed=seed)
        found = intervene_on(
            loaded.model,
            chosen,
            probes=report,
            positions=position or None,
            edits=edit or None,
            targets=target or "another word",
            n_words=pairs,
            seed=seed,
        )
        if plot is not None:
            found.plot().savefig(plot)
        _show(found, found.to_dict(), as_json=as_json)


@app.command()
def emergence(
    run: Annotated[Path, typer.Argument(help="The folder of a training that kept checkpoints (--checkpoints).")],
    site: Sites = None,
    weighting: Weighting = "probability",
    steer: Annotated[bool, typer.Option("--steer", help="Also steer at every checkpoint: when is it used?")] = False,
    gif: Annotated[Path | None, typer.Option(help="Write the movie of beliefs forming to this GIF.")] = None,
    page: Annotated[Path | None, typer.Option(help="Write the movie, with a slider, to this HTML file.")] = None,
    plot: Picture = None,
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Probe every checkpoint of a training: how the geometry of beliefs forms.

    Example: msp-lens emergence runs/mess3 --gif forming.gif --plot curves.png
    """
    with _errors(debug):
        _check_picture(plot)
        from msp_lens.formation import emergence as probe_checkpoints

        found = probe_checkpoints(
            run,
            sites=_sites(site),
            weighting=weighting,  # pyright: ignore[reportArgumentType]  (checked by emergence)
            interventions=steer,
            seed=seed,
            device=device,
        )
        if plot is not None:
            found.plot().savefig(plot)
        if gif is not None or page is not None:
            movie = found.movie()
            if gif is not None:
                movie.save_gif(gif)
            if page is not None:
                movie.save_html(page)
        _show(found, found.to_dataframe().to_dict("records"), as_json=as_json)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="The folder of a training: model.safetensors and what lies beside it.")],
    weighting: Weighting = "probability",
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Probe and steer a trained model, and write its report.html (anew).

    Example: msp-lens report runs/rrxor
    """
    with _errors(debug) as place:
        from msp_lens._files import read_json
        from msp_lens.experiments import study as studies

        place.folder = run
        study = studies.report(
            run,
            weighting=weighting,  # pyright: ignore[reportArgumentType]  (checked by report)
            seed=seed,
            device=device,
        )
        _show(study, read_json(study.folder / studies.REPORT_FILE) | {"page": str(study.page)}, as_json=as_json)


class _Place:
    """Where a command writes, for the message should it be interrupted."""

    folder: Path | None = None


@contextlib.contextmanager
def _errors(debug: bool) -> Iterator[_Place]:
    """Errors as one line with the remedy, an interruption as what it left behind."""
    place = _Place()
    try:
        yield place
    except KeyboardInterrupt:
        folder = place.folder
        whole = sorted(file.name for file in folder.iterdir() if file.is_file()) if folder and folder.is_dir() else []
        kept = f" Whole and kept in {folder}: {', '.join(whole)}." if whole else " Nothing had been written."
        print(f"\nInterrupted.{kept}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        if debug:
            raise
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"msp-lens: {' '.join(str(message).split())}", file=sys.stderr)
        raise typer.Exit(FAILED) from None


def _show(result: object, as_values: Any, *, as_json: bool) -> None:
    from msp_lens._files import without_nan

    print(json.dumps(without_nan(as_values), indent=2, ensure_ascii=False) if as_json else result)


def _process(name: str, parameters: list[str] | None) -> Process:
    from msp_lens.processes import build_process

    return build_process(name, _parameters(parameters or []))


def _model(path: Path, name: str | None, parameters: list[str] | None, device: str) -> tuple[Checkpoint, Process]:
    """The model, and the process it was trained on or the one that is named instead."""
    from msp_lens.models import load_checkpoint

    if parameters and name is None:
        raise ValueError("--param: parameters of which process? Give --process too.")
    chosen = _process(name, parameters) if name is not None else None
    loaded = load_checkpoint(path, device=device)
    if chosen is None and loaded.process is None:
        raise ValueError(f"{path} does not say what it was trained on: give --process, and --param if need be.")
    return loaded, chosen or loaded.process  # pyright: ignore[reportReturnType]


def _sites(sites: list[str] | None) -> Any:
    return "all" if sites == ["all"] else sites or None


def _check_picture(path: Path | None) -> None:
    if path is not None and path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ValueError(f"--plot {path}: pictures are .png, .svg or .pdf.")
    if path is not None and not path.parent.is_dir():
        raise ValueError(f"--plot {path}: there is no folder {path.parent}.")


def _parameters(pairs: list[str]) -> dict[str, float]:
    parameters = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            parameters[name] = float(value)
        except ValueError:
            raise ValueError(f"--param {pair}: give name=number, for example --param x=0.05.") from None
    return parameters


def main() -> None:
    """Entry point of the `msp-lens` command."""
    app()


if __name__ == "__main__":
    main()
