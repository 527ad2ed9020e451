"Which channel shows nuclei, what is left out without one, and models of 1 to 16 channels; configs that are broken."
import json
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import many
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mfm_app import plausibility as plausibility_room
from mfm_app import validation
from mfm_app.channels import find_nucleus, map_channels
from mfm_app.cli import controls_of, in_channels
from mfm_app.counterfactual import counterfactual
from mfm_app.data import Cells
from mfm_app.engine import Engine, robustness
from mfm_app.features import nuclear_channel, profile
from mfm_app.finetune import random_model
from mfm_app.hub import Model, load_model, save_model
from mfm_app.images import Micrograph
from mfm_app.plausibility import plausibility_statistics
from mfm_app.preprocess import ImportOptions, prepare_cells
from mfm_app.sampling import Sampling
from mfm_app.screen import Screened, ScreenSettings, check_settings, read_list, screen
from mfm_app.simulator import synthetic_cells
from mfm_app.ui import about
from mfm_app.validation import evaluate_counterfactuals, evaluate_model
from mfm_app.vocabulary import Perturbation, Vocabulary, check_vocabulary


def cells_with(channels:list, size=32, n=8):
    "Simulated cells of any channels: DNA, actin and tubulin again and again, each time with noise of its own."
    some, rng = synthetic_cells(n, size), np.random.default_rng(0)
    noisy = lambda i: some.images[:, i % 3] + rng.normal(0, 3 + i, some.images[:, 0].shape)
    images = np.stack([noisy(i) for i in range(len(channels))], 1).clip(0, 255).astype(np.uint8)
    return replace(some, images=images, channels=[dict(name=name, colour="white") for name in channels])


def file_of(images, names): return Micrograph(images, list(names), None, 8, [])


# The channel that shows nuclei

def test_the_config_decides_before_the_names_do(ask):
    names = ["DNA early", "actin", "DNA late"]
    assert nuclear_channel(names) == nuclear_channel(names, "") == 0 and nuclear_channel(["w1", "w2"]) == 0
    assert nuclear_channel(names, "DNA late") == nuclear_channel(names, "dna LATE") == 2
    assert nuclear_channel(names, None) is None
    assert "Unknown channel 'Golgi'" in str(ask(nuclear_channel, names, "Golgi"))


def test_without_a_nuclear_channel_a_profile_lacks_nuclei_and_nothing_else():
    images, names = synthetic_cells(2).images, ["DNA", "Actin", "Tubulin"]
    whole, rest = profile(images, names), profile(images, names, None)
    assert rest.equals(whole[[c for c in whole if "nucleus" not in c]]) and len(whole.columns) - len(rest.columns) == 14


disc = np.where(np.hypot(*(np.mgrid[:64, :64] - 32)) < 12, 200, 20).astype(np.uint8)
noise = np.random.default_rng(0).integers(0, 90, (2, 64, 64), dtype=np.uint8)


@pytest.mark.parametrize("names, found, words", [
    (["Actin", "Hoechst", "ER"], "Hoechst", "by its name"),
    (["DNA early", "DNA late", "ER"], "DNA early", "the first of DNA early, DNA late; --nucleus"),
    (["Channel 1", "Channel 2", "Channel 3"], "Channel 3", "by the picture"),
    (["Actin", "Channel 2", "Tubulin"], "Channel 2", "the only channel that may show them"),
    (["Actin", "ER", "Tubulin"], None, "since by its name no channel shows them; --nucleus"),
    (["brightfield", "phase contrast", "DIC"], None, "Nothing is measured of nuclei")])
def test_cells_to_be_trained_on_are_asked_for_their_nuclei_by_name_then_by_picture(names, found, words):
    name, why = find_nucleus(names, np.stack([*noise, disc])[None].repeat(4, 0))
    assert name == found and words in why and len(why.splitlines()) == 1


def test_where_the_picture_does_not_say_the_first_is_taken_and_that_is_said():
    name, why = find_nucleus(["w1", "w2"], noise[None])
    assert name == "w1" and "the first of those that may show them; --nucleus" in why


# Training and evaluating

def rgb_folder(folder):
    "Crops in RGB, red tubulin, green actin, blue nuclei, in folders named by perturbation."
    cells = synthetic_cells(6, 32)
    for i, image in enumerate(cells.images):
        (place := folder / cells.table.perturbation[i]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[::-1].transpose(1, 2, 0).copy()).save(place / f"{i}.png")
    return folder


tiny = "--backbone", "nano/8", "--image-size", "32", "--batch", "4", "--steps", "1"


def test_a_trained_model_says_which_channel_shows_nuclei(tmp_path, mfm):
    data, said = rgb_folder(tmp_path / "own"), {}
    for word, nucleus in ((None, "Channel 3"), ("channel 2", "Channel 2"), ("none", None)):
        out = tmp_path / str(word)
        code, said[word] = mfm("train", "--data", data, "--out", out, *tiny, *(["--nucleus", word] if word else []))
        model = load_model(out / "model")
        assert code == 0 and model.nucleus == nucleus, said[word]
        assert (model.config["controls"]["nucleus_px"] is None) == (nucleus is None)
    assert "Nuclei are measured in Channel 3, by the picture" in said[None] and "--nucleus" in said[None]
    card = (tmp_path / "none/model/README.md").read_text()
    assert "No channel shows nuclei" in card and "Nuclei are measured in Channel 3." in about(
        Engine(load_model(tmp_path / "None/model"), "cpu", torch.float32))


def test_a_nucleus_that_is_no_channel_is_refused_before_anything_is_written(tmp_path, mfm):
    data, out = rgb_folder(tmp_path / "own"), tmp_path / "run"
    code, said = mfm("train", "--data", data, "--out", out, *tiny, "--nucleus", "x")
    assert code == 2 and "mfm: Unknown channel 'x'; 3 are known" in said and not (out / "model").exists()


@pytest.mark.parametrize("nucleus", ["w2", None])
def test_models_with_and_without_nuclei_are_evaluated(monkeypatch, nucleus):
    monkeypatch.setattr(validation, "trained_conditions", lambda cells, *_: [("DMSO", None), ("sweller", 10.)])
    monkeypatch.setattr(validation, "min_real", 8)
    monkeypatch.setattr(validation, "round_trip_settings", validation.round_trip_settings[:1])
    cells = cells_with(["w1", "w2"], n=24)
    model = random_model(cells, nucleus)
    quality = evaluate_model(model, cells, 20)
    assert "A classifier of real cells" in quality["table"]
    monkeypatch.setattr(validation, "round_trips", lambda *_, **where: [])
    shift, = evaluate_counterfactuals(model, cells, 6)["shifts"]
    assert any("nucleus" in feature for feature in shift["features"]) == (nucleus is not None)
    assert np.isfinite(shift["cosine"]) and len(shift["features"]) == len(shift["real"])


def test_cells_of_a_folder_are_brought_to_the_channels_of_a_model(ask, capsys):
    cells, wanted = cells_with(["DNA", "Actin", "ER"]), [dict(name=n, colour="red") for n in ("ER", "DNA", "Actin")]
    brought = in_channels(cells, wanted)
    assert np.array_equal(brought.images, cells.images[:, [2, 0, 1]]) and brought.channels == wanted
    assert not capsys.readouterr().out
    other = in_channels(cells, [dict(name=n, colour="red") for n in ("a", "b", "c")])
    assert np.array_equal(other.images, cells.images) and "taken for a, b, c, in this order" in capsys.readouterr().out
    assert "3 channels, where the model has 2 (ER, DNA)" in str(ask(in_channels, cells, wanted[:2]))


# Models of 1 to 16 channels

shapes = [(1, 32, None), (1, 32, "w1"), (2, 32, "w2"), (6, 32, None), (8, 32, "w4"), (16, 32, "w1"), (2, 256, "w2")]


@pytest.fixture(scope="module", params=shapes, ids=str)
def model_and_cells(request):
    "A model that says how its controls look, its cells, and whether they have nuclei."
    channels, size, nucleus = request.param
    names = [f"w{i + 1}" for i in range(channels)]
    cells = cells_with(names, size, 8)
    model = random_model(cells, nucleus)
    untreated, treated = cells.images[cells.is_control], cells.images[~cells.is_control][:4]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plausibility_room, "min_controls", 8)
        model.config["controls"]["plausibility"] = plausibility_statistics(untreated, treated, names, nucleus)
    return model, cells, nucleus is not None


def test_effects_screens_counterfactuals_and_imports_work_for_any_number_of_channels(model_and_cells, ask):
    model, cells, nuclei = model_and_cells
    names, shape = [c["name"] for c in model.channels], model.net.shape
    engine = Engine(model, "cpu", torch.float32)
    answer = engine.generate("sweller", 1., seeds=range(6), steps=1)
    table = answer.comparison.table
    assert any("nucleus" in feature for feature in table.index) == nuclei and np.isfinite(table["effect"]).all()
    assert answer.comparison.map.mean.shape == shape and robustness(engine, answer).effect.resembles
    settings = check_settings(engine, ScreenSettings(1., 1, sampling=Sampling("euler", 1)))
    finished = [e for e in screen(engine, read_list(engine, "CCO"), settings) if isinstance(e, Screened)]
    assert len(finished) == 1 and finished[0].result.mechanism
    prepared = prepare_cells(model, file_of(cells.images[cells.is_control][:3], names), ImportOptions(insist=True))
    assert prepared.cells.shape == (3, *shape) and prepared.plausibility.percentile is not None
    assert ("Nuclei were not judged" in prepared.plausibility.line) != nuclei
    changed = counterfactual(engine, prepared.cells, "sweller", 1., steps=1)
    assert any("nucleus" in feature for feature in changed.comparisons[0].profiles[0]) == nuclei


def test_a_field_is_cropped_by_its_nuclei_or_refused_in_a_sentence(model_and_cells, ask):
    model, cells, nuclei = model_and_cells
    names, margin = [c["name"] for c in model.channels], model.net.shape[1] // 2
    field = np.pad(cells.images[cells.is_control][:1], ((0, 0), (0, 0), (margin, margin), (margin, margin)))
    prepared = ask(prepare_cells, model, file_of(field, names), ImportOptions(insist=True))
    if nuclei and not isinstance(prepared, Exception): assert prepared.cells.shape[1:] == model.net.shape
    if not nuclei: assert "show no nuclei by which an image could be scaled; bring cells of" in str(prepared)


def test_of_large_cells_of_many_channels_fewer_are_measured_and_looked_at():
    share = plausibility_room.measured_share
    assert share((3, 64, 64)) == share((6, 64, 64)) == 1 > share((16, 64, 64)) > share((16, 256, 256)) == .1
    looked_at = lambda *shape: len(plausibility_room.some_cells(np.zeros((20, *shape), np.uint8)))
    assert looked_at(3, 64, 64) == 16 and looked_at(16, 256, 256) == 1


# Channels of a file

channel_names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["DAPI", "405", "w1", "Channel 2", "actin", "Cy5", "red", "DNA late", "568 phalloidin"])


@many(40)
@given(st.data())
def test_any_file_brought_to_any_model_is_mapped_or_refused_in_a_sentence(ask, data):
    "No channel is taken twice, names that are the model's own are kept, and what is unclear is asked in one line."
    own = data.draw(st.lists(channel_names.filter(str.strip), min_size=1, max_size=16, unique=True))
    names = data.draw(st.lists(channel_names, min_size=1, max_size=8) | st.permutations(own))
    nucleus = data.draw(st.sampled_from([*own, "", None]))
    file = file_of(np.zeros((1, len(names), 16, 16), np.uint8), names)
    matches = ask(map_channels, file, own, ["white"] * len(own), None, None, nucleus)
    if isinstance(matches, Exception): return
    places = [m.index for m in matches]
    assert len(set(places)) == len(own)
    plain = [name.strip().casefold() for name in names]
    for name, place in zip(own, places):
        key = name.strip().casefold()
        if plain.count(key) == 1 and [n.strip().casefold() for n in own].count(key) == 1:
            assert place == plain.index(key)


def test_a_file_of_three_channels_is_refused_by_a_model_of_six(ask):
    model = random_model(cells_with([f"stain of something {i}" for i in range(6)], 32, 2))
    said = str(ask(prepare_cells, model, file_of(np.zeros((1, 3, 32, 32), np.uint8), ["DAPI", "ER", "x"])))
    assert "The file has 3 channels and the model needs 6, stain of something 0, " in said and "channels=(…)" in said
    said = str(ask(prepare_cells, model, file_of(np.zeros((1, 3, 32, 32), np.uint8), ["a", "b", "c"]),
                   ImportOptions(channels=(0, 1, 2))))
    assert said.startswith("3 channels were given; the model needs 6, one for each of")


# Broken vocabularies, channels and configs

@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    "The folder of a small model, and its config."
    model, folder = random_model(synthetic_cells(4, 32)), tmp_path_factory.mktemp("models") / "model"
    save_model(folder, model.net, model.config)
    return folder, json.loads((folder / "config.json").read_text())


def reading(ask, saved, config):
    "A model, read and asked for what a page shows at first, or the error."
    folder, _ = saved
    (folder / "config.json").write_text(json.dumps(config))
    def start():
        engine = Engine(load_model(folder), "cpu", torch.float32)
        assert about(engine) and engine.card and engine.warm() is None
        return engine.model
    return ask(start)


def changed(config, path, value):
    "A copy of a config with one part replaced; None removes it."
    config = deepcopy(config)
    *path, last = path.split()
    place = config
    for key in path: place = place[int(key) if isinstance(place, list) else key]
    if value is None: del place[last]
    else: place[int(last) if isinstance(place, list) else last] = value
    return config


@pytest.mark.parametrize("path, value, words", [
    ("channels 0", "DNA", "must give a name and a colour"), ("channels 0 name", None, "must give a name and a colour"),
    ("channels 1 colour", None, "must give a name and a colour"), ("channels 1 name", " ", "must give a name"),
    ("channels 1 colour", "sky", "The colour of a channel is"), ("channels 1 name", "DNA", "has the name 'DNA' twice"),
    ("nucleus", "Golgi", "'nucleus' in config.json"), ("nucleus", 2, "must be the name of one of its channels"),
    ("vocabulary control", "EMPTY", "The control 'EMPTY' is not one of the 3 perturbations"),
    ("vocabulary other_controls", ["EMPTY"], "The control 'EMPTY'"),
    ("vocabulary perturbations 1 name", "DMSO", "has the perturbation 'DMSO' twice"),
    ("vocabulary perturbations 1 name", "", "Every perturbation in the vocabulary needs a name; number 2"),
    ("vocabulary perturbations 1 kind", "magic", "needs a kind that is compound"),
    ("vocabulary perturbations 1 doses", {"-1": 3}, "doses above 0"),
    ("vocabulary perturbations 1 doses", None, "must hold perturbations"),
    ("vocabulary perturbations 1 experiments", {"Week9": 3}, "experiments that are listed"),
    ("vocabulary perturbations", [], "must list at least one perturbation"),
    ("vocabulary experiments", ["Week1", "Week1", "Week2"], "the experiment 'Week1' twice"),
    ("vocabulary cell_types", [], "at least one cell type"), ("vocabulary dose_margin", 0, "dose_margin"),
    ("controls percentiles", [[0, 1]], "'controls' in config.json"), ("controls nucleus_px", "big", "'controls'"),
    ("phenotypes axes", [[1]], "'phenotypes' in config.json"), ("phenotypes mechanisms", {}, "'phenotypes'"),
    ("molecules held_out", [{}], "'molecules' in config.json"), ("quality table", 3, "'quality' in config.json"),
    ("adaptor time_scale", "fast", "'time_scale' of the adaptor")])
def test_a_broken_config_is_one_sentence_at_start(ask, mfm, saved, path, value, words):
    folder, config = saved
    error = reading(ask, saved, changed(config, path, value))
    assert isinstance(error, Exception) and words in str(error) and "model" in str(error)
    code, said = mfm("serve", "--model", folder)
    assert code == 2 and said == f"mfm: {error}\n"


parts = [None, "", " ", "text", 0, -1, 1.5, 1e300, [], {}, ["a", "a"], [1, "a"], dict(name="x"), True]
removed = object()


def places(part, path=()):
    "Every place in a config, of long lists the first."
    inside = part.items() if isinstance(part, dict) else enumerate(part[:3]) if isinstance(part, list) else ()
    for key, value in inside:
        yield (*path, key)
        yield from places(value, (*path, key))


@many(40)
@given(st.data())
def test_a_config_with_anything_in_any_place_starts_or_is_one_sentence(ask, saved, data):
    _, config = saved
    *path, last = data.draw(st.sampled_from(sorted(places(config), key=str)))
    place = broken = deepcopy(config)
    for key in path: place = place[key]
    value = data.draw(st.sampled_from([*parts, removed]))
    if value is removed: del place[last]
    else: place[last] = value
    assert isinstance(reading(ask, saved, broken), (Model, Exception))


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
perturbations = st.builds(Perturbation, texts, texts, texts,
                          st.dictionaries(st.floats(-1, 9), st.integers(-1, 9), max_size=2),
                          st.dictionaries(texts, st.integers(0, 9), max_size=2))


@many(40)
@given(st.lists(perturbations, max_size=4), st.lists(texts, max_size=3), st.lists(texts, max_size=2), texts)
def test_a_vocabulary_passes_if_its_names_are_there_and_differ_and_a_control_is_among_them(ask, ps, es, cs, control):
    vocab = Vocabulary(ps, es, cs, control)
    listed = lambda names: names and all(n.strip() for n in names) and len(set(names)) == len(names)
    right = all(map(listed, (vocab.names, es, cs))) and control in vocab.names and all(
        all(dose > 0 for dose in p.doses) and all(n >= 0 for n in p.doses.values()) and set(p.experiments) <= set(es)
        for p in ps)
    answer = ask(check_vocabulary, json.loads(json.dumps(vocab.to_dict())))
    assert (answer == vocab) if right else isinstance(answer, Exception)


@pytest.mark.parametrize("names, words", [
    (["DNA", "DNA", "ER"], "Two channels are called 'DNA'"), (["DNA", " ", "ER"], "Channel 2 needs a name"),
    (["DNA", None, "ER"], "Channel 2 needs a name and a colour")])
def test_cells_need_a_name_of_its_own_for_each_channel(ask, names, words):
    cells = synthetic_cells(1, 32)
    channels = [dict(name=name, colour="red") for name in names]
    assert words in str(ask(Cells, cells.images, cells.table, channels))


def test_old_configs_without_a_nucleus_are_as_before():
    cells = synthetic_cells(10, 32)
    model = random_model(cells)
    del model.config["nucleus"]
    assert model.nucleus == "" and Engine(model, "cpu", torch.float32).generate(
        "sweller", 1., seeds=[0], steps=1).nucleus == ""
    names = [c["name"] for c in cells.channels]
    assert controls_of(cells) == controls_of(cells, "DNA") and "nuclei" not in about(
        Engine(model, "cpu", torch.float32)).split("by flow matching.")[1].split("\n")[0]
    assert profile(cells.images[:2], names).equals(profile(cells.images[:2], names, "DNA"))
