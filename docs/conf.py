"""Configuration of Sphinx; build with ``make doc``."""

import re
import runpy
from pathlib import Path
from typing import Any

project = "ddpg_ext"
author = "The ddpg_ext contributors"
copyright = f"2026, {author}"
release = runpy.run_path(str(Path(__file__).parents[1] / "ddpg_ext" / "_version.py"))["__version__"]
version = release

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx-mathjax-offline",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
templates_path: list[str] = []

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# Parameters are described in the docstrings; types are in the signature
autodoc_typehints = "signature"
autodoc_type_aliases = {"ArrayLike": "ArrayLike", "DTypeLike": "DTypeLike"}
autodoc_member_order = "bysource"
autoclass_content = "class"

# One parameter per line where a signature is longer
maximum_signature_line_length = 100

html_theme = "sphinx_rtd_theme"
html_title = f"ddpg_ext {release}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
copybutton_prompt_text = "$ "


def own_bases(cls: type) -> list[type]:
    """Return the base classes that this package defines."""
    return [base for base in cls.__mro__[1:] if base.__module__.startswith("ddpg_ext")]


def short_names(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """
    Shorten a signature.

    ``<class 'torch...ReLU'>`` becomes ``ReLU``, ``TypeAliasForwardRef('ArrayLike')`` becomes ``ArrayLike``, and the
    parameters of an inherited constructor, which the base class describes, become ``(...)``.
    """
    if what == "class" and "__init__" not in vars(obj) and any("__init__" in vars(base) for base in own_bases(obj)):
        return "(...)", returns
    short = re.sub(r"TypeAliasForwardRef\('(\w+)'\)|<class '(?:\w+\.)*(\w+)'>", r"\1\2", signature or "")
    return short or signature, returns


def setup(app: Any) -> None:
    """Register the extension with Sphinx."""
    app.connect("autodoc-process-signature", short_names)
