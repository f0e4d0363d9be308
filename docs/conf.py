"""The documentation site. `make docs` builds it; nothing is fetched while it is built or read."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from extension import inventories, notebooks  # noqa: E402

import msp_lens  # noqa: E402

project = "msp_lens"
author = "the msp_lens contributors"
version = release = msp_lens.__version__
language = "en"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
    "sphinx_design",
    "extension.signatures",
    "extension.names",
    "extension.rooms",
    "extension.commands",
]
exclude_patterns = ["inventories", "extension", "_static"]
nitpicky = True

html_theme = "furo"
html_title = "msp_lens"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_theme_options = {"footer_icons": [], "top_of_page_buttons": []}

myst_enable_extensions = ["colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header", "mystnb.mime_priority"]
# The notebooks are shown as they were run; `tests/test_demos.py` runs them.
nb_execution_mode = "off"
nb_mime_priority_overrides = [("html", "application/vnd.plotly.v1+json", 100)]
nb_ipywidgets_js = {}
copybutton_exclude = ".linenos, .gp, .go"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

default_role = "code"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = ["Source"]
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "inherited-members": True}
maximum_signature_line_length = 88
python_use_unqualified_type_names = True

intersphinx_mapping = inventories.mapping(HERE / "inventories", HERE.parent / "build" / "inventories")
intersphinx_disabled_reftypes = ["*"]


def setup(app):
    """Copy the notebooks to where Sphinx reads them."""
    notebooks.copy(HERE.parent / "demos", HERE / "notebooks")
