"""The Python of the site's pages runs, as written but for sizes; what is shown without being run names what exists."""

import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import msp_lens as msp
from msp_lens.training import PRESETS, Recipe

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {
    path.relative_to(DOCS).with_suffix("").as_posix(): path
    for path in sorted(DOCS.rglob("*.md"))
    if path.parent.name not in ("papers", "api")
}
BLOCK = re.compile(r"^```(python|py)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
RUN = [name for name, path in PAGES.items() if "```python\n" in path.read_text()]
# What a page says is large is small here.
SIZES = {
    r"\bsteps=[\d_]+": "steps=4",
    r"\bbatch_size=\d+": "batch_size=8",
    r"\blog_every=\d+": "log_every=2",
    r"\bn_words=\d+": "n_words=8",
    r"\bn_ctx=200": "n_ctx=30",
    r"\bn_ctx=8": "n_ctx=4",
}
SIZES |= {
    r"msp\.infer\(model\)": "msp.infer(model, n_states=[2, 3], n_starts=4)",
    r'(out="runs/widths")\)': r"\1, n_jobs=1)",
}
SIZES |= {r"\.sample\(2, 200,": ".sample(2, 30,", r"spans=\[1, 10\]": "spans=[1, 2]"}


def small(process):
    model = msp.ModelConfig(d_vocab=process.n_tokens, n_layers=4, d_model=8, d_head=4, d_mlp=8, n_ctx=5)
    return Recipe(model, msp.TrainingConfig(steps=2, batch_size=8))


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """The folder of a run that has all files but hardly trained its network."""
    folder = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(PRESETS, "quick", small)
        process = msp.mess3(x=0.05, a=0.85)
        recipe = small(process)
        msp.train(process, recipe.model, config=recipe.training, out=folder / "runs" / "mess3", progress=False)
    return folder


def a_tokenizer():
    words = ["[BOS]", "the", "a", "cat", "dog", "mat", "park", "sat", "ran", "on", "in", "is", "red", "A", "B", "C"]
    level = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}))
    level.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=level, bos_token="[BOS]")


def given(name):
    """What a page takes as given: a model of the reader's."""
    if name not in ("guides/your_labels", "guides/language_model"):
        return {}
    n_ctx = 8 if name.endswith("labels") else 40
    model = msp.build_model(msp.ModelConfig(d_vocab=16, n_layers=2, d_model=8, d_head=4, d_mlp=8, n_ctx=n_ctx), seed=1)
    if name.endswith("labels"):
        model.tokenizer = a_tokenizer()
        return {"model": model}
    return {"msp": msp, "model": model, "letters": msp.TokenMap([13, 14, 15], bos=0)}


@pytest.mark.parametrize("name", RUN)
def test_the_python_of_a_page_runs(name, run_folder, monkeypatch):
    for preset in ("quick", "paper", "lstm"):
        monkeypatch.setitem(PRESETS, preset, small)
    monkeypatch.chdir(run_folder)
    namespace, text = given(name), PAGES[name].read_text()
    for block in BLOCK.finditer(text):
        if block[1] == "python":
            code = block[2]
            for large, little in SIZES.items():
                code = re.sub(large, little, code)
            # A failure names the line of the page.
            lines_before = text.count("\n", 0, block.start(2))
            exec(compile("\n" * lines_before + code, str(PAGES[name]), "exec"), namespace)


def test_pages_have_code_that_runs():
    assert {"index", "start", "guides/your_model", "guides/write_beliefs", "concepts/belief"} <= set(RUN)
    assert len(RUN) >= 14


@pytest.mark.parametrize("name", PAGES)
def test_names_on_a_page_exist(name):
    """`msp.processes.z1r`, and options such as `split=` in a call of a public function."""
    text = PAGES[name].read_text()
    for dotted in set(re.findall(r"\bmsp((?:\.[A-Za-z_]\w*)+)", text)):
        found = msp
        for part in dotted.split(".")[1:]:
            assert hasattr(found, part), f"{name}: msp{dotted}"
            found = getattr(found, part)
    for code in (code for kind, code in BLOCK.findall(text) if kind == "py"):
        compile(code, name, "exec")


def test_guides_say_what_goes_wrong():
    guides = [path for name, path in PAGES.items() if name.startswith("guides/") and path.stem != "index"]
    assert len(guides) >= 10
    for path in guides:
        text = path.read_text()
        assert "**Goal:**" in text, path
        assert "## What goes wrong" in text, path
