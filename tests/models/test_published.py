"""The published Mess3 network, from whatever file it comes: exactly its weights, and nothing is unpickled."""

import io
import json
import pickle
import urllib.request
import zipfile
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import load_file, save_file

import msp_lens as msp
from msp_lens.models import model_files, published_mess3
from tests.conftest import ORACLE


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    """A folder of `torch.hub` of its own, no network, and nothing that unpickles."""

    def refuse(*args, **options):
        raise AssertionError("something was unpickled")

    def no_network(*args, **options):
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    for place, name in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(place, name, refuse)
    return tmp_path / "hub"


def known():
    """What the package says of the published file."""
    return json.loads((Path(model_files.__file__).with_name("published_mess3.json")).read_text())


@pytest.fixture
def state():
    """The published state dict, buffers and all."""
    if not (ORACLE / "model.safetensors").is_file():
        pytest.skip(f"the published weights are not at {ORACLE}")
    return load_file(ORACLE / "model.safetensors")


def pickled(state, path):
    torch.save(state, path)
    return path


def agrees(found, published_model):
    tokens = torch.randint(0, 3, (5, 10), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(found.model(tokens), published_model(tokens))
    assert found.process == msp.mess3(x=0.05, a=0.85)
    assert found.fingerprint == msp.models.model_fingerprint(published_model)
    assert not found.model.training


def test_from_each_form_of_the_file(state, published_model, tmp_path):
    (tmp_path / "authors").mkdir()
    authors = pickled(state, tmp_path / "authors" / "629209600.pt")
    for path in (ORACLE, ORACLE / "model.safetensors", authors, authors.parent):
        agrees(published_mess3(path), published_model)


def test_it_is_downloaded_once(state, published_model, tmp_path, hub, monkeypatch):
    asked = []

    def served(url, timeout):
        asked.append(url)
        return io.BytesIO(pickled(state, tmp_path / "file").read_bytes())

    monkeypatch.setattr(urllib.request, "urlopen", served)
    for _ in range(2):
        agrees(published_mess3(), published_model)
    assert asked == [known()["source"]]
    assert [path.suffix for path in hub.rglob("*") if path.is_file()] == [".safetensors"]


@pytest.mark.parametrize("change", ["one number", "missing"])
@pytest.mark.parametrize("form", ["pt", "safetensors"])
def test_other_weights_are_refused(state, tmp_path, form, change):
    if change == "missing":
        del state["blocks.2.mlp.W_in"]
    else:
        state["blocks.2.mlp.W_in"][3, 5] += 1e-6
    path = tmp_path / f"weights.{form}"
    pickled(state, path) if form == "pt" else save_file(state, path)
    with pytest.raises(ValueError, match=r"1 of 70 tensors are missing or have other numbers \(blocks.2.mlp.W_in\)"):
        published_mess3(path)


def test_an_untrained_network_is_not_the_published_one(tmp_path):
    tensors = {name: torch.zeros(shape) for name, (shape, _) in known()["tensors"].items()}
    with pytest.raises(ValueError, match=r"70 of 70 tensors.*Get https://github.com/adamimos/epsilon-transformers"):
        published_mess3(pickled(tensors, tmp_path / "model.pt"))


def test_what_is_no_archive_is_refused(tmp_path):
    text, empty, folder = tmp_path / "a.pt", tmp_path / "b.pt", tmp_path / "c"
    text.write_text("<html>")
    with zipfile.ZipFile(empty, "w"):
        pass
    folder.mkdir()
    with pytest.raises(ValueError, match=r"a.pt is not a file of torch.save"):
        published_mess3(text)
    with pytest.raises(ValueError, match="70 of 70"):
        published_mess3(empty)
    for path in (folder, tmp_path / "nowhere.pt"):
        with pytest.raises(FileNotFoundError, match=r"nowhere\.pt|model\.safetensors"):
            published_mess3(path)


def test_without_a_network_the_error_says_what_to_do(hub):
    with pytest.raises(
        FileNotFoundError, match=r"no network.*by other means, and give its path: published_mess3\(path"
    ):
        published_mess3()
    assert not hub.exists()
