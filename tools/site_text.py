"""Write text for programs into a built site: Markdown of every page, and llms.txt.

    python tools/site_text.py SITE

Each page's Markdown lies at its address, `training/data/index.md` at `training/data/`. llms.txt
at the root has the title, the summary and a line on each page. It runs after the build, because
mkdocs-material and zensical have no hook in common.
"""

from __future__ import annotations

import sys
from pathlib import Path

# Of a program that is run by its path, Python looks in its own folder alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.site.pages import Page, configuration, pages


def llms(listed: list[Page]) -> str:
    """Text of llms.txt."""
    settings = configuration()
    base = str(settings.get("site_url") or "")
    lines = [f"# {settings['site_name']}", "", f"> {settings['site_description']}"]
    for section in dict.fromkeys(page.section for page in listed):
        members = [page for page in listed if page.section == section]
        lines += ["", f"## {section or 'Start'}", ""]
        lines += [f"- [{p.title}]({base}{p.twin}): {p.summary()}" for p in members]
    return "\n".join([*lines, ""])


def write(site: Path) -> None:
    """Write both into the site's folder. Raises FileNotFoundError for a page that it lacks."""
    listed = pages()
    for page in listed:
        address = site / page.twin
        if not address.with_name("index.html").is_file():
            raise FileNotFoundError(
                f"{site} has no {address.with_name('index.html')}; build it first"
            )
        address.write_text(page.markdown())
    (site / "llms.txt").write_text(llms(listed))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tools/site_text.py SITE")
    write(Path(sys.argv[1]))
