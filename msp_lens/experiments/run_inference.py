"""Which world does the network of a run believe in? Inferred into its folder, and onto its page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from msp_lens._checks import Count, Seed, checked
from msp_lens._files import write_atomically
from msp_lens.experiments.run_folder import INFERENCE_FILE, INFERENCE_PICTURE, PAGE_FILE, run_options
from msp_lens.experiments.study import report
from msp_lens.inference import Inference, infer
from msp_lens.models.model_files import load_checkpoint
from msp_lens.page.inference_section import inference_section, renewed
from msp_lens.page.pictures import inference_picture, save_files
from msp_lens.training.folder import owned


@checked
def infer_run(
    folder: str | Path,
    *,
    n_states: Count | Sequence[Count] | None = None,
    n_starts: Count = 32,
    seed: Seed | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Inference:
    """Infer the process that a run's network predicts; write `inference.json` and `inference.png`, renew the page.

    What was inferred before is replaced. A folder without a page gets none: `report` writes it, with what was inferred.

    Args:
        folder: The folder of `run`, or of `train(..., out=folder)`.
        n_states: Numbers of states to try; see `infer`.
        n_starts: Random starts for each number of states.
        seed: Of the starts, the samples and the bootstrap; by default the run's own.
        device: Device of the model.
        progress: Whether to show progress bars.

    Raises:
        FileNotFoundError: if the folder holds no model.
        ValueError: if a file in it is damaged, or symbols begin with the same token; see `infer`.
        OSError: if the folder can't be written to.
    """
    folder = Path(folder)
    loaded = load_checkpoint(folder, device=device)
    chosen = run_options(folder)["seed"] if seed is None else seed
    page = folder / PAGE_FILE
    with owned(folder):
        before = page.read_text(encoding="utf-8") if page.exists() else None
        found = infer(loaded.model, n_states=n_states, n_starts=n_starts, seed=chosen, progress=progress)
        picture = inference_picture(found, loaded.process)
        write_atomically(folder / INFERENCE_PICTURE, picture.files["png"])
        save_files({"inference": picture}, folder)
        found.save(folder / INFERENCE_FILE)
        after = None
        if before is not None:
            after = renewed(before, inference_section(found, loaded.process, picture))
        if after is not None:
            write_atomically(page, after)
    if before is not None and after is None:
        # A page that was made before such sections were.
        report(folder, device=device, progress=progress)
    return found
