"Folders of cells: their images and table are read, everything else is refused in one line, and no pickle is opened."
import csv
import io
import json
import os
import random
import re
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from conftest import many
from mfm_app.core import InputError, to_float, to_uint8
from mfm_app.data import (Batches, Cells, augment, complete_table, conditions, dequantise, read_cells, resize,
                          table_columns, vocabulary)
from mfm_app.hub import bundled
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


# Folders as laboratories keep them

rng = np.random.default_rng(0)


def crop(*shape, top=255, dtype=np.uint8): return (rng.random(shape) * (top + 1)).astype(dtype)


def own_files(name="{}.png", n=2, data=None):
    "Images of DMSO and taxol under names with a number in them."
    data = data or as_image(crop(16, 16, 3), "png")
    return {f"{p}/{name.format(i)}": data for p in ("DMSO", "taxol") for i in range(n)}


def said(cells, words):
    "Whether one of the notes says so."
    return any(words in note for note in cells.notes)


def test_crops_of_a_12_bit_camera_are_scaled_by_12_bits_all_alike(folder):
    files = own_files(data=as_image(crop(16, 16, top=4095, dtype=np.uint16), "png"))
    dim = crop(16, 16, top=250, dtype=np.uint16)
    cells = read_cells(folder({**files, "DMSO/dim.png": as_image(dim, "png")}))
    assert len(np.unique(cells.images)) > 100
    assert np.array_equal(cells.images[2, 0], np.rint(dim * 255 / 4095)) and said(cells, "12 bits in 16 (0 to 4,095)")


def test_one_crop_beyond_12_bits_takes_the_whole_folder_to_16(folder):
    dim, bright = (crop(16, 16, top=top, dtype=np.uint16) for top in (3000, 60_000))
    cells = read_cells(folder({"DMSO/0.png": as_image(dim, "png"), "taxol/0.png": as_image(bright, "png")}))
    assert np.array_equal(cells.images[:, 0], np.rint(np.stack([dim, bright]) / 257))
    assert said(cells, "16 bits in 16") and not said(cells, "12 bits")


def test_crops_of_8_and_of_16_bits_do_not_mix(ask, folder):
    sixteen = crop(16, 16, top=4000, dtype=np.uint16)
    files = {"DMSO/0.png": as_image(crop(16, 16), "png"), "taxol/0.png": as_image(sixteen, "png")}
    assert "0.png has type uint16, the first image uint8" in str(ask(read_cells, folder(files)))


left_out_of_a_folder = {
    "._0.png": "hidden, or made by the system: 1 (DMSO/._0.png)",
    ".DS_Store": "hidden, or made by the system: 1 (DMSO/.DS_Store)",
    ".ipynb_checkpoints/0-checkpoint.png": "hidden, or made by the system: 1 (DMSO/.ipynb_checkpoints)",
    "Thumbs.db": "hidden, or made by the system: 1 (DMSO/Thumbs.db)",
    "../__MACOSX/DMSO/._0.png": "hidden, or made by the system: 1 (__MACOSX)",
    "day 2/0.png": "images in deeper folders: 1 (DMSO/day 2/0.png)",
    "../montage.png": "images outside the folders named by perturbation: 1 (montage.png)",
    "0.czi": "files of another kind: 1 (DMSO/0.czi)",
    "../list.txt": "files of another kind: 1 (list.txt)",
}


@pytest.mark.parametrize("name, words", left_out_of_a_folder.items(), ids=left_out_of_a_folder)
def test_what_is_not_read_is_counted_and_named(folder, name, words):
    cells = read_cells(folder({**own_files(), f"DMSO/{name}": b"\0\5\x16\7" + bytes(90)}))
    assert len(cells) == 4 and said(cells, f"Left out, {words}.")


def test_an_empty_folder_and_one_that_leads_back_are_named(folder):
    root = folder(own_files())
    (root / "nocodazole").mkdir()
    os.symlink(root, root / "taxol/again")
    store = folder({"a/1.txt": "1", "b/1.txt": "1"})      # two folders with a link to each other, linked from outside
    for name, other in ("ab", "ba"): os.symlink(store / other, store / name / "other")
    os.symlink(store / "a", root / "colchicine")
    cells = read_cells(root)
    assert len(cells) == 4 and said(cells, "an empty folder: 1 (nocodazole)")
    assert said(cells, "a link back to a folder above it: 2 (colchicine/other/other, taxol/again)")


def test_images_that_lie_deeper_than_they_should_are_pointed_at(ask, folder):
    files = {f"train/{name}": data for name, data in own_files().items()}
    assert "4 images lie elsewhere (train/DMSO/0.png" in str(ask(read_cells, folder(files)))


def test_what_a_table_does_not_name_is_counted(folder):
    lines = "image,perturbation\nDMSO/0.png,DMSO\ntaxol/0.png,taxol\n"
    cells = read_cells(folder({**own_files(), "cells.csv": lines, "log.txt": "1", "DMSO/._0.png": b"\0"}))
    assert len(cells) == 2 and said(cells, "images that cells.csv does not name: 2 (DMSO/1.png, taxol/1.png)")
    assert said(cells, "files of another kind: 1 (log.txt)") and said(cells, "1 (DMSO/._0.png)")


def test_what_metadata_csv_does_not_name_is_counted(folder):
    cells = read_cells(folder({**shard_format, "c.npz": shards["a.npz"], "README.md": "cells"}))
    assert said(cells, "files that metadata.csv does not name: 2 (README.md, c.npz)")
    assert said(cells, "images that metadata.csv does not name: 1.")


# Links

@pytest.fixture
def linked(folder):
    "A folder whose images are links to a store outside; and the store."
    store, root = folder({f"{i}.png": as_image(crop(16, 16, 3), "png") for i in range(2)}), folder({})
    for i, name in enumerate(("DMSO", "taxol")):
        (root / name).mkdir()
        os.symlink(store / f"{i}.png", root / name / "0.png")
    return root, store


def test_links_are_followed_unless_the_folder_is_somebody_elses(ask, linked):
    root, store = linked
    expected = [np.asarray(Image.open(store / f"{i}.png")).transpose(2, 0, 1) for i in range(2)]
    assert np.array_equal(read_cells(root).images, expected)
    assert "0.png is a link that leads out of the data folder" in str(ask(read_cells, root, links=False))


def test_a_folder_may_be_a_link_and_a_link_may_stay_inside(folder, linked):
    root = folder(own_files())
    os.symlink(linked[1], root / "colchicine")
    os.symlink(root / "DMSO/0.png", root / "taxol/same.png")
    cells = read_cells(root)
    assert cells.table["perturbation"].value_counts().to_dict() == {"DMSO": 2, "taxol": 3, "colchicine": 2}


def test_a_link_to_nothing_is_called_one(ask, linked):
    (linked[1] / "0.png").unlink()
    assert "0.png is a link to a file that is not there" in str(ask(read_cells, linked[0]))


def test_a_shard_may_be_a_link(folder):
    store, root = folder(shards), folder({k: v for k, v in shard_format.items() if k not in shards})
    for name in shards: os.symlink(store / name, root / name)
    assert len(read_cells(root)) == 3


@pytest.mark.parametrize("name, words", {
    "../1.npy": "leads out of the data folder", "DMSO/../../1.npy": "leads out of the data folder",
    "/etc/hostname": "leads out of the data folder", "DMSO": "is a folder", "DMSO/9.npy": "is missing"}.items())
def test_a_name_in_a_table_never_leads_out(ask, folder, name, words):
    lines = f"image,perturbation\n{name},DMSO\n"
    root = folder({"in/cells.csv": lines, "in/DMSO/1.npy": as_npy(grey), "1.npy": as_npy(grey)})
    assert words in str(ask(read_cells, root / "in"))


# Shapes

@pytest.mark.parametrize("command", ["train", "finetune", "evaluate"])
@pytest.mark.parametrize("height, width", [(80, 64), (64, 80)])
def test_cells_that_are_not_square_are_refused_by_every_command(mfm, folder, tmp_path, command, height, width):
    root = folder(own_files(data=as_image(crop(height, width, 3), "png")))
    model = [] if command == "train" else ["--model", bundled]
    code, text = mfm(command, "--data", root, *model, *(["--out", tmp_path / "run"] if command == "train" else []))
    assert code == 2 and f"The images are {width} by {height} pixels; a cell is a square" in text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["finetune", "evaluate"])
def test_cells_of_other_channels_than_the_models_are_refused(mfm, folder, command):
    root = folder(own_files(data=as_image(crop(64, 64), "png")))
    code, text = mfm(command, "--data", root, "--model", bundled)
    assert code == 2 and "The cells have 1 channels, where the model has 3 (DNA, Actin, Tubulin)." in text


def test_shards_that_are_not_square_are_refused(ask, folder):
    oblong = {**shard_format, "dataset.json": json.dumps({**info, "image_shape": [8, 6, 3]})}
    oblong |= {name: as_npz(images=images[:2, :, :6]) for name in shards}
    assert "a cell is a square" in str(ask(read_cells, folder(oblong)))


# Titles of columns and units of doses

def with_table(*lines): return {**own_files(), "cells.csv": "\n".join(lines) + "\n"}


dose_titles = {"dose": .3, "Dose": .3, "concentration": .3, "conc": .3, "Dose_uM": .3, "dose_nM": .0003, " dose_um": .3,
               "Dose (mM)": 300., "Concentration [µM]": .3, "Metadata_Concentration": .3}


@pytest.mark.parametrize("title, expected", dose_titles.items(), ids=dose_titles)
def test_a_column_of_doses_is_taken_whatever_its_title(folder, title, expected):
    cells = read_cells(folder(with_table(f"image,perturbation,{title}", "DMSO/0.png,DMSO,0", "taxol/0.png,taxol,.3")))
    assert np.array_equal(cells.table["dose_um"], [np.nan, expected], equal_nan=True)
    assert title.strip() == "dose_um" or said(cells, f"'{title.strip()}' as dose_um")
    assert ("nM" in title) == said(cells, "(times 0.001)") and ("mM" in title) == said(cells, "(times 1000)")


def test_structures_mechanisms_and_cell_lines_are_taken_by_their_usual_titles(folder):
    cells = read_cells(folder(with_table(
        "File Name; Treatment ;SMILES;MOA;Cell Line;Batch;Dose;dose_unit;well",
        "DMSO/0.png;DMSO;;;MCF-7;A;0,1;%;B02", "taxol/0.png;taxol;CCO;Stabilizers;mcf-7;B;250;nM;B03")))
    row = cells.table.iloc[1]
    assert row[["smiles", "moa", "cell_type", "experiment"]].tolist() == ["CCO", "Stabilizers", "MCF-7", "B"]
    assert row["dose_um"] == .25 and row["well"] == "B03" and said(cells, "kept and not used: well.")
    assert said(cells, "'Treatment' as perturbation, ") and said(cells, "'Dose' in the unit of 'dose_unit' as dose_um")
    assert said(cells, "doses of DMSO that are no concentration: 1 (0,1)")


def test_words_for_no_value_are_none(folder):
    cells = read_cells(folder(with_table("image,perturbation,dose,moa,smiles", "DMSO/0.png,DMSO,NA,n/a,nan",
                                         "taxol/0.png,taxol,None,NA,NULL")))
    assert cells.table["dose_um"].isna().all() and (cells.table[["moa", "smiles"]] == "").all(axis=None)
    assert said(cells, "words for no value in the column smiles: 2 (nan, NULL)")


@pytest.mark.parametrize("titles, words", {
    "dose,concentration": "two columns for the dose, 'dose' and 'concentration'",
    "dose_um,dose_nM": "two columns for the dose, 'dose_um' and 'dose_nM'",
    "compound,dose": "two columns for the perturbation, 'perturbation' and 'compound'",
    "SMILES,smiles": "two columns for the smiles, 'SMILES' and 'smiles'", "well,well": "two columns 'well'"}.items())
def test_two_columns_of_one_meaning_are_refused(ask, folder, titles, words):
    root = folder(with_table(f"image,perturbation,{titles}", "DMSO/0.png,DMSO,1,1", "taxol/0.png,taxol,1,1"))
    assert words in str(ask(read_cells, root))


@pytest.mark.parametrize("title, dose, words", [
    ("dose", "5 ug/mL", "mass"), ("dose_ug_ml", "5", "mass"), ("dose", "high", "'high'"), ("dose", "-3", "from 0 up"),
    ("log10 dose", "-5", "logarithm"), ("dose", "5 %", "share"), ("dose", "5 parsec", "parsec")])
def test_a_dose_that_is_no_concentration_is_refused_with_its_line(ask, folder, title, dose, words):
    root = folder(with_table(f"image,perturbation,{title}", "DMSO/0.png,DMSO,", f"taxol/0.png,taxol,{dose}"))
    error = str(ask(read_cells, root))
    assert error.startswith("cells.csv, line 3: ") and words in error


def test_the_line_of_an_error_is_that_of_the_file(ask, folder):
    rows = "DMSO/0.png,DMSO,\"two\nlines\",0", "taxol/0.png,taxol,,x"
    root = folder(with_table("image,perturbation,note,dose", "", *rows))
    assert "cells.csv, line 5: " in str(ask(read_cells, root))
    short = folder(with_table("image,perturbation,dose", "DMSO/0.png,DMSO"))
    assert "cells.csv, line 2 has 2 cells; its first line has 3" in str(ask(read_cells, short))


def test_blanks_and_case_of_names_are_understood_and_said(folder):
    cells = read_cells(folder(with_table(
        "image,perturbation,split", "DMSO/0.png,DMSO ,Train", "DMSO\\1.png,dmso,train ", "Taxol/0.PNG,taxol,train",
        "taxol/1.png ,Taxol,iid", "taxol/1.png,taxol,train")))
    assert cells.table["perturbation"].tolist() == ["DMSO", "DMSO", "taxol", "taxol", "taxol"]
    assert cells.table["split"].tolist() == ["train", "train", "train", "iid", "train"]
    assert cells.table["image"].tolist() == ["DMSO/0.png", "DMSO/1.png", "taxol/0.png", "taxol/1.png", "taxol/1.png"]
    for words in ("'dmso' in the column perturbation was taken as 'DMSO'", "'Taxol' in the column perturbation",
                  "blanks in the column perturbation: 1 (DMSO)", "spelled alike: 3 (",
                  "more than once: 1 (taxol/1.png)"):
        assert said(cells, words)


def test_folders_named_in_another_case_are_one_perturbation(folder):
    one = as_image(crop(16, 16, 3), "png")
    cells = read_cells(folder({**own_files(), "dmso /9.png": one, "dmso/9.png": one}))
    assert (cells.table["perturbation"] == "DMSO").sum() == 4 and said(cells, "'dmso' in the column perturbation")


def test_structures_that_differ_only_in_case_stay_apart(folder):
    names = "DMSO", "C1CCCCC1", "c1ccccc1", "CCN", "ccn"
    files = {f"{name}/0.png": as_image(crop(16, 16, 3), "png") for name in names}
    assert set(read_cells(folder(files)).table["perturbation"]) == {"DMSO", "C1CCCCC1", "c1ccccc1", "CCN"}


titles_of = dict(
    image=["image", "Image", " image ", "File Name", "filename", "image_path"],
    perturbation=["perturbation", "Compound", "treatment", "Drug name", "Metadata_Compound", "pert_iname"],
    experiment=["experiment", "Batch", "Experiment ID"], cell_type=["cell_type", "Cell Line", "cellType", "CELL-LINE"],
    moa=["moa", "MOA", "Mechanism of action"], smiles=["smiles", "SMILES", "canonical_smiles"],
    split=["split", " Split"])
values_of = dict(experiment=["Week1", "Week1 ", "week1", "2"], cell_type=["MCF-7", " U2OS"],
                 moa=["", "Actin  disruptors"], smiles=["", "CCO", " c1ccccc1"], split=["train", "Train", "ood "])
dose_titles_of = dict(title=["dose_{}", "Dose ({})", "Concentration [{}]", "conc {}"],
                      none=["dose_um", "Dose_uM", "dose"])
units = {"pM": 1e-6, "nM": 1e-3, "uM": 1, "µM": 1, "mM": 1e3, "M": 1e6}
six = [f"DMSO/é {i}.npy" for i in range(3)] + [f"taxol/{i}.NPY" for i in range(3)]
six_images = {name: crop(8, 8, 3) for name in six}
spellings = [str, str.upper, str.swapcase, "./{}".format, "{} ".format, lambda s: s.replace("/", "\\"),
             lambda s: unicodedata.normalize("NFD", s)]


@st.composite
def tables(draw):
    "A table of the six images as somebody keeps it: its text, delimiter, title of each column, unit of the doses."
    pick = lambda values: draw(st.sampled_from(list(values)))
    unit, style = pick(units), pick(["title", "beside", "cell", "none"])
    further = draw(st.sets(st.sampled_from(sorted(values_of))))
    columns = {c: pick(titles_of[c]) for c in ["image", "perturbation", *further]}
    dose = pick(dose_titles_of.get(style, ["dose", "Concentration", "conc", " pert_dose"])).format(unit)
    columns |= {"dose": dose} | ({"unit": dose.strip() + "_unit"} if style == "beside" else {})
    columns |= {extra: extra for extra in draw(st.sets(st.sampled_from(["well", "Site", "remark"])))}
    lines = [draw(st.permutations(sorted(columns)))]
    for name in draw(st.lists(st.sampled_from(six), min_size=1, max_size=6)) + six[:1]:
        values = {c: pick(values_of.get(c, ["B02", 'a "b"', "two\nlines"])) for c in columns}
        values["image"] = pick(spellings)(name)
        values["perturbation"] = pick(["DMSO", "dmso", "DMSO "] if name in six[:3] else ["taxol", "Taxol", " taxol"])
        number = pick(["0.1", "3", "15", "2.5e-2", "250", "", "0"])
        values |= dict(dose=number + pick(["", " "]) + unit if style == "cell" and number else number, unit=unit)
        lines.append([values[c] for c in lines[0]])
    delimiter, out = pick(",;\t"), io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, quoting=pick([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
                        lineterminator=pick(["\n", "\r\n", "\n\n"]))
    writer.writerows([[columns[c] for c in lines[0]], *lines[1:]])
    return pick(["", "\ufeff"]) + out.getvalue(), delimiter, columns, 1 if style == "none" else units[unit]


def plain(text): return " ".join(text.split()).casefold()


@many(15)
@given(tables())
def test_a_table_of_any_make_says_what_pandas_reads_in_it(folder, made):
    text, delimiter, columns, factor = made
    root = folder({**{name: as_npy(image) for name, image in six_images.items()}, "cells.csv": text})
    read = pd.read_csv(root / "cells.csv", sep=delimiter, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    read = read.rename(columns={title: c for c, title in columns.items()})
    cells, alike = read_cells(root), {plain(name): name for name in six}
    in_place = lambda name: unicodedata.normalize("NFC", name).replace("\\", "/").removeprefix("./")
    names = [alike[plain(in_place(name))] for name in read["image"]]
    assert cells.table["image"].tolist() == names
    assert np.array_equal(cells.images, np.stack([six_images[name] for name in names]).transpose(0, 3, 1, 2))
    doses = [float(re.match(r"[\d.e-]*", d)[0] or 0) * factor for d in read["dose"]]
    assert cells.table["dose_um"].fillna(0).tolist() == pytest.approx(doses, rel=1e-9)
    for column in set(columns) & set(table_columns):
        assert list(map(plain, cells.table[column])) == list(map(plain, read[column]))
    assert set(cells.table["perturbation"]) <= {"DMSO", "taxol", "Taxol"} and cells.table["perturbation"].nunique() <= 2
    extra = set(columns) & {"well", "Site", "remark"}
    assert all(cells.table[c].tolist() == read[c].tolist() and said(cells, c) for c in extra)


# Folders of images

containers = {      # name -> (ending, writer of (C, H, W), independent reader to (C, H, W), channels, types)
    "png": ("PNG", lambda a: as_image(a[0], "png"), lambda p: np.asarray(Image.open(p))[None], [1],
            [np.uint8, np.uint16]),
    "colours": ("png", lambda a: as_image(a.transpose(1, 2, 0).copy(), "png"),
                lambda p: np.asarray(Image.open(p)).transpose(2, 0, 1), [3], [np.uint8]),
    "pages": ("tif", as_tiff, lambda p: tifffile.imread(p).reshape(-1, *tifffile.imread(p).shape[-2:]), [1, 3, 5],
              [np.uint8, np.uint16]),
    "channels first": ("npy", as_npy, np.load, [1, 2, 3, 5], [np.uint8, np.uint16]),
    "channels last": ("npy", lambda a: as_npy(a.transpose(1, 2, 0)), lambda p: np.load(p).transpose(2, 0, 1), [1, 3, 5],
                      [np.uint8, np.uint16]),
}
hidden = ["._0.png", "DMSO/.DS_Store", "DMSO/._1.tif", "taxol/.ipynb_checkpoints/0.png", "Thumbs.db",
          "__MACOSX/DMSO/0.png"]
unread = ["notes.txt", "DMSO/table.xlsx", "taxol/0.czi", "old/2/3/x.log"]
deeper = ["DMSO/old/0.png", "taxol/a/b/1.tif", "plates/1/DMSO/0.npy"]


@st.composite
def image_folders(draw):
    "The container, the crops by name, what lies beside them, and the names that are links."
    container = draw(st.sampled_from(sorted(containers)))
    ending, _, _, channels, types = containers[container]
    c, side, dtype = (draw(st.sampled_from(v)) for v in (channels, [8, 11, 16], types))
    tops = st.sampled_from([255] if dtype == np.uint8 else [250, 900, 4095, 4096, 65_535])
    values, crops = np.random.default_rng(draw(st.integers(0, 2**32))), {}
    for name in ("DMSO", draw(st.sampled_from(["taxol", "Ünique drug", "a.b"]))):
        for i in range(draw(st.integers(1, 3))):
            crops[f"{name}/{i}.{ending}"] = values.integers(0, draw(tops), (c, side, side), dtype, endpoint=True)
    beside = draw(st.sets(st.sampled_from(hidden + unread + deeper)))
    return container, crops, beside, draw(st.sets(st.sampled_from(sorted(crops))))


@many(15)
@given(image_folders())
def test_a_folder_of_any_make_holds_what_other_readers_read(folder, made):
    container, crops, beside, links = made
    _, write, read, *_ = containers[container]
    root = folder({**{name: write(image) for name, image in crops.items()}, **dict.fromkeys(beside, b"\0\1")})
    store = folder({})
    for i, name in enumerate(links):
        (root / name).rename(store / f"{i}")
        (root / name).symlink_to(store / f"{i}")
    cells = read_cells(root)
    pixels = [read(root / name) for name in cells.table["image"]]
    assert sorted(cells.table["image"]) == sorted(crops)
    top = 255 if pixels[0].dtype == np.uint8 else 4095 if max(p.max() for p in pixels) < 4096 else 65_535
    assert np.array_equal(cells.images, np.rint(np.stack(pixels) * (255 / top)))
    parts = {"hidden, or made by the system": hidden, "files of another kind": unread,
             "images in deeper folders": deeper}
    for words, names in parts.items():
        n = len(beside & set(names))
        assert said(cells, f"{words}: {n} (") if n else not said(cells, words)


# One file a channel

guid = "9B18DBC3-4904-4DFF-8BA6-AD9479A0F64{:X}"
schemes = {      # name of a file of a cell i and a channel c from 0 -> what the channel is called
    "MetaXpress, RxRx": ("HEPG2-01_B02_s{i}_w{c1}.png", "w{c1}"),
    "MetaXpress with a GUID": ("Week1_22123_B02_s{i}_w{c1}{guid}.tif", "w{c1}"),
    "crops of MetaXpress": ("B02_s1_w{c1}_{i}.png", "w{c1}"),
    "Opera, Harmony": ("r01c01f{i:02}p01-ch{c1}sk1fk1fl1.tiff", "ch{c1}"),
    "crops of Harmony": ("r01c01f01p01-ch{c1}sk1fk1fl1_{i}.tiff", "ch{c1}"),
    "Yokogawa": ("plate_B02_T0001F{i:03}L01A01Z01C{c1:02}.tif", "C{c1:02}"),
    "Cellomics": ("MFGTMP_B02f{i:02}d{c}.TIF", "d{c}"),
    "Leica": ("Job1--Z00--{i}--C{c:02}.tif", "C{c:02}"),
    "ImageJ": ("C{c1}-cell {i}.tif", "C{c1}"),
    "numbers": ("cell{i}_ch{c:02}.png", "ch{c:02}"),
    "words": ("cell-{i}_Channel {c1}.png", "Channel {c1}"),
    "stains": ("{i}_{stain}.png", "{stain}"),
    "letters": ("01_POS{i:03}_{letter}.TIF", "{letter}"),
    "wavelengths": ("{i}_{nm}nm.tif", "{nm}nm"),
}


stain_names, letters, wavelengths = ["DAPI", "actin", "Tubulin", "ER", "mito", "RNA"], "DFR", [405, 488, 561, 640]


def named(pattern, i, c):
    "The name of a file of a cell and a channel in one of `schemes`."
    return pattern.format(i=i, c=c, c1=c + 1, guid=guid.format(c), stain=stain_names[c % 6], letter=letters[c % 3],
                          nm=wavelengths[c % 4])


@st.composite
def channel_folders(draw):
    "A scheme, how many channels, and an image for each file of cells in two folders."
    scheme = draw(st.sampled_from(sorted(schemes)))
    channels = draw(st.integers(2, dict(letters=3, wavelengths=4).get(scheme, 6)))
    values, dtype = np.random.default_rng(draw(st.integers(0, 2**32))), draw(st.sampled_from([np.uint8, np.uint16]))
    cells = [(name, i) for name in ("DMSO", "taxol") for i in range(draw(st.integers(1, 3)))]
    files = {(*cell, c): values.integers(0, [255, 4095][dtype == np.uint16], (8, 8), dtype, endpoint=True)
             for cell in cells for c in range(channels)}
    return scheme, channels, cells, files, draw(st.permutations(sorted(files)))


def channel_folder(folder, scheme, files):
    "The folder with these files, and the name of each file."
    names = {key: f"{key[0]}/{named(schemes[scheme][0], *key[1:])}" for key in files}
    return folder({names[key]: as_image(image, "tiff" if names[key].lower().endswith((".tif", ".tiff")) else "png")
                   for key, image in files.items()}), names


@many(15)
@given(channel_folders(), st.booleans())
def test_files_of_one_channel_each_are_joined_to_cells(folder, made, with_csv):
    scheme, channels, cells, files, order = made
    root, names = channel_folder(folder, scheme, files)
    table = [["image", "compound", "dose_uM"], *([names[key], key[0], "0.5"] for key in order)]
    if with_csv: (root / "cells.csv").write_text(as_csv(table))
    read, pixels = read_cells(root), lambda key: np.asarray(Image.open(root / names[key]), float)
    assert read.images.shape == (len(cells), channels, 8, 8)
    scale = 255 / (255 if next(iter(files.values())).dtype == np.uint8 else 4095)
    row_of = {names[key]: key[:2] for key in files}
    for image, row in zip(read.images, read.table.itertuples()):
        p, i = row_of[row.image]
        expected = [np.rint(pixels((p, i, c)) * scale) for c in range(channels)]
        assert p == row.perturbation and np.array_equal(image, expected)
    assert [c["name"] for c in read.channels] == [named(schemes[scheme][1], 0, c) for c in range(channels)]
    assert said(read, f"{len(files)} files were joined to {len(cells)} cells of {channels} channels each")


@pytest.mark.parametrize("scheme", sorted(set(schemes) - {"letters", "wavelengths"}))
def test_a_channel_that_is_missing_is_asked_about(ask, folder, scheme):
    files = {(p, i, c): crop(8, 8) for p in ("DMSO", "taxol") for i in range(2) for c in range(3)}
    del files["taxol", 1, 2]
    error = str(ask(read_cells, channel_folder(folder, scheme, files)[0]))
    assert "look like one file a channel" in error and "lacks" in error


def test_a_file_without_a_mark_among_files_of_channels_is_asked_about(ask, folder):
    files = own_files("B02_s1_w{}.png", data=as_image(crop(8, 8), "png"))
    error = str(ask(read_cells, folder({**files, "DMSO/montage.png": as_image(crop(8, 8), "png")})))
    assert "1 of 5 files have no such mark" in error


def test_channels_of_one_cell_have_one_treatment(ask, folder):
    grey_crop = as_image(crop(8, 8), "png")
    lines = "image,perturbation\na_w1.png,DMSO\na_w2.png,taxol\n"
    error = str(ask(read_cells, folder({"cells.csv": lines, "a_w1.png": grey_crop, "a_w2.png": grey_crop})))
    assert "a_w1.png, a_w2.png look like channels of one cell, but differ in 'perturbation'" in error


def test_a_column_of_channels_is_asked_about(ask, folder):
    lines = "image,perturbation,channel\n1.png,DMSO,DNA\n2.png,DMSO,actin\n"
    files = {"cells.csv": lines, **{f"{i}.png": as_image(crop(8, 8), "png") for i in (1, 2)}}
    assert "The column 'channel' looks like one file a channel" in str(ask(read_cells, folder(files)))


ordinary_names = ["{}.png", "cell_{}.png", "{:04}.png", "B02_s{}.png", "B02_s1_w1_{}.png", "week{}.png",
                  "crop{}_x12_y7.png", "plate1_B{:02}.png", "red{}.png", "cell {}.png", "r01c01f{:02}.png",
                  "t{}_z0.png"]


@pytest.mark.parametrize("name", ordinary_names)
def test_other_names_are_a_cell_each(folder, name):
    cells = read_cells(folder(own_files(name, 12, as_image(crop(8, 8), "png"))))
    assert cells.images.shape == (24, 1, 8, 8) and not said(cells, "joined")


def test_wells_are_not_channels_and_numbers_are_not_wavelengths(folder):
    grey_crop = as_image(crop(8, 8), "png")
    wells = [f"{row}{column:02}" for row in "BCD" for column in (2, 3)]
    for names in (wells, [str(i) for i in range(400, 500)], ["x_d", "x_f", "x_h"]):
        cells = read_cells(folder({f"DMSO/{name}.png": grey_crop for name in names}))
        assert len(cells) == len(names)


def test_files_of_several_channels_are_not_joined(ask, folder):
    cells = read_cells(folder(own_files("cell_c{}.png", 3)))
    assert len(cells) == 6 and said(cells, "were not taken for channels of one cell, since each file holds 3")
    assert "but each file holds 3 channels" in str(ask(read_cells, folder(own_files("B02_w{}.png", 3))))


# Channels by name

def as_ome(array, names):
    tifffile.imwrite(out := io.BytesIO(), array, photometric="minisblack", ome=True,
                     metadata=dict(axes="CYX", Channel=dict(Name=list(names))))
    return out.getvalue()


def test_channels_are_called_as_the_files_call_them(ask, folder):
    data = crop(3, 16, 16)
    ome = as_ome(data, ["Actin", "Tubulin", "DNA"])
    cells = read_cells(folder({"DMSO/0.ome.tif": ome, "taxol/0.ome.tif": ome}))
    assert [c["name"] for c in cells.channels] == ["Actin", "Tubulin", "DNA"] and np.array_equal(cells.images[0], data)
    assert said(cells, "The files name their channels Actin, Tubulin, DNA.")
    mixed = {f"{p}/0.ome.tif": as_ome(data, [*names, "ER"])
             for p, names in dict(DMSO=["Actin", "DNA"], taxol=["DNA", "Actin"]).items()}
    assert "channels DNA, Actin, ER in this order" in str(ask(read_cells, folder(mixed)))


def test_of_colours_it_is_said_which_channel_each_is(folder):
    cells = read_cells(folder(own_files()))
    assert said(cells, "Red, green and blue are Channel 1, 2 and 3.") and cells.channels[0]["name"] == "Channel 1"


def test_the_notes_go_with_the_cells_to_the_commands_and_the_model(mfm, folder, tmp_path):
    root = folder({**own_files(data=as_image(crop(16, 16, 3), "png")), "list.txt": "1"})
    code, text = mfm("train", "--data", root, "--out", tmp_path / "run", "--backbone", "nano/8", "--image-size", 16,
                     "--batch", 2, "--steps", 1)
    notes = ["Left out, files of another kind: 1 (list.txt).", "The files do not name their channels"]
    recorded = json.loads((tmp_path / "run/model/config.json").read_text())["data"]["notes"]
    assert code == 0 and all(note in text and any(note in r for r in recorded) for note in notes)
    cells = read_cells(root)
    assert cells[:1].notes == cells.notes == resize(cells, 8).notes


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
