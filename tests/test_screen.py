"Screens of many molecules: on disk, from the command line and in a real browser, stopped, resumed and given bad lists."
import csv
import io
import json
import signal
import subprocess
import sys
import tempfile
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings as profile, strategies as st

from controllable_net import ControllableNet

from mfm_app import screen as room, ui_screen
from mfm_app.cli import main
from mfm_app.core import InputError
from mfm_app.engine import Engine
from mfm_app.features import morphology
from mfm_app.finetune import random_model
from mfm_app.hub import save_model
from mfm_app.molecules import read_rows
from mfm_app.screen import Folder, Found, Settings, screen, screen_into

seconds = 1000     # Playwright counts in milliseconds
quick = Settings(dose_um=1., cells=2, steps=1)
five = "CCO, 1, ethanol\nsweller\nC1CC\nCCCCCC\nCCN, 0\nCC(=O)O, 1, acid\nCCOCC"      # five molecules and two bad rows


def untaught():
    "A small model with random weights that reads molecules, one of which was held out."
    model = random_model()
    model.config["molecules"]["held_out"] = [dict(name="acid", moa="Swelling", smiles="CC(=O)O")]
    return model


@pytest.fixture(scope="module")
def engine():
    model = untaught()
    model.net = ControllableNet(model.net)
    return Engine(model, "cpu", torch.float32)


@pytest.fixture(autouse=True)
def awake(engine): engine.model.net.pause, engine.model.net.calls = 0, 0


def run(path, engine, source, settings=quick):
    "Screen to the end; the last `Progress`."
    *_, last = (event for event in screen_into(path, engine, source, settings) if event)
    return last


def table(path, name="results"):
    with open(Path(path) / f"{name}.csv", newline="", encoding="utf-8") as f: return list(csv.DictReader(f))


# On disk

def test_bad_rows_are_named_by_line_and_stop_nobody(engine, tmp_path):
    last = run(tmp_path, engine, five)
    assert (last.total, last.found, last.refused) == (7, 5, 2)
    bad = {row["place"]: row["problem"] for row in table(tmp_path, "refused")}
    assert set(bad) == {"line 3", "line 5"} and "Ring 1" in bad["line 3"] and "dose" in bad["line 5"]
    assert [row["place"] for row in table(tmp_path)] == ["line 1", "line 2", "line 4", "line 6", "line 7"]
    assert [row["verdict"] for row in table(tmp_path)][:2] == ["far", "known"] and table(tmp_path)[1]["tanimoto"] == "1.0"


def test_cancelled_in_the_middle_and_resumed_it_is_what_it_would_have_been(engine, tmp_path):
    run(tmp_path / "whole", engine, five)
    running = screen_into(tmp_path / "parts", engine, five, Settings(dose_um=1., cells=2, steps=1))
    for event in running:
        if event and event.found == 3: break
    running.close()
    assert [row["number"] for row in table(tmp_path / "parts")] == ["1", "2", "3"]
    run(tmp_path / "parts", engine, five)
    for name in ("results", "refused"):
        whole, parts = table(tmp_path / "whole", name), table(tmp_path / "parts", name)
        assert [row["place"] for row in whole] == [row["place"] for row in parts]
    for a, b in zip(Folder(tmp_path / "whole").found(), Folder(tmp_path / "parts").found()):
        assert a.smiles == b.smiles and a.strength == pytest.approx(b.strength, rel=0.02)


def test_a_line_cut_short_by_a_power_failure_is_done_again(engine, tmp_path):
    run(tmp_path, engine, five)
    whole = (tmp_path / "results.csv").read_text()
    (tmp_path / "results.csv").write_text(whole[:-25])
    last = run(tmp_path, engine, five)
    assert last.found == 5 and [row["number"] for row in table(tmp_path)] == ["1", "2", "3", "4", "5"]
    assert [row["place"] for row in table(tmp_path)][-1] == "line 7"


def test_a_finished_screen_asks_the_network_nothing(engine, tmp_path):
    run(tmp_path, engine, five)
    engine.model.net.calls = 0
    assert run(tmp_path, engine, five).found == 5 and engine.model.net.calls == 0


@pytest.mark.parametrize("source,settings", [("CCO", quick), (five, Settings(dose_um=1., cells=3, steps=1)), (five, Settings(dose_um=2., cells=2, steps=1))])
def test_another_list_or_other_settings_leave_the_folder_alone(engine, tmp_path, ask, source, settings):
    run(tmp_path, engine, five)
    before = (tmp_path / "results.csv").read_text()
    assert "choose another folder" in str(ask(run, tmp_path, engine, source, settings))
    assert (tmp_path / "results.csv").read_text() == before


def test_the_first_result_comes_before_the_last_row_is_read(engine):
    read = []
    def rows():
        for row in read_rows("\n".join("C" * n for n in range(1, 101)), None, (0.1, 10.)):
            read.append(row.place)
            yield row
    events = screen(engine, rows(), room.check_settings(engine, quick))
    first = next(e for e in events if isinstance(e, tuple) and isinstance(e[0], Found))
    events.close()
    assert first[0].number == 1 and len(read) <= 16


def test_a_molecule_looks_the_same_in_any_company(engine):
    def found(text, **kwargs):
        events = screen(engine, read_rows(text, None, (0.1, 10.)), room.check_settings(engine, Settings(dose_um=1., cells=2, steps=3)), **kwargs)
        return {e[0].smiles: e for e in events if isinstance(e, tuple) and e[0]}
    alone, among = found("CCO", together=2), found("CCCC\nc1ccccc1\nCCO\nCCN", together=64)
    one, other = alone["CCO"], among["CCO"]
    assert np.abs(one[1].astype(int) - other[1]).max() <= 1
    assert one[0].strength == pytest.approx(other[0].strength, rel=0.02) and one[0].mechanism == other[0].mechanism


def test_a_thousand_molecules_hold_memory_flat(engine, tmp_path, monkeypatch):
    profile_of_one = morphology(np.random.default_rng(0).integers(0, 255, (1, 3, 64, 64), np.uint8), ["DNA", "Actin", "Tubulin"])
    monkeypatch.setattr(room, "morphology", lambda images, names: profile_of_one)      # measured elsewhere; here it would only take time
    alone = Settings(dose_um=1., cells=1, steps=1)
    def max_held_bytes(n):
        text = "\n".join("C" * (1 + i % 50) + "O" * (1 + i // 50) for i in range(n))
        tracemalloc.reset_peak()
        for event in screen_into(tmp_path / str(n), engine, text, alone): pass
        return tracemalloc.get_traced_memory()[1]
    max_held_bytes(40)
    tracemalloc.start()
    try: few, many = max_held_bytes(200), max_held_bytes(1000)
    finally: tracemalloc.stop()
    assert len(Folder(tmp_path / "1000").results) == 1000
    assert many - few < 2 * 2**20 < 800 * 3 * 64 * 64      # kept in memory, the cells of 800 molecules more would weigh more than this


@profile(max_examples=25)
@given(text=st.text(max_size=120) | st.lists(st.sampled_from(["CCO", "sweller, 1", "x", "CCO,,,", "[Na+].[Cl-]", "C,1e400", "\"", "#", "N\t5 µM"]), max_size=6).map("\n".join))
def test_any_text_is_screened_or_refused(engine, ask, text):
    with tempfile.TemporaryDirectory() as tmp:
        last = ask(run, tmp, engine, text, Settings(dose_um=1., cells=1, steps=1))
        if not isinstance(last, InputError): assert last.found + last.refused == last.total


def test_too_many_molecules_for_the_page_are_refused(engine, tmp_path, ask):
    assert "more than 3 molecules" in str(ask(lambda: list(screen_into(tmp_path, engine, five, quick, most=3))))


# From the command line

@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder, model = tmp_path_factory.mktemp("screen") / "model", untaught()
    save_model(folder, model.net, model.config)
    return folder


def mfm_screen(model, out, source, *more):
    return ["screen", str(source), "--out", str(out), "--model", str(model), "--dose", "1", "--cells", "2", "--steps", "1", *more]


def exit_code(args):
    try: main(args)
    except SystemExit as stop: return stop.code


def test_mfm_screen_writes_tables_map_and_cells(model_folder, tmp_path, capsys):
    (tmp_path / "list.csv").write_text("smiles,dose_um,name\nCCO,1,ethanol\nC1CC,1,open\nCCN,1,amine\n", encoding="utf-8")
    assert not exit_code(mfm_screen(model_folder, tmp_path / "out", tmp_path / "list.csv"))
    said = capsys.readouterr().out
    assert "Refused line 3: 'C1CC,1,open'." in said and "Traceback" not in said
    out = tmp_path / "out"
    assert {p.name for p in out.iterdir()} == {"results.csv", "ranked.csv", "refused.csv", "settings.json", "map.html", "cells"}
    assert sorted(p.name for p in (out / "cells").iterdir()) == ["00000.npy", "00001.npy", "00001.png", "00002.npy", "00002.png"]
    ranked = table(out, "ranked")
    assert [row["rank"] for row in ranked] == ["1", "2"] and float(ranked[0]["strength"]) >= float(ranked[1]["strength"])
    record = json.loads((out / "settings.json").read_text())
    assert record["solver"] == "midpoint" and record["nfe"] == 1 and record["seeds"] == [0, 1] and len(record["weights_sha256"]) == 64
    assert "ethanol" in (map := (out / "map.html").read_text(encoding="utf-8")) and "weights_sha256" in map      # with the record of how it was made


def test_mfm_screen_goes_on_and_refuses_another_list(model_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("CCO\nCCN"))
    assert not exit_code(mfm_screen(model_folder, tmp_path / "out", "-"))
    (tmp_path / "out/results.csv").write_text("".join((tmp_path / "out/results.csv").read_text().splitlines(True)[:2]))
    (tmp_path / "out/cells/00001.png").unlink()
    monkeypatch.setattr("sys.stdin", io.StringIO("CCO\nCCN"))
    assert not exit_code(mfm_screen(model_folder, tmp_path / "out", "-"))
    assert len(table(tmp_path / "out")) == 2 and (tmp_path / "out/cells/00001.png").is_file()
    monkeypatch.setattr("sys.stdin", io.StringIO("CCC"))
    capsys.readouterr()
    assert exit_code(mfm_screen(model_folder, tmp_path / "out", "-")) == 2
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("mfm: ")] == \
        ["mfm: 'out' holds a screen of another list, with another model or with other settings; choose another folder."]


def test_mfm_screen_stops_where_it_is_and_says_so(model_folder, tmp_path):
    (tmp_path / "list.smi").write_text("\n".join("C" * n for n in range(1, 151)), encoding="utf-8")
    command = [sys.executable, "-c", "from mfm_app.cli import main; main()", *mfm_screen(model_folder, tmp_path / "out", tmp_path / "list.smi", "--cells", "4", "--steps", "40")]
    heeds = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)      # also where these tests run in the background, whose children would not
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heeds)
    results = tmp_path / "out/results.csv"
    while not (results.is_file() and len(table(tmp_path / "out")) >= 2):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 130 and "of 150; the same command goes on." in said and "Traceback" not in said
    done = len(table(tmp_path / "out"))
    assert f"Stopped after {done} of 150" in said


# On the page

@pytest.fixture
def tab(page, address):
    page.goto(address)
    page.get_by_role("tab", name="Screen").click()
    page.wait_for_selector("#screen .hint")
    page.fill("#screen-dose input", "1")
    page.press("#screen-dose input", "Tab")
    return page


def paste(page, text):
    page.fill("#screen-list textarea", text)
    page.press("#screen-list textarea", "Tab")


def go(page, text=None, rows=7):
    if text: paste(page, text)
    page.click("#screen-go")
    finished(page, rows)


def finished(page, rows):
    page.wait_for_function("n => document.querySelector('#screen output').textContent.startsWith(`All ${n} done`)", arg=rows, timeout=120 * seconds)
    page.wait_for_function("document.querySelector('#screen .plot .main-svg')")


def molecules(page, column=1):
    return page.locator("#screen .table tbody tr").evaluate_all("(rows, i) => rows.map(r => r.children[i].textContent.trim())", column)


def points(page):
    return page.evaluate("document.querySelector('#screen .plot').data.reduce((n, t) => n + (t.customdata ? t.x.length : 0), 0)")


def chosen(page, name):
    page.wait_for_function("n => document.querySelector('#screen .chosen h3')?.textContent.startsWith(n) && document.querySelectorAll('#screen .chosen img').length === 2", arg=name)
    assert page.locator("#screen .chosen svg").first.is_visible() and page.locator("#screen .chosen svg").last.is_hidden()
    assert page.locator("#screen tr[aria-selected=true] .who").text_content() == name


def refused_at(page, field, said):
    "The sentence stands at its field, nothing ran; the browser's own note of the refusal (422) is expected."
    page.click("#screen-go")
    page.wait_for_function("([at, said]) => document.querySelector(at).innerText.includes(said)", arg=[field, said])
    page.wait_for_timeout(300)
    assert page.locator("#screen .hint").is_visible() and "Traceback" not in page.inner_text("body") and tempfile.gettempdir() not in page.inner_text("body")
    for e in [e for e in page.errors if "422" in e]: page.errors.remove(e)


def test_a_pasted_list_becomes_a_ranked_table_and_a_map(tab):
    go(tab, five)
    strengths = [float(s) for s in molecules(tab, 3)]
    assert len(strengths) == 5 and strengths == sorted(strengths, reverse=True) and molecules(tab, 0) == ["1", "2", "3", "4", "5"]
    assert points(tab) == 5
    assert tab.locator("#screen .refused summary").text_content() == "2 rows were refused; the others went on"
    refused = tab.locator("#screen .refused tbody tr").all_text_contents()
    assert refused[0].startswith("line 3C1CC") and refused[1].startswith("line 5CCN, 0")
    assert "19 network evaluations a cell" in tab.locator("#screen-status").inner_text()


def test_the_table_sorts_by_its_headers(tab):
    go(tab, five)
    tab.get_by_role("button", name="Molecule", exact=True).click()
    names = molecules(tab)
    assert names == sorted(names, key=str.lower) and tab.locator("#screen th[data-key=who]").get_attribute("aria-sort") == "ascending"
    tab.get_by_role("button", name="Molecule", exact=True).press("Enter")
    assert molecules(tab) == names[::-1]


def test_a_row_shows_its_cells_by_click_and_by_keyboard(tab):
    go(tab, five)
    names = molecules(tab)
    tab.locator("#screen .table tbody tr").nth(1).click()
    chosen(tab, names[1])
    tab.keyboard.press("Tab")
    tab.locator("#screen .table tbody tr[tabindex='0']").focus()
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("Enter")
    chosen(tab, names[2])


def test_a_point_of_the_map_shows_its_cells(tab):
    go(tab, "CCO, 1, ethanol", 1)
    at = tab.evaluate("""() => {
        const plot = document.querySelector('#screen .plot'), box = plot.getBoundingClientRect(), { xaxis, yaxis } = plot._fullLayout;
        const trace = plot.data.find(t => t.customdata?.length);
        return [box.x + xaxis._offset + xaxis.d2p(trace.x[0]), box.y + yaxis._offset + yaxis.d2p(trace.y[0])];
    }""")
    tab.mouse.move(*at)
    tab.wait_for_timeout(300)
    tab.mouse.click(*at)
    chosen(tab, "ethanol")


def test_stop_within_a_second_then_go_on_has_each_row_once(tab, engine):
    engine.model.net.pause = 0.05
    paste(tab, "\n".join("C" * n for n in range(1, 31)))
    tab.click("#screen-go")
    tab.wait_for_selector("#screen .table tbody tr", timeout=60 * seconds)
    tab.wait_for_selector("#screen-go:disabled")
    tab.click("#screen-stop")
    tab.wait_for_timeout(1 * seconds)
    calls = engine.model.net.calls
    tab.wait_for_function("document.querySelector('#screen output').textContent.startsWith('Stopped after')")
    tab.wait_for_timeout(500)
    assert engine.model.net.calls == calls
    assert 0 < len(molecules(tab)) < 30
    engine.model.net.pause = 0
    tab.click("#screen-resume")
    finished(tab, 30)
    assert sorted(molecules(tab, 1), key=len) == ["C" * n for n in range(1, 31)] and points(tab) == 30


def test_a_visitor_who_leaves_ends_the_walk(tab, engine):
    engine.model.net.pause = 0.05
    paste(tab, "\n".join("C" * n for n in range(1, 81)))
    tab.click("#screen-go")
    tab.wait_for_selector("#screen .table tbody tr", timeout=60 * seconds)
    tab.goto("about:blank")
    tab.wait_for_timeout(3 * seconds)
    calls = engine.model.net.calls
    tab.wait_for_timeout(1 * seconds)
    assert engine.model.net.calls == calls
    tab.errors.clear()      # what the page left behind says of its connections that they were cut


def test_more_than_the_page_takes_is_said_in_the_status_line(tab, monkeypatch):
    monkeypatch.setattr(ui_screen, "most_screened", 3)
    paste(tab, five)
    tab.click("#screen-go")
    tab.wait_for_function("document.querySelector('#screen-status').innerText.includes('The list holds more than 3 molecules')")
    tab.wait_for_function("document.querySelector('#screen output').textContent === 'Stopped after 0'")
    assert tab.locator("#screen-go").is_enabled() and tab.locator("#screen-resume").is_disabled()


def test_the_same_list_again_is_there_at_once_and_another_starts_afresh(tab, engine):
    go(tab, five)
    engine.model.net.calls = 0
    tab.click("#screen-go")
    tab.wait_for_timeout(1 * seconds)
    finished(tab, 7)
    assert engine.model.net.calls == 0 and len(molecules(tab)) == 5
    go(tab, "CCCC", 1)
    assert molecules(tab) == ["CCCC"] and points(tab) == 1


def test_what_fails_inside_stays_inside_and_can_go_on(tab, engine, monkeypatch):
    def fails(*args): raise RuntimeError("a secret in /some/folder")
    with monkeypatch.context() as broken:
        broken.setattr(engine.model.net.net, "forward", fails)
        paste(tab, five)
        tab.click("#screen-go")
        tab.wait_for_function("document.querySelector('#screen-status').innerText.includes('Something went wrong')")
    assert "secret" not in tab.inner_text("body")
    tab.click("#screen-resume")
    finished(tab, 7)


def test_no_list_or_two_lists_are_refused(tab, tmp_path):
    refused_at(tab, "#screen-list", "Paste a list, or choose a file below.")
    (tmp_path / "list.smi").write_text("CCO")
    tab.set_input_files("#screen-file input", tmp_path / "list.smi")
    tab.wait_for_function("document.querySelector('#screen-file').innerText.includes('list')")
    paste(tab, "CCO")
    refused_at(tab, "#screen-list", "There are a pasted list and a file; empty one of them.")


@pytest.mark.parametrize("name,content,said", [
    ("header.csv", b"molekuel;dosis\nCCO;1\n", "header.csv needs a header with a column `smiles`"),
    ("latin.csv", "smiles,name\nCCO,Äthanol\n".encode("latin-1"), "latin.csv is not UTF-8"),
    ("empty.csv", b" ", "holds no molecules"),
    ("program.csv", b"MZ\x90\0\3\0\0\0", "program.csv is a binary file"),
    ("sheet.csv", b"PK\3\4", "save the table as .csv"),
])
def test_a_bad_file_is_refused_at_its_field(tab, tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    tab.set_input_files("#screen-file input", tmp_path / name)
    tab.wait_for_function("said => document.querySelector('#screen-status').innerText.includes(said)", arg=said.replace("`", ""))
    refused_at(tab, "#screen-file", said)


@pytest.mark.parametrize("field,value,said", [
    ("dose", "1e6", "is outside what the model can know"), ("dose", "0", "is outside what the model can know"),
    ("cells", "17", "Cells a molecule must be a whole number from 1 to 16, not '17'."), ("cells", "2.5", "not '2.5'"),
])
def test_a_bad_number_is_refused_at_its_field(tab, field, value, said):
    paste(tab, "CCO")
    tab.fill(f"#screen-{field} input", value)
    tab.press(f"#screen-{field} input", "Tab")
    refused_at(tab, f"#screen-{field}", said)


def test_a_file_is_screened_and_everything_can_be_downloaded(tab, tmp_path):
    (tmp_path / "list.csv").write_text("name,smiles,dose_um\nethanol,CCO,1\n=1+1,CCN,\nopen,C1CC,1\n", encoding="utf-8")
    tab.set_input_files("#screen-file input", tmp_path / "list.csv")
    tab.wait_for_function("document.querySelector('#screen-file').innerText.includes('list')")
    go(tab, rows=3)
    with tab.expect_download() as download: tab.click("#screen-download")
    with zipfile.ZipFile(download.value.path()) as archive:
        assert archive.testzip() is None
        assert set(archive.namelist()) == {"ranked.csv", "results.csv", "refused.csv", "settings.json", "map.html", "cells/00000.npy",
                                           *(f"cells/0000{n}.{kind}" for n in (1, 2) for kind in ("npy", "png"))}
        assert np.load(io.BytesIO(archive.read("cells/00001.npy"))).shape == (4, 3, 64, 64) == np.load(io.BytesIO(archive.read("cells/00000.npy"))).shape
        assert json.loads(archive.read("settings.json"))["nfe"] == 19
        archive.extract("map.html", tmp_path)
    tab.goto((tmp_path / "map.html").as_uri())       # asks nobody for anything, which the fixture checks
    assert tab.locator(".main-svg").count() and tab.evaluate("document.querySelector('.plotly-graph-div').data.flatMap(t => t.customdata || []).length") == 2


def test_there_is_nothing_to_download_before_a_screen(tab):
    tab.click("#screen-download")
    tab.wait_for_function("document.querySelector('#screen-status').innerText.includes('nothing to download yet')")


def test_the_example_is_a_list_that_runs(tab):
    tab.click("#screen-example")
    tab.wait_for_function("document.querySelector('#screen-list textarea').value.includes('caffeine')")
    rows = tab.input_value("#screen-list textarea").count("\n") + 1
    go(tab, rows=rows)
    assert {"sweller", "acid", "caffeine"} <= set(molecules(tab)) and tab.locator("#screen .refused").is_hidden()


def test_a_screen_goes_when_its_visitor_goes():
    desk = ui_screen.ScreenSession()
    desk.fresh("CCO", quick)
    path = desk.path
    assert path.is_dir() and ui_screen.desks[desk.token] is desk
    desk.clear()
    assert not path.exists() and desk.token not in ui_screen.desks


def test_a_stranger_learns_nothing_from_a_guessed_number(engine):
    for asked in (dict(run="", number=1), dict(run="../..", number=1), dict(number=1), [], None, "x", dict(run=[], number=1)):
        assert set(json.loads(ui_screen.cells_of_one(engine, asked))) == {"trouble"} and json.loads(ui_screen.told_after(asked)) == dict(rows=[], bad=[])


def test_a_screen_goes_on_though_another_dtype_is_now_the_faster_one(engine, tmp_path):
    run(tmp_path, engine, five)
    at = tmp_path / "settings.json"
    at.write_text(at.read_text().replace("float32", "bfloat16"))
    assert run(tmp_path, engine, five).found == 5 and "bfloat16" in at.read_text()
    at.write_text("{")
    with pytest.raises(InputError, match="settings.json in .* is damaged"): run(tmp_path, engine, five)
