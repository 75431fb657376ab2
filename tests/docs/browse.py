"""Opens every page of the built site in Chromium, and fails if one is broken.

    python tests/docs/browse.py site [--screenshots FOLDER]

No error in the console, no link to this site or to a file of ours without a
target, no request to another site, and nothing wider than the window, at the
width of a desktop, light, and of a phone, dark. Then the search finds what
people type, the page of a layer begins with `call`, and the copy button leaves
out the prompts of an example.

Needs `playwright`, and Chromium or Chrome on the path. Without a browser it
says so and ends well, unless `CI_HAS_CHROMIUM` is set.
"""

import argparse
import functools
import http.server
import os
import pathlib
import re
import shutil
import sys
import threading
import urllib.parse

from playwright import sync_api

ROOT = pathlib.Path(__file__).parents[2]
SOURCES = "inbatch_neg/inbatch_neg/blob/main/"
LAYER = "inbatch_neg.InBatchNegativeSoftmax"
# The window, and the scheme of Material.
DEVICES = {
    "desktop": ({"width": 1280, "height": 900}, "default"),
    "phone": ({"width": 390, "height": 844}, "slate"),
}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")

# What people type, and a page or section among the first answers.
SEARCHES = {
    "rotation_logits": "api/ops.rotation_logits/",
    "streaming probability": "StreamingSamplingProbability/",
    "`num_negatives` must be smaller than the batch: a row has 7": (
        "what-went-wrong/#num_negatives-and-sampling"
    ),
    "负样本": "zh-CN/",
    "hard negatives": "more-negatives/#i-have-known-hard-negatives",
    "BackupAndRestore": "training/#after-an-interruption",
    "TensorBoard": "how-do-i/#tensorboard-and-csv-logs",
    "validation_data": "how-do-i/#a-validation-loss-validation_data",
    "csv": "how-do-i/#csv-files-and-many-files-glob",
    "out of memory": "beyond-memory/",
    "multi gpu": "several-devices/",
}

# What is wider than the window, and does not scroll by itself.
OVERFLOW = """() => {
  const limit = document.documentElement.clientWidth
  const wide = []
  if (document.documentElement.scrollWidth > limit) wide.push("the page")
  for (const one of document.querySelectorAll(".md-content *")) {
    const box = one.getBoundingClientRect()
    if (!box.width || box.right <= limit + 1) continue
    let scrolls = false
    for (let up = one; up && !scrolls; up = up.parentElement)
      scrolls = up.matches(".md-content *") &&
        ["auto", "scroll"].includes(getComputedStyle(up).overflowX)
    if (!scrolls)
      wide.push(`${one.tagName} ${one.className} ${one.textContent}`)
  }
  return wide.map(one => one.replace(/\\s+/g, " ").slice(0, 80))
}"""
SCHEME = "name => document.body.setAttribute('data-md-color-scheme', name)"
LINKS = "() => [...document.querySelectorAll('a[href]')].map(a => a.href)"
IDS = "() => [...document.querySelectorAll('[id]')].map(one => one.id)"
ANSWERS = """() => [...document.querySelectorAll(".md-search-result__link")]
  .slice(0, 4).map(one => one.getAttribute("href"))"""
# Images are loaded late, as one scrolls: here at once.
IMAGES = """() => Promise.all([...document.images].map(async one => {
  one.loading = "eager"
  await one.decode().catch(() => {})
  return one.complete && one.naturalWidth ? null : one.src
}))"""


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def serve(site):
    """Serves a folder on a free port of this machine; returns its address."""
    handler = functools.partial(_Quiet, directory=str(site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}/"


def addresses(site):
    """Returns the pages of the site, by their path below its root."""
    folders = (path.parent for path in site.rglob("index.html"))
    names = (folder.relative_to(site).as_posix() for folder in folders)
    return sorted("/" if name == "." else f"/{name}/" for name in names)


def open_page(context, home, path, problems):
    """Opens a page; what goes wrong while it loads is appended."""
    page = context.new_page()

    def console(message):
        if message.type in ("error", "warning"):
            problems.append(f"{path}: console: {message.text}")

    def request(one):
        if not one.url.startswith((home, "data:", "blob:")):
            problems.append(f"{path}: asks for {one.url}")

    def response(one):
        if one.status >= 400:
            problems.append(f"{path}: {one.status} for {one.url}")

    page.on("console", console)
    page.on("pageerror", lambda error: problems.append(f"{path}: {error}"))
    page.on("request", request)
    page.on("response", response)
    page.goto(urllib.parse.urljoin(home, path.lstrip("/")))
    return page


def look(context, home, path, problems, screenshots):
    """Looks at a page on each device; returns its links and its anchors.

    It is loaded once, which takes most of the time.
    """
    page = open_page(context, home, path, problems)
    for image in page.evaluate(IMAGES):
        if image:
            problems.append(f"{path}: no picture: {image}")
    for device, (window, scheme) in DEVICES.items():
        page.set_viewport_size(window)
        page.evaluate(SCHEME, scheme)
        for wide in page.evaluate(OVERFLOW):
            problems.append(f"{path} ({device}): too wide: {wide}")
        if screenshots:
            name = path.strip("/").replace("/", "_") or "home"
            target = screenshots / f"{name}-{device}.png"
            page.screenshot(path=target, full_page=True)
    found = page.evaluate(LINKS), page.evaluate(IDS)
    page.close()
    return found


def broken_links(site, home, links, ids):
    """Returns the links within the site that lead nowhere.

    Args:
        links: {page: the addresses that it links to}.
        ids: {page: the anchors that it has}.
    """
    found = []
    for page, targets in links.items():
        for target in sorted(set(targets)):
            _, ours, file = target.partition(SOURCES)
            if ours and not (ROOT / file.partition("#")[0]).is_file():
                found.append(f"{page}: no such file: {target}")
            if not target.startswith(home):
                continue
            path, anchor = urllib.parse.urldefrag(target.removeprefix(home))
            path = "/" + urllib.parse.unquote(path)
            if path.endswith("/"):
                anchors = ids.get(path)
            else:
                anchors = [] if (site / path.lstrip("/")).is_file() else None
            anchor = urllib.parse.unquote(anchor)
            if anchors is None or anchor and anchor not in anchors:
                found.append(f"{page}: leads nowhere: {target}")
    return found


def search(context, home, problems):
    """Types words into the search, and looks at its first answers."""
    page = open_page(context, home, "/", problems)
    field = page.locator(".md-search__input").first
    for words, path in SEARCHES.items():
        field.fill(words)
        found = []
        # The search listens to keys, and only once its script runs.
        for _ in range(40):
            field.press("End")
            page.wait_for_timeout(250)
            # Without the words to highlight.
            found = [
                re.sub(r"\?[^#]*", "", one) for one in page.evaluate(ANSWERS)
            ]
            if any(path in one for one in found):
                break
        else:
            problems.append(f"search: {words!r} finds {found}, not {path}")
    page.close()


def copy(context, home, problems):
    """Presses the copy button of an example of the API."""
    page = open_page(context, home, "/api/ops.rotation_logits/", problems)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    block = page.locator(".highlight", has_text=">>> import numpy").first
    block.hover()
    block.locator("button").first.click()
    text = page.evaluate("() => navigator.clipboard.readText()")
    if ">>>" in text or "import numpy" not in text:
        problems.append(f"copy button: {text!r}")
    page.close()


def browse(site, executable, screenshots=None):
    """Returns a line for each problem of the site."""
    home = serve(site)
    paths = addresses(site)
    problems, links, ids = [], {}, {}
    with sync_api.sync_playwright() as playwright:
        # As root, as in a container, Chromium's own sandbox does not start.
        browser = playwright.chromium.launch(
            executable_path=executable, args=["--no-sandbox"]
        )
        context = browser.new_context(
            viewport=DEVICES["desktop"][0], color_scheme="light"
        )
        for path in paths:
            links[path], ids[path] = look(
                context, home, path, problems, screenshots
            )
        search(context, home, problems)
        copy(context, home, problems)
        browser.close()
    problems += broken_links(site, home, links, ids)
    members = [one for one in ids[f"/api/{LAYER[12:]}/"] if f"{LAYER}." in one]
    if members[0] != f"{LAYER}.call":
        problems.append(f"{LAYER}: `call` is not the first of {members}")
    print(f"{len(paths)} pages, {sum(map(len, links.values()))} links")
    return problems


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("site", type=pathlib.Path)
    parser.add_argument("--screenshots", type=pathlib.Path)
    options = parser.parse_args()
    if not (options.site / "index.html").is_file():
        sys.exit(f"{options.site} is no built site: run `mkdocs build`.")
    found = filter(None, map(shutil.which, BROWSERS))
    executable = next(found, None)
    if executable is None:
        message = f"no browser: none of {', '.join(BROWSERS)} is on the path"
        if os.environ.get("CI_HAS_CHROMIUM"):
            sys.exit(message)
        print(message)
        return
    if options.screenshots:
        options.screenshots.mkdir(parents=True, exist_ok=True)
    problems = browse(options.site.resolve(), executable, options.screenshots)
    if problems:
        sys.exit("\n".join(problems))
    print("no problem")


if __name__ == "__main__":
    main()
