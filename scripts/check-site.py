#!/usr/bin/env python3
"""Checks the links of a site: check-site.py DIRECTORY

Each link that stays on the site must lead to a file, and to an anchor in it if it names one."""

import pathlib
import sys
import urllib.parse
from html.parser import HTMLParser


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.links, self.anchors = set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name == "id":
                self.anchors.add(value)
            elif name in ("href", "src") and value:
                self.links.add(value)


site = pathlib.Path(sys.argv[1]).resolve()
pages = {path: Page(path.read_text()) for path in site.rglob("*.html")}
broken, checked = [], 0
for path, page in pages.items():
    # These two have no place of their own: links in them count from the root of a server.
    if path.name in ("404.html", "print.html"):
        continue
    for link in page.links:
        parts = urllib.parse.urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        checked += 1
        name = urllib.parse.unquote(parts.path)
        target = (path.parent / name).resolve() if name else path
        anchor = urllib.parse.unquote(parts.fragment)
        is_there = target.is_file() and site in target.parents
        if is_there and anchor and target in pages:
            is_there = anchor in pages[target].anchors
        if not is_there:
            broken.append(f"{path.relative_to(site)}: {link}")
for line in sorted(broken):
    print(line, file=sys.stderr)
print(f"{len(pages)} pages, {checked} links, {len(broken)} broken")
sys.exit(1 if broken or checked < 500 else 0)
