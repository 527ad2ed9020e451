"Folders of cells: their images and table are read, everything else is refused in one line, and no pickle is opened."
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

from mfm_app.core import InputError, to_float, to_uint8
from mfm_app.data import (Batches, Cells, augment, complete_table, conditions, dequantise, read_cells, resize,
                          table_columns, vocabulary)
from mfm_app.simulator import synthetic_cells
from mfm_app.vocabulary import condition

colours = dict(DNA="blue", Actin="green", Tubulin="red")
info = dict(image_shape=[8, 8, 3], npz_key="images", control_label="DMSO", title="Test cells",
            channels=[dict(name=name, display_colour=colour) for name, colour in colours.items()])
images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
columns = ["shard", "row", "perturbation", "dose", "experiment", "cell_line", "moa", "smiles", "split"]
rows = [["a.npz", "1", "DMSO", "0", "Week1", "MCF-7", "DMSO", "", "train"],
        ["b.npz", "0", "taxol", "0.3", "Week1", "MCF-7", "Stabilizers", "CC", "train"],
        ["a.npz", "0", "taxol", "1", "Week2", "MCF-7", "Stabilizers", "CC", "iid"]]
table = pd.DataFrame(rows, columns=columns)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
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
        root = tmp_path_factory.mktemp("cells")
        for name, content in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        return root
    return make


# The bbbc021-cells format

def test_a_folder_in_the_format_is_read(folder):
    cells = read_cells(folder(shard_format))
    assert np.array_equal(cells.images, images[[1, 2, 0]].transpose(0, 3, 1, 2)) and cells.images.dtype == np.uint8
    assert cells.table["perturbation"].tolist() == ["DMSO", "taxol", "taxol"]
    assert np.array_equal(cells.table["dose_um"], [np.nan, 0.3, 1.], equal_nan=True)
    assert cells.control == "DMSO" and [c["name"] for c in cells.channels] == ["DNA", "Actin", "Tubulin"]


def changed(column, value, line=1):
    t = table.copy()
    t.loc[line, column] = value
    return {"metadata.csv": t.to_csv(index=False)}


def without(column): return {"metadata.csv": table.drop(columns=column).to_csv(index=False)}


latin_1 = shard_format["metadata.csv"].replace("Week", "Wöche").encode("latin-1")
ten_fields = "1,2,3,4,5,6,7,8,9,10\n"
grey_shards = {name: as_npz(images=images[..., 0]) for name in shards}


wrong_formats = {
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
    "the table is not in UTF-8": ({"metadata.csv": latin_1}, "UTF-8"),
    "a line has too many fields": ({"metadata.csv": shard_format["metadata.csv"] + ten_fields}, "metadata.csv"),
    "there is no perturbation column": (without("perturbation"), "perturbation"),
    "there is no shard column": (without("shard"), "shard"),
    "there are two columns of doses": ({"metadata.csv": table.assign(dose_um=1).to_csv(index=False)}, "dose"),
    "a row is beyond the shard": (changed("row", "2"), "line 3"),
    "a row is negative": (changed("row", "-1"), "line 3"),
    "a row is a fraction": (changed("row", "0.5"), "line 3"),
    "a row is a word": (changed("row", "zero\nor one"), "line 3"),
    "a dose is a word": (changed("dose", "high"), "line 3"),
    "a dose is negative": (changed("dose", "-1"), "line 3"),
    "a dose is infinite": (changed("dose", "inf"), "line 3"),
    "a perturbation is blank": (changed("perturbation", " "), "line 3 (b.npz)"),
    "a split is unknown": (changed("split", "test"), "line 3 (b.npz)"),
    "the description is empty": ({"dataset.json": ""}, "dataset.json"),
    "the description is a list": ({"dataset.json": "[]"}, "dataset.json"),
    "the description is deep": ({"dataset.json": "[" * 100_000}, "dataset.json"),
    "images have no channels": ({"dataset.json": json.dumps({**info, "image_shape": [8, 8]}), **grey_shards},
                                "dataset.json"),
    "the description names fewer channels": ({"dataset.json": json.dumps({**info, "channels": info["channels"][:2]})},
                                             "dataset.json"),
}


@pytest.mark.parametrize("files, named", wrong_formats.values(), ids=wrong_formats)
def test_a_broken_folder_is_refused_and_the_file_or_line_is_named(ask, folder, files, named):
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
    cells = ask(read_cells, folder({**shard_format, "b.npz": bytes(damaged)}))
    assert isinstance(cells, InputError) or cells.images.shape == (3, 3, 8, 8)


@given(st.sampled_from(sorted(info)), json_values)
def test_a_description_with_any_value_is_refused_or_read(ask, folder, key, value):
    cells = ask(read_cells, folder({**shard_format, "dataset.json": json.dumps({**info, key: value})}))
    if isinstance(cells, InputError): return
    assert len(cells.images) == len(cells.table) and len(cells.channels) == cells.images.shape[1]


@given(json_values)
def test_json_that_describes_nothing_is_refused(ask, folder, value):
    assert isinstance(ask(read_cells, folder({**shard_format, "dataset.json": json.dumps(value)})), InputError)


@given(st.sampled_from(columns), st.text(max_size=20))
def test_a_table_with_any_text_in_a_cell_is_refused_or_read(ask, folder, column, text):
    lines = [columns, *map(list, rows)]
    lines[2][columns.index(column)] = text
    cells = ask(read_cells, folder({**shard_format, "metadata.csv": as_csv(lines)}))
    assert isinstance(cells, InputError) or len(cells.images) == len(cells.table)


# A folder of your own

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


def test_cells_csv_gives_doses_and_experiments(folder):
    lines = "image,perturbation,dose_um,experiment\n1.npy,water,,A\n2.npy,taxol,0.5,B\n"
    cells = read_cells(folder({"cells.csv": lines, "1.npy": as_npy(grey), "2.npy": as_npy(grey)}), control="water")
    assert vocabulary(cells).names == ["water", "taxol"] and cells.table["dose_um"].tolist()[1] == 0.5


wrong_folders = {
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


@pytest.mark.parametrize("files", wrong_folders.values(), ids=wrong_folders)
def test_a_folder_of_your_own_that_is_wrong_is_refused(ask, folder, files):
    assert isinstance(ask(read_cells, folder(files)), InputError)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "npy"])
@given(data=st.binary(max_size=200))
@example(data=b"II*\0\x08\0\0\0")
@example(data=b"\x89PNG\r\n\x1a\n")
@example(data=b"\x93NUMPY\x01\0")
def test_noise_for_an_image_is_refused(ask, folder, suffix, data):
    assert isinstance(ask(read_cells, folder({f"DMSO/1.{suffix}": data})), InputError)


@pytest.mark.parametrize("name", ["missing", "x" * 300, "a\nb", "a\0b", ""])
def test_a_missing_folder_is_refused(ask, folder, name):
    assert isinstance(ask(read_cells, folder({}) / "in" / name), InputError)


# Pickles

class Trap:
    "Sets `sprung` when it is unpickled."
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


def test_unpickling_springs_the_trap():
    try: np.load(io.BytesIO(as_npy(np.array([Trap()], dtype=object))), **{"allow_" + "pickle": True})
    finally: sprung, Trap.sprung = Trap.sprung, False
    assert sprung


# Tables

words = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)


column_names = st.sampled_from([*table_columns, "well"]) | st.text(max_size=5)


@given(st.dictionaries(column_names, st.lists(words, min_size=2, max_size=2), max_size=5))
@example({"perturbation": ["DMSO", "\n"]})
@example({"perturbation": ["DMSO", "x" * 9999], "dose_um": ["0", "high" * 999]})
@example({"a\nb": [1, 2]})
def test_a_table_is_completed_or_refused(ask, values):
    before = pd.DataFrame(values, dtype=object)
    table = ask(complete_table, before, "cells.csv")
    if isinstance(table, InputError): return
    assert set(table_columns) <= set(table) and len(table) == 2
    dose_um = table["dose_um"]
    assert dose_um.dtype == float and not (dose_um <= 0).any() and not np.isinf(dose_um).any()
    assert table["perturbation"].astype(str).str.strip().ne("").all()
    assert list(before) == list(values), "the table that was passed stays as it was"


@given(st.floats(1e-6, 1e6))
def test_a_dose_may_be_text_or_number(dose):
    for value in (dose, repr(dose), f" {dose!r} "):
        completed = complete_table(pd.DataFrame(dict(perturbation=["a"], dose_um=[value])), "x")
        assert completed["dose_um"][0] == pytest.approx(dose, rel=1e-12)


# Cells check themselves

right = synthetic_cells(2, 8)
wrong_rows = {
    "a perturbation is missing": (dict(perturbation=None), "a perturbation, not 'None'"),
    "a perturbation is blank": (dict(perturbation=" "), "a perturbation, not ' '"),
    "a dose is a word": (dict(dose_um="high"), "a dose in µM that is a number from 0 up or empty, not 'high'"),
    "a dose is negative": (dict(dose_um=-1.), "not '-1.0'"),
    "a dose is infinite": (dict(dose_um=np.inf), "not 'inf'"),
    "a dose is a flag": (dict(dose_um=True), "not 'True'"),
    "a split is unknown": (dict(split="test"), "a split that is train, iid or ood, not 'test'"),
    "a mechanism is no text": (dict(moa=np.nan), "a mechanism of action that is text, not 'nan'"),
}


def with_row(values, row, **columns):
    "The right table with other values in one row, and further columns."
    table = right.table.assign(**columns).astype(object)
    for column, value in values.items(): table.loc[row, column] = value
    return table


@pytest.mark.parametrize("values, words", wrong_rows.values(), ids=wrong_rows)
def test_cells_name_the_row_that_is_wrong_and_its_file(ask, values, words):
    error = str(ask(Cells, right.images, with_row(values, 3), right.channels))
    assert error.startswith("Row 3 of the table: needs ") and words in error
    with_files = with_row(values, 3, image=[f"DMSO/{i}.png" for i in range(10)])
    assert str(ask(Cells, right.images, with_files, right.channels)).startswith("Row 3 of the table (3.png): ")
    assert ", line 5: needs" in str(ask(complete_table, with_row(values, 3), "a.csv"))


@pytest.mark.parametrize("change, words", [
    (dict(images=right.images / 255), "not float64 of shape (10, 3, 8, 8)"),
    (dict(images=right.images[0]), "shape (3, 8, 8)"),
    (dict(images=None), "NoneType"),
    (dict(images=right.images[:9]), "9 images need as many rows in their table, not 10"),
    (dict(channels=right.channels[:2]), "3 channels need a name for each, not 2"),
    (dict(channels=[{}] * 3), "Channel 1 needs a name"),
    (dict(table=right.table.drop(columns=["moa", "split"])), "no column moa and split"),
    (dict(table=right.table.assign(dose_um="1")), "Doses must be floats"),
    (dict(table=right.table.assign(dose_um=0.)), "Doses must be floats"),
], ids=["floats", "one image", "no array", "an image too few", "a channel too few", "channels without names",
         "columns missing", "doses as text", "doses of zero"])
def test_cells_check_their_shapes(ask, change, words):
    parts = dict(images=right.images, table=right.table, channels=right.channels) | change
    assert words in str(ask(Cells, **parts))


def test_cells_are_selected_by_mask_slice_or_rows_and_not_checked_again(monkeypatch):
    monkeypatch.setattr(Cells, "__post_init__", None)
    treated = right.where(perturbation=["sweller", "stabiliser"], dose_um=1.)
    assert set(treated.table["perturbation"]) == {"sweller", "stabiliser"} and len(treated) == 4
    for rows in (slice(2, 5), [2, 3, 4], np.isin(np.arange(10), [2, 3, 4])):
        part = right[rows]
        assert np.array_equal(part.images, right.images[2:5])
        assert part.table.equals(right.table[2:5].reset_index(drop=True))
    assert len(right.where(perturbation="unheard of")) == 0 and part.channels is right.channels


def test_resized_cells_keep_their_table():
    large = resize(right, 16)
    assert large.images.shape == (10, 3, 16, 16) and large.table is right.table


# From cells to batches

def test_a_vocabulary_holds_the_training_cells_alone_control_first():
    cells = synthetic_cells(4, 8)
    cells.table.loc[cells.table["perturbation"] == "sweller", "split"] = "ood"
    vocab = vocabulary(cells)
    assert vocab.names == ["DMSO", "stabiliser"]
    assert vocab.perturbation("stabiliser").doses == {.1: 3, 1.: 3} and vocab.perturbations[0].doses == {}
    y = conditions(cells.table, vocab).y
    assert set(y[torch.tensor(cells.table["perturbation"] == "sweller")].tolist()) == {-1}


def test_batches_are_the_same_for_the_same_step_and_use_only_training_cells():
    cells = synthetic_cells(4, 8)
    cells.images[:] = np.where(cells.table["split"] == "train", 10, 250)[:, None, None, None]
    vocab = vocabulary(cells)
    first, second = Batches(cells, vocab, 16), Batches(cells, vocab, 16)
    second(7)
    (x, c), (same, c_same), (later, _) = first(3), second(3), first(4)
    other_seed, _ = Batches(cells, vocab, 16, seed=1)(3)
    assert torch.equal(x, same) and torch.equal(c.y, c_same.y) and torch.equal(c.e, c_same.e)
    assert not torch.equal(x, later) and not torch.equal(x, other_seed)
    assert (to_uint8(x) == 10).all() and x.shape == (16, 3, 8, 8)


def test_a_batch_keeps_image_and_condition_together():
    cells = synthetic_cells(4, 8)
    vocab = vocabulary(cells)
    labels = conditions(cells.table, vocab)
    cells.images[:] = (labels.y * 60 + labels.e * 20).numpy()[:, None, None, None]
    x, c = Batches(cells, vocab, 64)(0)
    assert torch.equal(torch.tensor(to_uint8(x)[:, 0, 0, 0]).long(), c.y * 60 + c.e * 20)


def test_dequantising_never_leaves_the_grey_level():
    every = torch.arange(256, dtype=torch.uint8).repeat(1, 3, 64, 1)
    noisy = dequantise(to_float(every), torch.Generator().manual_seed(0))
    assert np.array_equal(to_uint8(noisy), every) and not torch.equal(noisy, to_float(every))


def test_augmenting_moves_pixels_and_keeps_channels_together():
    x = torch.arange(64.).reshape(1, 1, 8, 8) + torch.tensor([0., 100., 200.]).reshape(1, 3, 1, 1)
    views = augment(x.repeat(64, 1, 1, 1), torch.Generator().manual_seed(0))
    assert torch.equal(views[:, 1] - 100, views[:, 0]) and torch.equal(views[:, 2] - 200, views[:, 0])
    assert len({view.numpy().tobytes() for view in views}) == 8, "the eight symmetries of a square"


# The real cells

def test_the_real_cells_are_complete(real_cells):
    assert real_cells.images.shape == (9073, 3, 64, 64) and real_cells.images.dtype == np.uint8
    assert real_cells.table["split"].value_counts().to_dict() == {"train": 7772, "iid": 1232, "ood": 69}
    assert [c["name"] for c in real_cells.channels] == ["DNA", "Actin", "Tubulin"]


def test_the_real_vocabulary_has_32_perturbations_the_control_first(real_cells):
    vocab = vocabulary(real_cells)
    assert len(vocab.names) == 32 and vocab.names[0] == "DMSO" and vocab.perturbations[0].cells == 4345
    assert sum(p.cells for p in vocab.perturbations) == 7772
    assert min(vocab.perturbation("taxol").doses) == 0.3 and vocab.cell_types == ["MCF-7"]


@pytest.mark.parametrize("name", ["docetaxel", "cytochalasin D", "demecolcine"])
def test_compounds_held_out_of_training_are_unknown(ask, real_cells, name):
    vocab = vocabulary(real_cells)
    assert isinstance(ask(condition, vocab, name), InputError)
    held_out = real_cells.where(perturbation=name)
    assert len(held_out) and set(held_out.table["split"]) == {"ood"}
    assert set(conditions(held_out.table, vocab).y.tolist()) == {-1}


def test_channels_and_rows_of_the_real_cells_are_not_mixed_up(real_cells):
    dna, actin, _ = real_cells.images[:, :, 24:40, 24:40].mean((0, 2, 3))
    rim = real_cells.images[:, 0, :6].mean()
    assert dna > 1.5 * rim, "a nucleus lies in the middle of the first channel"
    mean = lambda name, channel: real_cells.where(perturbation=name).images[:, channel].mean()
    assert mean("taxol", 2) > 1.2 * mean("DMSO", 2), "a stabilised skeleton is brighter"
