"""Edits on a model: as contexts and as hooks, at several sites and positions, and after exceptions."""

from contextlib import contextmanager

import pytest
import torch

import msp_lens as msp
from msp_lens import interventions as edits
from msp_lens.interventions import Edit, applying
from tests.hooked_models import activation_at

pytestmark = pytest.mark.usefixtures("untouched")


@pytest.fixture
def tokens(mess3):
    return mess3.sample(4, 5, seed=2)


def test_a_context_a_hook_and_the_probes_own_method_are_one(random_model, random_report, tokens):
    probe, belief = random_report["0_post"], [0.1, 0.2, 0.7]
    edit = edits.steer(probe)
    with applying(random_model, edit, belief, position=3):
        first = random_model(tokens)
    with probe.steer(random_model, belief, position=3):
        torch.testing.assert_close(random_model(tokens), first, rtol=0, atol=0)
    hooked = random_model.run_with_hooks(tokens, fwd_hooks=[(edit.site, edit.hook(3, belief))])
    torch.testing.assert_close(hooked, first, rtol=0, atol=0)
    assert not torch.allclose(random_model(tokens)[:, 3], first[:, 3], atol=1e-3)


def test_several_sites_at_once(random_model, random_report, tokens):
    probes = [random_report["0_post"], random_report["1_post"]]
    with applying(random_model, [edits.patch(probe) for probe in probes], [0.2, 0.2, 0.6], position=(1, -1)):
        for probe in probes:
            activation = activation_at(random_model, tokens, probe.sites[0])
            for position in (1, 4):
                torch.testing.assert_close(
                    activation[:, position].double(), probe.decode([0.2, 0.2, 0.6]).expand(4, -1), atol=1e-6, rtol=1e-5
                )


def test_each_word_has_its_own_position(random_model, random_report, tokens):
    probe = random_report["0_post"]
    positions = torch.tensor([[0, 3], [2, 4], [1, -1], [-5, 1]])
    beliefs = torch.softmax(torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    plain = activation_at(random_model, tokens, probe.sites[0])
    with applying(random_model, edits.patch(probe), beliefs, position=positions):
        edited = activation_at(random_model, tokens, probe.sites[0])
    expected = plain.clone()
    for word in range(4):
        for k in range(2):
            expected[word, positions[word, k]] = probe.decode(beliefs[word, k]).float()
    torch.testing.assert_close(edited, expected)


def test_each_word_has_its_own_number_of_positions(random_model, random_report, tokens):
    probe = random_report["0_post"]
    starts = torch.tensor([0, 2, 4, 5])
    mask = torch.arange(5) >= starts.unsqueeze(1)
    plain = activation_at(random_model, tokens, probe.sites[0])
    with probe.patch(random_model, [0.5, 0.25, 0.25], position=mask):
        edited = activation_at(random_model, tokens, probe.sites[0])
    torch.testing.assert_close(edited[~mask], plain[~mask], rtol=0, atol=0)
    torch.testing.assert_close(
        edited[mask].double(), probe.decode([0.5, 0.25, 0.25]).expand(int(mask.sum()), -1), atol=1e-6, rtol=1e-5
    )


def test_a_trajectory_is_written_from_a_position_onward(random_model, random_report, mess3, tokens):
    probe = random_report["1_post"]
    beliefs = msp.beliefs.filter_from(mess3, torch.tensor([[0.0, 1.0, 0.0]]).double().expand(4, -1), tokens[:, 3:])
    with applying(random_model, edits.patch(probe), beliefs, position=slice(2, None)):
        edited = activation_at(random_model, tokens, probe.sites[0])
    torch.testing.assert_close(edited[:, 2:].double(), probe.decode(beliefs), atol=1e-6, rtol=1e-5)


def test_gradients_reach_the_belief_and_the_weights(random_model, random_report, tokens):
    probe = random_report["0_post"]
    for context in (
        lambda belief: applying(random_model, edits.steer(probe), belief, position=2),
        lambda belief: probe.steer(random_model, belief, position=2),
    ):
        belief = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64, requires_grad=True)
        with context(belief):
            random_model(tokens)[:, 2, 0].sum().backward()
        assert belief.grad is not None
        assert belief.grad.abs().max() > 0
        weights = [parameter for name, parameter in random_model.named_parameters() if "W_E" in name]
        assert all(parameter.grad is not None for parameter in weights)
        random_model.zero_grad()


class TestAfterAnException:
    """Thrown in each place where it can be; the fixture `untouched` then looks at the model."""

    def test_in_the_body(self, random_model, random_report, tokens):
        edit = edits.erase(random_report["0_post"])
        with pytest.raises(RuntimeError, match="in the body"), applying(random_model, edit):
            raise RuntimeError(f"in the body, after {random_model(tokens).shape}")

    def test_in_the_edit(self, random_model, random_report, tokens):
        def fails(h, belief):
            raise RuntimeError("in the edit")

        bad = Edit("bad", random_report["1_post"], fails)
        good = edits.steer(random_report["0_post"])
        with (
            pytest.raises(RuntimeError, match="in the edit"),
            applying(random_model, [good, bad], [0.2, 0.3, 0.5]),
        ):
            random_model(tokens)

    def test_of_shape_in_the_edit(self, random_model, random_report, tokens):
        bad = Edit("bad", random_report["1_post"], lambda h, belief: h[..., :3], writes=False)
        with pytest.raises(ValueError, match="must return a tensor of"), applying(random_model, bad):
            random_model(tokens)

    def test_in_the_forward_pass(self, random_model, random_report, tokens):
        """Thrown by the model itself, before any edit was made and after all were."""
        edit = edits.erase(random_report["0_post"])
        with pytest.raises(IndexError), applying(random_model, edit):
            random_model(tokens + 3)

        def fails(module, arguments):
            raise RuntimeError("in the unembedding")

        handle = random_model.unembed.register_forward_pre_hook(fails)
        try:
            for context in (applying(random_model, edit), random_report["0_post"].steer(random_model, [1.0, 0, 0])):
                with pytest.raises(RuntimeError, match="in the unembedding"), context:
                    random_model(tokens)
        finally:
            handle.remove()

    def test_on_the_way_out(self, random_model, random_report, tokens):
        """Of a context within, of one around, and where somebody else has removed the hooks already."""

        @contextmanager
        def fails_at_exit():
            yield
            raise RuntimeError("on the way out")

        edit = edits.erase(random_report["0_post"])
        plain = random_model(tokens)
        for contexts in (
            (applying(random_model, edit), fails_at_exit()),
            (fails_at_exit(), applying(random_model, edit)),
        ):
            with pytest.raises(RuntimeError, match="on the way out"), contexts[0], contexts[1]:
                assert not torch.allclose(random_model(tokens), plain, atol=1e-3)
            torch.testing.assert_close(random_model(tokens), plain, rtol=0, atol=0)
        with pytest.raises(ValueError, match="was never made"), applying(random_model, edit):
            random_model.reset_hooks()

    def test_of_another_sites_hook_on_the_way_in(self, random_model, random_report):
        """One of two sites is missing: neither is hooked."""
        shallow = msp.build_model(msp.ModelConfig(d_vocab=3, n_layers=1, d_model=16, d_head=8, d_mlp=32, n_ctx=5))
        both = [edits.erase(random_report[label]) for label in ("0_post", "1_post")]
        with pytest.raises(KeyError), applying(shallow, both):
            pytest.fail("the context was entered")
        assert not any(point._forward_hooks for point in shallow.hook_dict.values())

    def test_an_interrupt(self, random_model, random_report, tokens):
        def interrupted(h, belief):
            raise KeyboardInterrupt

        with (
            pytest.raises(KeyboardInterrupt),
            applying(random_model, Edit("slow", random_report["1_post"], interrupted, writes=False)),
        ):
            random_model(tokens)

    def test_in_another_hook(self, random_model, random_report, tokens):
        def fails(activation, hook):
            raise RuntimeError("in another hook")

        with (
            pytest.raises(RuntimeError, match="in another hook"),
            applying(random_model, edits.erase(random_report["0_post"])),
            random_model.hooks(fwd_hooks=[("blocks.1.hook_resid_post", fails)]),
        ):
            random_model(tokens)

    def test_on_the_way_in(self, random_model, random_report):
        for belief, position in (([0.5, 0.1, 0.1], 2), ([0.2, 0.3, 0.5], 7)):
            with (
                pytest.raises(ValueError, match=r"sums to 0\.7|outside the context"),
                applying(random_model, edits.steer(random_report["0_post"]), belief, position=position),
            ):
                pytest.fail("the context was entered")

    def test_within_an_experiment(self, random_model, random_report, mess3):
        def fails(probe, material):
            return Edit("fails", probe, lambda h, belief: 1 / 0)

        for experiment in (msp.intervene, msp.persistence):
            with pytest.raises(ZeroDivisionError):
                experiment(random_model, mess3, probes=random_report, edits={"fails": fails}, n_words=10)

    def test_in_training_mode(self, random_model, random_report, mess3):
        def fails(probe, material):
            return Edit("fails", probe, lambda h, belief: 1 / 0)

        random_model.train()
        with pytest.raises(ZeroDivisionError):
            msp.intervene(random_model, mess3, probes=random_report, edits={"fails": fails}, n_words=10)
        assert all(module.training for module in random_model.modules())


def test_bad_requests_are_refused(random_model, random_report, tokens):
    probe = random_report["0_post"]
    steer = edits.steer(probe)

    def refused(match, *arguments, run=None, **options):
        with pytest.raises(ValueError, match=match), applying(random_model, *arguments, **options):
            random_model(tokens if run is None else run)

    refused("'steer' writes a belief: give belief=", steer)
    refused("this probe's beliefs have 3 states", steer, [0.5, 0.5])
    refused("without NaN and infinity", steer, [float("nan"), 0.5, 0.5])
    refused("no two of the same site", [steer, edits.erase(probe)], [1.0, 0, 0])
    refused("give at least one", [])
    refused("integers \\[pos\\]", steer, [1.0, 0, 0], position=torch.tensor([0.5]))
    refused("none of the word's 5 positions", steer, [1.0, 0, 0], position=slice(9, None))
    refused("given for 2 words; the batch has 4", steer, [1.0, 0, 0], position=torch.tensor([[1], [2]]))
    refused("The mask of positions has shape", steer, [1.0, 0, 0], position=torch.ones(4, 3, dtype=torch.bool))
    refused("does not fit a batch of 4 words", steer, torch.full((3, 3), 1 / 3), position=2)
    refused("position=4 is outside", steer, [1.0, 0, 0], position=4, run=tokens[:, :3])
    with pytest.raises(ValueError, match="reads 4 sites at once"):
        edits.steer(random_report["concatenated"])


def test_a_probe_of_another_model_is_refused(random_model, random_report, tokens, mess3):
    wider = msp.build_model(msp.ModelConfig(d_vocab=3, n_layers=2, d_model=24, d_head=8, d_mlp=32, n_ctx=5))
    with (
        pytest.raises(ValueError, match=r"has 24 features; the probe of blocks\.0\.hook_resid_post was fitted on 16"),
        applying(wider, edits.steer(random_report["0_post"]), [1.0, 0, 0]),
    ):
        wider(tokens)
    other = msp.build_model(msp.ModelConfig(d_vocab=3, n_layers=2, d_model=16, d_head=8, d_mlp=32, n_ctx=5), seed=2)
    for experiment in (
        msp.intervene,
        msp.persistence,
        msp.necessity,
        msp.interventions.bayes_consistency,
        msp.interventions.prediction_consistency,
    ):
        with pytest.raises(ValueError, match="a model with other weights"):
            experiment(other, mess3, probes=random_report)
        with pytest.raises(ValueError, match="fitted on another process"):
            experiment(random_model, msp.mess3(x=0.15, a=0.6), probes=random_report)
    shallow = msp.build_model(msp.ModelConfig(d_vocab=3, n_layers=1, d_model=16, n_ctx=5))
    with (
        pytest.raises(KeyError, match=r"blocks\.1\.hook_resid_post"),
        applying(shallow, edits.erase(random_report["1_post"])),
    ):
        pass
