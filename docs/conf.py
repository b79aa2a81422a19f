"""Configuration of Sphinx; build with ``make doc``."""

from pathlib import Path

project = "ddpg_ext"
author = "The ddpg_ext contributors"
copyright = f"2026, {author}"
release = (Path(__file__).parents[1] / "ddpg_ext" / "version.txt").read_text(encoding="utf-8").strip()
version = release

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
templates_path: list[str] = []

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# Parameters are described in the docstrings; types are in the signature
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autoclass_content = "class"

html_theme = "sphinx_rtd_theme"
html_title = f"ddpg_ext {release}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
copybutton_prompt_text = "$ "
