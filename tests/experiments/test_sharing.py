"""What is shared on the hub is what is loaded from it: against a small server that speaks the hub's protocol."""

import base64
import hashlib
import json
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import pytest
import torch
import yaml
from huggingface_hub import constants

import msp_lens as msp
from msp_lens._files import write_json
from msp_lens.experiments import from_hub, push_to_hub
from msp_lens.experiments.sharing import CARD_FILE
from msp_lens.models.build import versions

TOKEN = "hf_of_the_tests"
NAME = "someone/tiny-z1r"


class Handler(BaseHTTPRequestHandler):
    """The few answers of the hub's that an upload and a download take; commits are kept in the server."""

    def log_message(self, *args):
        pass

    def answer(self, body=b"", status=200, **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def repository(self, name):
        """The repository, unless this reader may not see it, which looks as if it were not there."""
        found = self.server.repositories.get(name)
        if found is None or (found.private and self.headers.get("Authorization") != f"Bearer {TOKEN}"):
            self.answer({"error": "Repository not found"}, 401, X_Error_Code="RepoNotFound")
            return None
        return found

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append((self.command, path))
        if match := re.fullmatch(r"/api/models/(\w+/[\w-]+)(/(?:revision|tree)/([^/]+))?/?", path):
            name, kind, revision = match.groups()
        elif match := re.fullmatch(r"/(\w+/[\w-]+)/resolve/([^/]+)/(.+)", path):
            name, revision, kind = match.groups()
        else:
            return self.answer(b"", 404)
        if (found := self.repository(name)) is None:
            return None
        commits = {"main": found.commits[-1]} | {each.oid: each for each in found.commits}
        commit = commits.get(revision or "main")
        if commit is None:
            return self.answer({"error": "no such revision"}, 404, X_Error_Code="RevisionNotFound")
        digests = {file: hashlib.sha1(content).hexdigest() for file, content in commit.files.items()}
        if path.startswith("/api") and kind and kind.startswith("/tree"):
            sizes = {file: len(content) for file, content in commit.files.items()}
            return self.answer([{"type": "file", "path": f, "size": sizes[f], "oid": digests[f]} for f in sizes])
        if path.startswith("/api"):
            return self.answer({"id": name, "sha": commit.oid, "private": found.private, "tags": [], "siblings": []})
        if kind not in commit.files:
            return self.answer(b"", 404, X_Error_Code="EntryNotFound")
        return self.answer(commit.files[kind], ETag=f'"{digests[kind]}"', X_Repo_Commit=commit.oid)

    def do_POST(self):
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append((self.command, path))
        if self.headers.get("Transfer-Encoding") == "chunked":
            sent = b""
            while size := int(self.rfile.readline(), 16):
                sent += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            sent = self.rfile.read(int(self.headers["Content-Length"]))
        if path == "/api/validate-yaml":
            return self.answer({})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer({"error": "Invalid credentials"}, 401)
        if path == "/api/repos/create":
            asked = json.loads(sent)
            name = f"{asked['organization']}/{asked['name']}"
            if name.split("/")[0] != "someone":
                return self.answer({"error": "You have no rights in this namespace"}, 403)
            if name in self.server.repositories:
                return self.answer({"error": "You already created this repo", "url": f"{self.server.url}/{name}"}, 409)
            # Of older and of newer versions of the client.
            self.server.add(name, asked.get("private") or asked.get("visibility") == "private")
            return self.answer({"url": f"{self.server.url}/{name}"})
        name, kind = re.fullmatch(r"/api/models/(\w+/[\w-]+)/(preupload|commit)/main", path).groups()
        if (found := self.repository(name)) is None:
            return None
        if kind == "preupload":
            files = [each["path"] for each in json.loads(sent)["files"]]
            return self.answer(
                {"files": [{"path": file, "uploadMode": "regular", "shouldIgnore": False} for file in files]}
            )
        files = dict(found.commits[-1].files)
        for line in map(json.loads, sent.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        self.server.commit(found, files)
        oid = found.commits[-1].oid
        return self.answer({"commitUrl": f"{self.server.url}/{name}/commit/{oid}", "commitOid": oid})


class Hub(ThreadingHTTPServer):
    """Repositories by name, each with its commits, from the oldest to the newest."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories, self.asked = {}, []

    def add(self, name, private):
        self.repositories[name] = SimpleNamespace(private=private, commits=[])
        self.commit(self.repositories[name], {".gitattributes": b""})

    def commit(self, repository, files):
        oid = hashlib.sha1(repr((len(repository.commits), sorted(files.items()))).encode()).hexdigest()
        repository.commits.append(SimpleNamespace(oid=oid, files=files))

    def files(self, name=NAME):
        return self.repositories[name].commits[-1].files


@pytest.fixture
def hub(tmp_path, monkeypatch):
    server = Hub()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A short training, with what a run adds to it: its config, the probes and their table."""
    folder = tmp_path_factory.mktemp("run")
    model = msp.build_model(msp.ModelConfig(d_vocab=2, n_layers=1, d_model=8, d_head=4, d_mlp=8, n_ctx=4), seed=1)
    config = msp.TrainingConfig(steps=3, batch_size=4, warmup_steps=1, log_every=1)
    run = msp.train(msp.processes.z1r(), model, config=config, out=folder, progress=False)
    report = msp.probe(run.model, run.process, progress=False)
    report.save(folder / "probes.safetensors")
    fingerprint = msp.models.model_fingerprint(run.model)
    write_json(folder / "report.json", {"model_fingerprint": fingerprint, "probes": report.to_dict()})
    described = {"process": run.process.to_dict(), "training": config.to_dict(), "seed": 0, "versions": versions()}
    described |= {"preset": None, "model": {}, "weighting": "probability", "started": None}
    write_json(folder / "config.json", described)
    (folder / "fractal.png").write_bytes(b"a picture")
    (folder / "notes.txt").write_text("private")
    return folder


@pytest.fixture
def copied(run_folder, tmp_path):
    """A copy of the run's folder, to be changed."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in run_folder.iterdir():
        if path.is_file() and path.name != ".lock":
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_what_is_shared_is_what_is_loaded(hub, run_folder):
    address = push_to_hub(run_folder, NAME)
    assert address == f"{hub.url}/{NAME}/commit/{hub.repositories[NAME].commits[-1].oid}"
    assert hub.repositories[NAME].private
    shared = {"model.safetensors", "probes.safetensors", "config.json", "metrics.jsonl", "report.json", "fractal.png"}
    assert hub.files().keys() == shared | {CARD_FILE, ".gitattributes"}
    assert all(hub.files()[name] == (run_folder / name).read_bytes() for name in shared)

    checkpoint, here = msp.load_checkpoint(f"hf://{NAME}"), msp.load_checkpoint(run_folder)
    assert checkpoint.fingerprint == here.fingerprint
    assert checkpoint.process == here.process
    report = msp.ProbeReport.load(f"hf://{NAME}", model=checkpoint.model)
    assert report == msp.ProbeReport.load(run_folder, model=here.model)
    assert msp.training.load_run(f"hf://{NAME}").regret.tolist() == msp.training.load_run(run_folder).regret.tolist()
    assert msp.models.model_fingerprint(msp.load_model(f"hf://{NAME}")) == here.fingerprint
    folder = from_hub(NAME)
    assert {path.name for path in folder.iterdir()} == shared - {"fractal.png"}


def test_a_revision_stays_the_same(hub, run_folder, tmp_path):
    push_to_hub(run_folder, NAME)
    first = hub.repositories[NAME].commits[-1].oid
    other = msp.build_model(msp.ModelConfig(d_vocab=2, n_layers=1, d_model=8, d_head=4, d_mlp=8, n_ctx=4), seed=2)
    push_to_hub(msp.save_checkpoint(tmp_path / "other.safetensors", other), NAME, message="Another one")
    old, new = (msp.load_checkpoint(f"hf://{NAME}{at}") for at in (f"@{first}", ""))
    assert old.fingerprint == msp.load_checkpoint(run_folder).fingerprint
    assert new.fingerprint == msp.models.model_fingerprint(other)
    # The first one's probes are not of this model, and went with it.
    assert hub.files().keys() == {"model.safetensors", CARD_FILE, ".gitattributes"}
    assert (from_hub(NAME, revision=first) / "probes.safetensors").is_file()
    with pytest.raises(FileNotFoundError, match="has no revision 'v9'"):
        from_hub(NAME, revision="v9")


def test_the_card_of_labels_of_ones_own_speaks_of_them(hub, run_folder):
    tokens = torch.randint(0, 2, (40, 3), generator=torch.Generator().manual_seed(0))
    data = msp.LabelledTokens.from_tokens(tokens, {"count": tokens.cumsum(dim=1).double()})
    model = msp.load_checkpoint(run_folder).model
    push_to_hub(msp.probe(model, data, progress=False), NAME)
    card = hub.files()[CARD_FILE].decode()
    assert "## The target 'count' that its activations carry" in card
    assert "R² is the share of the target's variance" in card
    assert "elief" not in card.split("---", 2)[2]


def test_a_report_is_shared_without_its_model(hub, run_folder):
    model = msp.load_checkpoint(run_folder).model
    report = msp.ProbeReport.load(run_folder, model=model)
    push_to_hub(report, NAME, private=False, license="mit")
    assert not hub.repositories[NAME].private
    assert hub.files().keys() == {"probes.safetensors", CARD_FILE, ".gitattributes"}
    assert msp.ProbeReport.load(f"hf://{NAME}", model=model) == report
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        msp.load_checkpoint(f"hf://{NAME}")


class TestTheCard:
    """What a reader is told before loading anything."""

    @pytest.fixture
    def card(self, hub, run_folder):
        push_to_hub(run_folder, NAME, license="cc-by-4.0")
        return hub.files()[CARD_FILE].decode()

    def test_metadata(self, card):
        metadata = yaml.safe_load(card.split("---")[1])
        assert metadata["license"] == "cc-by-4.0"
        assert metadata["library_name"] == "msp-lens"
        assert {"msp-lens", "transformer-lens", "belief-state-geometry"} <= set(metadata["tags"])

    def test_process_training_and_regret(self, card, run_folder):
        run = msp.training.load_run(run_folder)
        assert "z1r(p=0.5): 3 states, 2 tokens; states 0, 1, R; tokens 0, 1." in card
        assert "3 steps of 4 freshly drawn words, adamw with peak learning rate 0.003, seed 0" in card
        pattern = (
            r"possible: (\S+) nats on average over positions, (\S+) at the last. "
            r"The least possible loss is (\S+) nats, so the loss is (\S+) times the optimum"
        )
        shown = [float(each) for each in re.search(pattern, card).groups()]
        expected = [float(run.regret.mean()), float(run.regret[-1]), float(run.optimum.mean()), run.loss_ratio]
        assert shown == pytest.approx(expected, abs=1e-4)
        assert f"msp_lens {msp.__version__}" in card

    def test_every_score_stands_beside_its_controls(self, card, run_folder):
        table = msp.ProbeReport.load(run_folder).to_dataframe()
        rows = {line.split(" | ")[0].strip("| "): line for line in card.splitlines() if line.startswith("| ")}
        for site, row in table.iterrows():
            cells = [cell.strip() for cell in rows[site.replace("_", r"\_")].split("|")[1:-1]]
            shown = [float(cells[k].split()[0]) for k in (1, 3, 4, 5, 6, 7)]
            names = ("R² held out", "R² in-sample", "MSE held out", "R² shuffled", "R² best control", "skill")
            assert shown == pytest.approx([row[name] for name in names], abs=6e-4)
            assert row["best control"] in cells[6]

    def test_its_code_loads_it(self, card, hub, run_folder):
        (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
        found = {}
        exec(code, found)
        assert found["report"] == msp.ProbeReport.load(run_folder, model=found["shared"].model)

    def test_names_are_no_markup(self, hub, tmp_path):
        process = msp.processes.Process(msp.processes.z1r().transitions, name="<script>|*x*\n# y")
        model = msp.build_model(msp.ModelConfig(d_vocab=2, n_layers=1, d_model=8, n_ctx=4), seed=1)
        push_to_hub(msp.save_checkpoint(tmp_path / "m.safetensors", model, process=process), NAME)
        card = hub.files()[CARD_FILE].decode()
        assert r"# A network trained on \<script\>\|\*x\* \# y" in card
        assert "not recorded" in card
        assert "**Regret:** not measured" in card

    def test_scores_without_controls_say_so(self, hub, run_folder):
        model = msp.load_checkpoint(run_folder).model
        push_to_hub(msp.probe(model, msp.processes.z1r(), controls=False, progress=False), NAME)
        assert "**No controls were measured" in hub.files()[CARD_FILE].decode()

    def test_a_run_without_its_probes_shows_the_table_of_its_report(self, hub, copied):
        (copied / "probes.safetensors").unlink()
        push_to_hub(copied, NAME)
        card = hub.files()[CARD_FILE].decode()
        assert "best control" in card
        assert "report = msp.probe(shared.model, shared.process)" in card


class TestNothingIsUploaded:
    """If anything is wrong, the hub is not even asked."""

    def damage_model(self, folder):
        content = bytearray((folder / "model.safetensors").read_bytes())
        content[-1] ^= 1
        (folder / "model.safetensors").write_bytes(content)

    def other_probes(self, folder):
        model = msp.build_model(msp.ModelConfig(d_vocab=2, n_layers=1, d_model=8, d_head=4, d_mlp=8, n_ctx=4), seed=9)
        found = msp.probe(model, msp.processes.z1r(), controls=False, progress=False)
        found.save(folder / "probes.safetensors")

    def other_report(self, folder):
        write_json(folder / "report.json", {"model_fingerprint": "0" * 16, "probes": {}})

    def damaged_report(self, folder):
        saved = json.loads((folder / "report.json").read_text())
        saved["probes"]["sites"][0]["R² held out"] = "much"
        write_json(folder / "report.json", saved)

    def other_config(self, folder):
        saved = json.loads((folder / "config.json").read_text())
        write_json(folder / "config.json", saved | {"seed": 5})

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            ("damage_model", "is damaged"),
            ("other_probes", "is a report on model"),
            ("other_report", "report.json is of another model than model.safetensors"),
            ("damaged_report", "R² held out"),
            ("other_config", "is of another seed than model.safetensors"),
        ],
    )
    def test_from_a_damaged_folder(self, hub, copied, change, told):
        getattr(self, change)(copied)
        with pytest.raises(ValueError, match=told):
            push_to_hub(copied, NAME)
        assert hub.asked == []

    def test_from_no_run(self, hub, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"holds no model.safetensors and no probes.safetensors"):
            push_to_hub(tmp_path, NAME)
        with pytest.raises(FileNotFoundError, match=r"holds no"):
            push_to_hub(tmp_path / "nowhere", NAME)
        config = msp.TrainingConfig(steps=1, batch_size=4, warmup_steps=0)
        model = msp.ModelConfig(d_vocab=2, n_layers=1, d_model=8, n_ctx=4)
        run = msp.train(msp.processes.z1r(), model, config=config, progress=False)
        with pytest.raises(ValueError, match=r"This training has no folder to share: train with out="):
            push_to_hub(run, NAME)
        assert hub.asked == []

    @pytest.mark.parametrize("name", ["", "name", "a/b/c", "some one/name", "someone/../x", "someone/"])
    def test_to_what_is_no_repository(self, hub, run_folder, name):
        for call in (lambda: push_to_hub(run_folder, name), lambda: from_hub(name)):
            with pytest.raises(ValueError, match=r"no name of a repository on the hub: give 'user/name'"):
                call()
        with pytest.raises(ValueError, match=r"no name of a repository"):
            msp.load_checkpoint(f"hf://{name}")
        assert hub.asked == []

    def test_without_a_token(self, hub, run_folder, monkeypatch):
        monkeypatch.delenv("HF_TOKEN")
        with pytest.raises(PermissionError, match=r"Log in once with `hf auth login`"):
            push_to_hub(run_folder, NAME)
        assert hub.asked == []

    def test_to_a_public_repository_that_is_taken_for_private(self, hub, run_folder):
        hub.add(NAME, private=False)
        with pytest.raises(ValueError, match=r"is public, and private=True: give private=False"):
            push_to_hub(run_folder, NAME)
        assert len(hub.repositories[NAME].commits) == 1
        push_to_hub(run_folder, NAME, private=False)
        assert "model.safetensors" in hub.files()

    def test_where_one_may_not_write(self, hub, run_folder):
        with pytest.raises(PermissionError, match=r"does not let you write to other/name .*Nothing was uploaded"):
            push_to_hub(run_folder, "other/name")
        with pytest.raises(PermissionError, match=r"does not let you write to someone/tiny-z1r"):
            push_to_hub(run_folder, NAME, token="hf_wrong")
        assert hub.repositories == {}


def test_what_may_not_be_read_looks_as_if_it_were_not_there(hub, run_folder, monkeypatch):
    push_to_hub(run_folder, NAME)
    for name in (NAME, "someone/else"):
        with pytest.raises(
            FileNotFoundError, match=f"There is no model {name} on the Hugging Face hub, or it is private"
        ):
            from_hub(name, token="hf_wrong")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(FileNotFoundError, match=r"log in with `hf auth login` or give a token"):
        msp.load_checkpoint(f"hf://{NAME}")


def test_another_model_of_the_hub_is_not_ours(hub):
    hub.add(NAME, private=False)
    with pytest.raises(FileNotFoundError, match=f"{NAME} holds neither model.safetensors nor probes.safetensors"):
        from_hub(NAME)


def test_without_a_network_there_is_the_copy(hub, run_folder, monkeypatch):
    push_to_hub(run_folder, NAME)
    folder = from_hub(NAME)
    # Nobody listens there.
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{unused.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", nowhere)
    assert from_hub(NAME) == folder
    for offline in (False, True):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        with pytest.raises(
            FileNotFoundError, match=r"someone/new could not be fetched.*no copy of it here. Check the net"
        ):
            from_hub("someone/new")
        with pytest.raises(ConnectionError, match=r"could not be reached .*Nothing was uploaded"):
            push_to_hub(run_folder, NAME)
