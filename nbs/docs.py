"The documentation site: `python nbs/docs.py` builds it; `mkdocs serve -f nbs/mkdocs.yml` shows it while one writes."
import argparse
import ast
import base64
import logging
import re
from functools import cache
from html import escape
from io import StringIO
from pathlib import Path
from posixpath import normpath
from tokenize import COMMENT, generate_tokens

import nbformat
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File

nbs = Path(__file__).resolve().parent
root = nbs.parent
log = get_plugin_logger("docs")
cards = {"Model card": "mfm_app/weights/bbbc021", "Simulated world": "mfm_app/weights/simulated",
         "Simulated genes": "mfm_app/weights/simulated-genes", "Bench": "bench"}      # folders with a README.md
rooms_line = ("One notebook, one module, one noun; each uses only those before it. Code with a coloured edge is what "
              "the module holds; the rest shows it at work")


# A notebook becomes Markdown

def public(module)->list:
    "The names a module exports, in house order."
    assigned = [n for n in ast.parse(module).body if isinstance(n, ast.Assign)]
    assigned = [n for n in assigned if ast.unparse(n.targets[0]) == "__all__"]
    return ast.literal_eval(assigned[0].value) if assigned else []


def definitions(source)->dict:
    "What Python code defines at its top: name to syntax tree."
    found = {}
    for node in ast.parse(source).body:
        for target in getattr(node, "targets", [getattr(node, "target", node)]):
            for name in getattr(target, "elts", [target]): found[getattr(name, "id", getattr(name, "name", ""))] = node
    return found


def inside(html)->str: return f'<div class="output">\n{html}\n</div>\n'


def shown(output, folder, pictures)->str:
    "One output of a cell; its picture, if it is one, goes to `pictures`."
    data = output.get("data", {})
    html = data.get("text/html", "")
    if re.search('<iframe srcdoc=|^<img src="data:', html): return inside(html)      # it carries all it needs
    for kind in ("image/png", "image/jpeg"):
        if kind in data:
            name = f"{folder}/{len(pictures) + 1}.{kind.split('/')[1]}"
            pictures[name] = base64.b64decode(data[kind])
            return f'![What the code above draws]({name}){{ .output loading=lazy }}\n'
    if "text/markdown" in data: return f'<div class="output" markdown>\n\n{data["text/markdown"]}\n\n</div>\n'
    for kind in ("image/svg+xml", "text/html"):
        if kind in data and "<script" not in data[kind]: return inside(data[kind])
    text = output.get("text", data.get("text/plain", "")) if output.get("name") != "stderr" else ""
    return inside(f"<pre>{escape(text.rstrip())}</pre>") if text.strip() else ""


def markdown(cell, room, names, folder, pictures)->str:
    "A cell as Markdown: prose as it is, code without directives and with an anchor for each of its public `names`."
    if cell.cell_type != "code":
        front_page = re.sub(r"\]\(((?:\.\./)*)\.\./README\.md", r"](\1index.ipynb", cell.source)
        return re.sub(r"\$\$(.+?)\$\$", r"\n\n$$\1$$\n\n", front_page, flags=re.S)      # formulas as in Jupyter
    said = re.findall(r"^#\|\s*(\w+)", cell.source, re.M)
    source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M).strip("\n")
    places = [name for name in definitions(source) if name in names] if "export" in said else []
    anchors = "".join(f'<i id="{room}.{name}"></i>' for name in places)
    if places: anchors = f'<div class="places">{anchors}</div>\n'
    code = f"`````{{ .python{' .exported' * ('export' in said)} }}\n{source}\n`````" if source else ""
    if "export" in said and not places and re.match("import |from ", source):
        code = f'<details class="imports" markdown><summary>Imports</summary>\n\n{code}\n\n</details>'
    return "\n".join([anchors, code, *(shown(o, folder, pictures) for o in cell.outputs)])


@cache
def read(path)->dict:
    "A notebook as a page: its title, the line below it, Markdown, pictures, and the public names of its module."
    cells = [c for c in nbformat.read(path, 4).cells if not re.search(r"^#\|\s*hide\b", c.source, re.M)]
    title, line = re.match(r"# (.+)\n+> (.+)", cells[0].source).groups()
    room = next((m[1] for c in cells if (m := re.search(r"^#\|\s*default_exp (\w+)", c.source, re.M))), "")
    module = root / f"mfm_app/{room}.py"
    code = module.read_text(encoding="utf-8") if room and module.exists() else ""
    names, pictures = public(code), {}
    text = "\n\n".join(markdown(c, room, names, path.stem, pictures) for c in cells)
    return dict(path=path, title=title, line=line, room=room, code=code, names=names, text=text, pictures=pictures)


# The table of everything public

def prose(text)->str: return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
def short(value, limit=20)->str: return text if len(text := ast.unparse(value)) < limit else "..."


def bare(args)->str:
    "Arguments without annotations, and long defaults left out."
    for arg in ast.walk(args):
        if isinstance(arg, ast.arg): arg.annotation = None
    short_defaults = lambda defaults: [default and ast.Name(short(default)) for default in defaults]
    args.defaults, args.kw_defaults = short_defaults(args.defaults), short_defaults(args.kw_defaults)
    return re.sub(r"^self(, )?", "", ast.unparse(args))


def doc(node)->str: return (ast.get_docstring(node) or "").split("\n")[0]
def fields(node)->list:
    is_dataclass = any("dataclass" in ast.unparse(d) for d in node.decorator_list)
    return [n for n in node.body if isinstance(n, ast.AnnAssign) and is_dataclass]


def methods(node)->list:
    return [n for n in node.body if isinstance(n, ast.FunctionDef)] if isinstance(node, ast.ClassDef) else []



def signature(name, node)->str:
    "How something is called, in short."
    made = next((m for m in methods(node) if m.name == "__init__"), None)
    decorators = {ast.unparse(d) for d in getattr(node, "decorator_list", [])}
    called = None if decorators & {"property", "cached_property"} else made or node
    if isinstance(called, (ast.FunctionDef, ast.AsyncFunctionDef)): return f"{name}({bare(called.args)})"
    if isinstance(node, ast.ClassDef):
        arguments = [f.target.id + (f"={short(f.value)}" if f.value else "") for f in fields(node)]
        return f"{name}({', '.join(arguments)})"
    alone = isinstance(node, (ast.Assign, ast.AnnAssign)) and definitions(ast.unparse(node)).keys() == {name}
    return f"{name} = {value}" if alone and (value := short(node.value, 60)) != "..." else name


def remarks(lines, comments, numbers):
    "The lines among `numbers` that carry a comment: (code, comment)."
    for n in numbers:
        if n not in comments: continue
        at, comment = comments[n]
        code = lines[n - 1][:at].strip().rstrip(",")
        if ends := re.match(r"(?:def \w+\((?:self, )?(.*))?\)(?:->(.*))?:$", code):
            code = f"returns {ends[2] or ''}" if ends[2] or not ends[1] else ends[1]
        yield code, comment.removeprefix("->").strip()


def details(node, lines, comments)->list:
    "What is said of a definition's parameters and methods: (code, words)."
    if isinstance(node, ast.ClassDef):
        spoken = [(signature(m.name, m), doc(m)) for m in methods(node) if not m.name.startswith("_") and doc(m)]
        begins = next((m for m in methods(node) if m.name == "__init__"), None)
        of_fields = remarks(lines, comments, [n for f in fields(node) for n in range(f.lineno, f.end_lineno + 1)])
        return [*(details(begins, lines, comments) if begins else of_fields), *spoken]
    if isinstance(node, ast.FunctionDef): return [*remarks(lines, comments, range(node.lineno, node.body[0].lineno))]
    return []


def entry(name, node, lines, comments, page)->str:
    "A row of the table: the name with its arguments, its docstring, and what is said of its parameters."
    call = signature(name, node)
    arguments = escape(call.removeprefix(name))
    link = f'<a href="{page}.{name}"><code>{name}</code></a><code class="arguments">{arguments}</code>'
    comment = comments.get(getattr(node, "end_lineno", 0), (0, ""))[1]
    text = prose(doc(node) if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else comment)
    row = lambda code, words: f"<tr><td><code>{escape(code)}</code></td><td>{prose(words)}</td></tr>"
    rows = "".join(row(*detail) for detail in details(node, lines, comments))
    words = f"<details><summary>{text}</summary><table>{rows}</table></details>" if rows else f"<p>{text}</p>"
    return f'<tr><td>{link}</td><td>{words}</td></tr>'


def api(rooms)->str:
    "The page with every public name."
    text = ["# API\n\n> Everything public, in the order of the house; a name leads to where it is explained"]
    for r in (r for r in rooms if r["names"]):
        tokens = generate_tokens(StringIO(r["code"]).readline)
        comments = {t.start[0]: (t.start[1], t.string.strip("# ")) for t in tokens if t.type == COMMENT}
        found, page = definitions(r["code"]), f'rooms/{r["room"]}.html#{r["room"]}'
        rows = "\n".join(entry(name, found.get(name), r["code"].splitlines(), comments, page) for name in r["names"])
        text.append(f'## {r["title"]}\n\n{r["line"]}\n\n<table class="api">\n{rows}\n</table>')
    return "\n\n".join(text)


def contents(title, line, pages)->str:
    "A page that lists others."
    rows = "\n".join(f'| [{p["title"]}](../{p["path"].relative_to(root).as_posix()}) | {p["line"]} |' for p in pages)
    return f"# {title}\n\n> {line}\n\n| | |\n|---|---|\n{rows}"


# What mkdocs is told

class Page(File):
    "A page whatever its name ends in, so that links between notebooks hold as they are written."
    def is_documentation_page(self): return True


def linked(text, folder)->set:
    "Files of the repository that Markdown links to and that are no pages."
    paths = {normpath(f"{folder}/{link}") for link in re.findall(r"\]\(([^)\s#:]+)", text)}
    return {p for p in paths if not p.startswith("..") and not p.endswith((".md", ".ipynb")) and (root / p).is_file()}


def on_files(files, config):
    "Every page under the name of its source in the repository, pictures and linked files beside them, in order."
    read.cache_clear()
    def add(source, dest, content, kind=Page):
        file = kind.generated(config, source, content=content)
        file.dest_uri = dest
        files.append(file)
        return source
    def add_notebook(path, folder=""):
        page, source = read(path), path.relative_to(root)
        name = f"{folder}{page['room'] or path.stem}"
        for picture, data in page["pictures"].items():
            add((source.parent / picture).as_posix(), f"{name}/{Path(picture).name}", data, File)
        return add(source.as_posix(), f"{name}.html", page["text"])
    def add_card(title, folder):
        text = (root / folder / "README.md").read_text(encoding="utf-8")
        return {title: add(f"{folder}/README.md", f"{title.lower().replace(' ', '_')}.html", text)}
    def add_list(title, folder, line, paths):
        if not paths: return []
        index = add(f"{folder}index.md", f"{folder}index.html", contents(title, line, map(read, paths)))
        return [{title: [index, *(add_notebook(p, folder) for p in paths)]}]

    rooms, tutorials = sorted(nbs.glob("[0-9]*.ipynb")), sorted((nbs / "tutorials").glob("*.ipynb"))
    config.nav = [{"Start": add_notebook(nbs / "index.ipynb")},
                  *add_list("Tutorials", "tutorials/", "From the first picture on, one thing at a time", tutorials),
                  *add_list("Rooms", "rooms/", rooms_line, rooms),
                  {"API": add("api.md", "api.html", api(map(read, rooms)))},
                  {"Model card": [add_card(*card) for card in cards.items()]}]
    for page in files.documentation_pages():
        for path in linked(page.content_string, Path(page.src_uri).parent.as_posix()):
            if path not in files.src_uris: add(path, path, (root / path).read_bytes(), File)
    return files


@cache
def formula(tex)->str:
    "A formula as a drawing that takes size and colour of the text around it."
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath, TextToPath
    font = FontProperties(size=100, math_fontfamily="stix")
    width, height, depth = TextToPath().get_text_width_height_descent(f"${tex}$", font, ismath=True)
    letter = {1: "M", 2: "L", 3: "Q", 4: "C", 79: "Z"}
    segments = TextPath((0, 0), f"${tex}$", prop=font).iter_segments()
    d = "".join(letter[code] + " ".join(f"{v:.0f}" for v in points if code != 79) for points, code in segments)
    box, style = f"0 {depth - height:.0f} {width:.0f} {height:.0f}", f"height:{height / 90:.2f}em"
    return (f'<svg class="formula" role="img" aria-label="{escape(tex)}" viewBox="{box}" '
            f'style="{style};vertical-align:{-depth / 90:.2f}em">'
            f'<path transform="scale(1 -1)" fill="currentColor" d="{d}"/></svg>')


def on_page_content(html, page, **kwargs):
    "Draw the formulas."
    def draw(found):
        tex = found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
        try: return formula(tex.strip())
        except ValueError:
            log.warning(f"{page.file.src_uri}: cannot draw the formula {tex}")
            return f"<code>{found[1]}</code>"
    return re.sub(r"\\[(\[](.*?)\\[)\]](?=</(?:span|div)>)", draw, html, flags=re.S)


def main(out=root / "_docs"):
    "Build the site; a warning is an error."
    out = Path(out).resolve()
    if out.exists() and any(out.iterdir()) and not (out / "search/search_index.json").exists():
        raise SystemExit(f"{out.name} is neither empty nor an earlier site, and building would empty it: "
                         "choose another folder.")
    logging.basicConfig(format="%(levelname)s: %(message)s")
    build(load_config(str(nbs / "mkdocs.yml"), site_dir=str(out), strict=True))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=root / "_docs", help="a new folder, or that of an earlier site")
    main(parser.parse_args().out)
