"""Models and probes shared by the tests of edits and experiments."""

import pytest
import torch

import msp_lens as msp


@pytest.fixture(scope="session")
def random_model():
    """An untrained model with a short context: 2 layers, 3 tokens, 5 positions."""
    return msp.build_model(msp.ModelConfig(d_vocab=3, n_layers=2, d_model=16, d_head=8, d_mlp=32, n_ctx=5), seed=1)


@pytest.fixture(scope="session")
def random_report(random_model, mess3):
    return msp.probe(random_model, mess3, progress=False)


@pytest.fixture(scope="session")
def published_report(published_model, mess3):
    return msp.probe(published_model, mess3, split=msp.probing.Split(n_folds=2), progress=False)


@pytest.fixture
def untouched(random_model, mess3):
    """Asserts that the test left the model's hooks, modes, gradients and outputs as they were."""
    tokens = mess3.sample(3, 5, seed=9)

    def state():
        hooks = {name: len(point._forward_hooks) for name, point in random_model.hook_dict.items()}
        modes = [module.training for module in random_model.modules()]
        wants = [parameter.requires_grad for parameter in random_model.parameters()]
        return hooks, modes, wants

    before, output = state(), random_model(tokens).detach()
    yield
    assert state() == before
    torch.testing.assert_close(random_model(tokens), output, rtol=0, atol=0)
