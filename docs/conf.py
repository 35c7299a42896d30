"""How Sphinx builds the documentation; `tools/docs` calls it."""

import inspect
import os
import re
from importlib.metadata import version as version_of
from typing import Any

from docutils.nodes import SkipNode
from docutils.utils.math.latex2mathml import tex2mathml

project = "concerto_tf"
author = "The concerto_tf developers"
project_copyright = "2026, the concerto_tf developers"
version = release = version_of("concerto_tf")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build"]

# Pages are Markdown, tutorials are Markdown that is executed.
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
nb_execution_timeout = 300
nb_execution_show_tb = True  # and a warning, so that one build tells of all that fail
nb_execution_in_temp = True
nb_output_stderr = "remove"  # of TensorFlow, about the machine
nb_merge_streams = True
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# The API is what the docstrings say; a name in single backticks is code.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False  # Keras' are of another markup
python_maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = [("Call arguments", "params_style"), "Reference"]

html_theme = "sphinx_book_theme"
html_math_renderer = "mathml"  # below
html_title = f"concerto_tf {release}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_theme_options = {
    "navbar_start": [],  # the theme has a search field in its side bar
    "navbar_center": [],
    "navbar_end": [],
    "navbar_persistent": [],
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
}
copybutton_exclude = ".linenos, .gp, .go"

# Where pages outside of docs/ are to be found in the documentation. Links to them stay as they are
# in the text, so that they work wherever the repository is read.
_PAGES = {
    "CHANGELOG.md": "developer/changelog.md",
    "CONTRIBUTING.md": "developer/contributing.md",
    "examples": "start/examples.md",
    "examples/README.md": "start/examples.md",
    "examples/barlow-twins": "extending.md",
    "tfrecords/README.md": "reference/record-format.md",
    "tools/README.md": "developer/tools.md",
    "tools/trials": "reference/trials.md",
    "tools/trials/README.md": "reference/trials.md",
}
_OUTSIDE = re.compile(r"\]\((?:\.\./)+([\w./-]+?)/?(#[^)\s]*)?\)")


def _within(text: str) -> str:
    """A page whose links to pages outside of docs/ lead to those of the documentation."""

    def link(found: re.Match[str]) -> str:
        path, anchor = found[1], found[2] or ""
        if path.startswith("docs/"):
            return f"](/{path[5:]}{anchor})"
        return f"](/{_PAGES[path]}{anchor})" if path in _PAGES else found[0]

    return _OUTSIDE.sub(link, text)


def _read(app: Any, name: str, source: list[str]) -> None:
    source[0] = _within(source[0])


def _include(app: Any, path: Any, parent: str, source: list[str]) -> None:
    source[0] = _within(source[0])


def _math(page: Any, node: Any) -> None:
    """A formula within a line, as MathML: pages ask for nothing from elsewhere."""
    page.body.append(tex2mathml(node.astext()))
    raise SkipNode


def _equation(page: Any, node: Any) -> None:
    """A formula of its own; several lines are aligned at their &."""
    text = node.astext()
    if "&" in text:
        text = rf"\begin{{aligned}}{text}\end{{aligned}}"
    page.body.append(page.starttag(node, "div", CLASS="math"))
    if node["number"]:
        page.body.append(f'<span class="eqno">({node["number"]})</span>')
    page.body.append(tex2mathml(text, as_block=True) + "</div>")
    raise SkipNode


def _signature(app: Any, what: str, name: str, object: Any, options: Any, *told: Any) -> Any:
    """What a class of Keras takes: `__init__` tells it, `__new__` takes anything."""
    if what != "class" or not (told[0] or "").startswith("(*args"):
        return None
    own = inspect.signature(object.__init__)
    parameters = [p.replace(annotation=p.empty) for p in list(own.parameters.values())[1:]]
    return str(own.replace(parameters=parameters, return_annotation=own.empty)), None


def setup(app: Any) -> None:
    """Sphinx calls it."""
    app.connect("autodoc-process-signature", _signature)
    app.add_html_math_renderer("mathml", (_math, None), (_equation, None))
    app.connect("source-read", _read)
    app.connect("include-read", _include)
