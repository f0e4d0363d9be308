"""When a claim counts as reproduced."""

import math

import pytest

from msp_lens.experiments.claims import Claim, Section, all_of, at_least, at_most, number_text, within, within_factor


@pytest.mark.parametrize(
    ("rule", "holds"),
    [
        (within(0.97, 0.95, 0.05), True),
        (within(0.89, 0.95, 0.05), False),
        (within(math.nan, 0.95, 0.05), False),
        (within_factor(2.0, 1.0, 2), True),
        (within_factor(0.5, 1.0, 2), True),
        (within_factor(2.1, 1.0, 2), False),
        (within_factor(0.49, 1.0, 2), False),
        (within_factor(math.nan, 1.0, 2), False),
        (at_most(0.1, 0.1), True),
        (at_most(0.11, 0.1), False),
        (at_most(math.nan, 0.1), False),
        (at_least(0.1, 0.1), True),
        (at_least(0.09, 0.1), False),
        (at_least(math.nan, 0.1), False),
        (all_of(at_least(0.5, 0.1), at_most(0.5, 1)), True),
        (all_of(at_least(0.5, 0.1), at_most(0.5, 0.4)), False),
    ],
    ids=lambda value: value.text if hasattr(value, "text") else str(value),
)
def test_rules(rule, holds):
    assert rule.holds is holds


def test_rules_say_what_they_ask():
    assert within(0.9, 0.95, 0.05).text == "within 0.05 of what is published"
    assert within_factor(1, 1, 1.01).text == "within a factor of 1.01 of what is published"
    assert at_most(1, 1.001).text == "at most 1.001"
    assert at_most(0.02, 0.0523456, "half of the control").text == "at most half of the control, 0.0523"
    both = all_of(at_least(1, 0.5), at_most(1, 2))
    assert both.text == "at least 0.5; at most 2"


def test_a_claim_has_the_verdict_of_its_rule():
    facts = {"says": "R² at the last layer", "source": "Fig. 1", "published": 0.9}
    assert Claim(**facts, measured=0.91, rule=within(0.91, 0.9, 0.05)).verdict == "reproduced"
    assert Claim(**facts, measured=0.8, rule=within(0.8, 0.9, 0.05)).verdict == "not reproduced"
    undecided = Claim(**facts, beyond="it takes the full size")
    assert undecided.verdict == "beyond what was run"
    assert undecided.to_dict()["beyond"] == "it takes the full size"
    assert undecided.to_dict()["rule"] is None


@pytest.mark.parametrize("more", [{}, {"rule": at_least(1, 0), "beyond": "it takes the full size"}])
def test_a_claim_is_decided_or_says_why_it_is_not(more):
    with pytest.raises(ValueError, match="either a rule, or the reason"):
        Claim(says="R² at the last layer", source="Fig. 1", published=0.9, **more)


def test_the_method_is_read_by_paragraphs():
    section = Section(title="Theory", method="\n  One\n  two.\n\n  Three.\n", claims=())
    assert section.paragraphs == ["One two.", "Three."]
    with pytest.raises(ValueError, match="has no picture"):
        section.plot()


def test_numbers_have_three_digits():
    numbers = (0.000386, 0.951, 12.0, 1046, "1/(2ℓ)", None, math.nan)
    assert [number_text(number) for number in numbers] == ["0.000386", "0.951", "12", "1,046", "1/(2ℓ)", "–", "–"]
