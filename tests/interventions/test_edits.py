"""Each edit against its equation, written out in float64, and the three ways of making it."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import msp_lens as msp
from msp_lens import interventions as edits
from msp_lens.interventions.edits import read_decoder
from msp_lens.moments.moments import Moments
from msp_lens.moments.scores import HeldOutScore, Score
from msp_lens.probing.belief_probe import fit_probe
from msp_lens.probing.cross_validation import ProbeScores

PERFECT = ProbeScores(Score(1.0, 0.0, 1), HeldOutScore(1.0, 0.0, 1))


def made_probe(n_rows=200, width=6, n_states=3, seed=0, noise=0.3):
    """A probe of made-up activations, float64, that carry a belief, noise and nothing else; with its rows."""
    generator = torch.Generator().manual_seed(seed)
    beliefs = torch.softmax(2 * torch.randn(n_rows, n_states, dtype=torch.float64, generator=generator), dim=1)
    mixing = torch.randn(n_states, width, dtype=torch.float64, generator=generator)
    scales = torch.logspace(0, -2, width, dtype=torch.float64)
    rows = beliefs @ mixing + noise * scales * torch.randn(n_rows, width, dtype=torch.float64, generator=generator) + 3
    weights = torch.rand(n_rows, dtype=torch.float64, generator=generator)
    moments = Moments({"site": width, "belief": n_states}).update(torch.cat([rows, beliefs], dim=1), weights)
    return fit_probe(moments, ["site"], PERFECT, provenance={}), rows, beliefs, weights


def covariance(first, second, weights):
    shares = weights / weights.sum()
    return (first - shares @ first).T @ ((second - shares @ second) * shares.unsqueeze(1))


@pytest.fixture(scope="module")
def made():
    return made_probe()


@pytest.fixture(scope="module")
def target():
    generator = torch.Generator().manual_seed(5)
    return torch.softmax(torch.randn(200, 3, dtype=torch.float64, generator=generator), dim=1)


def test_edits_that_write_a_belief(made, target):
    probe, rows, beliefs, weights = made
    sigma_hh, sigma_bb = covariance(rows, rows, weights), covariance(beliefs, beliefs, weights)
    sigma_hb = covariance(rows, beliefs, weights)
    decoder = torch.linalg.pinv(sigma_bb, rtol=1e-9) @ sigma_hb.T
    probe_weights = torch.linalg.solve(sigma_hh, sigma_hb)
    shares = weights / weights.sum()
    mean, mean_belief = shares @ rows, shares @ beliefs
    read = mean_belief + (rows - mean) @ probe_weights
    expected = {
        edits.no_edit(probe): rows,
        edits.steer(probe): rows + (target - read) @ decoder,
        edits.steer(probe, current=beliefs): rows + (target - beliefs) @ decoder,
        edits.patch(probe): mean + (target - mean_belief) @ decoder,
        edits.pseudo_inverse_shift(probe): rows + (target - read) @ torch.linalg.pinv(probe_weights, rtol=1e-9),
        edits.donor(probe, rows.flip(0)): rows.flip(0),
        edits.donor_belief(probe, rows.flip(0)): rows + (read.flip(0) - read) @ decoder,
        edits.toward(edits.steer(probe), target.flip(0)): rows + (target.flip(0) - read) @ decoder,
    }
    for edit, result in expected.items():
        torch.testing.assert_close(edit(rows, target), result, msg=lambda text, edit=edit: f"{edit}: {text}")
        halfway = edit.scaled(0.5)(rows, target)
        torch.testing.assert_close(halfway, (rows + result) / 2)


def test_the_pseudo_inverse_makes_the_least_change_and_the_covariance_shift_the_likeliest(made, target):
    probe, rows, _, weights = made
    precision = torch.linalg.inv(covariance(rows, rows, weights))
    steps = {}
    for edit in (edits.pseudo_inverse_shift(probe), edits.covariance_shift(probe)):
        after = edit(rows, target)
        torch.testing.assert_close(probe.predict(after), target, atol=1e-9, rtol=0)
        steps[edit.name] = after - rows
    # Any other change after which the probe reads the target differs by something that it does not read.
    unread = torch.randn(rows.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    unread = unread - unread @ probe.read_map.weights @ torch.linalg.pinv(probe.read_map.weights, rtol=1e-9)

    def euclidean(step):
        return step.square().sum(dim=1)

    def mahalanobis(step):
        return ((step @ precision) * step).sum(dim=1)

    for name, length in (("pseudo-inverse", euclidean), ("covariance", mahalanobis)):
        for scale in (0.01, 1.0):
            assert (length(steps[name]) < length(steps[name] + scale * unread)).all(), name
            assert (length(steps[name]) < length(steps[name] - scale * unread)).all(), name


def test_leace_is_that_of_the_paper(made):
    """Belrose et al. 2023, theorem 4.3: h - Σ^½ P Σ^-½ (h - μ), P onto the column space of Σ^-½ Σ_hb."""
    probe, rows, beliefs, weights = made
    sigma_hh, sigma_hb = covariance(rows, rows, weights), covariance(rows, beliefs, weights)
    values, vectors = torch.linalg.eigh(sigma_hh)
    root, whitening = vectors * values.sqrt() @ vectors.T, vectors / values.sqrt() @ vectors.T
    left, singular, _ = torch.linalg.svd(whitening @ sigma_hb, full_matrices=False)
    basis = left[:, singular > 1e-9 * singular[0]]
    assert basis.shape[1] == 2
    mean = weights @ rows / weights.sum()
    removed = (rows - mean) @ (whitening @ basis @ basis.T @ root)
    torch.testing.assert_close(edits.erase(probe)(rows), rows - removed)
    torch.testing.assert_close(edits.keep_only(probe)(rows), mean + removed)


def test_leace_leaves_no_trace_however_the_probe_was_fitted(made):
    probe, rows, beliefs, weights = made
    solver = msp.moments.Ridge(penalty=10.0)
    ridge = solver.solve(solver.decompose(probe.moments, probe.sites), "belief")
    erased = edits.erase(dataclasses.replace(probe, read_map=ridge))(rows)
    assert covariance(erased, beliefs, weights).abs().max() < 1e-12
    torch.testing.assert_close(erased, edits.erase(probe)(rows))


@given(seed=st.integers(0, 10_000), width=st.integers(4, 8), n_states=st.integers(1, 4), noise=st.floats(0.01, 3))
def test_properties_that_hold_for_every_probe(seed, width, n_states, noise):
    probe, rows, beliefs, weights = made_probe(width=width, n_states=n_states, seed=seed, noise=noise)
    read = probe.predict(rows)
    variance = covariance(beliefs, beliefs, weights).diagonal().sum()

    erased = edits.erase(probe)(rows)
    trace = covariance(erased, beliefs, weights)
    assert trace.abs().max() <= 1e-9 * (1 + covariance(rows, beliefs, weights).abs().max())
    if n_states > 1:
        fresh = Moments({"site": width, "belief": n_states}).update(torch.cat([erased, beliefs], dim=1), weights)
        score = msp.moments.score(msp.moments.least_squares(fresh, "site", "belief"), fresh, "site", "belief")
        assert score.r2 <= 1e-6, variance

    kept = edits.keep_only(probe)(rows)
    torch.testing.assert_close(probe.predict(kept), read, atol=1e-8, rtol=0)
    torch.testing.assert_close(edits.keep_only(probe)(kept), kept, atol=1e-8, rtol=0)
    torch.testing.assert_close(edits.erase(probe)(kept), probe.activation_mean.expand_as(rows), atol=1e-8, rtol=0)
    torch.testing.assert_close(kept + erased, rows + probe.activation_mean)

    # Written where it stands already, a belief changes nothing.
    for edit in (edits.steer(probe), edits.pseudo_inverse_shift(probe), edits.covariance_shift(probe)):
        torch.testing.assert_close(edit(rows, read), rows)
    torch.testing.assert_close(edits.steer(probe, current=beliefs)(rows, beliefs), rows)
    torch.testing.assert_close(edits.donor_belief(probe, rows)(rows, beliefs), rows)
    # The probe no longer tells erased activations apart, and neither erasure is done twice.
    for erase in (edits.erase, edits.project_out):
        once = erase(probe)(rows)
        torch.testing.assert_close(probe.predict(once), probe.belief_mean.expand_as(read), atol=1e-8, rtol=0)
        torch.testing.assert_close(erase(probe)(once), once, atol=1e-8, rtol=0)


def test_random_erasures_remove_as_many_dimensions_and_not_the_beliefs(made):
    probe, rows, beliefs, weights = made
    generator = torch.Generator().manual_seed(0)
    for erase, null in ((edits.erase, edits.erase_random), (edits.project_out, edits.project_out_random)):
        ranks = []
        for edit in (erase(probe), null(probe, generator=generator)):
            removed = rows - edit(rows)
            ranks.append(int(torch.linalg.matrix_rank(removed - removed.mean(dim=0), rtol=1e-9)))
            torch.testing.assert_close(edit(edit(rows)), edit(rows))
        assert ranks == [2, 2]
        left = covariance(null(probe, generator=generator)(rows), beliefs, weights).norm()
        assert left > 0.2 * covariance(rows, beliefs, weights).norm()


def test_a_random_leace_leaves_no_trace_of_what_it_erased(made):
    """What is taken away and what stays are uncorrelated, as for LEACE itself."""
    probe, rows, _, weights = made
    left = edits.erase_random(probe, generator=torch.Generator().manual_seed(1))(rows)
    assert covariance(rows - left, left, weights).abs().max() < 1e-12


def test_placebos_are_as_long_as_the_edit(made, target):
    probe, rows, _, _ = made
    length = (edits.steer(probe)(rows, target) - rows).norm(dim=1)
    generator = torch.Generator().manual_seed(3)
    for placebo in (edits.placebo, edits.placebo_off_belief):
        step = placebo(edits.steer(probe), generator=generator)(rows, target) - rows
        torch.testing.assert_close(step.norm(dim=1), length)
        directions = step / step.norm(dim=1, keepdim=True)
        # Drawn anew for each word.
        assert torch.linalg.matrix_rank(directions) >= 2
        if placebo is edits.placebo_off_belief:
            assert (step @ probe.read_map.weights).abs().max() < 1e-9
            differences = probe.decoder - probe.decoder[:1]
            assert (step @ differences.T).abs().max() < 1e-9


def test_a_site_that_is_all_belief_has_no_direction_off_it():
    probe, *_ = made_probe(width=4, n_states=3)
    with pytest.raises(ValueError, match="span all 4 dimensions"):
        edits.placebo_off_belief(edits.steer(probe), generator=torch.Generator())


def test_the_centroid_is_the_mean_of_the_nearest_cell(random_model, random_report, mess3):
    dataset = msp.data.all_words(mess3, 5)
    centroids = edits.belief_centroids(random_model, dataset, width=0.05)
    site = "blocks.0.hook_resid_post"
    (batch,) = msp.models.activations.stream_activations(random_model, dataset.tokens, site, batch_size=len(dataset))
    first = dataset.is_first
    activations = torch.empty(dataset.n_prefixes, 16, dtype=torch.float64)
    activations[dataset.prefix_ids[first]] = batch.activations[site][first].double()
    cells = [tuple(row) for row in (dataset.prefix_beliefs / 0.05).round().int().tolist()]
    weights = dataset.prefix_weights("probability")
    assert len(centroids) == len(set(cells)) < dataset.n_prefixes
    means = {}
    for cell in set(cells):
        members = torch.tensor([other == cell for other in cells])
        share = weights[members] / weights[members].sum()
        means[cell] = (share @ dataset.prefix_beliefs[members], share @ activations[members], weights[members].sum())
    for belief, activation, weight in means.values():
        nearest = int((centroids.beliefs - belief).norm(dim=1).argmin())
        torch.testing.assert_close(centroids.beliefs[nearest], belief)
        torch.testing.assert_close(centroids.activations[site][nearest], activation, atol=1e-6, rtol=1e-5)
        assert float(centroids.weights[nearest]) == pytest.approx(float(weight))
    edit = edits.centroid(random_report["0_post"], centroids.beliefs, centroids.activations[site])
    chosen = torch.tensor([3, 0])
    result = edit(torch.zeros(2, 1, 16), centroids.beliefs[chosen].unsqueeze(1) + 1e-4)
    torch.testing.assert_close(result[:, 0].double(), centroids.activations[site][chosen], atol=1e-6, rtol=1e-5)


def test_edits_need_what_they_are_solved_from(made):
    probe = dataclasses.replace(made[0], moments=None)
    edits.pseudo_inverse_shift(probe), edits.project_out(probe), edits.steer(probe)
    for needy in (edits.erase, edits.keep_only, edits.covariance_shift):
        with pytest.raises(ValueError, match="has no moments"):
            needy(probe)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_keep_their_dtype(made, target, dtype):
    probe, rows, *_ = made
    generator = torch.Generator().manual_seed(0)
    for make in (edits.steer, edits.patch, edits.pseudo_inverse_shift, edits.covariance_shift, edits.erase):
        edit = make(probe)
        exact = edit(rows, target)
        for _ in range(2):
            result = edit(rows.to(dtype), target)
            assert result.dtype == dtype
            torch.testing.assert_close(result.double(), exact, atol=20 * torch.finfo(dtype).eps, rtol=0)
    assert edits.placebo(edits.steer(probe), generator=generator)(rows.to(dtype), target).dtype == dtype


def test_saved_probes_edit_alike(random_report, tmp_path):
    probe = random_report["1_post"]
    loaded = msp.BeliefProbe.load(probe.save(tmp_path / "probe.safetensors"))
    torch.testing.assert_close(read_decoder(loaded), read_decoder(probe), rtol=0, atol=0)
