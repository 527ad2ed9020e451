"The named endpoints, as programs call them: by gradio_client, plain HTTP and the Model Context Protocol."
import asyncio
import base64
import io
import json
import logging
import math
import tempfile
import time
from functools import partial
from pathlib import Path
from zipfile import ZipFile

import gradio as gr
import httpx
import numpy as np
import pandas as pd
import pytest
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from controllable_net import ControllableNet

from mfm_app import ui, ui_api
from mfm_app.counterfactual import sample_controls
from mfm_app.engine import Engine, robustness
from mfm_app.finetune import random_model
from mfm_app.images import read_provenance
from mfm_app.simulator import synthetic_cells
from mfm_app.solvers import solvers
from mfm_app.ui_api import api, endpoint_of
from mfm_app.ui_session import not_an_upload, with_deadline

names = ["vocabulary", "molecule", "generate", "effects", "counterfactual", "screen"]
nicotine = "CN1CCC[C@H]1c1cccnc1"


@pytest.fixture(scope="module")
def engine(own_temporary):
    model = random_model()
    model.net = ControllableNet(model.net)
    return Engine(model, "cpu", torch.float32)


@pytest.fixture(autouse=True)
def responsive(engine):
    yield
    engine.model.net.pause, engine.model.net.fails = 0, False


@pytest.fixture(scope="module")
def client(address): return Client(address, verbose=False, analytics_enabled=False)


@pytest.fixture(scope="module")
def endpoints(engine):
    functions = sum((functions for _, functions in ui_api.pools.values()), [])
    return {f.__name__: endpoint_of(f, engine) for f in functions}


def sentence(text):
    "The same text, which must be one line that can be shown to users."
    assert isinstance(text, str) and len(text.splitlines()) == 1 and len(text) <= 500, f"not one line: {text!r:.700}"
    assert not any(word in text for word in ("Traceback", "site-packages", tempfile.gettempdir())), text
    return text


def refused(client, *args, **kwargs):
    with pytest.raises(AppError) as caught: client.predict(*args, **kwargs)
    return sentence(caught.value.message)


def files_left(): return [p for p in Path(tempfile.gettempdir()).rglob("*") if p.is_file() and p.stat().st_size]


def picture_of(cells):
    "The bytes of a colour picture that holds these cells' channels."
    Image.fromarray(cells[0].transpose(1, 2, 0)).save(out := io.BytesIO(), "png")
    return out.getvalue()


# What is offered

def test_the_named_endpoints_are_these_and_every_argument_is_described(address, engine):
    info = httpx.get(f"{address}gradio_api/info").json()
    assert list(info["named_endpoints"]) == [f"/{name}" for name in names] and not info["unnamed_endpoints"]
    for f in (ui_api.generate, ui_api.effects, ui_api.counterfactual, ui_api.screen):
        described = info["named_endpoints"][f"/{f.__name__}"]
        assert "hypothes" in described["description"] and "Args" not in described["description"]
        description, arguments, returns = gr.utils.get_function_description(endpoint_of(f, engine))
        assert all(len(text) > 20 for text in arguments.values()) and len(returns) == 2
        assert [p["parameter_name"] for p in described["parameters"]] == list(arguments)
        assert [p["parameter_name"] for p in described["parameters"] if not p["parameter_has_default"]] == (
            ["molecules"] if f is ui_api.screen else []
        )


def test_the_events_of_the_page_are_not_for_clients(client, address):
    private = [d for d in httpx.get(f"{address}config").json()["dependencies"] if d["api_visibility"] == "private"]
    assert len(private) > 20
    with pytest.raises(ValueError): client.predict(fn_index=private[0]["id"])
    with pytest.raises(ValueError): client.predict(api_name=f"/{private[0]['api_name']}")


def test_the_vocabulary_names_what_may_be_asked_for(client, engine):
    known = client.predict(api_name="/vocabulary")
    assert [p["name"] for p in known["perturbations"]] == engine.vocab.names
    assert known["experiments"] == engine.vocab.experiments
    stabiliser = next(p for p in known["perturbations"] if p["name"] == "stabiliser")
    assert stabiliser["dose_range_um"] == list(engine.vocab.dose_range("stabiliser")) and stabiliser["believe"]
    assert stabiliser["usual_dose_um"] in stabiliser["doses_seen_um"] and stabiliser["synonyms"] == []
    assert known["limits"]["cells"] == 64 and known["note"] == ui_api.hypothesis


def test_a_molecule_is_assessed_before_cells_are_generated(client, engine):
    facts, report = client.predict(nicotine, api_name="/molecule"), engine.assess(nicotine)
    assert (facts["smiles"], facts["verdict"], facts["believe"]) == (
        report.molecule.smiles,
        report.verdict,
        report.reason,
    )
    assert [n["name"] for n in facts["neighbours"]] == [p.name for p, _ in report.neighbours]
    assert "SMILES" in refused(client, "no molecule", api_name="/molecule")


# Cells

def test_cells_come_step_by_step_and_then_as_a_file(client, engine):
    engine.model.net.pause, start, steps = 0.1, time.monotonic(), []
    job = client.submit("stabiliser", dose_um=0.1, seeds=[3, 1], steps=6, file="NPZ", api_name="/generate")
    for facts, file in job: steps.append((time.monotonic() - start, facts, file))
    assert [facts["step"] for _, facts, _ in steps[:-1]] == list(range(7))
    assert {facts["steps"] for _, facts, _ in steps[:-1]} == {6}
    assert steps[0][0] < steps[-1][0] - 0.5 and not any(file for *_, file in steps[:-1])
    for _, facts, _ in steps[:-1]:
        assert (
            Image.open(io.BytesIO(base64.b64decode(facts["preview"].removeprefix("data:image/webp;base64,")))).format
            == "WEBP"
        )
    _, facts, file = steps[-1]
    same = engine.generate("stabiliser", 0.1, [3, 1], steps=6)
    with np.load(file, allow_pickle=False) as arrays:
        assert (arrays["stabiliser 0.1 µM"] == same.images).all() and (arrays["control"] == same.control).all()
    assert read_provenance(file) == facts["provenance"] and facts["provenance"]["seeds"] == [3, 1]
    assert facts["known"]["believe"] and facts["note"] == ui_api.hypothesis


def test_a_picture_is_handed_out_and_carries_its_provenance(client):
    facts, file = client.predict(molecule=nicotine, seeds=[0], steps=1, api_name="/generate")
    assert Image.open(file).format == "PNG" and read_provenance(file) == facts["provenance"]
    assert facts["provenance"]["molecule"] == nicotine
    assert facts["known"]["verdict"] in ("known", "close", "far") and facts["known"]["believe"]


def test_what_was_handed_out_is_deleted_with_the_other_files_of_the_page(engine):
    with gr.Blocks(analytics_enabled=False) as blocks: api(engine)
    _, url, _ = blocks.launch(prevent_thread_lock=True, quiet=True)
    before = set(files_left())
    event = httpx.post(
        f"{url}gradio_api/call/v2/generate", json=dict(perturbation="stabiliser", seeds=[5], steps=1)
    ).json()["event_id"]
    assert "event: complete" in httpx.get(f"{url}gradio_api/call/v2/generate/{event}").text
    made, = set(files_left()) - before
    gr.route_utils.delete_files_created_by_app(blocks, None)
    blocks.close(verbose=False)
    assert made.name == "cells.png" and not made.exists()


@pytest.mark.parametrize("groups, cells", [(2, 64), (14, 8)])
def test_a_preview_is_small_however_many_cells_there_are(engine, groups, cells):
    noise = np.random.default_rng(0).integers(
        0, 256, (groups, cells, *engine.model.net.shape), np.uint8
    )  # nothing compresses worse
    assert len(ui_api.preview(engine, noise)) < 40_000


def test_closing_an_endpoint_ends_its_network_calls(endpoints, engine):
    engine.model.net.pause = 0.02
    events = endpoints["generate"]("stabiliser", seeds=[0], steps=100)
    next(events), next(events)
    events.close()
    time.sleep(0.2)
    calls = engine.model.net.calls
    time.sleep(0.3)
    assert engine.model.net.calls == calls


def test_a_cancelled_job_ends_its_network_calls(client, engine):
    engine.model.net.pause = 0.02
    job = client.submit(perturbation="stabiliser", seeds=[0], steps=150, api_name="/generate")
    next(job)
    job.cancel()
    time.sleep(0.5)
    calls = engine.model.net.calls
    time.sleep(0.3)
    assert engine.model.net.calls == calls


def test_a_call_that_takes_too_long_is_stopped_and_says_so(client, engine, monkeypatch):
    monkeypatch.setattr(ui_api, "with_deadline", partial(with_deadline, seconds=0.3))
    engine.model.net.pause = 0.1
    named = dict(perturbation="stabiliser")
    late = "This took more than 0.3 seconds and was stopped; ask for fewer cells, treatments or steps."
    for name, arguments in dict(generate=named, counterfactual=named, screen=dict(molecules="CCO\nCCC")).items():
        assert refused(client, **arguments, api_name=f"/{name}") == late


def test_robustness_has_the_same_deadline(endpoints, engine, monkeypatch):
    monkeypatch.setattr(ui_api, "with_deadline", partial(with_deadline, seconds=1.5))
    engine.model.net.pause = 0.1
    with pytest.raises(gr.Error, match="took more than 1.5 seconds"):
        list(endpoints["effects"](molecule=nicotine, seeds=[0, 1], steps=12))      # sampling alone takes 1.2


def test_what_fails_inside_is_logged_and_not_shown(client, engine, caplog):
    engine.model.net.fails = True
    with caplog.at_level(logging.ERROR): text = refused(client, perturbation="stabiliser", api_name="/generate")
    assert "secret" not in text and "folder" not in text and "logged" in text
    assert any("a secret" in str(r.exc_info) for r in caplog.records)


def test_many_ask_at_once_and_each_gets_their_own(client):
    jobs = [client.submit(perturbation="stabiliser", seeds=[seed], steps=2, api_name="/generate") for seed in range(7)]
    assert [job.result(60)[0]["provenance"]["seeds"] for job in jobs] == [[seed] for seed in range(7)]


def test_a_model_that_knows_less_says_so(endpoints, engine, monkeypatch):
    def refusal(name, **arguments):
        with pytest.raises(gr.Error) as caught: list(endpoints[name](**arguments))
        return sentence(caught.value.message)
    monkeypatch.setattr(engine, "phenotypes", None)
    *_, (facts, _) = endpoints["effects"]("stabiliser", seeds=[0], steps=1)
    assert facts["robustness"] is None and facts["features"]
    monkeypatch.setattr(engine.model, "encode", None)
    monkeypatch.setattr(engine.molecules, "encode", None)
    assert not list(endpoints["vocabulary"]())[-1]["reads_molecules"]
    calls = dict(molecule=dict(smiles=nicotine), generate=dict(molecule=nicotine))
    for name, arguments in calls.items(): assert "by name alone" in refusal(name, **arguments)
    assert "no phenotype space" in refusal("screen", molecules=nicotine)


# Counterfactuals

def test_generated_controls_are_treated_and_the_reconstruction_is_measured(client, engine):
    *steps, (facts, file) = client.submit(
        perturbation="stabiliser",
        doses_um=[0.1, 1.0],
        seeds=[0, 1, 2],
        steps=3,
        file="NPZ",
        api_name="/counterfactual",
    )
    assert [f["step"] for f, _ in steps] == list(range(7))
    assert facts["treatments"] == ["stabiliser 0.1 µM", "stabiliser 1 µM"]
    with np.load(file, allow_pickle=False) as arrays:
        assert (arrays["original"] == sample_controls(engine, [0, 1, 2])[0]).all()
        error = arrays["reconstruction"].astype(float) - arrays["original"]
    fidelity = facts["fidelity"]
    assert fidelity["psnr_db"] == pytest.approx(10 * math.log10(255 ** 2 / np.square(error).mean()), abs=0.01)
    assert [c["mean_absolute_error"] for c in fidelity["channels"].values()] == pytest.approx(
        np.abs(error).mean((0, 2, 3)), abs=1e-3
    )
    assert {row["treatment"] for row in facts["channels"]} == set(facts["treatments"])


@pytest.fixture
def cell(engine): return synthetic_cells(1).images[:1]


def test_an_uploaded_cell_is_treated_and_its_file_is_gone(client, cell, tmp_path):
    (mine := tmp_path / "mine.png").write_bytes(picture_of(cell))
    facts, file = client.predict(
        perturbation="stabiliser",
        image=handle_file(mine),
        channels=[0, 1, 2],
        match=False,
        steps=1,
        file="NPZ",
        api_name="/counterfactual",
    )
    with np.load(file, allow_pickle=False) as arrays: assert (arrays["original"] == cell).all()
    assert facts["provenance"]["source"]["name"] == "mine.png" and not [p for p in files_left() if p.name == "mine.png"]


def test_labels_beside_a_field_say_which_cells_and_both_files_are_gone(client, tmp_path):
    field, labels = np.tile(synthetic_cells(1).images[0], (1, 2, 2)), np.zeros((128, 128), np.uint16)
    for number, (y, x) in enumerate([(32, 32), (96, 32), (96, 96)], 1): labels[y - 9:y + 9, x - 9:x + 9] = number
    np.save(tmp_path / "field.npy", field), np.save(tmp_path / "masks.npy", labels)
    upload = dict(image=handle_file(tmp_path / "field.npy"), labels=handle_file(tmp_path / "masks.npy"))
    own = dict(perturbation="stabiliser", channels=[0, 1, 2], steps=1, api_name="/counterfactual")
    facts, _ = client.predict(**upload, labelled="nuclei", **own)
    source = facts["provenance"]["source"]
    assert facts["cells"] == source["labels"]["count"] == 3 and source["labels"]["name"] == "masks.npy"
    assert any("taken for nuclei, as was said" in note for note in facts["notes"])
    np.save(tmp_path / "masks.npy", labels[:60])
    assert "The label image is 128 by 60 pixels" in refused(client, **upload, **own)
    assert not [p for p in files_left() if p.name in ("field.npy", "masks.npy")]


@pytest.mark.parametrize(
    "otherwise",
    [
        dict(),
        dict(perturbation="nobody"),
        dict(perturbation="stabiliser", seeds=[1]),
        dict(perturbation="stabiliser", chosen=[7]),
        dict(perturbation="stabiliser", steps="many"),
    ],
)
def test_an_upload_is_gone_though_the_question_was_refused(client, cell, tmp_path, otherwise):
    (mine := tmp_path / "mine.png").write_bytes(picture_of(cell))
    refused(client, image=handle_file(mine), **otherwise, api_name="/counterfactual")
    assert not [p for p in files_left() if p.name == "mine.png"]


def test_many_upload_the_same_file_and_each_has_their_own(client, cell, tmp_path):
    (mine := tmp_path / "mine.png").write_bytes(picture_of(cell))
    own = dict(channels=[0, 1, 2], match=False, steps=1, api_name="/counterfactual")
    jobs = [client.submit(perturbation="stabiliser", image=handle_file(mine), **own) for _ in range(6)]
    assert all(job.result(60)[0]["cells"] == 1 for job in jobs)
    assert not [p for p in files_left() if p.name == "mine.png"]


@pytest.mark.parametrize("wrong", [dict(channels=[1e300]), dict(nucleus_px=20), dict(match=False), dict(chosen=[0]),
                                   dict(labelled="cells")])
def test_the_arguments_of_an_image_need_one(client, wrong):
    text = refused(client, perturbation="stabiliser", seeds=[0], **wrong, api_name="/counterfactual")
    assert text == ui_api.image_arguments


def test_an_image_inside_a_call_may_not_be_endless(endpoints, monkeypatch):
    monkeypatch.setattr(ui_api, "max_bytes", 30_000_000)
    image = "data:;base64," + "A" * 41_000_000
    with pytest.raises(gr.Error) as caught: list(endpoints["counterfactual"]("stabiliser", image=image))
    assert sentence(caught.value.message) == "The image inside the call is larger than the 30 MB that are read."


def test_an_upload_in_the_wrong_place_is_refused_without_its_path(client, cell, tmp_path):
    (mine := tmp_path / "mine.png").write_bytes(picture_of(cell))
    assert (
        refused(client, perturbation=[handle_file(mine)], api_name="/generate")
        == "'perturbation' must be text or null, not [{...}]."
    )


def test_an_image_may_come_inside_the_call_or_by_the_address_of_its_upload(client, cell, address):
    asked = dict(
        perturbation="stabiliser", channels=[0, 1, 2], match=False, steps=1, file="NPZ", api_name="/counterfactual"
    )
    inside = "data:image/png;base64," + base64.b64encode(picture_of(cell)).decode()
    path, = httpx.post(f"{address}gradio_api/upload", files={"files": ("field 1.png", picture_of(cell))}).json()
    for image in (inside, f"{address}gradio_api/file={path}"):
        facts, file = client.predict(image=image, **asked)
        with np.load(file, allow_pickle=False) as arrays: assert (arrays["original"] == cell).all()
    assert not Path(path).exists()


here, not_base64 = str(Path(__file__).resolve()), "The image inside the call is not base64."
other_images = [
    *((image, not_an_upload) for image in (here, f"http://host/gradio_api/file={here}", "../../settings.ini", "\0", "",
                                           "x" * 10_000_000, {"path": "data:x"})),
    ("data:image/png,abc", "An image inside a call must be base64, as in 'data:image/png;base64,...'."),
    ("data:image/png;base64,ä", not_base64),
    ("data:image/png;base64,AAAA", "image is none of the kinds that are read: PNG, JPEG, BMP, TIFF, NPY and NPZ."),
    ("data:;base64,", "image is empty."),
    (7, "'image' must be an uploaded file or text or null, not 7."),
    ({"path": 7}, "'image' must be an uploaded file or text or null, not {...}.")]


@pytest.mark.parametrize("image, text", other_images)
def test_other_images_are_refused(client, image, text):
    assert refused(client, perturbation="stabiliser", image=image, api_name="/counterfactual") == text
    assert Path(__file__).exists()


@pytest.mark.parametrize(
    "path",
    [str(Path(__file__).resolve()), "/etc/passwd", "../settings.ini", "https://example.org/cells.tif", "\0", ""],
)
def test_a_path_that_claims_to_be_an_upload_is_refused_like_any_other(address, path):
    image = dict(path=path, meta={"_type": "gradio.FileData"})
    event, data = called(address, "counterfactual", perturbation="stabiliser", image=image)
    assert event == "error" and data["error"] == not_an_upload and Path(__file__).exists()


# Effects and screens

def test_effects_come_as_a_table_with_what_they_resemble(client, engine):
    facts, file = client.predict(
        molecule=nicotine, seeds=list(range(6)), steps=2, features=5, file="CSV", api_name="/effects"
    )
    answer = engine.generate(molecule=nicotine, seeds=range(6), steps=2)
    table, result = answer.comparison.table.reset_index().head(5), robustness(engine, answer)
    text = table.to_json(orient="records", double_precision=6)
    as_json = pd.read_json(io.StringIO(text), precise_float=True)
    assert pd.DataFrame(facts["features"])[list(table)].equals(as_json)
    assert [row["channel"] for row in facts["channels"]] == [c["name"] for c in engine.model.channels]
    assert all(row["significant_share"] is not None for row in facts["channels"])
    resembled = facts["robustness"]["resembles"]
    assert [r["mechanism"] for r in resembled] == [m for m, _ in result.effect.resembles]
    assert facts["robustness"]["fingerprints"] == 8
    assert facts["robustness"]["fingerprints_that_agree"] == result.agreeing
    with ZipFile(file) as tables:
        assert {"statistics.csv", "profiles.csv", "pixels.csv", "provenance.json"} == set(tables.namelist())


def test_the_effect_of_one_cell_has_no_interval(client):
    facts, file = client.predict(perturbation="stabiliser", seeds=[0], steps=1, features=1, api_name="/effects")
    row, = facts["features"]
    assert row["low"] is None and row["high"] is None and isinstance(row["treated"], float)
    assert Image.open(file).format == "PNG"
    assert (
        refused(client, perturbation="DMSO", api_name="/effects")
        == "DMSO is the control, which beside itself has no effect; ask for a treatment."
    )


def test_guidance_scale_is_another_name_of_cfg_scale(client):
    cell = dict(perturbation="stabiliser", seeds=[0], steps=1, api_name="/generate")
    facts, _ = client.predict(guidance_scale=2., **cell)
    assert facts["provenance"]["cfg_scale"] == 2
    assert refused(client, guidance_scale=2., cfg_scale=3., **cell) == "cfg_scale and guidance_scale are one; give one."


def test_a_list_is_screened_ranked_and_its_bad_rows_refused(client):
    *steps, (facts, file) = client.submit(
        molecules=f"{nicotine}, 1\nno molecule\nCCO, 1e9\nCCO\nc1ccccc1", cells=2, steps=1, api_name="/screen"
    )
    assert [r["number"] for s, _ in steps for r in s["rows"]] == [1, 2, 3]
    assert [s["found"] for s, _ in steps] == sorted(s["found"] for s, _ in steps)
    assert (facts["total"], facts["found"], facts["refused"]) == (5, 3, 2)
    assert [r["place"] for r in facts["refused_rows"]] == ["line 2", "line 3"]
    assert all(sentence(r["problem"]) for r in facts["refused_rows"])
    strengths = [r["strength"] for r in facts["ranked"]]
    assert strengths == sorted(strengths, reverse=True) and [r["rank"] for r in facts["ranked"]] == [1, 2, 3]
    with ZipFile(file) as tables:
        assert pd.read_csv(tables.open("ranked.csv"))["smiles"].tolist() == [r["smiles"] for r in facts["ranked"]]
        assert len(pd.read_csv(tables.open("refused.csv"))) == 2
        assert json.loads(tables.read("settings.json")) == facts["provenance"]
    assert not [p for p in Path(tempfile.gettempdir()).glob("screen-*")]


def test_a_long_list_is_refused_and_a_screen_that_is_left_leaves_nothing(client, endpoints):
    assert "more than 200 rows" in refused(client, molecules="CCO\n" * 201, api_name="/screen")
    facts, file = client.predict(molecules="no molecule", api_name="/screen")
    assert facts["ranked"] == [] and ZipFile(file).namelist() == ["refused.csv", "settings.json"]
    events = endpoints["screen"]("CCO\nCCC\nCCCC")
    next(events), next(events), next(events)
    events.close()
    assert not [p for p in Path(tempfile.gettempdir()).glob("screen-*")]


# Plain HTTP

def called(address, name, *args, **kwargs):
    "What a caller without any library gets: 'complete' or 'error', and the data."
    url = f"{address}gradio_api/call/{'' if args else 'v2/'}{name}"
    body = json.dumps(dict(data=args) if args else kwargs)
    joined = httpx.post(url, content=body, headers={"Content-Type": "application/json"})
    if joined.status_code != 200: return joined.status_code, joined.text
    *_, last = httpx.get(f"{url}/{joined.json()['event_id']}", timeout=60).text.strip().split("\n\n")
    event, data = last.split("\n")
    return event.removeprefix("event: "), json.loads(data.removeprefix("data: "))


def test_a_caller_without_a_library_gets_facts_and_the_address_of_a_file(address):
    event, (facts, file) = called(address, "generate", perturbation="stabiliser", seeds=[0], steps=1)
    assert event == "complete" and httpx.get(file["url"]).content.startswith(b"\x89PNG")
    assert file["orig_name"] == "cells.png"
    event, error = called(address, "generate", perturbation="nobody")
    assert event == "error" and sentence(error["error"]).startswith("Unknown perturbation 'nobody'")


# The Model Context Protocol

@pytest.fixture(scope="module")
def tools(engine):
    "Call a tool of a page that speaks the protocol, with or without progress; with no name, the list of tools."
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client
    _, url, _ = ui.launch(engine, prevent_thread_lock=True, quiet=True, mcp_server=True)
    def ask(name=None, watched=True, **arguments):
        async def talk():
            async with (streamable_http_client(f"{url}gradio_api/mcp/") as (read, write, _),
                        ClientSession(read, write) as session):
                await session.initialize()
                if name is None: return (await session.list_tools()).tools
                async def on_progress(*_): pass
                return await session.call_tool(name, arguments, progress_callback=on_progress if watched else None)
        return asyncio.run(talk())
    yield ask


def test_a_language_model_finds_the_tools_with_their_descriptions(tools):
    by_name = {tool.name: tool for tool in tools()}
    assert list(by_name) == names
    for tool in by_name.values():
        assert len(tool.description) > 80
        assert all(len(p.get("description", "")) > 20 for p in tool.inputSchema["properties"].values())
    properties = by_name["generate"].inputSchema["properties"]
    assert properties["solver"]["enum"] == ["auto", "tuned", *solvers]
    assert properties["seeds"]["items"] == {"type": "integer"}
    assert by_name["screen"].inputSchema["required"] == ["molecules"]


def test_a_language_model_gets_a_picture_and_the_facts(tools):
    answer = tools("generate", perturbation="stabiliser", seeds=[0], steps=1)
    facts, picture, where = answer.content
    assert not answer.isError and picture.type == "image"
    assert Image.open(io.BytesIO(base64.b64decode(picture.data))).format == "PNG"
    assert ui_api.hypothesis in facts.text and "weights_sha256" in facts.text and "preview" not in facts.text
    assert "cells.png" in where.text
    text, = tools("generate", watched=False, perturbation="stabiliser", seeds=[0], steps=1).content
    assert ui_api.hypothesis in text.text and "cells.png" in text.text      # without progress Gradio gives text alone


@pytest.mark.parametrize(
    "name, arguments, text",
    [
        ("generate", dict(perturbation="nobody"), "Unknown perturbation 'nobody'"),
        ("generate", dict(), "Give either a perturbation by its name or a molecule by its structure."),
        (
            "generate",
            dict(perturbation="stabiliser", steps=0),
            "Steps must be a whole number from 1 to 200, not '0'.",
        ),
        ("generate", dict(perturbation="stabiliser", seeds="all"), "'all' is not of type 'array'"),
        (
            "counterfactual",
            dict(perturbation="stabiliser", image=__file__),
            "Only a file that was uploaded here can be read.",
        ),
    ],
)
def test_a_language_model_is_told_what_is_wrong(tools, name, arguments, text):
    answer = tools(name, **arguments)
    assert answer.isError and text in sentence(answer.content[0].text)


# Anything at all

def test_how_to_call_is_shown_without_an_address():
    assert "ADDRESS" in ui_api.in_api and "127.0.0.1" not in ui_api.in_api
    assert all(name in ui_api.in_api for name in names)


odd = st.sampled_from(
    [
        "NaN",
        "Infinity",
        "-1",
        "../../etc/passwd",
        "/etc/passwd",
        "C:\\boot.ini",
        "\0",
        "'; DROP TABLE",
        "<script>",
        "C" * 1000,
        "DMSO",
        "any",
        "stabiliser",
        "midpoint",
        "PNG",
        nicotine,
        "data:image/png;base64,AAAA",
        0,
        1,
        -1,
        2**31,
        2**63,
        10**30,
        1e308,
        -0.0,
        0.1,
        True,
        [],
        {},
        [[]],
        [0, 1],
        [0.5],
        {"path": "x"},
        {"path": ["x"]},
    ]
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30) | odd,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
good = dict(
    vocabulary={},
    molecule=dict(smiles=nicotine),
    generate=dict(perturbation="stabiliser", seeds=[0], steps=1),
    effects=dict(perturbation="stabiliser", seeds=[0], steps=1),
    counterfactual=dict(perturbation="stabiliser", seeds=[0], steps=1),
    screen=dict(molecules="CCO", cells=1, steps=1),
)


def spoilt(name, endpoints):
    "Good arguments, some of them replaced by anything."
    known = list(endpoints[name].__annotations__)
    return st.dictionaries(st.sampled_from(known), anything, min_size=1, max_size=3).map(
        lambda wrong: good[name] | wrong
    )


@pytest.mark.parametrize("name", names[1:])
def test_whatever_is_asked_is_answered_or_refused_in_a_sentence(endpoints, engine, name, monkeypatch):
    unexpected = []
    monkeypatch.setattr(logging, "error", lambda *_, exc_info=None: unexpected.append(exc_info))
    @settings(max_examples=40, suppress_health_check=list(HealthCheck))
    @given(spoilt(name, endpoints))
    def check(arguments):
        try: *_, last = endpoints[name](**arguments)
        except gr.Error as e: sentence(e.message)
        else: json.dumps(last, allow_nan=False)
        assert not unexpected, repr(unexpected)
    check()


def test_a_very_long_text_is_refused(endpoints):
    for name, argument in (
        ("molecule", "smiles"),
        ("generate", "perturbation"),
        ("generate", "molecule"),
        ("generate", "experiment"),
        ("counterfactual", "cell_type"),
    ):
        arguments = good[name] | {argument: "C" * 10_000_000}
        if argument == "molecule": arguments["perturbation"] = None
        with pytest.raises(gr.Error) as caught: list(endpoints[name](**arguments))
        sentence(caught.value.message)
    *_, (facts, _) = endpoints["screen"]("C" * 10_000_000)
    assert facts["refused"] == 1 and len(json.dumps(facts)) < 10_000


def test_whatever_comes_over_the_net_the_server_goes_on(address, endpoints):
    @settings(max_examples=30, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(names[1:]).flatmap(lambda name: spoilt(name, endpoints).map(lambda wrong: (name, wrong))))
    def check(call):
        name, arguments = call
        event, data = called(address, name, **arguments)
        assert event == "complete" or event == "error" and sentence(data["error"]), (event, data)
    check()
    assert called(address, "molecule", smiles="CCO")[0] == "complete"


no_endpoint = "There is no endpoint of this name"
unknown_calls = [("generate", (), dict(nobody=1), 422, "Parameter `nobody` is not a valid key-word argument"),
                 ("screen", (), dict(cells=1), 422, "No value provided for required argument: molecules"),
                 ("nothing", (), dict(cells=1), 404, no_endpoint), ("nothing", ("x",), {}, 404, no_endpoint)]


@pytest.mark.parametrize("name, args, kwargs, status, text", unknown_calls)
def test_an_unknown_endpoint_or_argument_is_named(address, name, args, kwargs, status, text):
    code, answer = called(address, name, *args, **kwargs)
    assert code == status and sentence(json.loads(answer)["detail"]).startswith(text)


def test_calls_that_are_not_even_calls_leave_the_server_standing(address):
    for data in ([], [1, 2, 3], ["stabiliser"] * 40, None):
        httpx.post(f"{address}gradio_api/call/generate", json=dict(data=data))
    event, data = called(address, "generate", "stabiliser")
    assert event == "error" and sentence(data["error"]).startswith("Only 1 of 13 arguments came")
    assert called(address, "molecule", smiles="CCO")[0] == "complete"
