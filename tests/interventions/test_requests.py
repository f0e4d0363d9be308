"""What is asked of an experiment: in any container, refused before the model runs, and each part on its own."""

import dataclasses
import functools
import inspect

import numpy as np
import pandas as pd
import pytest
import torch

import msp_lens as msp
from msp_lens import interventions as edits
from msp_lens.interventions import EDITS, preparation
from msp_lens.interventions import edits as writing
from tests.hooked_models import KINDS, new
from tests.interventions.experiments import EXPERIMENTS


@pytest.fixture
def passes(random_model, monkeypatch):
    """The words of every forward pass, as they are made."""
    made, forward = [], random_model.forward

    def counted(tokens, *arguments, **options):
        made.append(tuple(tokens.shape))
        return forward(tokens, *arguments, **options)

    monkeypatch.setattr(random_model, "forward", counted)
    return made


def without_moments(report):
    return [dataclasses.replace(report[label], moments=None) for label in ("0_post", "1_post")]


REFUSED = {
    "an unknown edit": ("intervene persistence", {"edits": ["steer", "zap"]}, KeyError, "No edit 'zap'"),
    "an edit that is no function": ("intervene persistence", {"edits": {"own": "steer"}}, TypeError, "edits"),
    "an unknown target": ("intervene", {"targets": ["vertex", "x"]}, KeyError, "No target 'x'"),
    "another unknown target": ("persistence", {"target": "x"}, KeyError, "No target 'x'"),
    "no target": ("intervene", {"targets": []}, ValueError, "targets is empty"),
    "a target that is no belief": (
        *("intervene", {"targets": {"fine": [1.0, 0, 0], "not": [0.5, 0.2, 0.2]}}, ValueError),
        "sums to 0.9",
    ),
    "a target with NaN": ("intervene", {"targets": [float("nan"), 0.5, 0.5]}, ValueError, r"targets=\[nan, 0.5"),
    "a named target with NaN": ("intervene", {"targets": {"x": [float("nan"), 0.5, 0.5]}}, ValueError, "without NaN"),
    "a target that cannot be drawn": (
        *("intervene", {"targets": ["another word", "emission kernel"]}, ValueError),
        "No belief of mess3",
    ),
    "a position outside": ("intervene", {"positions": [1, 5]}, ValueError, "position=5 is outside the context"),
    "a position twice": ("intervene", {"positions": [4, -1]}, ValueError, r"positions=\[4, -1\]: give none twice"),
    "half a position": ("intervene", {"positions": 1.5}, ValueError, "positions=1.5"),
    "a position in words": ("intervene", {"positions": "last"}, TypeError, "positions='last'"),
    "the last position": ("persistence", {"position": 4}, ValueError, "no token follows"),
    "a strength that is NaN": ("intervene", {"strengths": [1.0, float("nan")]}, ValueError, r"strengths\[1\]=nan"),
    "a strength without end": (
        "intervene",
        {"strengths": float("inf")},
        ValueError,
        r"strengths=\[inf\]: give at least",
    ),
    "a strength twice": ("intervene", {"strengths": [1, 1.0]}, ValueError, "none twice"),
    "a strength in words": ("intervene", {"strengths": "full"}, TypeError, "strengths='full'"),
    "together with what": ("intervene", {"together": "yes"}, TypeError, "together='yes': give True or False"),
    "too few words": ("intervene persistence", {"n_words": 1}, ValueError, "n_words=1: give at least 2"),
    "no words": ("necessity bayes_consistency prediction_consistency", {"n_words": 0}, ValueError, "n_words=0"),
    "half a word": (" ".join(EXPERIMENTS), {"n_words": 2.5}, ValueError, "n_words=2.5: give a whole number"),
    "words in words": (" ".join(EXPERIMENTS), {"n_words": "many"}, TypeError, "n_words='many'"),
    "a seed below 0": (" ".join(EXPERIMENTS), {"seed": -1}, ValueError, "seed=-1"),
    "a seed that is too large": (" ".join(EXPERIMENTS), {"seed": 2**70}, ValueError, "seed=1180591620717411303424"),
    "an empty batch": (" ".join(EXPERIMENTS), {"batch_size": 0}, ValueError, "batch_size=0: give at least 1"),
    "no erasure": ("necessity", {"n_random": 0}, ValueError, "n_random=0: give at least 1"),
    "one token": ("persistence", {"n_ctx": 1}, ValueError, "a token must follow"),
    "no probes": (" ".join(EXPERIMENTS), {"probes": []}, ValueError, "probes is empty"),
    "probes that are none": (" ".join(EXPERIMENTS), {"probes": "0_post"}, TypeError, "probes='0_post'"),
    "an unknown option": (" ".join(EXPERIMENTS), {"n_word": 5}, TypeError, "no parameter 'n_word'.* n_words?"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_refused_before_the_model_runs(name, random_model, random_report, mess3, passes):
    experiments, options, error, match = REFUSED[name]
    for experiment in experiments.split():
        with pytest.raises(error, match=match):
            EXPERIMENTS[experiment](random_model, mess3, **{"probes": random_report} | options)
    assert passes == []


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_what_does_not_belong_together_is_refused_before_the_model_runs(
    experiment, random_model, random_report, mess3, passes
):
    run, probe = EXPERIMENTS[experiment], random_report["0_post"]
    mapped = msp.words(mess3, n_ctx=5, token_map=msp.TokenMap([2, 0, 1]))
    for data, probes, error, match in (
        (mapped, random_report, ValueError, "was fitted on symbols read as the model's tokens"),
        (mess3, [probe, probe], ValueError, r"two of them read blocks\.0\.hook_resid_post"),
        (mess3, random_report["concatenated"], ValueError, "reads 4 sites"),
        (msp.rrxor(), random_report, ValueError, "another process|vocabulary"),
        (random_model, random_report, TypeError, "data="),
        ("mess3", random_report, TypeError, "data='mess3'"),
        (None, random_report, TypeError, "data=None"),
    ):
        with pytest.raises(error, match=match):
            run(random_model, data, probes=probes)
    with pytest.raises(TypeError, match=r"model=mess3.*: give a HookedTransformer"):
        run(mess3, random_model, probes=random_report)
    assert passes == []


def test_a_probe_of_another_model_or_process_is_refused(random_model, random_report, mess3):
    probe = random_report["0_post"]
    swapped = msp.TokenMap([2, 0, 1]).to_dict()

    def chosen(**provenance):
        changed = dataclasses.replace(probe, provenance=provenance)
        assert preparation.single_site_probes(random_model, mess3, [changed]) == [changed]
        assert preparation.single_site_probes(random_model, mess3, changed) == [changed]

    own = {name: probe.provenance[name] for name in ("process_fingerprint", "model_fingerprint")}
    for known in ({}, own, *({name: value} for name, value in own.items())):
        chosen(**known)
    chosen(token_map=msp.TokenMap.identity(3).to_dict())
    chosen(token_map=None)
    for wrong, match in (
        ({"process_fingerprint": "another"}, "was fitted on another process than .*mess3.*: fit it on this one"),
        ({"model_fingerprint": "another"}, f"fingerprint another, this model's is {own['model_fingerprint']}"),
        ({"token_map": swapped}, "was fitted on symbols read through TokenMap"),
    ):
        with pytest.raises(ValueError, match=match):
            chosen(**own | wrong)
    for n_states in (2, 4):
        with pytest.raises(ValueError, match="another process"):
            preparation.single_site_probes(
                random_model,
                msp.processes.random_process(n_states, 3, seed=0),
                [dataclasses.replace(probe, provenance={})],
            )
    # A report may hold probes of several sites, which are left out; the rest come in its order.
    single = preparation.single_site_probes(random_model, mess3, random_report)
    assert [each.label for each in single] == ["0_pre", "0_post", "1_post", "ln_final"]
    with pytest.raises(ValueError, match="probes is empty"):
        preparation.single_site_probes(random_model, mess3, [])
    shallow = msp.build_model(msp.ModelConfig(d_vocab=3, n_layers=1, d_model=16, d_head=8, d_mlp=32, n_ctx=5))
    with pytest.raises(KeyError):
        preparation.single_site_probes(shallow, mess3, [dataclasses.replace(random_report["1_post"], provenance={})])


@pytest.mark.parametrize(
    ("positions", "n_ctx", "expected"),
    [
        (None, 10, [7]),
        (None, 5, [3]),
        (None, 1, [0]),
        (0, 5, [0]),
        (-1, 5, [4]),
        ([4, 0, -2], 5, [4, 0, 3]),
        (0, None, [0]),
        ([7, 0], None, [7, 0]),
        (None, None, r"does not say how long its context is .*give positions="),
        (-1, None, r"positions=\[-1\]: give at least one, counted from the start"),
        ([], 5, r"positions=\[\]: give at least one"),
        ([], None, r"positions=\[\]: give at least one"),
        (5, 5, "outside the context"),
        ([1, 1], None, "give none twice"),
        ([1, -4], 5, "give none twice"),
    ],
)
def test_positions_count_from_the_start(positions, n_ctx, expected):
    if isinstance(expected, list):
        assert preparation.chosen_positions(positions, n_ctx) == expected
    else:
        with pytest.raises(ValueError, match=expected):
            preparation.chosen_positions(positions, n_ctx)


def test_entries_are_chosen_by_name():
    menu = {"first": 1, "second": 2, "third": 3}
    assert list(preparation.from_menu(menu, ["third", "first"], "edit").items()) == [("third", 3), ("first", 1)]
    assert preparation.from_menu(menu, "second", "edit") == {"second": 2}
    assert preparation.from_menu(menu, {"own": 4}, "edit") == {"own": 4}
    for kind, own in (("edit", "{name: maker} for your own"), ("target", "{name: belief}")):
        with pytest.raises(KeyError) as raised:
            preparation.from_menu(menu, ["first", "zap"], kind)
        assert raised.value.args == (f"No {kind} 'zap'; there are first, second, third, or give {own}.",)


def test_words_are_a_datasets_or_those_of_the_models_context(random_model, random_report, mess3):
    assert preparation.reading(random_model, mess3, [random_report["0_post"]]) == (random_model, mess3, 5)
    renamed = msp.words(mess3, n_ctx=4, token_map=msp.TokenMap.identity(3))
    assert preparation.reading(random_model, renamed, [random_report["0_post"]]) == (random_model, mess3, 4)
    model, found, probes, _, provenance = preparation.over_words(
        random_model, renamed, random_report["0_post"], 2, seed=9
    )
    assert model is random_model
    assert torch.equal(found.tokens, renamed.tokens)
    assert probes == [random_report["0_post"]]
    assert (provenance["words"], provenance["seed"]) == (81, 9)
    # Words are drawn from the seed, and as long as the model can read.
    drawn = preparation.over_words(random_model, mess3, probes, 20, seed=9)[1]
    assert torch.equal(drawn.tokens, msp.words(mess3, n_ctx=5, max_words=20, seed=9).tokens)
    with pytest.raises(ValueError, match="context"):
        preparation.over_words(random_model, msp.data.all_words(mess3, 6), probes, 20, seed=9)
    assert preparation.group_label(probes) == "0_post"
    assert preparation.group_label([*probes, random_report["1_post"]]) == preparation.ALL_SITES == "all sites"


def test_probes_are_taken_in_the_order_of_the_forward_pass(random_model, random_report):
    given = [random_report[label] for label in ("ln_final", "0_post", "1_post", "0_pre")]
    ordered = preparation.in_firing_order(random_model, given)
    assert [probe.label for probe in ordered] == ["0_pre", "0_post", "1_post", "ln_final"]
    assert not any(point._forward_hooks for point in random_model.hook_dict.values())


@pytest.mark.parametrize("experiment", ["bayes_consistency", "prediction_consistency"])
def test_a_consistency_is_over_20_000_words_unless_told_otherwise(experiment):
    defaults = {name: each.default for name, each in inspect.signature(EXPERIMENTS[experiment]).parameters.items()}
    assert (defaults["n_words"], defaults["seed"], defaults["batch_size"]) == (None, 0, None)
    assert preparation.default_count(10, inspect.signature(preparation.over_words).parameters["most"].default) == 20_000


@pytest.mark.parametrize("experiment", ["bayes_consistency", "prediction_consistency"])
def test_words_pass_in_batches_of_the_size_asked_for(experiment, random_model, random_report, mess3, passes):
    words = msp.data.all_words(mess3, 3)
    EXPERIMENTS[experiment](random_model, words, probes=random_report, batch_size=10)
    assert [shape for shape in passes if shape[0] > 1] == [(10, 3), (10, 3), (7, 3)]


def test_a_maker_that_makes_no_edit_is_named(random_model, random_report, mess3):
    with pytest.raises(TypeError, match=r"edits\['own'\] returned None: let it return an Edit"):
        msp.intervene(random_model, mess3, probes=random_report, edits={"own": lambda probe, given: None}, n_words=5)


def test_a_compiled_model_is_edited_as_it_was_written(random_model, random_report, mess3):
    compiled = torch.compile(random_model, backend="eager")
    compiled(mess3.sample(2, 3, seed=0))
    options = {"probes": random_report["0_post"], "n_words": 5, "edits": "steer"}
    assert msp.intervene(compiled, mess3, **options) == msp.intervene(random_model, mess3, **options)


def test_an_edit_that_is_never_made_is_an_error(random_model, random_report):
    erase = edits.erase(random_report["0_post"])
    with pytest.raises(ValueError, match="was never made"), edits.applying(random_model, erase):
        pass


def test_edits_that_cannot_be_made_are_refused_before_the_model_runs(random_model, random_report, mess3, passes):
    probes = without_moments(random_report)
    for run in (
        lambda: msp.intervene(random_model, mess3, probes=probes, edits=["steer", "covariance"]),
        lambda: msp.persistence(random_model, mess3, probes=probes, edits="erase"),
        lambda: msp.necessity(random_model, mess3, probes=probes),
    ):
        with pytest.raises(ValueError, match="has no moments"):
            run()
    with pytest.raises(ValueError, match="at least 2 tokens"):
        edits.bayes_consistency(random_model, msp.data.all_words(mess3, 1), probes=random_report)
    assert passes == []


def test_a_process_with_one_belief_has_none_to_write():
    process = msp.processes.coin()
    model = msp.build_model(msp.ModelConfig(d_vocab=2, n_layers=1, d_model=16, d_head=8, d_mlp=32, n_ctx=3))
    report = msp.probe(model, process, progress=False)
    for experiment in (msp.intervene, msp.persistence):
        with pytest.raises(ValueError, match="belief never changes, so there is no other belief to write"):
            experiment(model, process, probes=report)


def test_the_same_value_in_another_container_is_the_same(random_model, random_report, mess3):
    options = {"probes": random_report["0_post"], "n_words": 5, "edits": "steer"}

    def found(**more):
        return msp.intervene(random_model, mess3, **options | more)

    expected = found(positions=3)
    for same in (np.int64(3), torch.tensor(3), [3], (3,), np.array([3]), torch.tensor([3]), 3.0, -2):
        assert found(positions=same) == expected
    expected = found(strengths=[0.5, 1.0])
    for same in ((0.5, 1.0), np.array([0.5, 1]), torch.tensor([0.5, 1.0]), pd.Series([0.5, 1.0])):
        assert found(strengths=same) == expected
    expected = found(strengths=0.5)
    for same in (np.float32(0.5), torch.tensor(0.5), np.array(0.5)):
        assert found(strengths=same) == expected
    belief = [0.25, 0.25, 0.5]
    expected = found(targets=belief)
    for same in (tuple(belief), np.array(belief), torch.tensor(belief), pd.Series(belief), torch.tensor([belief] * 5)):
        assert found(targets=same) == expected
        assert found(targets={"given": same}) == expected
    expected = found(targets="vertex")
    for same in (["vertex"], ("vertex",), np.array(["vertex"])):
        assert found(targets=same) == expected
    expected = found()
    for same in (["steer"], ("steer",), np.array(["steer"])):
        assert found(edits=same) == expected
    assert found(probes=(random_report["0_post"],)) == expected
    expected = found(seed=1, batch_size=3)
    for same in (np.int64(5), torch.tensor(5), 5.0):
        assert found(n_words=same, seed=np.uint8(1), batch_size=np.int32(3)) == expected


def test_a_belief_or_strength_that_is_no_number_is_refused(random_model, random_report):
    probe = random_report["0_post"]
    steer = edits.steer(probe)
    for strength, error in (
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        ("1", TypeError),
        (None, TypeError),
    ):
        with pytest.raises(error, match="strength="):
            steer.scaled(strength)
    for belief, error in (
        ([float("nan"), 0.5, 0.5], ValueError),
        ([0.5 + 0j, 0.5, 0], ValueError),
        ("abc", TypeError),
        ([[1.0, 0, 0], [1.0]], ValueError),
    ):
        for run in (
            lambda belief=belief: steer.at(2, belief),
            lambda belief=belief: steer.hook(2, belief),
            lambda belief=belief: edits.applying(random_model, steer, belief),
        ):
            with pytest.raises(error, match="belief="):
                run()
    for wrong in (None, "0_post", random_report):
        for make in (edits.steer, edits.patch, edits.erase, edits.keep_only, edits.no_edit, edits.covariance_shift):
            with pytest.raises(TypeError, match="probe="):
                make(wrong)


class TestAPlaceboDoesNotDependOnWhatElseIsAsked:
    def rows(self, model, report, process, **options):
        found = msp.intervene(model, process, **{"probes": report, "n_words": 40, "positions": 3} | options)
        whole = found.table.query("site == '0_post' and position == 3 and target == 'another word' and strength == 1")
        return whole[whole["edit"].str.startswith("placebo")].set_index("edit").to_dict(orient="index")

    def test_of_an_intervention(self, random_model, random_report, mess3):
        ask = self.rows
        alone = ask(random_model, random_report["0_post"], mess3, edits=["placebo off belief"])
        both = [random_report[label] for label in ("0_pre", "0_post", "ln_final")]
        others = [
            ask(random_model, both, mess3, edits=["placebo off belief"]),
            ask(random_model, both[::-1], mess3, edits=list(EDITS), together=True),
            ask(random_model, both[1], mess3, edits=["placebo off belief"], positions=[1, 3, 2]),
            ask(random_model, both[1], mess3, edits=["placebo off belief"], strengths=[0.5, 1, 2]),
            ask(random_model, both[1], mess3, edits=["placebo off belief"], targets=["vertex", "another word"]),
            ask(random_model, both[1], mess3, edits=["placebo off belief"], batch_size=7),
        ]
        for other in others:
            for name, row in alone.items():
                for measure in ("kl_to_target", "kl_to_actual", "recovery"):
                    assert other[name][measure] == pytest.approx(row[measure], rel=1e-4), name
        # The references are made whole, too, where all else is made in part.
        in_part = ask(random_model, both[1], mess3, strengths=0.5)
        assert in_part["placebo"]["kl_to_target"] == pytest.approx(alone["placebo"]["kl_to_target"], rel=1e-4)
        assert alone["placebo"]["kl_to_target"] != alone["placebo off belief"]["kl_to_target"]
        reseeded = ask(random_model, both[1], mess3, seed=1)
        assert reseeded["placebo"]["kl_to_target"] != pytest.approx(alone["placebo"]["kl_to_target"], rel=1e-3)

    def test_of_persistence(self, random_model, random_report, mess3):
        def ask(probes, edits):
            found = msp.persistence(random_model, mess3, probes=probes, edits=edits, n_words=20)
            return found.table.query("site == '0_post' and edit == 'placebo'")["kl_to_target"].tolist()

        alone = ask(random_report["0_post"], "steer")
        assert ask(random_report, ["placebo off belief", "patch"]) == pytest.approx(alone, rel=1e-4)

    def test_of_random_erasures(self, random_model, random_report, mess3):
        def ask(probes, n_random=2):
            found = msp.necessity(random_model, mess3, probes=probes, n_random=n_random, n_words=30)
            names = ("erase random", "project out random")
            return [found.select(site="0_post", edit=name)["regret"] for name in names]

        alone = ask(random_report["0_post"])
        assert ask([random_report["1_post"], random_report["0_post"]]) == pytest.approx(alone, rel=1e-6)
        assert ask(random_report["0_post"], n_random=1) != pytest.approx(alone, rel=1e-6)

    @pytest.mark.parametrize("width", [3, 16, 20, 33])
    def test_directions_of_a_word_do_not_depend_on_its_batch(self, width):
        like = torch.zeros(50, 2, width)
        whole = writing._directions(like, torch.Generator().manual_seed(0))
        generator = torch.Generator().manual_seed(0)
        parts = torch.cat([writing._directions(part, generator) for part in like.split([1, 7, 30, 12])])
        torch.testing.assert_close(whole, parts, rtol=0, atol=0)
        assert whole.shape == like.shape
        assert whole.std() == pytest.approx(1, abs=0.15)


def test_the_note_of_the_consistency_quotes_the_share_that_is_left(random_model, random_report, mess3):
    found = edits.bayes_consistency(random_model, mess3, probes=random_report)
    note = found.summary()[0]
    for site in ("0_pre", "0_post", "1_post", "ln_final"):
        row = found.select(site=site, token="all")
        assert f"{100 * row['update'] / row['copy']:.1f} % at {site}" in note


def test_the_reader_is_the_latest_site_and_is_named(random_model, random_report, mess3):
    """Whatever the order in which the probes are given."""
    late_first = [random_report["ln_final"], random_report["0_pre"], random_report["1_post"]]
    found = msp.intervene(random_model, mess3, probes=late_first, n_words=5)
    assert found.provenance["reader"] == "ln_final"
    assert found.values("site") == ["0_pre", "1_post", "ln_final"]
    assert found.summary()[-1] == "Displacement is read at ln_final, by its own probe."
    alone = msp.intervene(random_model, mess3, probes=random_report["0_pre"], n_words=5)
    assert alone.provenance["reader"] is None
    assert "Displacement is read" not in " ".join(alone.summary())


def test_heads_of_one_layer_are_edited(mess3):
    """Sites that share a hook."""
    config = msp.ModelConfig(d_vocab=3, n_layers=1, d_model=16, n_heads=2, d_head=8, d_mlp=32, n_ctx=4)
    model = msp.build_model(config, seed=0)
    report = msp.probe(model, mess3, sites="blocks.0.attn.hook_z[*]", concatenate=False, progress=False)
    assert len(report) == 2
    found = msp.intervene(model, mess3, probes=report, n_words=10)
    assert found.values("site") == list(report)


@functools.cache
def in_precision(kind, dtype):
    """A model of a kind in a precision, with words, probes and what intervening found."""
    process = msp.processes.random_process(3, 5, seed=0)
    sites = ["hook_embed", "hook_state.1"] if kind == "own" else ["0_pre", "1_post"]
    words, model = msp.data.all_words(process, 3), new(kind).to(dtype)
    options = {"concatenate": False, "controls": False, "progress": False}
    probes = list(msp.probe(model, words, sites=sites, **options).values())
    found = msp.intervene(model, words, probes=probes, edits=list(EDITS), n_words=30)
    return model, words, probes, found.to_dataframe().set_index(["site", "edit"])["kl_to_target"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_models_of_every_kind_and_precision_are_edited(kind, dtype):
    """The same network in another precision gives the same numbers, as far as its digits go."""
    model, words, probes, numbers = in_precision(kind, dtype)
    expected = in_precision(kind, torch.float32)[-1]
    pd.testing.assert_series_equal(numbers, expected, atol=1e-5 if dtype == torch.float64 else 0.06, rtol=0.06)
    # Every experiment in one precision, and in each precision of one kind: what they share is edited above.
    others = EXPERIMENTS if dtype == torch.bfloat16 or kind == "own" else ()
    for experiment in others:
        found = EXPERIMENTS[experiment](model, words, probes=probes[:1], n_words=5).to_dataframe()
        assert found.select_dtypes("float").notna().any().any()
    for change in (probes[0].steer, probes[0].patch):
        with change(model, torch.eye(3)[0], position=-1):
            assert torch.isfinite(model(words.tokens[:4])).all()
