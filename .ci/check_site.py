"""Checks that each link of the built documentation site leads to a page, a file and an anchor of the site: check_site.py DIRECTORY"""

import html.parser
import pathlib
import sys
import urllib.parse


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.anchors, self.targets = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name == "id" or (tag == "a" and name == "name"):
                self.anchors.add(value)
            elif name in ("href", "src") and value:
                self.targets.append(value)


def main(site):
    site = pathlib.Path(site).resolve()
    pages = {path: Page(path.read_text()) for path in site.rglob("*.html")}
    # toc.html and 404.html are templates: their links are relative to another place.
    checked = [path for path in pages if path.name not in ("toc.html", "404.html", "print.html")]
    mistakes, count = [], 0
    for path in checked:
        for target in pages[path].targets:
            url = urllib.parse.urlsplit(target)
            if url.scheme or url.netloc:
                continue
            count += 1
            file = (path.parent / urllib.parse.unquote(url.path)).resolve() if url.path else path
            if file.is_dir():
                file /= "index.html"
            where = f"{path.relative_to(site)}: {target}"
            if not file.is_file():
                mistakes.append(f"{where} is not on the site")
            elif url.fragment and file in pages and urllib.parse.unquote(url.fragment) not in pages[file].anchors:
                mistakes.append(f"{where} has no such anchor")
    print("\n".join(mistakes) or f"site: {len(checked)} pages, {count} links are fine")
    return bool(mistakes) or not count


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
