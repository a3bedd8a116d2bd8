"""The site of the documentation: `make docs` builds it into build/docs."""

from importlib.metadata import version as version_of

project = "monai_lcs"
copyright = "The monai_lcs contributors"
version = release = version_of("monai-lcs")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
templates_path = ["_templates"]
exclude_patterns = ["_templates"]
suppress_warnings = [
    "toc.not_readable",  # commands.md names pages before they are written; a page that none names is a warning still
    "myst.header",  # the model card has the headings of the model zoo
]

# ---- pages ----------------------------------------------------------------------------------------------------------

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
copybutton_exclude = ".linenos, .gp, .go"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# ---- reference: the names in the `__all__` of each package ----------------------------------------------------------

autosummary_ignore_module_all = False
autosummary_imported_members = True
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
python_maximum_signature_line_length = 100

# ---- looks ----------------------------------------------------------------------------------------------------------

html_theme = "pydata_sphinx_theme"
html_title = "monai_lcs"
html_show_sourcelink = False
html_sidebars = {page: [] for page in ("quickstart", "concepts", "examples/index")}  # they have no pages below them
html_theme_options = {
    "show_nav_level": 1,
    "navigation_depth": 3,
    "header_links_before_dropdown": 6,
    "navbar_align": "left",
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
}
