"""Files: damage is found and named, names stay in their folder, and one process at a time writes to a folder."""

import json
import os
import signal
import subprocess
import sys
import threading
from typing import TypedDict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from msp_lens._files import (
    check_tensors,
    locked,
    read_entry,
    read_header,
    read_json,
    read_lines,
    read_tensors,
    remove_leftovers,
    safe_name,
    write_atomically,
    write_json,
    write_tensors,
)


class Config(TypedDict):
    """What the file holds."""

    steps: int


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"steps": 1',
        b"\xff\xfe",
        b"[" * 100000,
        b'{"steps": NaN}',
        b'{"steps": "1"}',
        b"{}",
        b"[]",
        b'{"steps": 1, "x": 2}',
        b'{"steps": ' + b"9" * 10000 + b"}",
    ],
)
def test_damaged_json_names_file_and_remedy(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json.*damaged or was edited: copy or create it again"):
        read_json(path, Config)


def test_json_and_lines_come_back(tmp_path):
    write_json(tmp_path / "config.json", {"steps": 3})
    assert read_json(tmp_path / "config.json", Config) == {"steps": 3}
    with pytest.raises(FileNotFoundError, match=r"There is no file .*other\.json"):
        read_json(tmp_path / "other.json", Config)
    lines = tmp_path / "metrics.jsonl"
    lines.write_text('{"steps": 1}\n{"steps": 2}\n{"st')
    assert read_lines(lines, Config) == [{"steps": 1}, {"steps": 2}]
    lines.write_text('{"steps": 1}\n{"st\n{"steps": 2}\n')
    with pytest.raises(ValueError, match="line 2 is not valid JSON"):
        read_lines(lines, Config)


def test_a_flipped_bit_anywhere_is_found(tmp_path):
    path = tmp_path / "sums.safetensors"
    tensors = {"a": torch.arange(3.0), "b": torch.zeros(0), "c": torch.ones((), dtype=torch.bfloat16)}
    write_tensors(path, tensors, {"what": json.dumps({"steps": 1})})
    found, header = read_tensors(path)
    assert header == read_header(path) == {"what": '{"steps": 1}'}
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert read_entry(header, "what", Config, path) == {"steps": 1}
    with pytest.raises(ValueError, match="no 'probe' in its header"):
        read_entry(header, "probe", Config, path)
    content = path.read_bytes()
    for place in range(8, len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            changed, header = read_tensors(path)
        except ValueError:
            continue
        # The name of the checksum's field was changed, or the header is spelled otherwise and says the same.
        assert header["what"] == '{"steps": 1}'
        assert all(torch.equal(changed[name], tensors[name]) for name in tensors)


def test_tensors_are_held_against_the_shapes_that_a_header_tells(tmp_path):
    tensors = {"weights": torch.zeros(2, 3), "bias": torch.tensor([1.0, float("nan")])}
    check_tensors(tensors, {"weights": (2, None)}, "probe.safetensors")
    for shapes, message in [
        ({"weights": (2, 4)}, r"'weights' has shape \(2, 3\), not \(2, 4\)"),
        ({"weights": (2,)}, r"not \(2\)"),
        ({"other": (2,)}, "'other' is missing"),
        ({"bias": (2,)}, "'bias' holds NaN"),
    ]:
        with pytest.raises(ValueError, match=rf"^probe\.safetensors: .*{message}"):
            check_tensors(tensors, shapes, "probe.safetensors")


@given(st.text())
def test_any_name_is_one_safe_file_name(name):
    safe = safe_name(name)
    assert safe
    assert len(safe.encode()) <= 101
    assert safe not in (".", "..")
    assert not set(safe) & set('/\\:*?"<>|\n\0 ')
    assert not safe.startswith((".", "-"))


def test_known_names_stay():
    assert safe_name("mess3") == "mess3"
    assert safe_name("../../x") == "x"
    assert safe_name("/etc/passwd") == "etc_passwd"
    assert safe_name("CON") == "_CON"
    assert safe_name("") == safe_name("///") == "unnamed"


HOLDER = """
import sys, time
from msp_lens._files import locked
with locked(sys.argv[1]):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_folder_has_one_writer(tmp_path):
    with locked(tmp_path / "run"), locked(tmp_path / "run"):
        errors = []

        def other():
            try:
                with locked(tmp_path / "run"):
                    pass
            except ValueError as error:
                errors.append(error)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert "Another process is writing" in str(errors[0])
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path / "run"], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "locked\n"
        with (
            pytest.raises(ValueError, match=r"Another process is writing to .*run: wait for it to end"),
            locked(tmp_path / "run"),
        ):
            pass
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    with locked(tmp_path / "run"):
        pass


def test_leftovers_of_killed_writers_are_removed(tmp_path):
    write_atomically(tmp_path / "model.safetensors", b"whole")
    (tmp_path / ".model.safetensors.abc.partial").write_bytes(b"half")
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_writer_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"steps": 1})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"steps": 2})
    assert read_json(path, Config) == {"steps": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]


def test_files_of_other_programs_without_a_checksum_are_read(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "other.safetensors")
    tensors, header = read_tensors(tmp_path / "other.safetensors")
    assert torch.equal(tensors["a"], load_file(tmp_path / "other.safetensors")["a"])
    assert header == {}
