from dataclasses import replace

import pytest
import torch

from msp_lens.beliefs.filtering import filter_beliefs
from msp_lens.experiments.papers import PAPERS, forcing2026
from msp_lens.experiments.papers.recovered_states import SITE, recover, state_edits, transition_signal
from msp_lens.experiments.reproduce import reproduce
from msp_lens.interventions.menu import Material
from msp_lens.models.hooked import find_sites
from msp_lens.probing.fit import probe

FAMILIES = list(forcing2026.FAMILIES)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The whole reproduction with tiny networks, trained for a moment."""

    def tiny(small):
        made = {}
        for name, network in forcing2026.networks(small).items():
            model = replace(network.model, n_layers=1, d_model=16, n_heads=1, d_head=8, d_mlp=32, n_ctx=5)
            training = replace(network.training, steps=100, batch_size=64, learning_rate=1e-2, warmup_steps=10)
            made[name] = replace(network, model=model, training=training)
        return made

    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(PAPERS, "forcing2026", replace(PAPERS["forcing2026"], networks=tiny))
        folder = tmp_path_factory.mktemp("forcing")
        return reproduce("forcing2026", small=True, out=folder, n_jobs=1, progress=False)


def claim(section, words):
    (chosen,) = (each for each in section.claims if words in each.says)
    return chosen


def test_the_state_is_the_one_that_emitted_the_token():
    process = forcing2026.hidden_markov("three", 3, 4, 0.8, False, 0.7)
    transitions = torch.tensor([[0.1, 0.8, 0.1], [0.1, 0.1, 0.8], [0.8, 0.1, 0.1]], dtype=torch.float64)
    emissions = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1], [0.1, 0.1, 0.7, 0.1]], dtype=torch.float64)
    assert torch.allclose(process.emissions, transitions @ emissions)
    # Bayes' rule for the state that emitted the first token.
    posterior = (emissions[:, 2] / 3) / (emissions[:, 2] / 3).sum()
    assert torch.allclose(filter_beliefs(process, torch.tensor([[2]]))[0, 0], posterior)


def test_sizes():
    small, full = forcing2026.networks(True), forcing2026.networks(False)
    assert len(small) == 9
    assert len(full) == 27
    assert {network.seed for network in full.values()} == {0, 1, 2}
    assert len({(network.process.name, network.seed) for network in full.values()}) == 27
    assert list(small) == [*forcing2026.FAMILIES, *forcing2026.LEVELS]


def test_optimal_predictors_left_alone_are_as_far_as_published():
    def left_alone(process):
        beliefs = filter_beliefs(process, process.sample(4000, 8, seed=0))[:, -1]
        targets, predicted = process.emissions, beliefs @ process.emissions
        return float((targets * (targets.log() - predicted.log()[:, None])).sum(dim=-1).mean())

    processes = {network.process.name: network.process for network in forcing2026.networks(True).values()}
    of_families = [left_alone(processes[name]) for name in FAMILIES]
    assert sum(of_families) / 6 == pytest.approx(0.1957, rel=0.05)
    for name, (_, published, _) in forcing2026.LEVELS.items():
        assert left_alone(processes[name]) == pytest.approx(published, rel=0.05)


def test_transition_signal_of_the_hidden_states_themselves_is_one():
    process = forcing2026.hidden_markov("four", 4, 4, 0.8, False, 0.6)
    chain, generator = process.transitions.sum(dim=0), torch.Generator().manual_seed(0)
    states = [torch.randint(4, (4000,), generator=generator)]
    for _ in range(20):
        states.append(torch.multinomial(chain[states[-1]], 1, generator=generator).squeeze(1))
    walks = torch.stack(states, dim=1)
    assert transition_signal(walks, process) == pytest.approx(1, abs=0.02)
    shuffled = walks.flatten()[torch.randperm(walks.numel(), generator=generator)].reshape(walks.shape)
    assert transition_signal(shuffled, process) == pytest.approx(0, abs=0.02)
    # States that follow one another backwards tell nothing of the way forward.
    assert transition_signal(walks.flip(1), process) < 0.3


def test_recovered_states_are_matched_to_hidden_ones(found):
    network = found.networks["persistent"]
    states = recover(network.model, network.process)
    assert (states.recovered == states.likeliest).double().mean() > 0.6
    means = states.centroids(states.recovered)
    for state in range(3):
        own = states.activations[states.recovered == state].mean(dim=0)
        assert torch.allclose(means[state], own)


def test_forced_by_hand(found):
    """What the section says of one family, with a plain hook and the KL written out."""
    network = found.networks["persistent"]
    model, process, position = network.model, network.process, 3
    generator = torch.Generator().manual_seed(0)
    tokens = process.sample(2000, position + 1, generator=generator)
    wanted = torch.randint(3, (2000,), generator=generator)
    states = recover(model, process)
    means = states.centroids(states.recovered)
    (site,) = find_sites(model, SITE)

    def left_and_written(rows):
        def hook(activation, hook):
            activation[:, position] = rows
            return activation

        with torch.no_grad():
            alone = model(tokens)
            written = model.run_with_hooks(tokens, fwd_hooks=[(site, hook)])
        target = process.emissions[wanted]
        predicted = (each[:, position].double().log_softmax(dim=-1) for each in (alone, written))
        return [float((target * (target.log() - each)).sum(dim=1).mean()) for each in predicted]

    report = forcing2026.force([network], forcing2026.FORCING)
    kl = report.table.set_index("edit")["kl_to_target"]
    alone, forced = left_and_written(means[wanted].float())
    assert kl["none"] == pytest.approx(alone, abs=1e-6)
    assert kl["recovered state"] == pytest.approx(forced, abs=1e-6)
    _, wrong = left_and_written(means[(wanted - 1) % 3].float())
    assert kl["wrong state"] == pytest.approx(wrong, abs=1e-6)
    _, mean = left_and_written(states.activations.flatten(0, 1).mean(dim=0).float())
    assert kl["mean activation"] == pytest.approx(mean, abs=1e-6)


def test_controls_hold_no_state(found):
    network = found.networks["persistent"]
    reader = probe(network.model, network.process, sites=SITE, controls=False, progress=False).probes[0]
    edits = state_edits(network.model, network.process)
    vertices = torch.eye(3, dtype=torch.float64).unsqueeze(1)
    activations = torch.zeros(3, 1, 16)

    def written(name):
        given = Material(vertices, vertices, activations, None, torch.Generator().manual_seed(0))
        return edits[name](reader, given)(activations, vertices)

    recovered, shuffled, mean = (written(name) for name in ("recovered state", "shuffled labels", "mean activation"))
    apart = (recovered - mean).norm(dim=-1).min()
    assert (shuffled - mean).norm(dim=-1).max() < apart / 5
    random = written("random activation")
    assert torch.allclose(random.norm(dim=-1), recovered.norm(dim=-1), rtol=1e-5)
    assert (random - random[:1]).norm(dim=-1)[1:].min() > 0


def test_sections(found):
    assert [section.title for section in found.sections] == list(found.to_dict()["seconds"])
    assert {each.verdict for each in found.claims} <= {"reproduced", "not reproduced"}
    predictors, recovered, forcing, difficulty, steering, probes = found.sections
    of_families = [found.networks[name] for name in FAMILIES]
    excess = sum(float(each.regret.mean()) for each in of_families) / 6
    assert predictors.claims[0].measured == pytest.approx(excess)
    assert predictors.claims[0].control > 0.1
    table = forcing.tables[0].table
    assert set(table["site"]) == set(FAMILIES)
    by_edit = table.groupby("edit")["kl_to_target"].mean()
    measured = [each.measured for each in forcing.claims]
    assert measured == pytest.approx([by_edit["none"], by_edit["recovered state"], by_edit["recovered state"]])
    assert claim(forcing, "beats").control == pytest.approx(by_edit[list(forcing2026.CONTROLS)].min())
    assert claim(forcing, "beats").verdict == "reproduced"
    assert [each.says for each in difficulty.claims][-1].startswith("The harder")
    assert claim(steering, "After steering").control == pytest.approx(by_edit["recovered state"])
    for section in found.sections[1:]:
        section.plot()
    # Four tokens are almost the whole word here.
    assert claim(probes, "four tokens").measured > 0.95
    assert recovered.claims[0].control < 0.7


def test_untrained_networks_reproduce_nothing(found):
    untrained = {name: forcing2026._as_untrained(each) for name, each in found.networks.items()}
    for section in (forcing2026.forcing, forcing2026.steering):
        claims = [each for each in section(untrained, True).claims if "left alone" not in each.says]
        assert {each.verdict for each in claims} == {"not reproduced"}, section
    worse = {name: replace(each, regret=each.regret + 0.2) for name, each in untrained.items()}
    assert {each.verdict for each in forcing2026.predictors(worse, True).claims} == {"not reproduced"}
