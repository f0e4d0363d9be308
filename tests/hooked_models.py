"""Hooked models of every kind, small and untrained: the classes of TransformerLens, and one of nobody's."""

import functools
import tempfile

import torch
from torch import nn
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

import msp_lens as msp
from msp_lens.models.build import has_hooked_transformer

CONFIG = msp.ModelConfig(d_vocab=5, n_layers=2, d_model=16, n_heads=2, d_head=8, d_mlp=32, n_ctx=8)


class Observer(HookedRootModule):
    """Answers with an optimal observer's own log-probabilities, its beliefs being its residual stream."""

    def __init__(self, process):
        super().__init__()
        self.process = process
        self.scale = nn.Parameter(torch.ones(1))
        self.hook_beliefs = HookPoint()
        self.setup()

    def forward(self, tokens):
        held = self.hook_beliefs(msp.filter_beliefs(self.process, tokens) * self.scale)
        # An edit may push a belief off the simplex.
        return (held @ self.process.emissions).clamp(min=1e-9).log()


class Averager(HookedRootModule):
    """A causal network that is no transformer and has no config: it averages the past, twice."""

    def __init__(self, d_vocab=5, d_model=12, n_heads=3):
        super().__init__()
        self.n_heads = n_heads
        self.embed, self.unembed = nn.Embedding(d_vocab, d_model), nn.Linear(d_model, d_vocab)
        self.mix = nn.ModuleList(nn.Linear(d_model, d_model) for _ in range(2))
        self.hook_embed, self.hook_past, self.hook_square = HookPoint(), HookPoint(), HookPoint()
        self.hook_state = nn.ModuleList(HookPoint() for _ in range(2))
        self.setup()

    def forward(self, tokens):
        state = self.hook_embed(self.embed(tokens))
        count = torch.arange(1, tokens.shape[1] + 1, device=tokens.device).unsqueeze(1)
        for layer, (mix, hook_state) in enumerate(zip(self.mix, self.hook_state, strict=True)):
            past = mix(state.cumsum(dim=1) / count).unflatten(2, (self.n_heads, -1))
            # A site is reached once in a forward pass.
            past = self.hook_past(past) if layer else past
            state = hook_state(state + past.flatten(2).tanh())
        self.hook_square(state.transpose(1, 2))
        return self.unembed(state)


@functools.cache
def hugging_face_bridge():
    """A tiny GPT-2 with random weights, through the bridge, with nothing from a hub."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(["<bos>", "<unk>", "a", "b", "c"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    with tempfile.TemporaryDirectory() as folder:
        # The bridge loads a tokenizer anew from where it says it came from.
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<bos>", unk_token="<unk>", pad_token="<bos>"
        ).save_pretrained(folder)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        config = GPT2Config(
            vocab_size=5, n_positions=24, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0, pad_token_id=0
        )
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            network = GPT2LMHeadModel(config).eval()
        return TransformerBridge.boot_transformers("gpt2", hf_model=network, tokenizer=tokenizer, device="cpu")


# Networks of Hugging Face's by family: the class and its config, and what a config needs beside the usual sizes.
FAMILIES = {
    "Llama": {"num_key_value_heads": 2},
    "GPT2": {},
    "GPTNeoX": {},
    "Qwen2": {"num_key_value_heads": 2},
    "Mistral": {"num_key_value_heads": 2, "sliding_window": 4},
}


def network(family, *, n_ctx=8, **options):
    """A tiny network of Hugging Face's with random weights: 7 tokens, 2 layers of 16, 4 heads."""
    import transformers

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"max_position_embeddings": n_ctx}
    sizes |= {"n_inner" if family == "GPT2" else "intermediate_size": 24}
    tokens = {"vocab_size": 7, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = getattr(transformers, f"{family}Config")(**sizes | tokens | FAMILIES[family] | options)
    kind = getattr(transformers, "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return kind(config).eval()


def loaded(network, **options):
    """The network as `load_model` reads it from a folder."""
    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder)
        return msp.load_model(folder, **options)


def new(kind):
    """A new model of a kind. Copies are no way to one: a bridge that ran with gradients holds a part of the graph."""
    if kind == "own":
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            return Averager()
    if kind == "hugging face bridge":
        return hugging_face_bridge.__wrapped__()
    return msp.build_model(CONFIG, seed=1, bridge=kind == "bridge")


@functools.cache
def build(kind):
    """The model of a kind; kept, and so to be left as it was found."""
    return hugging_face_bridge() if kind == "hugging face bridge" else new(kind)


TRANSFORMERS = ("hooked transformer", "bridge", "hugging face bridge")
if not has_hooked_transformer():
    TRANSFORMERS = TRANSFORMERS[1:]
KINDS = (*TRANSFORMERS, "own")


def activation_at(model, tokens, site):
    """What the model holds at a site while it reads the tokens."""
    seen = {}
    with model.hooks(fwd_hooks=[(site, lambda activation, hook: seen.update(value=activation.detach()))]):
        model(tokens)
    return seen["value"]
