"Folders of cells: what is in them comes back, whatever else is in them is refused in one line, and no pickle is opened."
import csv
import io
import json

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from mfm_app.core import InputError, condition, to_float, to_uint8
from mfm_app.data import Batches, complete_table, conditions, dequantise, read_cells, table_columns, turn, vocabulary
from mfm_app.simulator import synthetic_cells

info = dict(image_shape=[8, 8, 3], npz_key="images", control_label="DMSO", title="Test cells",
            channels=[dict(name=n, display_colour=k) for n, k in (("DNA", "blue"), ("Actin", "green"), ("Tubulin", "red"))])
images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
columns = ["shard", "row", "perturbation", "dose", "experiment", "cell_line", "moa", "smiles", "split"]
rows = [["a.npz", "1", "DMSO", "0", "Week1", "MCF-7", "DMSO", "", "train"],
        ["b.npz", "0", "taxol", "0.3", "Week1", "MCF-7", "Stabilizers", "CC", "train"],
        ["a.npz", "0", "taxol", "1", "Week2", "MCF-7", "Stabilizers", "CC", "iid"]]
table = pd.DataFrame(rows, columns=columns)
json_values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                           lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=8)


def as_csv(lines): csv.writer(out := io.StringIO(), lineterminator="\n").writerows(lines); return out.getvalue()


def as_npz(**arrays): np.savez(out := io.BytesIO(), **arrays); return out.getvalue()


def as_npy(array): np.save(out := io.BytesIO(), array); return out.getvalue()


shards = {"a.npz": as_npz(images=images[:2]), "b.npz": as_npz(images=images[2:])}
shard_format = {"dataset.json": json.dumps(info), "metadata.csv": as_csv([columns, *rows]), **shards}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Make a folder of these files (name -> text or bytes)."
    def make(files):
        place = tmp_path_factory.mktemp("cells")
        for name, content in files.items():
            path = place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        return place
    return make


# The bbbc021-cells format

def test_what_was_written_is_read(folder):
    cells = read_cells(folder(shard_format))
    assert np.array_equal(cells.images, images[[1, 2, 0]].transpose(0, 3, 1, 2)) and cells.images.dtype == np.uint8
    assert cells.table["perturbation"].tolist() == ["DMSO", "taxol", "taxol"]
    assert np.array_equal(cells.table["dose_um"], [np.nan, 0.3, 1.], equal_nan=True)
    assert cells.control == "DMSO" and [c["name"] for c in cells.channels] == ["DNA", "Actin", "Tubulin"]


def changed(column, value, line=1):
    t = table.copy()
    t.loc[line, column] = value
    return {"metadata.csv": t.to_csv(index=False)}


wrong = {
    "a shard is missing": ({"b.npz": None}, "b.npz"),
    "a shard is cut short": ({"b.npz": shards["b.npz"][:-40]}, "b.npz"),
    "a shard is empty": ({"b.npz": b""}, "b.npz"),
    "a shard is a bare array": ({"b.npz": as_npy(images)}, "b.npz"),
    "a shard has another key": ({"b.npz": as_npz(pictures=images)}, "b.npz"),
    "images are of another size": ({"b.npz": as_npz(images=images[:, :4])}, "b.npz"),
    "images are floats": ({"b.npz": as_npz(images=images / 255)}, "b.npz"),
    "a shard has a name no disk can hold": (changed("shard", "x" * 300), "shard"),
    "a shard lies elsewhere": ({**changed("shard", "../b.npz"), "../b.npz": shards["b.npz"]}, "b.npz"),
    "the table is missing": ({"metadata.csv": None}, "metadata.csv"),
    "the table is empty": ({"metadata.csv": ""}, "metadata.csv"),
    "the table has no rows": ({"metadata.csv": as_csv([columns])}, "metadata.csv"),
    "the table is not in UTF-8": ({"metadata.csv": shard_format["metadata.csv"].replace("Week", "Wöche").encode("latin-1")}, "UTF-8"),
    "a line has too many fields": ({"metadata.csv": shard_format["metadata.csv"] + "1,2,3,4,5,6,7,8,9,10\n"}, "metadata.csv"),
    "there is no perturbation column": ({"metadata.csv": table.drop(columns="perturbation").to_csv(index=False)}, "perturbation"),
    "there is no shard column": ({"metadata.csv": table.drop(columns="shard").to_csv(index=False)}, "shard"),
    "a dose is given twice": ({"metadata.csv": table.assign(dose_um=1).to_csv(index=False)}, "dose"),
    "a row is beyond the shard": (changed("row", "2"), "line 3"),
    "a row is negative": (changed("row", "-1"), "line 3"),
    "a row is a fraction": (changed("row", "0.5"), "line 3"),
    "a row is a word": (changed("row", "zero\nor one"), "line 3"),
    "a dose is a word": (changed("dose", "high"), "line 3"),
    "a dose is negative": (changed("dose", "-1"), "line 3"),
    "a dose is infinite": (changed("dose", "inf"), "line 3"),
    "a perturbation is blank": (changed("perturbation", " "), "line 3"),
    "the description is empty": ({"dataset.json": ""}, "dataset.json"),
    "the description is a list": ({"dataset.json": "[]"}, "dataset.json"),
    "the description is deep": ({"dataset.json": "[" * 100_000}, "dataset.json"),
    "images have no channels": ({"dataset.json": json.dumps({**info, "image_shape": [8, 8]}), "a.npz": as_npz(images=images[..., 0]),
                                 "b.npz": as_npz(images=images[..., 0])}, "dataset.json"),
    "the description names fewer channels": ({"dataset.json": json.dumps({**info, "channels": info["channels"][:2]})}, "dataset.json"),
}


@pytest.mark.parametrize("files, named", wrong.values(), ids=wrong)
def test_a_broken_folder_is_refused_and_the_place_is_named(ask, folder, files, named):
    error = ask(read_cells, folder({k: v for k, v in {**shard_format, **files}.items() if v is not None}))
    assert isinstance(error, InputError) and named in str(error)


@pytest.mark.parametrize("name", shard_format)
@given(content=st.binary(max_size=300))
def test_noise_for_a_file_is_refused(ask, folder, name, content):
    assert isinstance(ask(read_cells, folder({**shard_format, name: content})), InputError)


@given(st.integers(0, len(shards["b.npz"]) - 1), st.integers(0, 255))
def test_a_damaged_shard_is_refused_or_has_the_right_shape(ask, folder, at, byte):
    damaged = bytearray(shards["b.npz"])
    damaged[at] = byte
    got = ask(read_cells, folder({**shard_format, "b.npz": bytes(damaged)}))
    assert isinstance(got, InputError) or got.images.shape == (3, 3, 8, 8)


@given(st.sampled_from(sorted(info)), json_values)
def test_a_description_that_says_something_else_is_refused_or_read(ask, folder, key, value):
    got = ask(read_cells, folder({**shard_format, "dataset.json": json.dumps({**info, key: value})}))
    assert isinstance(got, InputError) or len(got.images) == len(got.table) and len(got.channels) == got.images.shape[1]


@given(json_values)
def test_json_that_describes_nothing_is_refused(ask, folder, value):
    assert isinstance(ask(read_cells, folder({**shard_format, "dataset.json": json.dumps(value)})), InputError)


@given(st.sampled_from(columns), st.text(max_size=20))
def test_a_table_with_anything_in_a_cell_is_refused_or_read(ask, folder, column, text):
    lines = [[text if name == column and i == 1 else value for name, value in zip(columns, row)] for i, row in enumerate(rows)]
    got = ask(read_cells, folder({**shard_format, "metadata.csv": as_csv([columns, *lines])}))
    assert isinstance(got, InputError) or len(got.images) == len(got.table)


# A folder of one's own

def as_image(array, kind):
    Image.fromarray(array).save(out := io.BytesIO(), kind)
    return out.getvalue()


def as_tiff(array):
    tifffile.imwrite(out := io.BytesIO(), array, photometric="minisblack")
    return out.getvalue()


grey, colour = images[0, ..., 0], images[0]
readable = {
    "grey.png": (as_image(grey, "png"), grey[None]),
    "colour.png": (as_image(colour, "png"), colour.transpose(2, 0, 1)),
    "planes.tif": (as_tiff(colour.transpose(2, 0, 1)), colour.transpose(2, 0, 1)),
    "sixteen.TIFF": (as_tiff(grey.astype(np.uint16) * 257), grey[None]),
    "last.npy": (as_npy(colour), colour.transpose(2, 0, 1)),
    "first.npy": (as_npy(colour.transpose(2, 0, 1)), colour.transpose(2, 0, 1)),
}


@pytest.mark.parametrize("name", readable)
def test_folders_named_by_perturbation_are_read(folder, name):
    data, expected = readable[name]
    cells = read_cells(folder({f"DMSO/{name}": data, f"taxol/{name}": data}))
    assert np.array_equal(cells.images, [expected, expected])
    assert cells.table["perturbation"].tolist() == ["DMSO", "taxol"] and len(cells.channels) == len(expected)


def test_a_table_of_ones_own_may_say_doses_and_experiments(folder):
    lines = "image,perturbation,dose_um,experiment\n1.npy,water,,A\n2.npy,taxol,0.5,B\n"
    cells = read_cells(folder({"cells.csv": lines, "1.npy": as_npy(grey), "2.npy": as_npy(grey)}), control="water")
    assert vocabulary(cells).names == ["water", "taxol"] and cells.table["dose_um"].tolist()[1] == 0.5


not_meant = {
    "nothing in it": {},
    "a table without rows": {"cells.csv": "image,perturbation\n"},
    "a table without images": {"cells.csv": "perturbation\nDMSO\n"},
    "a table without perturbations": {"cells.csv": "image\n1.png\n"},
    "no control": {"taxol/1.npy": as_npy(grey)},
    "a folder with a line break": {"tax\nol/1.npy": as_npy(grey)},
    "a file with a line break": {"DMSO/1\n.npy": b""},
    "a name no disk can hold": {"cells.csv": "image,perturbation\n" + "x" * 300 + ",DMSO\n"},
    "images that are not alike": {"DMSO/1.npy": as_npy(grey), "taxol/1.npy": as_npy(colour)},
    "an image of floats": {"DMSO/1.npy": as_npy(grey / 255)},
    "an image without pixels": {"DMSO/1.npy": as_npy(grey[:0])},
    "an image with four axes": {"DMSO/1.npy": as_npy(images)},
    "an image that lies elsewhere": {"cells.csv": "image,perturbation\n../1.npy,DMSO\n", "../1.npy": as_npy(grey)},
}


@pytest.mark.parametrize("files", not_meant.values(), ids=not_meant)
def test_a_folder_of_ones_own_that_cannot_be_meant_is_refused(ask, folder, files):
    assert isinstance(ask(read_cells, folder(files)), InputError)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "npy"])
@given(data=st.binary(max_size=200))
@example(data=b"II*\0\x08\0\0\0")
@example(data=b"\x89PNG\r\n\x1a\n")
@example(data=b"\x93NUMPY\x01\0")
def test_noise_for_an_image_is_refused(ask, folder, suffix, data):
    assert isinstance(ask(read_cells, folder({f"DMSO/1.{suffix}": data})), InputError)


@pytest.mark.parametrize("name", ["not there", "x" * 300, "a\nb", "a\0b", ""])
def test_a_folder_that_is_not_there_is_refused(ask, folder, name):
    assert isinstance(ask(read_cells, folder({}) / "in" / name), InputError)


# Pickles

class Trap:
    "Leaves a mark when somebody unpickles it."
    sprung = False

    @classmethod
    def spring(cls): cls.sprung = True

    def __reduce__(self): return Trap.spring, ()


@pytest.mark.parametrize("files", [
    {**shard_format, "b.npz": as_npz(images=np.array([Trap()], dtype=object))},
    {**shard_format, "b.npz": np.array([Trap()], dtype=object).dumps()},
    {"DMSO/1.npy": as_npy(np.array([Trap()], dtype=object))},
    {"DMSO/1.npy": np.array([Trap()], dtype=object).dumps()},
], ids=["in a shard", "for a shard", "in an image", "for an image"])
def test_a_pickle_is_refused_unopened(ask, folder, files):
    assert isinstance(ask(read_cells, folder(files)), InputError) and not Trap.sprung


def test_the_trap_would_spring():
    try: np.load(io.BytesIO(as_npy(np.array([Trap()], dtype=object))), **{"allow_" + "pickle": True})
    finally: sprung, Trap.sprung = Trap.sprung, False
    assert sprung


# Tables

words = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)


@given(st.dictionaries(st.sampled_from([*table_columns, "well"]) | st.text(max_size=5), st.lists(words, min_size=2, max_size=2), max_size=5))
@example({"perturbation": ["DMSO", "\n"]})
@example({"perturbation": ["DMSO", "x" * 9999], "dose_um": ["0", "high" * 999]})
@example({"a\nb": [1, 2]})
def test_a_table_comes_back_complete_or_is_refused(ask, told):
    before = pd.DataFrame(told, dtype=object)
    got = ask(complete_table, before, "cells.csv")
    if isinstance(got, InputError): return
    assert set(table_columns) <= set(got) and len(got) == 2
    assert got["dose_um"].dtype == float and not (got["dose_um"] <= 0).any() and not np.isinf(got["dose_um"]).any()
    assert got["perturbation"].astype(str).str.strip().ne("").all()
    assert list(before) == list(told), "the table that was given stays as it was"


@given(st.floats(1e-6, 1e6))
def test_a_dose_may_be_text_or_number(dose):
    for given_as in (dose, repr(dose), f" {dose!r} "):
        assert complete_table(pd.DataFrame(dict(perturbation=["a"], dose_um=[given_as])), "x")["dose_um"][0] == pytest.approx(dose, rel=1e-12)


# From cells to batches

def test_a_vocabulary_knows_the_training_cells_alone_control_first():
    cells = synthetic_cells(4, 8)
    cells.table.loc[cells.table["perturbation"] == "sweller", "split"] = "ood"
    vocab = vocabulary(cells)
    assert vocab.names == ["DMSO", "stabiliser"]
    assert vocab.perturbation("stabiliser").doses == {.1: 3, 1.: 3} and vocab.perturbations[0].doses == {}
    y = conditions(cells.table, vocab).y
    assert set(y[torch.tensor(cells.table["perturbation"] == "sweller")].tolist()) == {-1}


def test_batches_are_the_same_for_the_same_step_and_see_only_training_cells():
    cells = synthetic_cells(4, 8)
    cells.images[:] = np.where(cells.table["split"] == "train", 10, 250)[:, None, None, None]
    vocab = vocabulary(cells)
    one, other = Batches(cells, vocab, 16), Batches(cells, vocab, 16)
    other(7)
    (x, c), (again, c2), (later, _), (otherwise, _) = one(3), other(3), one(4), Batches(cells, vocab, 16, seed=1)(3)
    assert torch.equal(x, again) and torch.equal(c.y, c2.y) and torch.equal(c.e, c2.e)
    assert not torch.equal(x, later) and not torch.equal(x, otherwise)
    assert (to_uint8(x) == 10).all() and x.shape == (16, 3, 8, 8)


def test_a_batch_keeps_image_and_condition_together():
    cells = synthetic_cells(4, 8)
    vocab = vocabulary(cells)
    told = conditions(cells.table, vocab)
    cells.images[:] = (told.y * 60 + told.e * 20).numpy()[:, None, None, None]
    x, c = Batches(cells, vocab, 64)(0)
    assert torch.equal(torch.tensor(to_uint8(x)[:, 0, 0, 0]).long(), c.y * 60 + c.e * 20)


def test_dequantising_never_leaves_the_grey_level():
    every = torch.arange(256, dtype=torch.uint8).repeat(1, 3, 64, 1)
    noisy = dequantise(to_float(every), torch.Generator().manual_seed(0))
    assert np.array_equal(to_uint8(noisy), every) and not torch.equal(noisy, to_float(every))


def test_turning_moves_pixels_and_keeps_channels_together():
    x = torch.arange(64.).reshape(1, 1, 8, 8) + torch.tensor([0., 100., 200.]).reshape(1, 3, 1, 1)
    turned = turn(x.repeat(64, 1, 1, 1), torch.Generator().manual_seed(0))
    assert torch.equal(turned[:, 1] - 100, turned[:, 0]) and torch.equal(turned[:, 2] - 200, turned[:, 0])
    assert len({t.numpy().tobytes() for t in turned}) == 8, "the eight ways a square can lie"


# The real cells

def test_the_real_cells_are_all_there(real_cells):
    assert real_cells.images.shape == (9073, 3, 64, 64) and real_cells.images.dtype == np.uint8
    assert real_cells.table["split"].value_counts().to_dict() == {"train": 7772, "iid": 1232, "ood": 69}
    assert [c["name"] for c in real_cells.channels] == ["DNA", "Actin", "Tubulin"]


def test_the_real_vocabulary_has_32_perturbations_the_control_first(real_cells):
    vocab = vocabulary(real_cells)
    assert len(vocab.names) == 32 and vocab.names[0] == "DMSO" and vocab.perturbations[0].cells == 4345
    assert sum(p.cells for p in vocab.perturbations) == 7772
    assert min(vocab.perturbation("taxol").doses) == 0.3 and vocab.cell_types == ["MCF-7"]


@pytest.mark.parametrize("name", ["docetaxel", "cytochalasin D", "demecolcine"])
def test_compounds_kept_out_of_training_are_unknown(ask, real_cells, name):
    vocab = vocabulary(real_cells)
    assert isinstance(ask(condition, vocab, name), InputError)
    kept_out = real_cells.where(perturbation=name)
    assert len(kept_out) and set(kept_out.table["split"]) == {"ood"}
    assert set(conditions(kept_out.table, vocab).y.tolist()) == {-1}


def test_channels_and_rows_of_the_real_cells_are_not_mixed_up(real_cells):
    dna, actin, _ = real_cells.images[:, :, 24:40, 24:40].mean((0, 2, 3))
    rim = real_cells.images[:, 0, :6].mean()
    assert dna > 1.5 * rim, "a nucleus lies in the middle of the first channel"
    mean = lambda name, channel: real_cells.where(perturbation=name).images[:, channel].mean()
    assert mean("taxol", 2) > 1.2 * mean("DMSO", 2), "a stabilised skeleton is brighter"
