"""Share what was found: a run, a model or a probe report, to and from the Hugging Face hub, with a model card.

Only safetensors and JSON are read back. What is uploaded is first copied, loaded and checked as its reader will load
it; then it goes up in one commit.
"""

from __future__ import annotations

import math
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from msp_lens._checks import checked
from msp_lens._files import as_saved, read_header, read_json
from msp_lens._hub import check_repository, committed, fetched
from msp_lens._tables import nats_text, skill_text
from msp_lens.controls.control_scores import interval_text, r2_text
from msp_lens.data.target_values import TargetWords
from msp_lens.experiments.run_folder import (
    CONFIG_FILE,
    INFERENCE_FILE,
    PICTURES,
    REPORT_FILE,
    check_config,
    read_config,
    read_inference,
)
from msp_lens.experiments.study import Study
from msp_lens.models.build import config_fields, versions
from msp_lens.models.model_files import HEADER, MODEL_FILE, Checkpoint, load_checkpoint
from msp_lens.probing.probe_report import PROBES_FILE, ProbeReport
from msp_lens.processes.process import Process
from msp_lens.training.training_run import METRICS_FILE, TrainingRun, load_run

CARD_FILE = "README.md"
# What goes up from a folder, as far as it is there; the picture is for the card.
_SHARED = (MODEL_FILE, CONFIG_FILE, METRICS_FILE, PROBES_FILE, REPORT_FILE, INFERENCE_FILE, PICTURES["fractal"])
# The fields of a model's config that say what it is.
_OF_A_MODEL = ("n_layers", "d_model", "n_heads", "d_head", "d_mlp", "n_ctx", "act_fn", "normalization_type", "kind")


# What is read of a row of the sites in a `report.json`.
_Row = TypedDict(
    "_Row",
    {
        "site": str,
        "R² held out": float | None,
        "low": float | None,
        "high": float | None,
        "R² in-sample": float | None,
        "MSE held out": float | None,
        "R² shuffled": float | None,
        "R² best control": float | None,
        "best control": str | None,
        "skill": float | None,
    },
)


@dataclass(frozen=True, eq=False)
class _Material:
    """What a repository will hold, after it was loaded: what its card is written from."""

    checkpoint: Checkpoint | None
    training: TrainingRun | None
    probes: Mapping[str, Any] | None
    notes: Sequence[str]
    has_report: bool
    has_picture: bool


@checked
def push_to_hub(
    what: Study | TrainingRun | ProbeReport | str | Path,
    repository: str,
    *,
    private: bool = True,
    license: str = "unknown",
    message: str | None = None,
    token: str | None = None,
) -> str:
    """Share a run, a model or a probe report on the Hugging Face hub, with a model card, in one commit.

    The card states the process, the training, the regret, and every probe's score beside its controls. All files are
    loaded and checked before anything is uploaded. What an earlier call put there and this one does not is removed.
    `load_checkpoint("hf://user/name")` and `ProbeReport.load("hf://user/name")` read it back, `from_hub` gives the
    folder.

    Args:
        what: A run or training with a folder, such a folder, a file of `save_checkpoint` or of `report.save`, or a
            probe report, which goes up without its model. Checkpoints of a training stay here.
        repository: `"user/name"`; it is made if need be.
        private: Whether only you may read a new repository. What was public can't be taken back, so it takes a
            `private=False` to publish.
        license: The license, by the hub's short name for it, such as `"mit"` or `"cc-by-4.0"`.
        message: The commit's message.
        token: A token of the hub's that may write; by default the one that you logged in with (`hf auth login`).

    Returns:
        The address of the commit.

    Raises:
        FileNotFoundError: if there is nothing to share at the path.
        PermissionError: if there is no token, or it may not write there.
        ConnectionError: if the hub could not be reached.
        ValueError: if a file is damaged or of another model than the rest, or `repository` is no name of one or is
            public and `private` is true.
    """
    check_repository(repository)
    with tempfile.TemporaryDirectory() as place:
        stage = Path(place)
        _gather(what, stage)
        material = _checked_material(stage)
        card = model_card(material, repository, license)
        files = {path.name: path for path in stage.iterdir()}
        (stage / CARD_FILE).write_text(card, encoding="utf-8")
        return committed(
            repository,
            files | {CARD_FILE: stage / CARD_FILE},
            replaced=_SHARED,
            message=message or f"Upload by msp_lens {versions()['msp_lens']}",
            private=private,
            token=token,
        )


@checked
def from_hub(repository: str, *, revision: str | None = None, token: str | None = None) -> Path:
    """The folder of what `push_to_hub` shared, in the hub's cache; fetched anew only if it has changed.

    It is for reading: `load_checkpoint(folder)`, `ProbeReport.load(folder)`, `msp.compare(folder, other)`. Only
    safetensors and JSON are fetched.

    Args:
        repository: `"user/name"`.
        revision: A branch, tag or commit, to have the same files for good; by default the newest.
        token: A token of the hub's, for what is private; by default the one that you logged in with.

    Raises:
        FileNotFoundError: if the repository or revision is not there or may not be read, holds nothing of msp_lens's,
            or could not be fetched.
        ValueError: if `repository` is no name of one.
    """
    folder = fetched(repository, revision=revision, token=token)
    if not any((folder / name).is_file() for name in (MODEL_FILE, PROBES_FILE)):
        raise FileNotFoundError(
            f"{repository} holds neither {MODEL_FILE} nor {PROBES_FILE}: it was not shared by push_to_hub. For a model "
            "of Hugging Face's, there is load_model."
        )
    return folder


def _gather(what: Study | TrainingRun | ProbeReport | str | Path, stage: Path) -> None:
    """Copy what is to be shared into a folder of its own, so that it can't change between the check and the upload."""
    if isinstance(what, ProbeReport):
        what.save(stage / PROBES_FILE)
        return
    place = what if isinstance(what, str | Path) else what.folder
    if place is None:
        raise ValueError(
            "This training has no folder to share: train with out=, or share a file of save_checkpoint(path, model)."
        )
    path = Path(place).expanduser()
    if path.is_file():
        header = read_header(path)
        names = {HEADER: MODEL_FILE, "msp_lens_report": PROBES_FILE}
        name = next((name for key, name in names.items() if key in header), None)
        if name is None:
            raise ValueError(f"{path} is neither a model nor a report of msp_lens: give what it saved.")
        shutil.copyfile(path, stage / name)
        return
    for name in _SHARED:
        if (path / name).is_file():
            shutil.copyfile(path / name, stage / name)
    if not any((stage / name).is_file() for name in (MODEL_FILE, PROBES_FILE)):
        raise FileNotFoundError(
            f"{path} holds no {MODEL_FILE} and no {PROBES_FILE}: give a run's folder, or a file that msp_lens saved."
        )


def _checked_material(stage: Path) -> _Material:
    """Everything in the folder, loaded as its reader will load it; `ValueError` if its files do not belong together."""
    here = {name for name in _SHARED if (stage / name).is_file()}
    checkpoint = load_checkpoint(stage) if MODEL_FILE in here else None
    training = load_run(stage) if checkpoint is not None and METRICS_FILE in here else None
    if (config := read_config(stage)) is not None and training is not None:
        check_config(config, training, stage)
    probes, notes = None, []
    if REPORT_FILE in here:
        probes = _saved_probes(stage / REPORT_FILE, checkpoint)
    if PROBES_FILE in here:
        report = ProbeReport.load(stage / PROBES_FILE, model=checkpoint.model if checkpoint is not None else None)
        probes, notes = report.to_dict(), report.summary()
    if checkpoint is not None:
        read_inference(stage, checkpoint.model)
    return _Material(checkpoint, training, probes, notes, PROBES_FILE in here, PICTURES["fractal"] in here)


def _saved_probes(path: Path, checkpoint: Checkpoint | None) -> dict[str, Any]:
    """The probes' scores in a `report.json`; `ValueError` if it is damaged, or of another model."""
    saved = read_json(path, dict[str, Any])
    if checkpoint is not None and saved.get("model_fingerprint") != checkpoint.fingerprint:
        raise ValueError(f"{path.name} is of another model than {MODEL_FILE} beside it: report on this one again.")
    probes = as_saved(saved.get("probes"), dict[str, Any], f"{path.name}: probes")
    rows = as_saved(probes.get("sites"), list[dict[str, Any]], f"{path.name}: probes.sites")
    known = [{name: row[name] for name in _Row.__annotations__ if name in row} for row in rows]
    sites = as_saved(known, list[_Row], f"{path.name}: probes.sites")
    provenance = as_saved(probes.get("provenance"), dict[str, Any], f"{path.name}: probes.provenance")
    return {"sites": sites, "provenance": provenance, "regret_nats": None}


def model_card(material: _Material, repository: str, license: str) -> str:
    """The README of a repository: what was trained on what, how well it predicts, and what its probes read."""
    from huggingface_hub import ModelCardData

    process = _process(material)
    tags = ["msp-lens", "transformer-lens", "interpretability", "belief-state-geometry", "hidden-markov-model"]
    metadata = ModelCardData(license=license, library_name="msp-lens", tags=tags).to_yaml()
    kind = "A network" if material.checkpoint is not None else "Probes of a network"
    of = f" trained on {_plain(process.name)}" if process is not None else ""
    lines = ["---", metadata, "---", "", f"# {kind}{of}", ""]
    if material.has_picture:
        lines += [f"![The true beliefs beside those read from the network]({PICTURES['fractal']})", ""]
    lines += [*_about(material, process), ""]
    if material.probes is not None:
        lines += [f"## The {_plain(_read(material).name)} that its activations carry", "", *_scores(material), ""]
    lines += ["## Load it", "", "```python", "import msp_lens as msp", "", *_code(material, repository), "```", ""]
    made = ", ".join(f"{name} {version}" for name, version in versions().items())
    return "\n".join([*lines, f"Only safetensors and JSON are read. Made with {made}.", ""])


def _read(material: _Material) -> TargetWords:
    """What the probes read."""
    provenance = (material.probes or {}).get("provenance", {})
    return TargetWords.of(provenance, is_distribution=False)


def _process(material: _Material) -> Process | None:
    if material.checkpoint is not None:
        return material.checkpoint.process
    saved = (material.probes or {}).get("provenance", {}).get("process")
    return Process.from_dict(saved) if saved else None


def _about(material: _Material, process: Process | None) -> Iterator[str]:
    """The process, the network, its training and its regret, a line for each that is known."""
    if process is not None:
        names = f"states {_listed(process.states)}; tokens {_listed(process.tokens)}"
        yield f"- **Process:** {_plain(process)}; {names}."
    if material.checkpoint is not None:
        fields = config_fields(material.checkpoint.model)
        shown = ", ".join(f"{name} {_plain(fields[name])}" for name in _OF_A_MODEL if fields.get(name) is not None)
        yield f"- **Network:** {shown}; fingerprint `{material.checkpoint.fingerprint}`."
    run = material.training
    if run is not None:
        how = run.config
        yield (
            f"- **Training:** {run.step:,} steps of {how.batch_size} freshly drawn words, {how.optimizer} with peak "
            f"learning rate {how.learning_rate:g}, seed {run.seed}, {run.seconds:,.0f} s."
        )
        yield (
            f"- **Regret**, E KL(optimal next token ‖ the network's), the loss above the least possible: "
            f"{nats_text(run.regret.mean())} nats on average over positions, {nats_text(run.regret[-1])} at the last. "
            f"The least possible loss is {nats_text(run.optimum.mean())} nats, so the loss is {run.loss_ratio:.4f} "
            "times the optimum."
        )
        return
    if material.checkpoint is not None:
        yield "- **Training:** not recorded in these files."
    regrets = (material.probes or {}).get("regret_nats")
    if regrets:
        mean, last = nats_text(sum(regrets) / len(regrets)), nats_text(regrets[-1])
        yield f"- **Regret**, E KL(optimal next token ‖ the network's): {mean} nats on average, {last} at the end."
    else:
        yield "- **Regret:** not measured."


def _scores(material: _Material) -> Iterator[str]:
    """Each site's score with its controls, as a table of Markdown, and what the numbers were measured on."""
    assert material.probes is not None
    heads = ("site", "R² held out", "95 %", "R² in-sample", "MSE held out", "R² shuffled", "best control", "skill")
    yield f"| {' | '.join(heads)} |"
    yield f"|---|{'---:|' * (len(heads) - 1)}"
    for row in material.probes["sites"]:
        number = {key: math.nan if each is None else each for key, each in row.items()}
        control = (
            "–"
            if row["best control"] is None
            else f"{r2_text(number['R² best control'])} {_plain(row['best control'])}"
        )
        cells = (
            _plain(row["site"]),
            r2_text(number["R² held out"]),
            interval_text(number["low"], number["high"]),
            r2_text(number["R² in-sample"]),
            f"{number['MSE held out']:.6f}",
            r2_text(number["R² shuffled"], 3),
            control,
            skill_text(number["skill"]),
        )
        yield f"| {' | '.join(cells)} |"
    given = material.probes["provenance"]
    yield ""
    yield (
        f"R² is the share of the {_read(material).kind}'s variance that an affine map of the activation explains. A "
        "control has no trained network behind it: the last tokens alone, or the same architecture untrained. Skill is "
        "the share of what the best control leaves unexplained that the network explains; below 0, the control "
        "explains more."
    )
    if not any(row["best control"] for row in material.probes["sites"]):
        yield ""
        yield "**No controls were measured, so these scores do not show what training contributed.**"
    yield ""
    rows = f"{given['rows']:,} rows, " if "rows" in given else ""
    notes = material.notes or [f"Measured on {rows}weighting {given.get('weighting')!r}, split {given.get('split')!r}."]
    yield from (f"- {_plain(note)}" for note in notes)


def _code(material: _Material, repository: str) -> Iterator[str]:
    """The Python that loads what is there."""
    if material.checkpoint is not None:
        yield f'shared = msp.load_checkpoint("hf://{repository}")  # shared.model, shared.process'
    if material.has_report:
        model = "shared.model" if material.checkpoint is not None else "model"
        if material.checkpoint is None:
            yield "# model: the network that was probed, checked by its fingerprint; or leave it out."
        yield f'report = msp.ProbeReport.load("hf://{repository}", model={model})'
    elif material.checkpoint is not None and material.checkpoint.process is not None:
        yield "report = msp.probe(shared.model, shared.process)"


def _listed(names: Sequence[str]) -> str:
    most = 12
    return ", ".join(map(_plain, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def _plain(value: object) -> str:
    """The text in one line, with nothing in it that Markdown or HTML would take for markup."""
    return re.sub(r"([\\`*_|<>\[\]#])", r"\\\1", " ".join(str(value).split()))
