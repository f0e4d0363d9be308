"""The commands of `msp-lens` with their options: `<!-- commands -->` becomes an entry for each."""

import re

import click
import typer
from sphinx.application import Sphinx

from msp_lens.cli import app as command_line

MARK = "<!-- commands -->"


def options(command: click.Command) -> list[str]:
    """A row of Markdown for each argument and option."""
    context = click.Context(command)
    rows = []
    for each in command.params:
        if getattr(each, "hidden", False) or each.name == "help":
            continue
        written = each.human_readable_name if isinstance(each, click.Argument) else ", ".join(each.opts)
        text = " ".join(str(getattr(each, "help", None) or "").split())
        value = each.get_default(context)
        given = "" if value in (None, False, ()) or each.required else f" By default {value}."
        rows.append(f"| `{written}` | {text}{given} |".replace("\\|", "|"))
    return ["| | |", "|---|---|", *rows] if rows else []


def entries() -> str:
    """The commands as Markdown."""
    group = typer.main.get_command(command_line)
    parts = []
    for name, command in group.commands.items():
        if not command.hidden:
            help_text = "\n".join(line.strip() for line in (command.help or "").splitlines())
            parts += [f"## msp-lens {name}", "", help_text, "", *options(command), ""]
    # In backticks, where two dashes stay two.
    return re.sub(r"^Example: (msp-lens .*)$", r"Example: `\1`", "\n".join(parts), flags=re.MULTILINE)


def read(app: Sphinx, document: str, content: list[str]) -> None:
    """Sphinx's event for the text of a page."""
    if MARK in content[0]:
        content[0] = content[0].replace(MARK, entries())


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("source-read", read)
    return {"parallel_read_safe": True}
