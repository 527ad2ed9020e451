"The house keeps its order: arrows, doors, notebooks and modules in step, nothing private or unsafe inside."
import ast
import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

root = Path(__file__).resolve().parent.parent
modules = sorted(p for p in (root / "mfm_app").glob("*.py") if not p.name.startswith("_"))
notebooks = sorted(p for p in (root / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)

# in the order of the notebooks' numbers; a room imports from earlier ones only
may_import = dict(
    core="",
    vocabulary="core",
    viz="core vocabulary",
    molecules="core vocabulary",
    images="core",
    data="core vocabulary molecules images",
    simulator="core data",
    model="core",
    flow="core",
    conditioning="core flow model",
    solvers="core",
    sampling="core flow solvers",
    scheduler="core sampling",
    training="core flow",
    card="core vocabulary",
    hub="core vocabulary molecules model flow conditioning solvers sampling card",
    tuning="core vocabulary solvers sampling hub",
    features="core vocabulary viz model",
    evaluation="core features",
    effects="core features",
    channels="core vocabulary images features",
    plausibility="core features hub",
    mechanism="core vocabulary molecules data evaluation",
    preprocess="core images hub features channels plausibility",
    engine="core vocabulary molecules conditioning sampling scheduler card hub features evaluation effects mechanism",
    counterfactual="core images sampling effects engine",
    validation="core vocabulary viz data model sampling hub features evaluation engine counterfactual",
    wells="core conditioning data hub features evaluation sampling vocabulary",
    crops="core vocabulary molecules images data hub channels plausibility",
    export="core viz images engine counterfactual",
    screen="core vocabulary viz molecules sampling features evaluation engine",
    finetune="core vocabulary molecules data simulator conditioning sampling training hub features evaluation "
             "mechanism preprocess validation wells",
    permalink="core vocabulary viz sampling engine counterfactual screen",
    display="core vocabulary viz molecules sampling effects mechanism engine counterfactual export",
    ui_session="core images scheduler",
    ui_parts="core vocabulary molecules solvers sampling engine wells export permalink display ui_session",
    ui_explore="core sampling channels engine crops permalink display ui_session ui_parts",
    ui_counterfactual="core viz images sampling channels plausibility preprocess engine counterfactual export "
                      "permalink display ui_session ui_parts",
    ui_screen="core vocabulary viz molecules engine screen permalink display ui_session ui_parts",
    ui_api="core vocabulary viz images solvers sampling mechanism preprocess engine counterfactual wells crops export "
           "screen ui_session ui_parts",
    machine="core",
    ui="core vocabulary images card engine permalink display machine ui_session ui_parts ui_explore ui_counterfactual "
       "ui_screen ui_api crops",
    space="core hub engine crops",
    cli="core vocabulary viz molecules data simulator flow conditioning solvers sampling training hub tuning channels "
        "plausibility preprocess features engine validation wells export screen finetune machine ui space",
)

# the one room a library enters by; a room may have several notebooks, `ui` and those named `ui_...`
door = dict(gradio="ui", plotly="viz", matplotlib="viz", rdkit="molecules", timm="model", torchdiffeq="sampling",
            accelerate="training", huggingface_hub="hub", skimage="features", torch_fidelity="features",
            tifffile="images", sklearn="evaluation", ipyketcher="display", spaces="space", umap="screen")

each_module = pytest.mark.parametrize("path", modules, ids=lambda p: p.stem)
each_notebook = pytest.mark.parametrize("path", notebooks, ids=lambda p: p.relative_to(root / "nbs").as_posix())


def imports(path):
    "The rooms and the libraries that a module imports, at its top or inside a function."
    rooms, libraries = set(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import): names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(["mfm_app"] * bool(node.level) + [node.module] * bool(node.module))
            names = [f"{base}.{a.name}" for a in node.names] if base == "mfm_app" else [base]
        else: continue
        for name in names:
            first, _, rest = name.partition(".")
            if first == "mfm_app": rooms.add(rest.split(".")[0])
            else: libraries.add(first)
    return rooms - {"", "__version__"}, libraries


# Arrows and doors

@each_module
def test_a_room_imports_only_from_the_rooms_it_may(path):
    assert path.stem in may_import, f"{path.stem} is a new room: give it a row in `may_import`"
    assert imports(path)[0] <= set(may_import[path.stem].split())


def test_the_arrows_point_to_smaller_numbers():
    order = list(may_import)
    for room, others in may_import.items():
        for other in others.split(): assert order.index(other) < order.index(room), f"{room} -> {other}"


def test_the_numbers_of_the_notebooks_are_that_order():
    numbered = [p.stem.split("_", 1) for p in notebooks if re.match(r"\d\d_", p.name)]
    assert [list(may_import).index(name) for _, name in numbered] == [int(number) for number, _ in numbered]


@each_module
def test_a_library_has_one_door(path):
    room = "ui" if path.stem.startswith("ui_") else path.stem
    wrong = {library for library in imports(path)[1] if door.get(library, room) != room}
    assert not wrong, f"{path.stem} imports {wrong}; their doors are {[door[w] for w in wrong]}"


# Notebooks and modules in step

@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory):
    "Modules exported afresh, and notebooks cleaned, in a copy."
    copy = tmp_path_factory.mktemp("copy")
    shutil.copy(root / "settings.ini", copy)
    shutil.copytree(root / "nbs", copy / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints", "__pycache__"))
    script = "from nbdev.doclinks import nbdev_export as e; from nbdev.clean import nbdev_clean as c; e(); c()"
    subprocess.run([sys.executable, "-c", script],
                   cwd=copy, check=True)
    return copy


def test_the_modules_are_what_the_notebooks_export(rebuilt):
    texts = lambda folder: {p.name: p.read_text(encoding="utf-8") for p in (folder / "mfm_app").glob("*.py")}
    there, wanted = texts(root), texts(rebuilt)
    assert set(there) == set(wanted), "a module without notebook, or the reverse: run `python nbs/build.py`"
    stale = [name for name in wanted if there[name] != wanted[name]]
    assert not stale, f"{stale} differ from their notebooks: run `python nbs/build.py`"


@each_notebook
def test_a_notebook_is_clean(path, rebuilt):
    read = lambda path: json.loads(path.read_text(encoding="utf-8"))
    same = read(path) == read(rebuilt / path.relative_to(root))
    assert same, "run `python nbs/build.py`"


# Notebooks one can read

@each_notebook
def test_a_notebook_opens_with_its_name_and_a_line_on_what_it_is(path):
    first = nbformat.read(path, 4).cells[0]
    assert first.cell_type == "markdown" and re.match(r"# \S.*\n+> \S", first.source)


@each_notebook
def test_a_notebook_is_small(path):
    size = path.stat().st_size
    assert size < 300_000


@each_notebook
def test_a_notebook_stores_no_error(path):
    outputs = [o for cell in nbformat.read(path, 4).cells for o in cell.get("outputs", [])]
    assert not [o.evalue for o in outputs if o.output_type == "error"]


@each_notebook
def test_an_exported_cell_holds_one_idea_and_prose_goes_with_it(path):
    cells = nbformat.read(path, 4).cells
    exported = [c.source for c in cells if c.cell_type == "code" and re.search(r"^#\|\s*export", c.source, re.M)]
    imports = lambda source: all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.parse(source).body)
    code = lambda source: [line for line in source.splitlines()[1:] if line.strip()]
    long = {code(s)[0]: n for s in exported if (n := len(code(s))) > 30 and not imports(s)}
    assert not long, "more than 30 lines of code"
    assert sum(c.cell_type == "markdown" for c in cells) >= len(exported) / 2


def code_cells(path): return [c.source for c in nbformat.read(path, 4).cells if c.cell_type == "code"]


def wide(text):
    "Lines over 120 characters, but for the list of names that nbdev writes."
    text = re.sub(r"^__all__ = \[.*?\]$", "", text, flags=re.M | re.S)
    return [line[:60] for line in text.splitlines() if len(line) > 120]


@each_notebook
def test_a_line_of_code_in_a_notebook_has_120_characters_at_most(path):
    assert not [line for source in code_cells(path) for line in wide(source)]


@pytest.mark.parametrize("folder", ["mfm_app", "mfm_app/static", "tests", "bench", "nbs", "."])
def test_a_line_of_code_has_120_characters_at_most(folder):
    files = [p for p in tracked() if p.parent == root / folder and p.suffix in (".py", ".js", ".css", ".html")]
    generated = {root / "mfm_app/_modidx.py"}
    assert not {p.name: lines for p in files if p not in generated and (lines := wide(text_of(p)))}


@each_notebook
def test_imports_stand_in_cells_of_their_own(path):
    "An exported cell is either imports or definitions."
    mixed = []
    for source in code_cells(path):
        if not re.search(r"^#\|\s*export", source, re.M): continue
        body = ast.parse(source).body
        imports = [isinstance(node, (ast.Import, ast.ImportFrom)) for node in body]
        defines = any(isinstance(node, (ast.FunctionDef, ast.ClassDef)) for node in body)
        if any(imports) and defines: mixed.append(source.splitlines()[1])
    assert not mixed


@each_notebook
def test_an_example_shows_something(path):
    "A cell that is not exported has an expression or a print, unless it is imports or definitions alone."
    silent = []
    for source in code_cells(path):
        if not source.strip() or re.search(r"^#\|\s*(export|hide|default_exp)", source, re.M): continue
        body = ast.parse(re.sub(r"^\s*[%!].*$", "pass", source, flags=re.M)).body
        quiet = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
        shows = any(isinstance(node, ast.Expr) for statement in body for node in ast.walk(statement))
        if not shows and not all(isinstance(node, quiet) for node in body): silent.append(source.splitlines()[0])
    assert not silent


# Words of an earlier dialect, each with the word that took its place

old_words = {
    "there_and_back": "invert_then_sample", "WhatIf": "CounterfactualRequest", "Brought": "PreparedCells",
    "Steadiness": "Robustness", "Lesson": "FinetuneConfig", "Takeaway": "Export", "Moment": "SampleStep",
    "Together": "BatchScheduler", "Lent": "ZeroGPURunner", "drawn_model": "random_model", "kernel_distance": "kid",
    "specimen": "preprocess", "takeaway": "export", "head_start": "warm_start", "averaged": "ema",
    "factual": "reconstruction"}


def test_one_thing_has_one_name():
    "No identifier of the earlier dialect in code; keys of old files are strings and stay readable."
    found = [f"{name}: {node} is {old_words[node]}" for name, source in python_sources()
             for node in identifiers(ast.parse(source)) if node in old_words]
    assert not found


def identifiers(tree):
    "Names, attributes, arguments and definitions."
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name"):
            if isinstance(value := getattr(node, field, None), str): yield value


# Nothing private, nothing unsafe

def tracked():
    "The files of the repository, those not yet added included."
    if not (root / ".git").exists(): pytest.skip("not a git checkout")
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    return [p for name in listed.split("\0") if name and (p := root / name).is_file()]


def text_of(path):
    data = path.read_bytes()
    return "" if b"\0" in data else data.decode("utf-8")


@pytest.mark.parametrize("pattern", [
    r"(?<![\w.~:/-])/(work|root|home|Users|tmp)/\w",                # a path of somebody's machine
    r"pypi\.org|pythonhosted\.org|download\.pytorch\.org|--(extra-)?index-url",
], ids=["machine paths", "package indexes"])
def test_no_file_names_a_machine_or_a_package_index(pattern):
    found = [f"{p.relative_to(root)}: {m[0]}" for p in tracked() for m in re.finditer(pattern, text_of(p))]
    assert not found


def python_sources():
    "Everything that runs: Python files, and the code of notebooks."
    for path in tracked():
        if path.suffix == ".py": yield path.name, text_of(path)
        if path.suffix == ".ipynb":
            code = [c.source for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
            yield path.name, re.sub(r"^\s*[%!].*$", "pass", "\n".join(code), flags=re.M)


def loads_pickle(node):
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        names = [a.name for a in node.names] + [getattr(node, "module", None) or ""]
        return bool({"pickle", "joblib", "dill", "cloudpickle"} & {n.split(".")[0] for n in names})
    if not isinstance(node, ast.Call): return False
    given = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
    is_torch_load = ast.unparse(node.func) == "torch.load"
    return is_torch_load and given.get("weights_only") is not True or given.get("allow_pickle", False) is not False \
        or ast.unparse(node.func).endswith("read_pickle")


def test_no_pickle_is_loaded():
    found = [f"{name}, line {node.lineno}" for name, source in python_sources()
             for node in ast.walk(ast.parse(source)) if loads_pickle(node)]
    assert not found


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "np.load(p, allow_pickle=True)",
        "pd.read_pickle(p)",
    ],
)
def test_a_pickle_would_be_noticed(line):
    assert any(map(loads_pickle, ast.walk(ast.parse(line))))


# README.md

@pytest.fixture(scope="module")
def readme(): return runpy.run_path(str(root / "nbs/build.py"))["readme"]


def test_readme_is_what_index_says(readme):
    assert (root / "README.md").read_text(encoding="utf-8") == readme(), "run `python nbs/build.py`"


def test_what_readme_links_to_is_there():
    links = re.findall(r"""(?:\]\(|(?:src|href)=["'])([^)"'\s#?]+)""", (root / "README.md").read_text(encoding="utf-8"))
    assert not [link for link in links if ":" not in link and not (root / link).exists()]


def test_readme_and_ci_agree_on_how_to_install_and_test():
    for text in ((root / "README.md").read_text(encoding="utf-8"), (root / ".ci/run").read_text(encoding="utf-8")):
        assert "pip install -e '.[dev]'" in text and re.search(r"(^|&& )pytest\b", text, re.M)


def test_readme_leaves_out_hidden_cells_directives_and_pictures_and_keeps_links(readme, tmp_path):
    v, folder = nbformat.v4, tmp_path / "nbs"
    folder.mkdir()
    picture = v.new_output("display_data", data={"text/plain": "<Figure>", "image/png": "iVBOR"})
    long = v.new_output("stream", text="".join(f"line {i}\n" for i in range(100)))
    cells = [
        v.new_markdown_cell(
            "# Title\n\n![page](images/page.png) [web](https://host/images/page.png) [up](../LICENSE)\n\n"
            "```\nf[0](x)\n```"
        ),
        v.new_code_cell("#| hide\nsecret = 1", outputs=[v.new_output("stream", text="secret")]),
        v.new_code_cell("#| eval: false\nshow()", outputs=[picture, long]),
    ]
    nbformat.write(v.new_notebook(cells=cells), folder / "index.ipynb")
    text = readme(folder / "index.ipynb")
    assert "![page](nbs/images/page.png) [web](https://host/images/page.png) [up](LICENSE)\n\n```\nf[0](x)\n```" in text
    assert "```python\nshow()\n```" in text and "line 0" in text
    for gone in ("secret", "#|", "Figure", "iVBOR", "line 99"): assert gone not in text
