"""What `mkdocs.yml` asks of Python: pages from outside docs/, and the API reference's pages."""

import posixpath
import re
from collections import defaultdict
from pathlib import Path

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
# The checkout's files by their place in the site; everything below docs/ keeps its name.
PLACES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "LICENSE": "LICENSE.txt",
    "NOTICE": "NOTICE.txt",
}
# The page of a public name of aa_flax by the module that defines it; the rest are layers.
SUBJECTS = {
    "models": "networks",
    "inference": "networks",
    "weights": "weights",
    "hub": "weights",
    "surgery": "surgery",
    "export": "export",
    "platforms": "export",
}
MODULES = ("nn", "plain_pooling", "consistency", "linen")
FETCHED = re.compile(r"<(?:link|script|img|iframe)\b[^>]*\s(?:src|href)=[\"']?(?:https?:)?//[^>]*>")
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#|/)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the checkout's root and those of the API reference."""
    added = {place: (ROOT / name).read_text(encoding="utf-8") for name, place in PLACES.items()}
    for place, content in (added | reference()).items():
        files.append(File.generated(config, place, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links between files of the checkout become links between pages of the site."""
    origin = {place: name for name, place in PLACES.items()}.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(origin), link[1]))
        place = PLACES.get(target, target.removeprefix("docs/"))
        return posixpath.relpath(place, posixpath.dirname(page.file.src_uri) or ".")

    return LINK.sub(moved, markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Refuse a page that would fetch something from elsewhere when it is opened."""
    if fetched := FETCHED.search(output):
        raise PluginError(f"{page.file.src_uri} would fetch {fetched[0]}")
    return output


def reference() -> dict[str, str]:
    """The pages of the API reference: each public name with its docstring, by subject."""
    package = griffe.load("aa_flax", search_paths=[str(ROOT)], resolve_aliases=True)
    subjects = defaultdict(str)
    for name in package.exports or ():
        if name in MODULES:
            continue
        target = package[name].final_target if package[name].is_alias else package[name]
        # A function may have the name of its module: `aa_flax.export`.
        path = f"{target.path}.{name}" if target.is_module else target.path
        subjects[SUBJECTS.get(path.split(".")[1], "layers")] += entry(path, f"aa_flax.{name}")
    pages = {f"api/{subject}.md": f"# {subject.capitalize()}\n\n{entries}" for subject, entries in subjects.items()}
    for module in MODULES:
        path = f"aa_flax.{module}"
        names = sorted(name for name, each in package[module].members.items() if each.is_public and not each.is_module)
        about = f"::: {path}\n    options: {{members: false, show_root_heading: false, show_root_toc_entry: false}}\n\n"
        entries = "".join(entry(f"{path}.{name}", f"{path}.{name}") for name in names)
        pages[f"api/{module}.md"] = f"# {path}\n\n{about}{entries}"
    return pages


def entry(path: str, heading: str) -> str:
    return f'::: {path}\n    options: {{heading: "{heading}"}}\n\n'
