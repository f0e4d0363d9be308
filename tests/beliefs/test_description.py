import json
import math

import pytest

import msp_lens as msp
from msp_lens.beliefs import describe
from msp_lens.processes import build_process


def test_what_is_said_of_rrxor_is_what_is_known_of_it():
    found = describe(msp.rrxor())
    table = found.to_dataframe()["value"]
    assert table["mixed states"] == "36"
    assert table["entropy rate"] == "0.4621 nats = 0.6667 bits"
    assert found.myopic_entropies[0] == pytest.approx(math.log(2))
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert values["mixed_states"] == 36
    assert values["next_token_dimensions"] == 1
    assert len(found.plot().axes) == 1


def test_infinitely_many_mixed_states_are_not_counted(mess3):
    found = describe(mess3)
    assert found.to_dataframe().loc["mixed states", "value"].startswith("> ")
    assert found.to_dict()["mixed_states"] is None
    assert found.to_dict()["statistical_complexity"]["nats"] is None
    assert "∞" in repr(found)
    assert "cannot tell them apart" in found._repr_html_()
    assert "beliefs of observers" in found.plot().get_suptitle()


@pytest.mark.parametrize("name", ["moon", "coin", "matching_parens"])
def test_any_process_can_be_described(name):
    assert "entropy rate" in repr(describe(build_process(name, {})))


@pytest.mark.parametrize(
    ("process", "n_known"),
    [
        (msp.processes.product([msp.mess3(), msp.processes.bloch_walk(1.0, 3.0)]), 10),
        (msp.processes.random_process(3, 20, seed=0), 5),
    ],
)
def test_processes_with_many_tokens_are_described_as_far_as_they_can_be(process, n_known):
    found = describe(process)
    assert len(found.myopic_entropies) == n_known
    assert list(found.myopic_entropies[:2]) == pytest.approx(msp.beliefs.myopic_entropies(process, 2).tolist())
    assert "entropy rate" in repr(found)
