"The documentation site: everything is on it, every link holds, and nothing is fetched from another machine."
import ast
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest

root = Path(__file__).resolve().parent.parent
nbs = root / "nbs"
rooms, tutorials = sorted(nbs.glob("[0-9]*.ipynb")), sorted(nbs.glob("tutorials/*.ipynb"))
v = nbformat.v4


def build(house, out):
    "What `python nbs/docs.py` says and does."
    return subprocess.run([sys.executable, house / "nbs/docs.py", "--out", out], capture_output=True, text=True)


class Html(HTMLParser):
    "Text, ids and addresses of a page; `rows` are the texts of the outermost table rows."
    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.fetched, self.rows, self.text, self.depth = set(), [], [], [], "", 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.ids |= {a["id"]} if a.get("id") else set()
        if tag == "a" and "href" in a: self.links.append(a["href"])
        if (
            tag in ("script", "img", "iframe", "source", "video", "object")
            or tag == "link"
            and a.get("rel") not in ("prev", "next", "canonical")
        ):
            self.fetched += [a[k] for k in ("src", "href", "srcset", "data") if a.get(k)]
        if tag == "tr":
            self.depth += 1
            if self.depth == 1: self.rows.append("")

    def handle_endtag(self, tag):
        self.depth -= tag == "tr"
        if self.depth and tag in ("td", "summary"): self.rows[-1] += " | "

    def handle_data(self, data):
        self.text += data
        if self.depth: self.rows[-1] += data


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("docs") / "site"
    built = build(root, out)
    assert built.returncode == 0, built.stderr
    return out


@pytest.fixture(scope="module")
def pages(site): return {p.relative_to(site).as_posix(): Html(p) for p in sorted(site.rglob("*.html"))}


def head(notebook): return re.match(r"# (.+)\n+> (.+)", nbformat.read(notebook, 4).cells[0].source).groups()
def squeezed(text): return " ".join(text.replace("`", "").split())
def page_of(notebook): return notebook.stem.split("_", 1)[1] if notebook in rooms else notebook.stem


@pytest.mark.parametrize("notebook", [*rooms, *tutorials], ids=lambda p: p.stem)
def test_a_notebook_is_a_page_and_in_the_list_of_its_kind(notebook, pages):
    folder = "rooms" if notebook in rooms else "tutorials"
    title, line = head(notebook)
    plain = lambda text: squeezed(re.sub(r"\[(.+?)\]\(.+?\)|[*$]", r"\1", text))
    for name in (f"{folder}/{page_of(notebook)}.html", f"{folder}/index.html"):
        assert plain(title) in squeezed(pages[name].text) and ("$" in line or plain(line) in squeezed(pages[name].text))


def test_rooms_follow_each_other_in_order(pages):
    linked = [
        link for link in pages["rooms/index.html"].links if re.fullmatch(r"\w+\.html", link) and link != "index.html"
    ]
    assert list(dict.fromkeys(linked)) == [f"{page_of(r)}.html" for r in rooms]


def test_the_api_has_every_public_name_with_its_docstring(pages):
    rows = [squeezed(row) for row in pages["api.html"].rows]
    missing = []
    for module in (root / "mfm_app").glob("[a-z]*.py"):
        body = ast.parse(module.read_text(encoding="utf-8")).body
        names = next(
            (
                ast.literal_eval(n.value)
                for n in body
                if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__"
            ),
            [],
        )
        docstrings = {
            n.name: squeezed((ast.get_docstring(n) or "").split("\n")[0])
            for n in body
            if isinstance(n, (ast.FunctionDef, ast.ClassDef))
        }
        missing += [
            f"{module.stem}.{name}"
            for name in names
            if not any(re.match(rf"{name}\b", row) and docstrings.get(name, "") in row for row in rows)
        ]
    assert not missing


def test_every_local_link_and_picture_is_there(site, pages):
    broken = []
    for name, html in pages.items():
        for link in html.links + html.fetched:
            parts = urlsplit(link)
            if parts.scheme: continue
            target = (
                (site if parts.path.startswith("/") else (site / name).parent) / unquote(parts.path).lstrip("/")
                if parts.path
                else site / name
            ).resolve()
            if target.is_dir(): target /= "index.html"
            there = target.is_relative_to(site) and target.is_file()
            if there and parts.fragment and target.suffix == ".html":
                there = unquote(parts.fragment) in pages[target.relative_to(site).as_posix()].ids | {"__top"}
            if not there: broken.append(f"{name}: {link[:100]}")
    assert not broken


def test_nothing_comes_from_another_machine(site, pages):
    far = lambda address: re.match(r"\s*(https?:)?//", address, re.I)
    assert not [f"{name}: {a}" for name, html in pages.items() for a in html.fetched if far(a)]
    styles = {
        p.name: re.findall(r"""(?:url\(|@import)\s*["']?([^"')\s]+)""", p.read_text(encoding="utf-8"))
        for p in site.rglob("*.css")
    }
    assert styles and not [(name, a) for name, addresses in styles.items() for a in addresses if far(a)]


# In a browser

@pytest.fixture(scope="module")
def served(site):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("width, scheme", [(1280, "light"), (400, "dark")])
def test_pages_open_and_fit(served, page, width, scheme):
    page.set_viewport_size(dict(width=width, height=900))
    page.emulate_media(color_scheme=scheme)
    for name in ("index.html", "rooms/effects.html", "api.html", "model_card.html"):
        page.goto(f"{served}/{name}")
        page.wait_for_load_state("networkidle")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{name} is wider than the window"
        assert page.evaluate("[...document.images].every(i => i.loading == 'lazy' || i.naturalWidth > 0)")
        ground = page.evaluate(
            "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0)"
        )
        assert (ground > 600) == (scheme == "light")


def test_search_finds_a_name_and_the_api_leads_to_it(served, page):
    page.goto(f"{served}/index.html")
    page.fill(".md-search__input", "sign_flip")
    page.wait_for_selector(".md-search-result__item a[href*='effects.html']")
    page.goto(f"{served}/api.html")
    page.click("a[href$='#effects.sign_flip']")
    page.wait_for_url("**/rooms/effects.html#effects.sign_flip")
    code = page.locator(":has(> [id='effects.sign_flip']) + .exported")
    assert "def sign_flip(" in code.inner_text() and 0 < code.bounding_box()["y"] < 900


# A house of one room

dot = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
module = '''
__all__ = ['limit', 'Box', 'halve']

limit = 3     # boxes at most

class Box:
    "Holds `n` things."
    def __init__(self, n): self.n = n
    def empty(self): "Take all out."

def halve(
    x:list|None,      # <numbers> of `Box`
    by:float=2.,
)->list:              # the halves
    "Half of `x`."
    return x
'''


@pytest.fixture
def house(tmp_path):
    "Build the site of a room made of these cells: what was said, and where the site is."
    (tmp_path / "mfm_app").mkdir()
    (tmp_path / "mfm_app/one.py").write_text(module)
    for name in ("bbbc021", "simulated", "simulated-genes"): (tmp_path / "mfm_app/weights" / name).mkdir(parents=True)
    (tmp_path / "bench").mkdir()
    for folder in (*(tmp_path / "mfm_app/weights").iterdir(), tmp_path / "bench"):
        (folder / "README.md").write_text("# Card\n")
    shutil.copytree(nbs / "docs_assets", tmp_path / "nbs/docs_assets")
    for name in ("docs.py", "mkdocs.yml"): shutil.copy(nbs / name, tmp_path / "nbs")
    def make(*cells):
        first = v.new_markdown_cell("# one\n> A room")
        for name, more in [("index", []), ("00_one", [v.new_code_cell("#| default_exp one"), *cells])]:
            nbformat.write(v.new_notebook(cells=[first, *more]), tmp_path / f"nbs/{name}.ipynb")
        return build(tmp_path, tmp_path / "site"), tmp_path / "site"
    return make


def test_a_room_shows_code_and_what_it_gives(house):
    output = lambda **data: v.new_output("display_data", data={k.replace("_", "/"): x for k, x in data.items()})
    outputs = [
        output(image_png=dot, text_plain="<Figure>"),
        output(text_html="<b>bold</b>"),
        output(text_html="<script>alert(1)</script>", text_plain="a widget"),
        output(text_html='<iframe srcdoc="<script>1</script>" title="frame"></iframe>', image_png=dot),
        output(text_html='<img src="data:image/png;base64," alt="cells">', image_png=dot),
        v.new_output("stream", text="a < b\n\nc\n"),
        v.new_output("stream", name="stderr", text="a warning"),
        output(text_markdown="| a |\n|---|\n| *em* |"),
    ]
    source = "#| export\n" + module.split("\n\n", 1)[1]
    built, site = house(
        v.new_code_cell(source),
        v.new_code_cell("#| hide\nsecret = 1"),
        v.new_code_cell("#| eval: false\nhalve([1])", outputs=outputs),
        v.new_markdown_cell(
            "Half is $x_0 < \\frac{1}{2}$, not `$a$`.\n\n"
            "[it](00_one.ipynb), [card](../bench/README.md), [code](../mfm_app/one.py), [front](../README.md#one)"
        ),
    )
    assert built.returncode == 0, built.stderr
    html, text = (site / "rooms/one.html").read_text(encoding="utf-8"), Html(site / "rooms/one.html").text
    for gone in ("#|", "secret", "alert", "Figure", "a warning", "\\frac{1}{2}\\)"): assert gone not in text
    for there in (
        'src="one/1.png"',
        "<b>bold</b>",
        "a widget",
        "<iframe srcdoc=",
        'alt="cells"',
        "a &lt; b\n\nc",
        "<em>em</em>",
        'class="formula"',
        'href="../bench.html"',
        'href="../index.html#one"',
        'href="../mfm_app/one.py"',
    ):
        assert there in html
    assert "$a$" in text and "1</script>" not in text
    assert [(p.name, p.read_bytes()[:4]) for p in (site / "rooms/one").iterdir()] == [("1.png", b"\x89PNG")]
    assert {"one.limit", "one.Box", "one.halve"} <= Html(site / "rooms/one.html").ids
    rows = [squeezed(row) for row in Html(site / "api.html").rows]
    assert rows == ["limit = 3 | boxes at most |", "Box(n) | Holds n things. | empty() | Take all out. | |",
                    "halve(x, by=2.0) | Half of x. | x:list|None | <numbers> of Box | returns list | the halves | |"]


def test_what_does_not_hold_stops_the_build(house):
    built, _ = house(v.new_markdown_cell("[gone](09_gone.ipynb), [nowhere](#nowhere), $\\nonsense{x}$"))
    assert built.returncode != 0
    for text in ("'09_gone.ipynb'", "'#nowhere'", "cannot draw the formula \\nonsense{x}"): assert text in built.stderr


def test_a_folder_that_is_no_site_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    built = build(root, tmp_path)
    assert built.returncode != 0 and "choose another folder" in built.stderr and (tmp_path / "thesis.txt").exists()
