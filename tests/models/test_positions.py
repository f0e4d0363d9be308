import numpy as np
import pytest
import torch

from msp_lens.models import Site, find_sites, writing
from msp_lens.models.positions import at_positions
from tests.hooked_models import KINDS, activation_at, build

TOKENS = torch.tensor([[0, 1, 2, 3, 1], [2, 2, 1, 4, 4], [0, 0, 1, 2, 2]])
BELIEFS = torch.tensor([[0.2, 0.8], [0.5, 0.5], [0.9, 0.1]])
EDITED = {
    "one": (1, [[1], [1], [1]]),
    "from the end": (-1, [[4], [4], [4]]),
    "several": ([0, 3], [[0, 3]] * 3),
    "a slice": (slice(3, None), [[3, 4]] * 3),
    "all": (None, [[0, 1, 2, 3, 4]] * 3),
    "each its own": (torch.tensor([[0, 2], [1, -1], [4, 3]]), [[0, 2], [1, 4], [3, 4]]),
    "a mask": (torch.eye(3, 5).bool(), [[0], [1], [2]]),
}


@pytest.mark.parametrize(("position", "edited"), EDITED.values(), ids=EDITED)
@pytest.mark.parametrize("kind", KINDS)
def test_only_the_given_positions_are_written(kind, position, edited):
    model = build(kind)
    site, *_ = find_sites(model, "embed")
    before, logits = activation_at(model, TOKENS, site), model(TOKENS)
    with writing(model, {site: lambda h, belief: 0 * h + belief[..., :1]}, position, BELIEFS):
        after = activation_at(model, TOKENS, site)
    expected = before.clone()
    for word, places in enumerate(edited):
        expected[word, places] = BELIEFS[word, 0]
    torch.testing.assert_close(after, expected, rtol=0, atol=0)
    torch.testing.assert_close(model(TOKENS), logits, rtol=0, atol=0)


def test_several_sites_are_written_at_once_and_a_belief_may_be_missing():
    model, seen = build("bridge"), []
    sites = ("blocks.0.attn.hook_z[1]", "blocks.1.hook_resid_post")

    def erased(h, belief):
        seen.append(belief)
        return torch.zeros_like(h)

    with writing(model, dict.fromkeys(sites, erased), position=2):
        for site in map(Site.parse, sites):
            after = site.take(activation_at(model, TOKENS, site.hook))
            assert not after[:, 2].any()
            assert after[:, [0, 1, 3, 4]].any()
    assert seen == [None] * 4


def test_gradients_reach_the_belief():
    model, belief = build("bridge"), torch.tensor([0.3, 0.7], requires_grad=True)
    with writing(model, {"blocks.0.hook_resid_post": lambda h, b: h + b[..., :1]}, 1, belief):
        model(TOKENS)[:, -1].logsumexp(dim=-1).sum().backward()
    assert belief.grad is not None
    assert belief.grad[0] != 0


@pytest.mark.parametrize(
    ("position", "belief", "message"),
    [
        (8, None, "position=8 is outside the context: choose one from 0 to 7"),
        (torch.zeros(2), None, "position is a tensor of torch.float32"),
        (5, None, "position=5 is outside the context"),
        (slice(5, None), None, "is none of the word's 5 positions"),
        (torch.zeros(2, 1, dtype=torch.int64), None, "given for 2 words; the batch has 3"),
        (torch.ones(3, 4, dtype=torch.bool), None, r"mask of positions has shape \(3, 4\)"),
        (
            1,
            torch.ones(2, 2),
            r"What is written has shape \(2, 2\) and does not fit a batch of 3 words and 1 edited positions",
        ),
    ],
)
def test_positions_and_beliefs_that_do_not_fit_are_refused(position, belief, message):
    model = build("bridge")
    untouched = model(TOKENS)
    with (
        pytest.raises(ValueError, match=message),
        writing(model, {"blocks.0.hook_resid_post": lambda h, b: h}, position, belief),
    ):
        model(TOKENS)
    torch.testing.assert_close(model(TOKENS), untouched, rtol=0, atol=0)


def test_positions_in_any_container_mean_the_same():
    def change(activation, belief):
        return activation + 1

    activation = torch.zeros(2, 5, 3)
    for given, same in (
        ([[0, 1], [3, 4]], torch.tensor([[0, 1], [3, 4]])),
        (np.array([[0, 1], [3, 4]], dtype=np.uint8), torch.tensor([[0, 1], [3, 4]])),
        (np.array([[True, False, False, False, True]] * 2), torch.tensor([0, 4])),
        (np.int64(3), 3),
        (torch.tensor(3), 3),
        ((0, -1), [0, 4]),
        (torch.tensor([0, 4], dtype=torch.int32), [0, 4]),
    ):
        assert torch.equal(at_positions(change, given, None)(activation), at_positions(change, same, None)(activation))
    for wrong, error in ((True, ValueError), ("last", TypeError), ([0.5], ValueError), ([[0], [1, 2]], TypeError)):
        with pytest.raises(error, match=r"^position.*give integers"):
            at_positions(change, wrong, None)
