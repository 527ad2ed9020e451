"Notebooks to modules and README.md: run `python nbs/build.py` after every edit."
import os
import re
from pathlib import Path
from posixpath import normpath

import nbformat
from nbconvert import MarkdownExporter
from nbdev.clean import nbdev_clean
from nbdev.doclinks import nbdev_export

nbs = Path(__file__).resolve().parent
longest = 20     # lines of one output that README.md shows


def short_text(outputs):
    "What README.md shows of a cell's outputs: the first lines of text, no pictures."
    shown = []
    for o in outputs:
        data = o.get("data", {})
        text = o.get("text", data.get("text/plain", "")) if o.get("name") != "stderr" else ""
        if not text.strip() or any(kind.startswith("image/") for kind in data): continue
        lines = text.splitlines()
        more = [f"... {len(lines) - longest} more lines"] if len(lines) > longest else []
        shown.append(nbformat.v4.new_output("stream", text="\n".join(lines[:longest] + more) + "\n"))
    return shown


def from_root(text, folder):
    "The same Markdown with links that are relative to `folder` made relative to the repository; code stays as it is."
    link = re.compile(r"""(\]\(|(?:src|srcset|href)=["'])([^)"'\s#:/][^)"'\s#:]*)(?=[)"'\s#])""")
    parts = re.split(r"(^```.*?^```)", text, flags=re.M | re.S)
    return "".join(
        part if i % 2 else link.sub(lambda m: m[1] + normpath(f"{folder}/{m[2]}"), part)
        for i, part in enumerate(parts)
    )


def readme(index=nbs / "index.ipynb")->str:
    "README.md as it follows from a notebook."
    nb = nbformat.read(index, as_version=4)
    nb.metadata["language_info"] = {"name": "python"}     # nbdev_clean drops it, nbconvert wants it
    nb.cells = [c for c in nb.cells if not re.search(r"^#\|\s*hide\b", c.source, re.M)]
    for cell in nb.cells:
        if cell.cell_type == "markdown": cell.source = from_root(cell.source, index.parent.name)
        else:
            cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M).strip("\n")
            cell.outputs = short_text(cell.outputs)
    nb.cells = [c for c in nb.cells if c.source]
    body, _ = MarkdownExporter().from_notebook_node(nb)
    return "<!-- made from nbs/index.ipynb by nbs/build.py: edit that -->\n\n" + body.strip() + "\n"


def build():
    os.chdir(nbs.parent)
    nbdev_export()
    nbdev_clean()
    Path("README.md").write_text(readme(), encoding="utf-8")


if __name__ == "__main__": build()
