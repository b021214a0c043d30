"""Checks that all links of a built site lead to its pages and places: python tests/site_links.py FOLDER."""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The links of a page, and the places that links may lead to."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = {""}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.places.add(value)
            elif name in ("href", "src") and value:
                self.links.append(value)


def broken(site: Path) -> list[str]:
    """Links within the site that lead nowhere, each with its page."""
    pages = {path: Page(path.read_text()) for path in site.rglob("*.html") if path.name != "404.html"}
    found = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            place = unquote(parts.fragment)
            if not target.exists() or (target in pages and place not in pages[target].places):
                found.append(f"{path.relative_to(site)}: {link}")
    return found


def main() -> None:
    """Prints the broken links, and exits with 1 if there are any."""
    site = Path(sys.argv[1]).resolve()
    found = broken(site)
    print(*found, f"{len(found)} broken links", sep="\n")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
