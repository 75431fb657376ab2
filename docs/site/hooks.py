"""What MkDocs does here beyond its configuration.

- Pages from the files at the root: the README is the home page. Their links
  to files of the repository become links to the pages of this site.
- Formulas in ```math blocks become MathML while the site is built, so that a
  browser needs no script and no network for them. GitHub typesets the same
  blocks.
- Chinese pages say so, and browsers then choose Chinese glyphs.
- On a phone, a long public name breaks behind the name of the package.
"""

import html
import pathlib
import re
import xml.etree.ElementTree

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = pathlib.Path(__file__).parents[2]
PAGES = {
    "index.md": "README.md",
    "index.zh-CN.md": "README.zh-CN.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the fence for formulas."""
    fences = config.mdx_configs.setdefault("pymdownx.superfences", {})
    fences["custom_fences"] = [
        {"name": "math", "class": "formula", "format": formula}
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made from files at the root."""
    for page, source in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=to_site(text)))
    return files


def on_page_content(
    html: str, page: Page, config: MkDocsConfig, files: Files
) -> str:
    """Lets the title of a page of the API break."""
    if page.file.src_uri.startswith("api/"):
        html = html.replace(">inbatch_neg.", ">inbatch_neg.<wbr>", 1)
    return html


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Marks Chinese pages."""
    if page.file.src_uri.endswith(".zh-CN.md"):
        output = output.replace('<html lang="en"', '<html lang="zh-CN"', 1)
    return output


def to_site(text: str) -> str:
    """Returns a page of the root with its links turned to this site."""

    def link(match: re.Match[str]) -> str:
        path, hash_, anchor = match[1].partition("#")
        by_source = {source: page for page, source in PAGES.items()}
        if path in by_source:
            path = by_source[path]
        elif path.startswith("docs/"):
            path = path.removeprefix("docs/")
        else:
            return match[0]
        return f"]({path}{hash_}{anchor})"

    return re.sub(r"\]\(([^)\s]+)\)", link, text)


def formula(source: str, *args: object, **kwargs: object) -> str:
    """Returns a ```math block as MathML."""
    markup = convert(source, display="block")
    xml.etree.ElementTree.fromstring(markup)  # an error, if it is not well made
    # The source, for those who copy it or cannot see the formula.
    label = html.escape(" ".join(source.split()), quote=True)
    return f'<div class="formula" title="{label}">{markup}</div>'
