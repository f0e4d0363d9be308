import pytest

from msp_lens._long_work import Stages, announce, going_on


def test_stages_are_counted_on_stderr(capsys):
    stages = Stages(["Training", "Probing"], progress=True)
    stages.begin("3 networks")
    stages.begin()
    announce("unseen", progress=False)
    Stages(["unseen"], progress=False).begin()
    out, err = capsys.readouterr()
    assert (out, err) == ("", "1 of 2: Training 3 networks\n2 of 2: Probing\n")


def test_an_interruption_says_how_to_go_on_once():
    with pytest.raises(KeyboardInterrupt) as caught, going_on("call run again"), going_on("call train again"):
        raise KeyboardInterrupt
    assert caught.value.__notes__ == ["call run again"]


def test_an_error_is_no_interruption():
    with pytest.raises(ValueError, match="wrong") as caught, going_on("call run again"):
        raise ValueError("wrong")
    assert not hasattr(caught.value, "__notes__")
