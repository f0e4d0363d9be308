"""The command line, `msp-lens`. Results go to stdout, progress and errors to stderr.

Heavy imports happen inside the commands, so that `--help` is quick.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Train a transformer on a hidden Markov process, find the beliefs in its residual stream, steer them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

INTERRUPTED = 130


@app.command()
def processes() -> None:
    """List the named processes: size, entropy rate in nats, and how many mixed states there are.

    Example: msp-lens processes
    """
    from msp_lens._tables import to_text
    from msp_lens.beliefs import catalog_table

    notes = [
        "At their default parameters; give others as in: msp-lens run mess3 --param x=0.15 --param a=0.6. Entropy rate "
        "in nats. Seen in next token: how many of the beliefs' dimensions next-token probabilities show; where it is "
        "all of them, a probe alone cannot tell the two apart.",
    ]
    print(to_text(catalog_table(), title="Processes", notes=notes))


@app.command()
def run(
    process: Annotated[
        str, typer.Argument(help="A process of the catalog, mess3 for one; msp-lens processes lists them.")
    ],
    param: Annotated[
        list[str] | None,
        typer.Option("--param", "-p", help="A parameter of the process, as name=value; repeatable."),
    ] = None,
    preset: Annotated[str, typer.Option(help="Recipe of model and training.")] = "quick",
    out: Annotated[Path | None, typer.Option(help="Folder for the results; by default a new one under runs/.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    weights: Annotated[
        str, typer.Option(help="How much each prefix counts: probability, sequence (the paper's) or prefix.")
    ] = "probability",
    device: Annotated[str, typer.Option(help="Where to train and probe: cpu, cuda, …")] = "cpu",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run that OUT already holds.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Train, probe, intervene, and write a report.

    Example: msp-lens run mess3 --param x=0.05 --param a=0.85 --out runs/mess3
    """
    folder = out
    try:
        from msp_lens import studies
        from msp_lens.processes import build_process

        chosen = build_process(process, _parameters(param or []))
        folder = studies.choose_folder(out, chosen.name, overwrite=overwrite)
        study = studies.run(
            chosen,
            preset=preset,
            weights=weights,  # pyright: ignore[reportArgumentType]  (checked by run)
            out=folder,
            overwrite=overwrite,
            seed=seed,
            device=device,
        )
        print(study)
    except KeyboardInterrupt:
        whole = sorted(file.name for file in folder.iterdir() if file.is_file()) if folder and folder.is_dir() else []
        kept = f" Whole and kept in {folder}: {', '.join(whole)}." if whole else " Nothing had been written."
        print(f"\nInterrupted.{kept}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    except (ValueError, KeyError, OSError) as error:
        if debug:
            raise
        print(f"msp-lens: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr)
        raise typer.Exit(1) from None


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
