import re

import pytest
import torch
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

import msp_lens as msp
from msp_lens.models import Site, editing, find_sites, site_groups, site_label, writing
from msp_lens.models.activations import stream_activations
from msp_lens.models.sites import SiteIndex
from tests.hooked_models import KINDS, TRANSFORMERS, build, loaded, network

TOKENS = torch.tensor([[0, 1, 2, 3, 1], [2, 2, 1, 4, 4], [0, 0, 1, 2, 2]])
RESIDUAL = ("blocks.0.hook_resid_pre", "blocks.0.hook_resid_post", "blocks.1.hook_resid_post")


@pytest.fixture(params=TRANSFORMERS)
def transformer(request):
    return build(request.param)


@pytest.fixture(params=KINDS)
def model(request):
    return build(request.param)


def streamed(model, sites, tokens=TOKENS):
    """Activations in two batches, joined."""
    batches = list(stream_activations(model, tokens, sites, batch_size=2))
    return {site: torch.cat([batch.activations[site] for batch in batches]) for site in batches[0].activations}


def one_hook(model, name):
    """A hook's activation, by a hook of one's own."""
    seen = []
    with torch.no_grad(), model.hooks(fwd_hooks=[(name, lambda activation, hook: seen.append(activation.clone()))]):
        model(TOKENS)
    return seen[-1]


LABELS = {
    "embed": "hook_embed",
    "pos_embed": "hook_pos_embed",
    "0_pre": "blocks.0.hook_resid_pre",
    "1_mid": "blocks.1.hook_resid_mid",
    "1_post": "blocks.1.hook_resid_post",
    "final_post": "blocks.1.hook_resid_post",
    "0_attn_out": "blocks.0.hook_attn_out",
    "1_mlp_out": "blocks.1.hook_mlp_out",
    "0_z": "blocks.0.attn.hook_z",
    "L1H0": "blocks.1.attn.hook_z[0]",
    "1_z[1]": "blocks.1.attn.hook_z[1]",
}


@pytest.mark.parametrize(("label", "name"), LABELS.items())
def test_each_label_is_a_site_of_every_transformer(transformer, label, name):
    assert find_sites(transformer, label) == find_sites(transformer, name) == (name,)
    hook = one_hook(transformer, Site.parse(name).hook)
    expected = hook[:, :, Site.parse(name).head] if Site.parse(name).head is not None else hook.flatten(2)
    torch.testing.assert_close(streamed(transformer, label)[name], expected.expand(len(TOKENS), -1, -1))


def test_labels_are_transformer_lens_own():
    for label, name in LABELS.items():
        if label not in ("final_post", "1_z[1]"):
            assert site_label(name) == label
    assert site_label("blocks.0.mlp.hook_post") == "blocks.0.mlp.hook_post"


def test_heads_side_by_side_are_the_whole(transformer):
    found = streamed(transformer, ["L0H0", "L0H1", "blocks.0.attn.hook_z"])
    heads = [found[f"blocks.0.attn.hook_z[{head}]"] for head in (0, 1)]
    torch.testing.assert_close(torch.cat(heads, dim=-1), found["blocks.0.attn.hook_z"])
    assert heads[0].shape == (3, 5, transformer.cfg.d_head)
    assert not torch.allclose(*heads)


def test_globs_over_names_and_labels(transformer):
    posts = RESIDUAL[1:]
    assert find_sites(transformer, "blocks.*.hook_resid_post") == posts
    assert find_sites(transformer, "*_post") == posts
    assert find_sites(transformer, "*mlp.hook_post") == ("blocks.0.mlp.hook_post", "blocks.1.mlp.hook_post")
    assert find_sites(transformer, "blocks.[0-9].hook_resid_p*")[-2:] == (
        "blocks.1.hook_resid_pre",
        "blocks.1.hook_resid_post",
    )
    z = [f"blocks.{layer}.attn.hook_z[{head}]" for layer in (0, 1) for head in (0, 1)]
    assert list(find_sites(transformer, "L*H*")) == list(find_sites(transformer, "blocks.*.attn.hook_z[*]")) == z
    assert list(find_sites(transformer, "L1H?")) == z[2:]
    assert list(find_sites(transformer, "blocks.*.attn.hook_z[1]")) == z[1::2]


def test_functions_choose_by_name(transformer):
    assert find_sites(transformer, lambda name: name.endswith("hook_resid_post")) == RESIDUAL[1:]
    assert find_sites(transformer, [lambda name: name == "hook_embed", "1_post"]) == ("hook_embed", RESIDUAL[2])


def test_all_is_the_residual_stream_and_what_is_added_to_it(transformer):
    names = find_sites(transformer, "all")
    assert [site_label(name) for name in names] == [
        "0_pre",
        "0_attn_out",
        "0_mid",
        "0_mlp_out",
        "0_post",
        "1_attn_out",
        "1_mid",
        "1_mlp_out",
        "1_post",
        "ln_final",
    ]
    found = {site_label(name): values for name, values in streamed(transformer, "all").items()}
    torch.testing.assert_close(found["0_pre"] + found["0_attn_out"], found["0_mid"])
    torch.testing.assert_close(found["1_mid"] + found["1_mlp_out"], found["1_post"])
    assert find_sites(transformer, None) == (*RESIDUAL, names[-1]) == msp.models.residual_sites(transformer)


def test_no_place_is_probed_twice_under_its_twin_names(transformer):
    points = transformer.hook_dict
    everything = find_sites(transformer, lambda name: "pattern" not in name and "scores" not in name)
    assert len({id(points[name]) for name in everything}) == len(everything)
    assert len(everything) == len({id(p) for n, p in points.items() if "pattern" not in n and "scores" not in n})
    assert set(find_sites(transformer, "all")) <= set(everything)


def test_twin_names_given_together_are_refused():
    bridge = build("bridge")
    assert find_sites(bridge, "blocks.0.hook_out") == ("blocks.0.hook_out",)
    with pytest.raises(ValueError, match="none twice"):
        find_sites(bridge, ["blocks.0.hook_out", "blocks.0.hook_resid_post"])
    assert find_sites(bridge, ["blocks.0.hook_out", "*.hook_resid_post"]) == ("blocks.0.hook_out", RESIDUAL[2])


def test_groups_to_concatenate(transformer):
    assert site_groups(transformer, ["embed", ["0_post", "1_post"]]) == {
        "embed": ("hook_embed",),
        "0_post+1_post": RESIDUAL[1:],
    }
    mapping = {"early": ["embed", "0_post"], "streams": "blocks.*.hook_resid_post"}
    assert site_groups(transformer, mapping) == {"early": ("hook_embed", RESIDUAL[1]), "streams": RESIDUAL[1:]}
    # Captured once, though it is in both groups.
    assert find_sites(transformer, mapping) == ("hook_embed", *RESIDUAL[1:])
    assert site_groups(transformer, [["0_post", "1_post"]]) == {"0_post+1_post": RESIDUAL[1:]}
    assert list(site_groups(transformer, "*_post")) == ["0_post", "1_post"]
    assert list(site_groups(transformer, None)) == ["0_pre", "0_post", "1_post", "ln_final"]


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("2_post", "1_post"),
        ("1_pots", "1_post"),
        ("block.1.hook_resid_post", r"blocks\.1\.hook_resid_post"),
        ("blocks.1.resid_post", r"blocks\.1\.hook_resid_post"),
        ("blocks.*.hook_resid_pots", r"hook_resid_post"),
        ("embeds", "embed"),
        ("L0H2", "heads 0 to 1"),
        ("L7H0", "no site 'L7H0'"),
        ("blocks.0.attn.hook_z[2]", "heads 0 to 1"),
        ("blocks.0.attn.hook_y[1]", r"blocks\.0\.attn\.hook_z"),
    ],
)
def test_wrong_spellings_are_refused_with_near_ones(transformer, wrong, near):
    with pytest.raises(KeyError, match=near):
        find_sites(transformer, wrong)
    with pytest.raises(KeyError, match=near):
        find_sites(transformer, ["0_post", ["1_post", wrong]])


@pytest.mark.parametrize("wrong", ["7_post", "7_*"])
def test_an_unknown_site_is_refused_with_a_call_that_works(transformer, wrong):
    with pytest.raises(KeyError) as refused:
        find_sites(transformer, wrong)
    call, count = re.search(r"(msp\.find_sites\(.*\)) lists (\d+)", refused.value.args[0]).groups()
    assert len(eval(call, {"msp": msp, "model": transformer})) == int(count)
    # A network of one's own without layers has nothing that "all" lists.
    with pytest.raises(KeyError, match=r"; its hooks are hook_embed, .*hook_state"):
        find_sites(build("own"), wrong)


def test_what_chooses_nothing_or_is_no_site_is_refused(transformer):
    with pytest.raises(KeyError, match="matches that function"):
        find_sites(transformer, lambda name: False)
    for nothing in ([], {}, [[]], {"early": []}):
        with pytest.raises(ValueError, match="at least one site"):
            find_sites(transformer, nothing)
    with pytest.raises(TypeError, match="3 is a int"):
        find_sites(transformer, [3])
    with pytest.raises(ValueError, match="asked for twice"):
        site_groups(transformer, [["0_post", "1_post"], ["0_post", "1_post"]])
    with pytest.raises(ValueError, match=r"hook_pattern holds \[batch, head, query, key\]"):
        find_sites(transformer, "blocks.0.attn.hook_pattern")


def test_a_model_of_ones_own(global_state):
    model = build("own")
    with pytest.raises(ValueError, match=r"no residual-stream hooks.*hook_embed"):
        find_sites(model, None)
    assert find_sites(model, ["embed", "hook_state.*"]) == ("hook_embed", "hook_state.0", "hook_state.1")
    found = streamed(model, ["hook_state.1", "hook_past", "hook_past[2]"])
    assert found["hook_state.1"].shape == (3, 5, 12)
    torch.testing.assert_close(found["hook_past"][..., 8:], found["hook_past[2]"])
    with pytest.raises(ValueError, match=r"hook_past\[3\].*heads 0 to 2"):
        streamed(model, "hook_past[3]")
    with pytest.raises(ValueError, match=r"hook_state\.1\[0\].*no heads"):
        streamed(model, "hook_state.1[0]")
    with pytest.raises(ValueError, match=r"hook_square has activations of shape \(2, 12, 5\)"):
        streamed(model, "hook_square")
    with pytest.raises(ValueError, match="does not say how many"):
        find_sites(model, "hook_past[*]")


def test_activations_that_are_no_positions_are_refused_with_their_shape():
    with pytest.raises(ValueError, match=r"embed\.hook_in has activations of shape \(2, 5\)"):
        streamed(build("bridge"), "embed.hook_in")


def test_a_single_head_can_be_edited(transformer):
    z = one_hook(transformer, "blocks.0.attn.hook_z")
    with editing(transformer, {"blocks.0.attn.hook_z[1]": torch.zeros_like}):
        edited = one_hook(transformer, "blocks.0.attn.hook_z")
        logits = transformer(TOKENS)
    torch.testing.assert_close(edited[:, :, 0], z[:, :, 0])
    assert not edited[:, :, 1].any()
    assert not torch.allclose(logits, transformer(TOKENS))
    shapes = []
    with editing(transformer, {"0_z": lambda activation: shapes.append(tuple(activation.shape)) or activation * 0}):
        assert not one_hook(transformer, "blocks.0.attn.hook_z").any()
    assert shapes == [(3, 5, z.shape[2] * z.shape[3])]


def test_an_edit_is_made_at_one_site(transformer):
    with pytest.raises(KeyError, match="is a pattern"), editing(transformer, {"blocks.*.hook_resid_post": abs}):
        pass


def test_a_stream_within_an_edit_is_that_of_the_edited_model(model):
    site = find_sites(model, ["hook_embed"])[0]
    with editing(model, {site: torch.zeros_like}):
        assert not streamed(model, site)[site].any()
    assert streamed(model, site)[site].any()


def test_captured_activations_are_the_models_own(transformer):
    """A residual site of a big model is not copied: what is yielded is the tensor that the model computed."""
    pointers = []
    name = "blocks.1.hook_resid_post"
    with transformer.hooks(fwd_hooks=[(name, lambda activation, hook: pointers.append(activation.data_ptr()))]):
        (batch,) = stream_activations(transformer, TOKENS, ["1_post"])
    assert pointers == [batch.activations[name].data_ptr()]


def test_an_index_without_a_model():
    index = SiteIndex({"blocks.0.hook_resid_post": 1, "blocks.10.hook_resid_post": 2, "blocks.2.hook_resid_post": 3})
    assert [site_label(name) for name in index.find("*_post")] == ["0_post", "2_post", "10_post"]
    assert index.find("final_post") == ("blocks.10.hook_resid_post",)


@pytest.mark.parametrize("family", ["Llama", "GPTNeoX"])
def test_no_site_is_offered_that_is_never_reached(family):
    model = loaded(network(family))
    assert "hook_pos_embed" in model.hook_dict
    with pytest.raises(KeyError, match="no site 'pos_embed'"):
        find_sites(model, "pos_embed")
    offered = find_sites(model, lambda name: "embed" in name or "rotary" in name)
    (batch,) = stream_activations(model, torch.tensor([[1, 2, 3]]), "hook_embed")
    assert batch.activations["hook_embed"].shape == (1, 3, 16)
    assert not {"hook_pos_embed", "rotary_emb.hook_out"} & set(offered)


class Positioned(HookedRootModule):
    """Adds positions that are the same for every word, with an axis for words or without."""

    def __init__(self, n_axes):
        super().__init__()
        self.embed, self.n_axes = torch.nn.Embedding(3, 4), n_axes
        self.positions = torch.nn.Parameter(torch.arange(20.0).reshape(5, 4))
        self.hook_embed, self.hook_pos_embed = HookPoint(), HookPoint()
        self.setup()

    def forward(self, tokens):
        positions = self.positions[: tokens.shape[1]]
        positions = self.hook_pos_embed(positions if self.n_axes == 2 else positions.unsqueeze(0))
        return self.hook_embed(self.embed(tokens)) + positions


@pytest.mark.parametrize("n_axes", [2, 3])
def test_positions_that_come_once_for_all_words(n_axes):
    model, tokens = Positioned(n_axes), torch.tensor([[0, 1, 2, 0, 1], [2, 2, 1, 0, 0]])
    (batch,) = stream_activations(model, tokens, "pos_embed")
    read = batch.activations["hook_pos_embed"]
    assert torch.equal(read, model.positions.expand(2, 5, 4))
    plain = model(tokens)
    with editing(model, {"pos_embed": lambda activation: activation + 1}):
        torch.testing.assert_close(model(tokens), plain + 1)
    with writing(model, {"pos_embed": lambda activation, belief: activation + 1}, position=2):
        assert (model(tokens) != plain).any(dim=2).tolist() == [[False, False, True, False, False]] * 2
