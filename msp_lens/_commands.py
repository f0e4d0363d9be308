"""How the commands of `msp-lens` end: in one line if something is wrong, and quietly if nobody reads on."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import typer
from typer.core import TyperGroup

from msp_lens._names import meant
from msp_lens._plain import plain_streams
from msp_lens._version import __version__

# Recent versions of typer carry a click of their own, which has no public name.
_USAGE_ERRORS: Any = tuple(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
_ABORTED: Any = (typer.Abort, KeyboardInterrupt)
# Python's spelling of a remedy, and the command line's, where it is not the option's name.
_REMEDIES = {
    "resume=False": "--fresh",
    "interventions=True": "--steer",
    "emergence(…, --steer)": "msp-lens emergence RUN --steer",
    "n_checkpoints=": "--checkpoints ",
    "sites=": "--site ",
    "positions=": "--position ",
    "edits=": "--edit ",
    "targets=": "--target ",
    "n_states=": "--states ",
    "n_starts=": "--starts ",
    "overwrite=True (--overwrite)": "--overwrite",
    "overwrite=True": "--overwrite",
    "msp.find_sites(model, 'all') lists": "msp-lens probe RUN --site all probes",
}


class CommandError(Exception):
    """A command that could not do its work; its text says what is wrong and what to do."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class OneLineGroup(TyperGroup):
    """Commands whose errors are one line on stderr, in words of the command line."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, standalone_mode: bool = True, **options: Any) -> Any:
        """Run a command and exit: 0, 1 for a failure, 2 for wrong usage, 130 if interrupted."""
        plain_streams()
        try:
            code = super().main(args, *rest, standalone_mode=False, **options)
            sys.stdout.flush()
        except BrokenPipeError:
            code = _stop_writing()
        except _ABORTED:
            code = _interrupted("No file was written.")
        except CommandError as failure:
            code = self._complain(str(failure), failure.exit_code)
        except _USAGE_ERRORS as error:
            message = _usage_message(error, sys.argv[1:] if args is None else args)
            # Without a command, the help has been shown.
            code = self._complain(message, 2) if message else 2
        sys.exit(code if isinstance(code, int) else 0)

    def _complain(self, message: str, code: int) -> int:
        print(f"msp-lens: {as_options(' '.join(message.split()), self._option_names())}", file=sys.stderr)
        return code

    def _option_names(self) -> dict[str, str]:
        """Parameter to option, over all commands."""
        parameters = [parameter for command in self.commands.values() for parameter in command.params]
        options = {str(each.name): max(each.opts, key=len) for each in parameters if each.opts}
        return {name: option for name, option in options.items() if option.startswith("--")}


def _stop_writing() -> int:
    """Whoever read the output has seen enough: Python is not to complain at the end that it cannot write the rest."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _usage_message(error: Any, arguments: Sequence[str]) -> str:
    """What typer says is wrong; of a value, with the option and the value before it."""
    for option in getattr(getattr(error, "param", None), "opts", []):
        for place, argument in enumerate(arguments):
            name, _, value = argument.partition("=")
            if name == option:
                value = value or "".join(arguments[place + 1 : place + 2])
                rule = str(error.message).removeprefix("Value error, ").rstrip(".")
                # The choices stand in the rule, if there are any, each between quotes.
                near = meant(value, [each for each in re.findall(r"'([^']*)'", rule) if each != value])
                return f"{option} {value}: {rule[:1].lower()}{rule[1:]}.{near}"
    if possible := getattr(error, "possibilities", None):
        return f"{error.message.rstrip('.')}.{meant(error.option_name, possible)}"
    return error.format_message()


def as_options(message: str, options: dict[str, str]) -> str:
    """A message of the library in words of the command line: `n_words=0` is `--n-words 0`.

    Example:
        >>> as_options("n_words=0: give at least 1. Or start again with resume=False.", {"n_words": "--n-words"})
        '--n-words 0: give at least 1. Or start again with --fresh.'
    """
    message = re.sub(r"call train\(\.\.\., out='(.*?)'\)", r"run msp-lens train … --out \1 once more", message)
    for spelling, option in _REMEDIES.items():
        message = re.sub(rf"(?<![\w.]){re.escape(spelling)}", option, message)
    for name, option in options.items():
        message = re.sub(rf"(?<![\w.(-]){name}=", f"{option} ", message)
    return message


def show_version(is_asked: bool) -> bool:
    """Print the version and exit, if it is asked for."""
    if is_asked:
        print(f"msp-lens {__version__}")
        raise typer.Exit
    return is_asked


@contextlib.contextmanager
def command(debug: bool, plot: Path | None = None) -> Iterator[SimpleNamespace]:
    """Check the path of the picture, make errors one line, and say what an interruption left in the folder.

    The command sets the folder on what it is given, and how to go on if that is not by the same command.
    """
    place = SimpleNamespace(folder=None, again="run the same command again")
    try:
        with usage(plot=plot):
            if plot is not None and plot.suffix.lower() not in (".png", ".svg", ".pdf"):
                raise ValueError(f"--plot {plot}: pictures are .png, .svg or .pdf.")
        yield place
    except KeyboardInterrupt:
        raise typer.Exit(_interrupted(_left_in(place.folder, place.again))) from None
    except BrokenPipeError:
        raise typer.Exit(_stop_writing()) from None
    except (_UsageError, ValueError, KeyError, TypeError, OSError) as error:
        code = 1
        if isinstance(error, _UsageError):
            error, code = error.error, 2
        if debug:
            raise error from None
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        raise CommandError(str(message), code) from None


def _left_in(folder: Path | None, again: str) -> str:
    """What an interrupted command left in its folder, and how to go on."""
    inner = [each.relative_to(folder) for each in folder.rglob("*") if each.is_file()] if folder is not None else []
    whole = [each for each in inner if not any(part.startswith(".") for part in each.parts)]
    if not whole:
        return "No file was written."
    # Those in folders within, of checkpoints and networks, are many.
    named = ", ".join(sorted(str(each) for each in whole if len(each.parts) == 1)) or f"{len(whole)} in folders within"
    return f"Complete files in {folder}: {named}. To go on, {again}."


def _interrupted(told: str) -> int:
    print(f"\nInterrupted. {told}", file=sys.stderr)
    return 130


class _UsageError(Exception):
    """Wraps the error that an option's value gave."""

    def __init__(self, error: Exception) -> None:
        self.error = error


@contextlib.contextmanager
def usage(*, device: str = "cpu", **files: Path | None) -> Iterator[None]:
    """Check options before any work: an error in here is wrong usage, and so is a device or file that cannot be."""
    try:
        yield
        if device != "cpu":
            import torch

            from msp_lens._checks import converted

            converted(device, torch.device, "device")
        for name, file in files.items():
            if file is not None and file.is_dir():
                raise ValueError(f"--{name} {file} is a folder: give the name of a file.")
            if file is not None and not file.parent.is_dir():
                raise ValueError(f"--{name} {file}: there is no folder {file.parent}.")
    except (ValueError, KeyError, TypeError) as error:
        raise _UsageError(error) from None


def is_watched() -> bool:
    """Whether anyone sees progress bars: they do not belong in a file."""
    return sys.stderr.isatty()


def tell_how_to_call() -> None:
    """Say on stderr how to call `msp-lens` again, if it was called by a path because the shell does not find it."""
    called, found = Path(sys.argv[0]), shutil.which("msp-lens")
    if called.stem != "msp-lens" or (found is not None and Path(found).resolve() == called.resolve()):
        return
    activate = called.with_name("activate")
    or_else = f", or first run: source {activate}" if activate.exists() else ""
    print(f"Your shell does not find msp-lens by its name: call it as {called}{or_else}", file=sys.stderr)


def check_exists(path: Path) -> None:
    """Raise `ValueError` if there is no such file or folder."""
    if not path.exists():
        beside = [str(each) for each in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ValueError(f"There is no file or folder {path}: check the path.{meant(str(path), beside)}")


def in_short(result: Any, notes: Sequence[str], *, is_verbose: bool) -> str:
    """A result's table with the notes that answer the question, or with all of its own notes."""
    if is_verbose:
        return repr(result)
    return result.as_text([*notes, "--verbose adds how to read this table, and how far to trust it."])


def show(result: Any, values: Any, as_json: bool, plot: Path | None = None, *, drawn: Any = None) -> None:
    """Save the picture, and print the result, or its values as JSON; `drawn` is what to draw, if not the result."""
    from msp_lens._files import without_nan

    if plot is not None:
        (result if drawn is None else drawn).plot().savefig(plot)
    if as_json:
        # Plain characters in place of others would change names.
        is_unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
        result = json.dumps(without_nan(values), indent=2, ensure_ascii=not is_unicode)
    print(result, flush=True)
