"""Reproduce a paper: train the networks that it needs, measure what it claims, and write the page."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from tqdm.auto import tqdm

from msp_lens._checks import checked
from msp_lens._files import write_atomically, write_json
from msp_lens._long_work import announce, going_on
from msp_lens._names import meant
from msp_lens._parallel import ONE_AT_A_TIME, check_n_jobs, end_with, run_each
from msp_lens.experiments.papers import PAPERS
from msp_lens.experiments.reproduction import (
    REPRODUCTION_FILE,
    REPRODUCTION_PAGE,
    Network,
    Networks,
    Paper,
    Reproduction,
    Trained,
    reproduction_page,
    section_pictures,
)
from msp_lens.experiments.runs_bar import RunsBar
from msp_lens.models.hooked import check_fits, word_length
from msp_lens.models.loading import load_model
from msp_lens.page.pictures import save_files
from msp_lens.training.folder import check_is_folder, owned
from msp_lens.training.loop import train
from msp_lens.training.regret import evaluation_words, regret_by_position
from msp_lens.training.training_run import TrainingRun, load_run

NETWORKS_FOLDER = "networks"


@checked
def papers_to_reproduce() -> pd.DataFrame:
    """The papers that can be reproduced: name, title, source, and the time that each size takes.

    Example:
        >>> papers_to_reproduce().loc["shai2024", "source"]
        'arXiv:2405.15943'
    """
    rows = {
        paper.name: {
            "title": paper.title,
            "source": paper.source,
            "small": f"{paper.small_minutes} minutes",
            "full": paper.full_cost,
        }
        for paper in PAPERS.values()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(index="name")


@checked
def reproduce(
    name: str,
    *,
    small: bool = False,
    out: str | Path | None = None,
    checkpoints: str | Path | None = None,
    n_jobs: int = -1,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Reproduction:
    """Reproduce a paper: train its networks, measure its claims, and write a page: published beside measured.

    Networks are trained side by side, as in `sweep`: by joblib, and inside `joblib.parallel_config(backend="dask")` or
    `"ray"` by a cluster that shares the folder. Called again with the same folder, it trains only what is missing, and
    measures again. Seeds are fixed.

    Args:
        name: A paper of `papers_to_reproduce()`.
        small: Whether to run in minutes, on smaller settings that the page names, rather than at full size.
        out: Folder of the page and the networks; by default `runs/NAME-small` or `runs/NAME`.
        checkpoints: Folder of trained networks to use instead, named as the page names them: `mess3` or
            `shai2024_mess3`, a folder that `load_model` reads or a .safetensors file. What it lacks is trained.
        n_jobs: Number of networks to train at once; -1 for one on each core or worker of a cluster.
        device: Device of the networks.
        progress: Whether to show progress bars.

    Raises:
        KeyError: if there is no such paper.
        ValueError: if `out` is a file or holds other networks, or one in `checkpoints` does not fit; before any work.
        FileNotFoundError: if `checkpoints` holds none of the networks.
        OSError: if `out` can't be written to.
    """
    check_n_jobs(n_jobs, "networks to train")
    folder = place_of_reproduction(name, small=small, out=out)
    paper = PAPERS[name]
    wanted = paper.networks(small)
    found = _loaded(paper, wanted, checkpoints, device)
    again = f"To go on, call reproduce again with out={str(folder)!r} and the same options: it trains what is missing."
    with owned(folder), going_on(again):
        announce(f"{paper.title}: the page will be {folder / REPRODUCTION_PAGE}.", progress=progress)
        missing = {name: network for name, network in wanted.items() if name not in found}
        found |= _trained(missing, folder / NETWORKS_FOLDER, device, n_jobs, progress)
        return _measured(paper, small, {name: found[name] for name in wanted}, folder, progress)


def place_of_reproduction(name: str, *, small: bool, out: str | Path | None) -> Path:
    """The folder of a reproduction; `KeyError` if there is no such paper, `ValueError` if it is a file."""
    if name not in PAPERS:
        raise KeyError(f"No paper {name!r} to reproduce; there are {', '.join(PAPERS)}.{meant(name, PAPERS)}")
    folder = Path(out).expanduser() if out is not None else Path("runs") / (f"{name}-small" if small else name)
    check_is_folder(folder)
    return folder


@dataclass(frozen=True)
class _Work:
    """A network to train, its folder, the device, and the process that asked for it."""

    folder: Path
    network: Network
    device: str
    parent: int


def _loaded(
    paper: Paper, wanted: Mapping[str, Network], checkpoints: str | Path | None, device: str | torch.device
) -> dict[str, Trained]:
    """The networks that a folder of checkpoints holds."""
    if checkpoints is None:
        return {}
    folder = Path(checkpoints).expanduser()
    paths = {}
    for name in wanted:
        spellings = [f"{stem}{ending}" for stem in (name, f"{paper.name}_{name}") for ending in ("", ".safetensors")]
        present = [path for path in map(folder.joinpath, spellings) if path.exists()]
        paths |= {name: present[0]} if present else {}
    if not paths:
        names = ", ".join(wanted)
        raise FileNotFoundError(
            f"checkpoints={str(checkpoints)!r} holds none of the networks {names}: give a folder with at least one of "
            "them, as a folder or a .safetensors file of that name."
        )
    found = {}
    for name, path in paths.items():
        process, model = wanted[name].process, load_model(path, device=device)
        try:
            n_ctx = word_length(model)
            check_fits(model, process, n_ctx, predicts=True)
        except ValueError as error:
            raise ValueError(f"{path} does not fit {process.name}: {error}") from error
        regret = regret_by_position(model, evaluation_words(process, n_ctx, seed=0))
        found[name] = Trained(name=name, model=model, process=process, regret=regret, origin=f"loaded from {path}")
    return found


def _trained(
    wanted: Mapping[str, Network], folder: Path, device: str | torch.device, n_jobs: int, progress: bool
) -> dict[str, Trained]:
    """The networks, trained side by side, each in a folder of its own."""
    works = [_Work(folder / name, network, str(device), os.getpid()) for name, network in wanted.items()]
    failures = []
    steps = {work.folder: work.network.training.steps for work in works}
    with RunsBar(steps, title="Training", unit="network", n_done=0, progress=progress) as bar:
        for work, failure in run_each(_train, works, n_jobs=n_jobs, was_started=lambda work: work.folder.exists()):
            failures += [failure] if failure is not None else []
            bar.done(work.folder)
    if failures:
        raise failures[0]
    return {name: _of_run(name, load_run(folder / name, device=device)) for name in wanted}


def _train(work: _Work) -> Exception | None:
    """Train a network in its folder, in a worker; what went wrong, if anything did."""
    network, options = work.network, {"device": work.device, "out": work.folder, "progress": False}
    end_with(work.parent)
    with ONE_AT_A_TIME:
        try:
            train(network.process, network.model, config=network.training, seed=network.seed, **options)
        except Exception as error:
            return error
    return None


def _of_run(name: str, run: TrainingRun) -> Trained:
    steps = f"{run.step:,} steps of {run.config.batch_size:,} words with {run.config.optimizer}"
    origin = f"trained here: {steps} from seed {run.seed}, {run.seconds:.0f} s"
    return Trained(name=name, model=run.model, process=run.process, regret=run.regret, origin=origin, training=run)


def _measured(paper: Paper, small: bool, networks: Networks, folder: Path, progress: bool) -> Reproduction:
    """Make every experiment of the paper, and write the page."""
    sections, seconds = [], []
    bar = tqdm(paper.sections, desc="Measuring", unit="section", disable=not progress)
    for experiment in bar:
        bar.set_postfix_str(getattr(experiment, "__name__", "").replace("_", " "))
        started = time.perf_counter()
        sections.append(experiment(networks, small))
        seconds.append(time.perf_counter() - started)
    found = Reproduction(paper, small, networks, tuple(sections), tuple(seconds), folder)
    pictures = section_pictures(found)
    page = reproduction_page(found, pictures)
    save_files(pictures, folder)
    write_json(folder / REPRODUCTION_FILE, found.to_dict())
    # The page is written last: a folder that has one holds a complete reproduction.
    write_atomically(found.page, page)
    return found
