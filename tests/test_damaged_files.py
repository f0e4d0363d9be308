"""Every file that the library reads, damaged and forged at random: it is read, or one error names the file.

No file makes the library reach the network, write outside its folder, or take much memory.
"""

import json
import resource
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

import msp_lens as msp
from msp_lens._files import CHECKSUM, tensors_checksum
from msp_lens.moments.moments import Moments
from msp_lens.moments.pass_progress import PassCheckpoint
from msp_lens.training.resume import read_state

N_CASES = 40
STRANGE = [
    None,
    True,
    -1,
    0,
    3,
    0.5,
    5.0,
    1e308,
    10**9,
    10**30,
    "",
    "x",
    "../../x",
    "a" * 300,
    [],
    {},
    [[]],
    [1, "x"],
    {"x": 1},
]
DEEP = "[" * 5000


@dataclass(frozen=True)
class Reader:
    """A file or folder of the library: how it comes to be, how it is read, and which of its files is damaged."""

    file: str
    write: Callable[[Path], Any]
    read: Callable[[Path], Any]


def model() -> Any:
    """A small untrained network."""
    return msp.build_model(msp.ModelConfig(d_vocab=2, n_layers=1, d_model=8, d_head=4, d_mlp=8, n_ctx=4), seed=1)


def report() -> msp.ProbeReport:
    """A report on it, with controls."""
    return msp.probe(model(), msp.processes.z1r(), progress=False)


def report_with_parts() -> msp.ProbeReport:
    """A report on a mixture, with what reads its parts."""
    process = msp.processes.mixture([msp.processes.golden_mean(), msp.processes.coin()], [0.5, 0.5])
    return msp.probe(model(), process, sites="0_post", progress=False)


def trained(folder: Path, **options: Any) -> msp.TrainingRun:
    """A short training with checkpoints."""
    config = msp.TrainingConfig(steps=3, batch_size=4, warmup_steps=1, log_every=1, save_every=1, **options)
    return msp.train(msp.processes.z1r(), model(), config=config, out=folder, progress=False)


def interrupted(folder: Path) -> None:
    """A training that was stopped half-way, with a state to go on from."""

    def stop(record: dict[str, Any]) -> None:
        if record["step"] >= 2:
            raise KeyboardInterrupt

    config = msp.TrainingConfig(steps=4, batch_size=4, warmup_steps=1, log_every=1, save_every=1)
    with pytest.raises(KeyboardInterrupt):
        msp.train(msp.processes.z1r(), model(), config=config, out=folder, progress=False, log_to=stop)


def moments(path: Path) -> None:
    """Moments of random rows."""
    found = Moments({"features": 3, "targets": 2})
    found.update(torch.randn(9, 5, generator=torch.Generator().manual_seed(0)), torch.ones(9))
    found.save(path / "moments.safetensors", provenance={"of": "random rows"})


def half_a_pass(path: Path) -> None:
    """A pass over the data that was stopped after its first batch."""
    checkpoint = PassCheckpoint(path / "pass.safetensors", {"of": "random rows"}, interval=0.0)
    grid = msp.moments.MomentsGrid([["features"]], targets=["targets"], n_cells=2)
    generator = torch.Generator().manual_seed(0)
    blocks = {"features": torch.randn(4, 3, generator=generator), "targets": torch.randn(4, 2, generator=generator)}
    grid.update(blocks, torch.ones(4), torch.tensor([0, 1, 0, 1]))
    checkpoint.save(grid, n_done=1)


def formed(path: Path) -> None:
    """A short training followed from its start, with interventions."""
    run = trained(path / "run", checkpoints=(0, 3))
    msp.emergence(run, interventions=True, n_words=20, progress=False).save(path)


def inferred(path: Path) -> None:
    """A process inferred from a small network."""
    msp.infer(model(), n_states=[1, 2], n_starts=2, progress=False).save(path / "inference.json")


def swept(path: Path) -> None:
    """A sweep of one short run."""
    settings = {"steps": 3, "batch_size": 4, "warmup_steps": 1, "n_ctx": 4, "n_layers": 1, "d_model": 8}
    msp.sweep(msp.processes.z1r(), settings, out=path, n_jobs=1, controls=False, progress=False)


READERS = {
    "checkpoint": Reader(
        "model.safetensors",
        lambda path: msp.save_checkpoint(path, model(), process=msp.processes.z1r(), provenance={"seed": 1}),
        lambda path: msp.load_checkpoint(path),
    ),
    "probe": Reader(
        "probe.safetensors",
        lambda path: report()["blocks.0.hook_resid_post"].save(path / "probe.safetensors"),
        lambda path: msp.BeliefProbe.load(path / "probe.safetensors"),
    ),
    "steering vector": Reader(
        "vector.safetensors",
        lambda path: msp.interventions.steering_vector(report()["0_post"], [1, 0, 0]).save(path / "vector.safetensors"),
        lambda path: str(msp.interventions.SteeringVector.load(path / "vector.safetensors")),
    ),
    "report": Reader(
        "report.safetensors",
        lambda path: report_with_parts().save(path / "report.safetensors"),
        lambda path: str(msp.ProbeReport.load(path / "report.safetensors").by_part()),
    ),
    "moments": Reader("moments.safetensors", moments, lambda path: Moments.load(path / "moments.safetensors")),
    "pass": Reader(
        "pass.safetensors",
        half_a_pass,
        lambda path: PassCheckpoint(path / "pass.safetensors", {"of": "random rows"}).resume(),
    ),
    "metrics": Reader("metrics.jsonl", trained, msp.training.load_run),
    "trained model": Reader("model.safetensors", trained, lambda path: msp.training.load_run(path).to_dataframe()),
    "training state": Reader(
        "training_state/*", interrupted, lambda path: [read_state(each) for each in path.glob("training_state/*")]
    ),
    "emergence": Reader("emergence.json", formed, lambda path: str(msp.Emergence.load(path))),
    "inference": Reader("inference.json", inferred, lambda path: str(msp.Inference.load(path / "inference.json"))),
    "sweep": Reader("*/result.json", swept, lambda path: str(msp.SweepResult.load(path))),
    "process": Reader(
        "process.json",
        lambda path: (path / "process.json").write_text(msp.processes.z1r().to_json()),
        lambda path: msp.Process.from_json((path / "process.json").read_text(encoding="utf-8")),
    ),
}


def nodes(value: Any) -> list[tuple[Any, Any]]:
    """Every place in a JSON value: its container and its key."""
    found = []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        found += [(value, key), *nodes(each)]
    return found


def forged(text: str, draw: Any) -> str:
    """Valid JSON in which one thing is otherwise."""
    value = json.loads(text)
    places = nodes(value)
    if not places:
        return json.dumps(draw(st.sampled_from(STRANGE)))
    container, key = draw(st.sampled_from(places))
    how = draw(st.sampled_from(["strange", "missing", "nested", "not JSON", "another place"]))
    if how == "missing":
        del container[key]
    elif how == "another place":
        other, other_key = draw(st.sampled_from(places))
        container[key] = json.loads(json.dumps(other[other_key]))
    else:
        container[key] = {"nested": DEEP, "not JSON": "\ud800\0<NaN>"}.get(how, draw(st.sampled_from(STRANGE)))
    return json.dumps(value).replace(f'"{DEEP}"', DEEP).replace('"\\ud800\\u0000<NaN>"', "NaN")


def damaged(content: bytes, draw: Any) -> bytes:
    """A file cut, with bytes changed, or with bytes put in."""
    place = draw(st.integers(0, max(len(content) - 1, 0)))
    how = draw(st.sampled_from(["cut", "changed", "put in", "taken out", "empty"]))
    more = draw(st.binary(min_size=1, max_size=8))
    return {
        "cut": content[:place],
        "changed": content[:place] + more + content[place + len(more) :],
        "put in": content[:place] + more + content[place:],
        "taken out": content[:place] + content[place + len(more) :],
        "empty": b"",
    }[how]


def forged_tensors(content: bytes, draw: Any) -> bytes:
    """A safetensors file with a right checksum whose header or tensors somebody edited."""
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    tensors = load(content)
    header.pop(CHECKSUM, None)
    name = draw(st.sampled_from(sorted(tensors) or [""]))
    how = draw(st.sampled_from(["header"] * 4 + ["NaN", "shape", "missing", "type"]))
    if how == "header" or not name:
        key = draw(st.sampled_from(sorted(header)))
        is_json = header[key][:1] in "{["
        header[key] = forged(header[key], draw) if is_json else draw(st.text(max_size=5))
    elif how == "NaN":
        tensors[name] = torch.full_like(tensors[name].double(), float("nan"))
    elif how == "shape":
        tensors[name] = torch.zeros(*tensors[name].shape, 2)
    elif how == "missing":
        del tensors[name]
    else:
        tensors[name] = tensors[name].to(draw(st.sampled_from([torch.float16, torch.int64, torch.bool])))
    try:
        header = {key: text.encode("utf-8", "replace").decode() for key, text in header.items()}
        return save(tensors, metadata=header | {CHECKSUM: tensors_checksum(tensors, header)})
    except Exception:
        return b""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One sound folder for each reader, made when it is first asked for."""
    made = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("sound")
            READERS[name].write(made[name])
        return made[name]

    return folder


@pytest.mark.parametrize("name", READERS)
def test_what_is_sound_is_read(folders, name):
    READERS[name].read(folders(name))


@pytest.mark.parametrize("name", READERS)
@settings(
    max_examples=N_CASES,
    phases=[Phase.generate],  # A file is not the clearer for being shrunk.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_what_is_damaged_or_forged_is_read_or_refused_by_name(folders, monkeypatch, name, data):
    folder, reader = folders(name), READERS[name]
    (path,) = sorted(folder.glob(reader.file))[-1:]
    sound = path.read_bytes()
    is_tensors = path.suffix == ".safetensors"
    kind = data.draw(st.sampled_from(["damaged", "forged", "forged"]))
    if kind == "damaged":
        content = damaged(sound, data.draw)
    elif is_tensors:
        content = forged_tensors(sound, data.draw)
    elif path.suffix == ".jsonl":
        lines = sound.decode().splitlines()
        lines[0] = forged(lines[0], data.draw)
        content = "\n".join([*lines, ""]).encode("utf-8", "replace")
    else:
        content = forged(sound.decode(), data.draw).encode("utf-8", "replace")

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    files = {each for each in folder.parent.rglob("*") if each != path}
    path.write_bytes(content)
    try:
        reader.read(folder)
    except ValueError as error:
        message = str(error)
        # A process in JSON has no file: its text is what somebody else read.
        assert path.name in message or path.suffix == ".json", message
        assert len(message) < 1000, message
    finally:
        path.write_bytes(sound)
        assert {each for each in folder.parent.rglob("*") if each != path} == files
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 * 1024
