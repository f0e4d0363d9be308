"""Recurrent networks: an RNN, GRU or LSTM of torch's, or a state-space model, whose states are sites like any other.

    h_t, c_t = step(x_t, h_{t-1}, c_{t-1})          read at `blocks.N.hook_hidden`, `blocks.N.hook_cell` (LSTM alone)

What is written into a state persists by itself, for the next step starts from it. A hook at a state is called once in a
forward pass, with the states at all positions; where what it returns is another state, in a word and at a position,
that is the state there, and the recurrence goes on from it, up to the next position that is written. The hook is given
the states as they are without its own edit (but with edits at layers before, and those of the cell). With the edit they
leave the layer through `blocks.N.hook_output`, or through the residual stream of the state-space model.

Where nothing is written, all positions are computed in one call of torch's fused layer, or by one parallel scan.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

from msp_lens.models.architecture import RecurrentConfig

_FUSED = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
# The state of a layer after some position, [word, d_model]: hidden state, and the cell's of an LSTM.
_State = tuple[Tensor, ...]
# What is written into a state: values [word, pos, d_model], and where.
_Write = tuple[Tensor, Tensor]


class HookedRecurrentNetwork(HookedRootModule):
    """A recurrent network with TransformerLens's hooks. Called on tokens `[word, pos]`, it returns logits.

    It reads words of any length; `cfg.n_ctx` is the one that it is trained on.
    """

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__()
        self.cfg = config
        kind, width = config.kind, config.d_model
        self.embed, self.hook_embed = nn.Embedding(config.d_vocab, width), HookPoint()
        self.blocks = nn.ModuleList(
            _StateSpace(width) if kind == "ssm" else _Recurrent(kind, width) for _ in range(config.n_layers)
        )
        self.ln_final = nn.LayerNorm(width) if kind == "ssm" else nn.Identity()
        self.unembed = nn.Linear(width, config.d_vocab)
        self.setup()

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:  # noqa: N802 (TransformerLens's name)
        """The unembedding's weights."""
        return self.unembed.weight.T

    @property
    def read_out(self) -> tuple[str, ...]:
        """The hooks whose activation the unembedding reads as it is; a state-space model's passes a LayerNorm first."""
        last = f"blocks.{self.cfg.n_layers - 1}"
        return () if self.cfg.kind == "ssm" else (f"{last}.hook_hidden", f"{last}.hook_output")

    def forward(self, tokens: Int[Tensor, "word pos"]) -> Float[Tensor, "word pos d_vocab"]:
        """Logits after each token."""
        read = self.hook_embed(self.embed(tokens))
        for block in self.blocks:
            read = block(read)
        return self.unembed(self.ln_final(read))


class _Layer(nn.Module):
    """A layer with a state that can be read and written at every position."""

    def __init__(self) -> None:
        super().__init__()
        self.hook_hidden = HookPoint()

    def run(
        self, read: Float[Tensor, "word pos d_model"], state: _State | None = None
    ) -> tuple[Float[Tensor, "word pos d_model"], _State]:
        """The hidden state after each position, and the whole state after the last, from the state before the first."""
        raise NotImplementedError

    def hidden_states(self, read: Float[Tensor, "word pos d_model"]) -> Float[Tensor, "word pos d_model"]:
        """The hidden state after each position, with what hooks write into the states."""
        unedited, _ = self.run(read)
        hidden, writes = unedited, {}
        hook_cell = getattr(self, "hook_cell", None)
        if hook_cell is not None and _is_hooked(hook_cell):
            cells = self.cells(read, hidden)
            writes |= _written("cell", cells, hook_cell(cells.clone()))
            hidden = self._after(read, unedited, writes)
        if _is_hooked(self.hook_hidden):
            # A copy, for a hook may write in place.
            given = self.hook_hidden(hidden.clone())
            write = _written("hidden", hidden, given)
            hidden = self._after(read, unedited, writes | write) if write else given
        return hidden

    def cells(self, read: Tensor, hidden: Tensor) -> Float[Tensor, "word pos d_model"]:
        """The cell's state after each position; only an LSTM has any."""
        raise NotImplementedError

    def _after(self, read: Tensor, unedited: Tensor, writes: Mapping[str, _Write]) -> Tensor:
        """The hidden states with these writes: the words that they are in run again, in parts that end at a write."""
        if not writes:
            return unedited
        places = torch.stack([where for _, where in writes.values()]).any(dim=0)
        words = places.any(dim=1).nonzero().flatten()
        given, state, start, parts = read[words], None, 0, []
        writes = {name: (values[words], where[words]) for name, (values, where) in writes.items()}
        for position in places.any(dim=0).nonzero().flatten().tolist():
            if position > start:
                hidden, state = self.run(given[:, start:position], state)
                parts.append(hidden)
            here = {name: (values[:, position], where[:, position]) for name, (values, where) in writes.items()}
            state = self._step(given[:, position], state, here)
            parts.append(state[0].unsqueeze(1))
            start = position + 1
        if start < given.shape[1]:
            parts.append(self.run(given[:, start:], state)[0])
        return unedited.index_copy(0, words, torch.cat(parts, dim=1).to(unedited.dtype))

    def _step(self, read: Float[Tensor, "word d_model"], state: _State | None, writes: Mapping[str, _Write]) -> _State:
        """The state after one position, with what is written there."""
        _, (hidden, *cell) = self.run(read.unsqueeze(1), state)
        if "cell" in writes:
            hidden, *cell = self._with_cell(read, hidden, cell[0], state, writes["cell"])
        if "hidden" in writes:
            hidden = _replaced(hidden, writes["hidden"])
        return (hidden, *cell)

    def _with_cell(self, read: Tensor, hidden: Tensor, cell: Tensor, before: _State | None, write: _Write) -> _State:
        raise NotImplementedError


class _Recurrent(_Layer):
    """A layer of torch's."""

    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        self.is_lstm = kind == "lstm"
        self.rnn = _FUSED[kind](width, width, batch_first=True)
        if self.is_lstm:
            self.hook_cell = HookPoint()
        self.hook_output = HookPoint()

    def forward(self, read: Float[Tensor, "word pos d_model"]) -> Float[Tensor, "word pos d_model"]:
        return self.hook_output(self.hidden_states(read))

    def run(self, read: Tensor, state: _State | None = None) -> tuple[Tensor, _State]:
        layered = None if state is None else tuple(each.unsqueeze(0) for each in state)
        hidden, last = self.rnn(read, layered if layered is None or self.is_lstm else layered[0])
        return hidden, tuple(each[0] for each in last) if self.is_lstm else (last[0],)

    def cells(self, read: Tensor, hidden: Tensor) -> Float[Tensor, "word pos d_model"]:
        """All at once: where the hidden states are known, the cell's recurrence is linear."""
        before = torch.cat([torch.zeros_like(hidden[:, :1]), hidden[:, :-1]], dim=1)
        enter, keep, candidate, _ = self._gates(read, before)
        return scan(keep, enter * candidate)

    def _gates(self, read: Tensor, before: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The input gate, the forget gate, the candidate and the output gate, in torch's order."""
        of_input = nn.functional.linear(read, self.rnn.weight_ih_l0, self.rnn.bias_ih_l0)
        enter, keep, candidate, leave = (
            of_input + nn.functional.linear(before, self.rnn.weight_hh_l0, self.rnn.bias_hh_l0)
        ).chunk(4, dim=-1)
        return enter.sigmoid(), keep.sigmoid(), candidate.tanh(), leave.sigmoid()

    def _with_cell(self, read: Tensor, hidden: Tensor, cell: Tensor, before: _State | None, write: _Write) -> _State:
        """The cell replaced, and the hidden state that the output gate lets out of it."""
        *_, leave = self._gates(read, torch.zeros_like(hidden) if before is None else before[0])
        cell = _replaced(cell, write)
        return torch.where(write[1].unsqueeze(-1), leave * cell.tanh(), hidden), cell


class _StateSpace(_Layer):
    """A selective state space, diagonal and real: each feature forgets at a rate that the input sets.

        s_t = a(x_t) s_{t-1} + (1 - a(x_t)) v(x_t),        a = σ(linear)

    What it holds goes through a gate that the input sets, too, and is added to the residual stream; an MLP follows.

    Source: Feng et al. 2024 (arXiv 2410.01201), minGRU; the gate and the block as in Gu & Dao 2023 (arXiv 2312.00752).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hook_resid_pre, self.hook_resid_post = HookPoint(), HookPoint()
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.decay, self.value, self.gate = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        with torch.no_grad():
            # From features that hold two tokens to such as hold fifty.
            self.decay.bias.copy_(torch.linspace(0.0, 4.0, width))

    def forward(self, read: Float[Tensor, "word pos d_model"]) -> Float[Tensor, "word pos d_model"]:
        stream = self.hook_resid_pre(read)
        normalized = self.ln1(stream)
        states = self.hidden_states(normalized)
        stream = stream + self.out(nn.functional.silu(self.gate(normalized)) * states)
        return self.hook_resid_post(stream + self.mlp(self.ln2(stream)))

    def run(self, read: Tensor, state: _State | None = None) -> tuple[Tensor, _State]:
        kept = self.decay(read).sigmoid()
        hidden = scan(kept, (1 - kept) * self.value(read), None if state is None else state[0])
        return hidden, (hidden[:, -1],)


def scan(
    factors: Float[Tensor, "word pos d"],
    added: Float[Tensor, "word pos d"],
    start: Float[Tensor, "word d"] | None = None,
) -> Float[Tensor, "word pos d"]:
    """s_t = factors_t s_{t-1} + added_t at every position, elementwise, in log₂(pos) doublings; from 0 by default.

    Source: Hillis & Steele 1986; Blelloch 1990, "Prefix sums and their applications".
    """
    if start is not None:
        added = torch.cat([added[:, :1] + factors[:, :1] * start.unsqueeze(1), added[:, 1:]], dim=1)
    reach, length = 1, added.shape[1]
    while reach < length:
        # Each position has the sum of the last `reach`; the ones before them are one such sum, too.
        earlier = factors[:, reach:] * added[:, :-reach]
        added = torch.cat([added[:, :reach], added[:, reach:] + earlier], dim=1)
        factors = torch.cat([factors[:, :reach], factors[:, reach:] * factors[:, :-reach]], dim=1)
        reach *= 2
    return added


def _is_hooked(point: nn.Module) -> bool:
    return bool(point._forward_hooks or point._backward_hooks)


def _written(name: str, states: Tensor, given: Tensor) -> dict[str, _Write]:
    """What a hook wrote into the states, if it returned others anywhere."""
    where: Bool[Tensor, "word pos"] = (given != states).any(dim=-1)
    return {name: (given, where)} if bool(where.any()) else {}


def _replaced(state: Tensor, write: _Write) -> Tensor:
    values, where = write
    return torch.where(where.unsqueeze(-1), values.to(state.dtype), state)
