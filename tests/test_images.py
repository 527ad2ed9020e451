"Image files: pixels and metadata are read unchanged, bad files are refused in one line, and claims are checked first."
import io
import json
import resource
import struct
import tracemalloc
import warnings
import zipfile
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from conftest import many

from mfm_app.core import InputError
from mfm_app.images import (Dye, Micrograph, digest, failures, failure, read_micrograph, read_provenance, write_npz,
                            write_ome_tiff, write_png)

rng = np.random.default_rng(0)
grey = rng.integers(0, 256, (24, 20), dtype=np.uint8)
deep = rng.integers(0, 65536, (24, 20), dtype=np.uint16)
three = rng.integers(0, 256, (3, 24, 20), dtype=np.uint8)
cells = rng.integers(0, 256, (4, 3, 24, 20), dtype=np.uint8)
channels_last = lambda array: np.moveaxis(array, -3, -1)


# How the files are written

def saved(writer, *args, **kwargs):
    "The bytes that a writer leaves in a buffer."
    writer(out := io.BytesIO(), *args, **kwargs)
    return out.getvalue()


def image_file(array, kind="PNG", mode=None, **kwargs):
    image = Image.fromarray(np.ascontiguousarray(array))
    return saved((image.convert(mode) if mode else image).save, kind, **kwargs)


def tiff(array, **kwargs): return saved(tifffile.imwrite, array, **{"photometric": "minisblack", **kwargs})
def npy(array): return saved(np.save, array)
def npz(**arrays): return saved(np.savez_compressed, **arrays)


def png(width, height, depth=8, colour=0, data=b"", before=b""):
    "A PNG with this header, whatever its content."
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def npy_claiming(shape, dtype="|u1", content=b""):
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + content


def tiff_with(data=b"", count=None, next_page=0, **tags):
    "A TIFF of one strip, written tag by tag; a tag is a code and a value."
    defaults = dict(width=(256, 64), height=(257, 64), bits=(258, 8), compression=(259, 1), photometric=(262, 1),
                    offset=(273, 8), samples=(277, 1), rows=(278, tags.get("height", (0, 64))[1]),
                    bytes=(279, len(data) if count is None else count))
    entries = sorted({**defaults, **tags}.values())
    directory = b"".join(struct.pack("<HHII", code, 4, 1, value) for code, value in entries)
    header = b"II*\0" + struct.pack("<I", 8 + len(data))
    return header + data + struct.pack("<H", len(entries)) + directory + struct.pack("<I", next_page)


def stk(planes, um=.645, unit="um", light=(), z=0):
    "An STK of MetaMorph: one page, whose planes follow one another, and what its UIC tags say of them."
    start, after = 8 + planes.nbytes, b""
    def put(content):
        nonlocal after
        after += content
        return start + len(after) - len(content)
    size, words = put(struct.pack("<2I", round(um * 10_000), 10_000)), unit.encode() + b"\0"
    name = put(struct.pack("<I", len(words)) + words)
    n, (h, w) = len(planes), planes.shape[1:]
    entries = [(256, 4, 1, w), (257, 4, 1, h), (258, 4, 1, 16), (259, 4, 1, 1), (262, 4, 1, 1), (273, 4, 1, 8),
               (277, 4, 1, 1), (278, 4, 1, h), (279, 4, 1, 2 * h * w),
               (33628, 4, 4, put(struct.pack("<8I", 3, 1, 4, size, 5, size, 6, name))),
               (33629, 5, n, put(struct.pack("<6I", round(z * 1000), 1000, 0, 0, 0, 0) * n))]
    if light: entries.append((33630, 5, n, put(b"".join(struct.pack("<2I", nm, 1) for nm in light))))
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    header = b"II*\0" + struct.pack("<I", start + len(after))
    return header + planes.astype("<u2").tobytes() + after + struct.pack("<H", len(entries)) + directory + bytes(4)


def zipped(content, name="images.npy", method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(out := io.BytesIO(), "w", method) as archive: archive.writestr(name, content)
    return out.getvalue()


@pytest.fixture(scope="module")
def write(tmp_path_factory):
    "Write bytes to a file and return its path."
    folder = tmp_path_factory.mktemp("images")
    def write(name, content):
        (path := folder / name).write_bytes(content)
        return path
    return write


# Files that are read

packed = np.packbits((deep[..., None] >> 6) >> np.arange(9, -1, -1, dtype=np.uint16) & 1).tobytes()      # 10 bits each
ten_bits = tiff_with(packed, width=(256, 20), height=(257, 24), bits=(258, 10))
deep_colours = np.stack([deep, deep[::-1], deep // 2])


def deep_png(colours, colour_type):
    "A PNG of 16-bit colours (C, H, W), its rows written byte by byte as the specification has them."
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in channels_last(colours))
    return png(20, 24, 16, colour_type, zlib.compress(rows))


fourteen_bits = dict(ome=True, metadata=dict(axes="CYX", SignificantBits=14))
imagej = dict(imagej=True, resolution=(2, 2), metadata=dict(axes="CYX", unit="um", Labels=list("abc")))
ome = dict(axes="CYX", Channel=dict(Name=["DAPI", "β-tubulin", "Actin"]), PhysicalSizeX=650, PhysicalSizeXUnit="nm")
readable = {
    "grey.png": (image_file(grey), grey[None, None], [""], 8),
    "deep.png": (image_file(deep), deep[None, None], [""], 16),
    "colour.png": (image_file(channels_last(three)), three[None], ["red", "green", "blue"], 8),
    "deep_colours.png": (deep_png(deep_colours, 2), deep_colours[None], ["red", "green", "blue"], 16),
    "deep_alpha.png": (deep_png(np.stack([*deep_colours, deep]), 6), deep_colours[None],
                       ["red", "green", "blue"], 16),
    "short_deep.png": (deep_png(deep_colours >> 4, 2), deep_colours[None] >> 4, ["red", "green", "blue"], 12),
    "grey.tif": (tiff(grey), grey[None, None], [""], 8),
    "deep.tif": (tiff(deep), deep[None, None], [""], 16),
    "big.tif": (tiff(deep, bigtiff=True, byteorder=">"), deep[None, None], [""], 16),
    "float.tif": (tiff(deep / np.float32(7)), deep[None, None] / np.float32(7), [""], None),
    "packed.tif": (ten_bits, (deep >> 6)[None, None], [""], 10),
    "pages.tif": (tiff(three), three[None], [""] * 3, 8),
    "planes.tif": (tiff(three, photometric="rgb", planarconfig="separate"), three[None], ["red", "green", "blue"],
                   8),
    "colour.tif": (tiff(channels_last(three), photometric="rgb"), three[None], ["red", "green", "blue"], 8),
    "lzw.tif": (tiff(three, compression="lzw", predictor=True), three[None], [""] * 3, 8),
    "tiles.tif": (tiff(three, compression="deflate", tile=(16, 16)), three[None], [""] * 3, 8),
    "cells.tif": (tiff(cells), cells, [""] * 3, 8),
    "field.ome.tif": (tiff(three, ome=True, metadata=ome), three[None], ["DAPI", "β-tubulin", "Actin"], 8),
    "camera.ome.tif": (tiff(three.astype(np.uint16), **fourteen_bits), three[None], [""] * 3, 14),
    "imagej.tif": (tiff(three.astype(np.uint16) * 99, **imagej), three[None] * np.uint16(99), list("abc"), 16),
    "two.npy": (npy(grey), grey[None, None], [""], 8),
    "first.npy": (npy(three), three[None], [""] * 3, 8),
    "last.npy": (npy(channels_last(three)), three[None], [""] * 3, 8),
    "cells.npy": (npy(cells), cells, [""] * 3, 8),
    "cells_last.npy": (npy(channels_last(cells)), cells, [""] * 3, 8),
    "eight.npy": (npy(cells[0, :, :8, :8].transpose(1, 2, 0)), cells[:1, :, :8, :8], [""] * 3, 8),
    "fortran.npy": (npy(np.asfortranarray(deep)), deep[None, None], [""], 16),
    "bytes.npy": (npy(deep.astype(">u2")), deep[None, None], [""], 16),
    "long.npy": (npy(deep.astype(np.int64)), deep[None, None], [""], 16),
    "short.npy": (npy(grey.astype(np.int32)), grey[None, None], [""], 8),
    "double.npy": (npy(grey / 255), (grey / 255).astype(np.float32)[None, None], [""], None),
    "images.npz": (npz(images=cells, other=grey), cells, [""] * 3, 8),
    "only.npz": (npz(whatever=cells, text=np.array("about")), cells, [""] * 3, 8),
    "stored.npz": (saved(np.savez, images=grey), grey[None, None], [""], 8),
    "named.npz": (npz(images=cells, channels=["a", "b", "c"]), cells, list("abc"), 8),
    "bytes.npz": (npz(images=cells, channel_names=np.array([b"a", b"b", b"c"])), cells, list("abc"), 8),
    "grey.bmp": (image_file(grey, "BMP"), grey[None, None], [""], 8),
    "colour.bmp": (image_file(channels_last(three), "BMP"), three[None], ["red", "green", "blue"], 8),
    "one.stk": (stk(deep[None]), deep[None, None], [""], 16),
    "three.stk": (stk(np.stack([deep, deep[::-1], deep // 2]), light=(405, 488, 561)),
                  np.stack([deep, deep[::-1], deep // 2])[None], [""] * 3, 16),
}


@pytest.mark.parametrize("name", readable)
def test_pixels_names_and_bits_are_read_unchanged(write, name):
    data, pixels, names, bits = readable[name]
    m = read_micrograph(write(name, data))
    assert m.pixels.dtype == pixels.dtype or m.pixels.dtype.kind == "u"
    assert np.array_equal(m.pixels, pixels) and m.names == names and m.bits == bits


def test_a_jpeg_is_read_nearly_unchanged_with_a_note(write):
    smooth = np.tile(np.arange(0, 240, 10, dtype=np.uint8)[:, None], (1, 20))
    m = read_micrograph(write("smooth.jpg", image_file(smooth, "JPEG", quality=95)))
    assert np.abs(m.pixels[0, 0].astype(int) - smooth).max() < 12 and "JPEG" in m.notes[0]


pixel_sizes = {"field.ome.tif": .65, "imagej.tif": .5, "grey.tif": None, "grey.png": None, "one.stk": .645,
               "three.stk": .645}      # micrometres


@pytest.mark.parametrize("name, um", pixel_sizes.items())
def test_the_pixel_size_of_a_file_is_read(write, name, um):
    assert read_micrograph(write(name, readable[name][0])).um_per_px == (um and pytest.approx(um))


def metaseries(state="on", unit="um", more=""):
    "A plane of MetaXpress, 1.3668 units a pixel."
    values = ("state", "bool", state), ("x", "float", 1.3668), ("y", "float", 1.3668), ("units", "string", unit)
    props = "".join(f'<prop id="spatial-calibration-{k}" type="{t}" value="{v}"/>' for k, t, v in values)
    return tiff(deep, description=f"<MetaData><PlaneInfo>{props}{more}</PlaneInfo></MetaData>", software="MetaSeries",
                metadata=None)


def micromanager(um):
    "A plane of Micro-Manager: JSON in a tag."
    text = json.dumps(dict(PixelSizeUm=um, Channel="DAPI")).encode()
    return tiff(deep, metadata=None, extratags=[(51123, 2, len(text) + 1, text + b"\0", True)])


def micromanager_of_all(**summary):
    "Micro-Manager's JSON for all planes, at byte 32 of a file of one page."
    text = json.dumps(summary).encode()
    before = b"{}  " + bytes(20) + struct.pack("<II", 2_355_492, len(text)) + text
    return tiff_with(before + grey.tobytes(), width=(256, 20), height=(257, 24), offset=(273, 8 + len(before)),
                     bytes=(279, grey.size), of_plane=(51123, 8))


def image_units(unit, size=2.):
    sizes = dict(PhysicalSizeX=size, PhysicalSizeY=size, PhysicalSizeXUnit=unit, PhysicalSizeYUnit=unit)
    return tiff(grey, ome=True, metadata=dict(axes="YX", **sizes))


def imagej_units(unit, per=4.): return tiff(grey, imagej=True, resolution=(per, per), metadata=dict(unit=unit))
def resolved(per, unit): return tiff(grey, resolution=(per, per), resolutionunit=unit, metadata=None)


lengths = {      # the units of the OME schema (2016-06, UnitsLength), in micrometres
    "Ym": 1e30, "Zm": 1e27, "Em": 1e24, "Pm": 1e21, "Tm": 1e18, "Gm": 1e15, "Mm": 1e12, "km": 1e9, "hm": 1e8,
    "dam": 1e7, "m": 1e6, "dm": 1e5, "cm": 1e4, "mm": 1e3, "\u00b5m": 1, "nm": 1e-3, "pm": 1e-6, "fm": 1e-9,
    "am": 1e-12, "zm": 1e-15, "ym": 1e-18, "\u00c5": 1e-4, "thou": 25.4, "li": 25_400 / 12, "in": 25_400,
    "ft": 304_800, "yd": 914_400, "mi": 1_609_344_000, "ua": 1.495978707e17, "ly": 9.4607304725808e21,
    "pc": 3.0856775814913673e22, "pt": 25_400 / 72}


@pytest.mark.parametrize("unit", lengths)
def test_every_unit_of_the_ome_schema_is_a_length(write, unit):
    assert read_micrograph(write("unit.ome.tif", image_units(unit))).um_per_px == pytest.approx(2 * lengths[unit])


said_sizes = {      # what is written, and micrometres a pixel
    "OME in pixels": (image_units("pixel"), None), "OME in a frame": (image_units("reference frame"), None),
    "OME without a unit": (tiff(grey, ome=True, metadata=dict(axes="YX", PhysicalSizeX=.3)), .3),
    "OME of zero": (image_units("nm", 0.), None), "OME below zero": (image_units("nm", -1.), None),
    "Greek mu": (image_units("\u03bcm"), 2), "the \u00e5ngstr\u00f6m sign": (image_units("\u212b"), 2e-4),
    "ImageJ microns": (imagej_units("microns"), .25), "ImageJ micron": (imagej_units("micron"), .25),
    "ImageJ um": (imagej_units("um"), .25), "ImageJ escaped": (imagej_units("\\u00B5m"), .25),
    "ImageJ nm": (imagej_units("nm", .005), .2), "ImageJ mm": (imagej_units("mm", 2000), .5),
    "ImageJ cm": (imagej_units("cm", 20_000), .5), "ImageJ inch": (imagej_units("inch", 50_800), .5),
    "ImageJ pixels": (imagej_units("pixel"), None), "ImageJ for print": (imagej_units("inch", 72), None),
    "MetaXpress": (metaseries(), 1.3668), "MetaXpress in nm": (metaseries(unit="nm"), .0013668),
    "MetaXpress not calibrated": (metaseries("off"), None), "MetaXpress in pixels": (metaseries(unit="pixel"), None),
    "STK in microns": (stk(deep[None], .5, "microns"), .5), "STK in nm": (stk(deep[None], 650, "nm"), .65),
    "STK in pixels": (stk(deep[None], 1, "pixel"), None),
    "Micro-Manager": (micromanager(.325), .325), "Micro-Manager in words": (micromanager("0.5"), .5),
    "Micro-Manager of zero": (micromanager(0.), None),
    "Micro-Manager of all planes": (micromanager_of_all(PixelSize_um=.4), .4),
    "pixels a centimetre": (resolved(20_000, "CENTIMETER"), .5), "pixels an inch": (resolved(50_800, "INCH"), .5),
    "pixels without a unit": (resolved(4, "NONE"), None),
    **{f"{dpi} dpi": (resolved(dpi, "INCH"), None) for dpi in (72, 96, 150, 300, 600)},
    "72 dpi in centimetres": (resolved(28.35, "CENTIMETER"), None),
    "PNG": (image_file(grey, dpi=(50_800, 50_800)), .5), "PNG for print": (image_file(grey, dpi=(300, 300)), None),
    "BMP for print": (image_file(grey, "BMP", dpi=(96, 96)), None),
    "JPEG for print": (image_file(grey, "JPEG", dpi=(72, 72)), None),
}


@pytest.mark.parametrize("data, um", said_sizes.values(), ids=said_sizes)
def test_a_pixel_size_is_read_wherever_it_is_said_and_print_is_none(write, data, um):
    assert read_micrograph(write("size", data)).um_per_px == (um and pytest.approx(um, rel=1e-4))


def test_pixels_that_are_not_square_are_said(write):
    sizes = dict(axes="YX", PhysicalSizeX=.5, PhysicalSizeY=.6)
    m = read_micrograph(write("oblong.ome.tif", tiff(grey, ome=True, metadata=sizes)))
    assert m.um_per_px == .5 and "Pixels are 0.5 \u00b5m wide and 0.6 \u00b5m high" in m.notes[0]


# What a file says of its channels

red, green, blue = (255, 0, 0), (0, 255, 0), (0, 0, 255)
signed = lambda rgb: int.from_bytes(bytes([*rgb, 255]), "big", signed=True)      # as OME writes a colour
ome_dyes = dict(axes="CYX", Channel=dict(
    Fluor=["DAPI", "Alexa Fluor 488", ""], EmissionWavelength=[461., .519, 6000.],
    EmissionWavelengthUnit=["nm", "\u00b5m", "\u00c5"], ExcitationWavelength=[358., 490., 561.],
    ExcitationWavelengthUnit=["nm"] * 3, Color=[signed(blue), signed(green), -1]))
tables = [np.outer(np.array(rgb) > 0, np.arange(256)).astype(np.uint8) for rgb in (red, green, (1, 1, 1))]
composite = dict(imagej=True, metadata=dict(axes="CYX", mode="composite", LUTs=tables))
rgb_names, primary = ["red", "green", "blue"], [Dye(colour=c) for c in (red, green, blue)]
rgb48 = channels_last(three.astype(np.uint16) * 200)
label = tifffile.tifffile.imagej_metadata_tag(dict(Labels=["Red"]), "<")
fiji = "ImageJ=1.53c\nchannels=3\nmode=composite\n"
one_label = dict(photometric="rgb", metadata=None, description=fiji, extratags=label)
planar = dict(photometric="rgb", planarconfig="separate")
named = dict(ome=True, metadata=dict(axes="YXS", Channel=dict(Name=["TL"])), photometric="rgb")
stains = dict(
    ome=(tiff(three, ome=True, metadata=ome_dyes), [""] * 3,
         [Dye("DAPI", 461, 358, blue), Dye("Alexa Fluor 488", 519, 490, green), Dye("", 600, 561)]),
    imagej_tables=(tiff(three, **composite), [""] * 3, [Dye(colour=red), Dye(colour=green), Dye()]),
    rgb=(tiff(channels_last(three), photometric="rgb"), rgb_names, primary),
    rgb_in_planes=(tiff(three, **planar), rgb_names, primary),
    rgb48=(tiff(rgb48, photometric="rgb"), rgb_names, primary),
    rgb48_in_planes=(tiff(three.astype(np.uint16) * 200, **planar), rgb_names, primary),
    rgb48_with_one_label=(tiff(rgb48, **one_label), rgb_names, primary),
    rgb_with_a_name=(tiff(channels_last(three), **named), rgb_names, primary),
    png=(image_file(channels_last(three)), rgb_names, primary),
    bmp=(image_file(channels_last(three), "BMP"), rgb_names, primary),
    stk=(readable["three.stk"][0], [""] * 3, [Dye(emission_nm=nm) for nm in (405, 488, 561)]),
    metaxpress=(metaseries(more='<prop id="_IllumSetting_" type="string" value="DAPI &amp; more"/>'
                                '<prop id="wavelength" type="float" value="447"/>'), ["DAPI & more"], [Dye("", 447)]),
    micromanager=(micromanager(.3), ["DAPI"], []),
    micromanager_of_all=(micromanager_of_all(ChNames=["Cy5"], ChColors=[255]), ["Cy5"], [Dye(colour=blue)]))


@pytest.mark.parametrize("data, names, dyes", stains.values(), ids=stains)
def test_names_dyes_wavelengths_and_colours_of_channels_are_read(write, data, names, dyes):
    m = read_micrograph(write("stained", data))
    assert m.names == names and m.dyes == dyes and m.pixels.shape[1] == len(names)


def test_a_single_name_of_three_colours_and_names_too_many_are_said(write):
    for data, words in ((tiff(rgb48, **one_label), "names its colours together: Red"),
                        (tiff(channels_last(three), **named), "names its colours together: TL"),
                        (npz(images=three, channels=["a", "b"]), "names 2 channels (a, b) and has 3")):
        assert any(words in note for note in read_micrograph(write("named", data)).notes)


half = np.r_[np.zeros((12, 20), np.uint8), grey[:12]]
noted = {
    "twelve bits": (tiff(deep >> 4), "taken as 12 bits"),
    "alpha": (image_file(np.dstack([channels_last(three), grey])), "alpha"),
    "alpha in a TIFF":
        (tiff(channels_last(np.r_[three, grey[None]]), photometric="rgb", extrasamples=["unassalpha"]), "alpha"),
    "grey with alpha": (image_file(np.dstack([grey, grey])), "alpha"),
    "grey thrice": (image_file(np.dstack([grey] * 3)), "taken as one channel"),
    "axes": (npy(channels_last(three)), "(H, W, C)"),
    "plain pages": (tiff(three, metadata=None), "what its 3 pages are; they were taken as channels, not as planes"),
    "pages of a shape": (tiff(three), "what its 3 pages are"),
    "other arrays": (npz(images=grey, masks=grey, scores=[1.]), "only the array 'images' was read, not masks, scores"),
    "a blank channel": (npy(np.stack([grey, grey * 0])), "Channel 2 is the same everywhere"),
    "a saturated channel": (npy(np.stack([grey, grey | (grey > 99) * np.uint8(255)])), "Channel 2 is saturated"),
    "other numbers": (npy(grey.astype(np.int64)), "taken as uint8"),
}


@pytest.mark.parametrize("data, words", noted.values(), ids=noted)
def test_an_odd_file_gets_a_note(write, data, words):
    assert any(words in note for note in read_micrograph(write("odd", data)).notes)


def test_reduced_copies_are_left_out_with_a_note(write):
    with tifffile.TiffWriter(out := io.BytesIO(), ome=True) as file:
        file.write(three, photometric="minisblack", metadata=dict(axes="CYX"), subifds=1)
        file.write(three[:, ::2, ::2], photometric="minisblack", subfiletype=1)
        file.write(three[:, :10, :10], photometric="minisblack", metadata=dict(axes="CYX", Name="label"))
    m = read_micrograph(write("pyramid.ome.tif", out.getvalue()))
    assert np.array_equal(m.pixels, three[None]) and any("left out" in note for note in m.notes)


def ome_images(*images, uuid=""):
    "An OME-TIFF of several images, each an array (C, H, W) and a name."
    parts, first = [], 0
    for i, (array, name) in enumerate(images):
        c, h, w = array.shape
        channels = "".join(f'<Channel ID="C:{i}:{j}" Name="{n}"/>' for j, n in enumerate("abcdef"[:c]))
        parts.append(f'<Image ID="I:{i}" Name="{name}"><Pixels ID="P:{i}" DimensionOrder="XYCZT" Type="uint8" '
                     f'SizeX="{w}" SizeY="{h}" SizeC="{c}" SizeZ="1" SizeT="1" PhysicalSizeX="{i + 1}">{channels}'
                     f'<TiffData IFD="{first}" PlaneCount="{c}"/></Pixels></Image>')
        first += c
    with tifffile.TiffWriter(out := io.BytesIO()) as file:
        description = f'<?xml version="1.0"?><OME xmlns="x">{"".join(parts)}</OME>'
        for plane in (plane for array, _ in images for plane in array):
            file.write(plane, description=description, metadata=None, contiguous=False, photometric="minisblack")
            description = None
    return out.getvalue()


def test_of_images_of_several_sizes_the_largest_is_the_field_and_the_others_are_named(write):
    small, tall = three[:, ::2, ::2], three[:1, :, :9]
    m = read_micrograph(write("scan.ome.tif", ome_images((small, "macro"), (three, "scan"), (tall, ""))))
    assert np.array_equal(m.pixels, three[None]) and m.um_per_px == 2 and m.names == ["a", "b", "c"]
    assert m.notes[0] == "Of the file, 3 pages of 10 by 12 pixels (macro), 1 page of 9 by 24 pixels were left out."
    m = read_micrograph(write("large.ome.tif", ome_images((small, "field"), (three, "Overview image"))))
    assert np.array_equal(m.pixels, small[None]) and "(Overview image) were left out" in m.notes[0]
    m = read_micrograph(write("cells.ome.tif", ome_images((three, "1"), (three[::-1], "2"), (small, "3"))))
    assert np.array_equal(m.pixels, [three, three[::-1]])


def test_of_plain_pages_the_largest_are_the_field_whichever_comes_first(write):
    with tifffile.TiffWriter(out := io.BytesIO()) as file:
        for page in (grey[::2, ::2], *three):
            file.write(page, photometric="minisblack", metadata=None, contiguous=False)
    m = read_micrograph(write("thumbnail.tif", out.getvalue()))
    assert np.array_equal(m.pixels, three[None]) and "1 page of 10 by 12 pixels were left out" in " ".join(m.notes)


def test_reduced_copies_within_pages_are_counted(write):
    with tifffile.TiffWriter(out := io.BytesIO(), ome=True) as file:
        file.write(three, photometric="minisblack", metadata=dict(axes="CYX"), subifds=2)
        for step in (2, 3): file.write(three[:, ::step, ::step], photometric="minisblack", subfiletype=1)
    notes = read_micrograph(write("pyramid.ome.tif", out.getvalue())).notes
    assert any("6 reduced copies within its pages were left out" in note for note in notes)


def test_channels_of_an_ome_tiff_are_in_the_order_of_its_xml(write):
    description = tifffile.tiffcomment(write("order.ome.tif", tiff(three, ome=True, metadata=ome)))
    reverse = "".join(f'<TiffData IFD="{2 - c}" FirstC="{c}" PlaneCount="1"/>' for c in range(3))
    description = description.replace('<TiffData IFD="0" PlaneCount="3"/>', reverse)
    path = write("order.ome.tif", tiff(three, description=description.encode(), metadata=None))
    assert np.array_equal(read_micrograph(path).pixels, three[None, ::-1])


def test_lzw_is_left_to_libtiff(write, monkeypatch):
    monkeypatch.delattr(tifffile.TiffPage, "asarray")      # its decoder can crash the process on damaged data
    m = read_micrograph(write("lzw.tif", readable["lzw.tif"][0]))
    assert np.array_equal(m.pixels, three[None])


def test_a_file_is_known_by_its_content_not_its_name(write):
    assert np.array_equal(read_micrograph(write("grey.jpg", image_file(grey))).pixels[0, 0], grey)


# Files of any kind, beside what an independent reader finds

def arrays(draw, channels, kinds=("uint8", "uint16", "float32"), n=None):
    "Cells (N, C, H, W) or one image (C, H, W) of random values, of some of their bits."
    dtype, bits, seed = np.dtype(draw(st.sampled_from(kinds))), draw(st.integers(7, 16)), draw(st.integers(0, 99))
    side = st.integers(8, 40)
    shape = (*([n] if n else []), channels, draw(side), draw(side))
    values = np.random.default_rng(seed).integers(0, 2 ** min(bits, 8 * dtype.itemsize), shape)
    return (values / 7 if dtype.kind == "f" else values).astype(dtype)


light, words = st.integers(300, 900).map(float), st.text(st.characters(categories=["L", "N"]), max_size=9)
rgb = st.sampled_from([red, green, blue, (255, 0, 255), (0, 160, 255)])
packings = st.sampled_from([None, "zlib", "lzw", "packbits", "zstd"])


@st.composite
def ome_files(draw):
    "An OME-TIFF: what is written, and what should be read."
    c = draw(st.integers(1, 5))
    few = lambda of: draw(st.lists(of, min_size=c, max_size=c))
    names, fluors, emission, excitation, colours = map(few, (words, words, light, light, rgb))
    cells, unit, size = draw(st.integers(1, 3)), draw(st.sampled_from(sorted(lengths))), draw(st.floats(.01, 90))
    images = arrays(draw, c, n=cells)
    about = dict(axes="CYX", PhysicalSizeX=size, PhysicalSizeY=size, PhysicalSizeXUnit=unit, PhysicalSizeYUnit=unit,
                 Channel=dict(Name=names, Fluor=fluors, EmissionWavelength=emission, ExcitationWavelength=excitation,
                              Color=[*map(signed, colours)]))
    layout = dict(compression=draw(packings), tile=draw(st.sampled_from([None, (16, 16)])),
                  predictor=draw(st.booleans()) and images.dtype.kind == "u" or None)
    if layout["compression"] in (None, "packbits"): layout["predictor"] = None
    out = io.BytesIO()
    with tifffile.TiffWriter(out, ome=True, bigtiff=draw(st.booleans()), byteorder=draw(st.sampled_from("<>"))) as file:
        for image in images: file.write(image, photometric="minisblack", metadata=about, **layout)
    dyes = [Dye(f.strip(), e, x, k) for f, e, x, k in zip(fluors, emission, excitation, colours)]
    return out.getvalue(), images, [*map(str.strip, names)], dyes, size * lengths[unit]


@st.composite
def imagej_files(draw):
    "An ImageJ TIFF of channels, with labels and look-up tables or without."
    c, per = draw(st.integers(1, 5)), draw(st.sampled_from([1.5, 4., 1000.]))
    units = ("um", 1), ("micron", 1), ("\\u00B5m", 1), ("nm", 1e-3), ("mm", 1e3), ("pixel", None)
    unit, um = draw(st.sampled_from(units))
    image, colours = arrays(draw, c), draw(st.lists(rgb, min_size=c, max_size=c))
    labels = draw(st.lists(words.filter(bool), min_size=c, max_size=c, unique=True))
    tables = [np.outer(colour, np.arange(256) / 255).round().astype(np.uint8) for colour in colours]
    shown = draw(st.booleans()) and c > 1
    metadata = dict(axes="CYX", unit=unit, Labels=labels) | (dict(mode="composite", LUTs=tables) if shown else {})
    data = tiff(image, imagej=True, resolution=(per, per), metadata=metadata)
    return data, image[None], labels, [Dye(colour=k) for k in colours] if shown else [], um and um / per


@st.composite
def plain_files(draw):
    "A TIFF that says nothing: pages, or colours in planes or interleaved, 8 or 16 bits."
    colours, interleaved = draw(st.booleans()), draw(st.booleans())
    image = arrays(draw, 3 if colours else draw(st.integers(1, 8)), ("uint8", "uint16"))
    per, unit = draw(st.sampled_from([(20_000, 3), (50_800, 2), (300, 2), (96, 2), (1, 1)]))
    layout = dict(resolution=(per, per), resolutionunit=unit, compression=draw(packings), metadata=None)
    if colours: layout |= dict(photometric="rgb", planarconfig="contig" if interleaved else "separate")
    data = tiff(channels_last(image) if colours and interleaved else image, **layout)
    names = rgb_names if colours else [""] * len(image)
    return data, image[None], names, primary if colours else [], .5 if per >= 20_000 else None


@st.composite
def pictures(draw):
    "A PNG or BMP of Pillow's, grey or in colours, with transparency or without."
    kind, mode = draw(st.sampled_from([("PNG", "L"), ("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "LA"), ("PNG", "I;16"),
                                       ("BMP", "L"), ("BMP", "RGB")]))
    image = arrays(draw, dict(L=1, RGB=3, RGBA=4, LA=2).get(mode, 1), ["uint16" if mode == "I;16" else "uint8"])
    bands = image[0] if len(image) == 1 else channels_last(image)
    dpi = draw(st.sampled_from([None, (72, 72), (50_800, 50_800)])) if kind == "PNG" else None
    data = image_file(bands, kind, **(dict(dpi=dpi) if dpi else {}))
    colours = mode.startswith("RGB")
    kept, um = image[:3] if colours else image[:1], .5 if dpi and dpi[0] > 72 else None
    return data, kept[None], rgb_names if colours else [""], primary if colours else [], um


def read_elsewhere(data):
    "The pixels (N, C, H, W) as tifffile or imagecodecs reads them, alpha included."
    if data[:2] in (b"II", b"MM"):
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            pages = np.stack([page.asarray() for page in file.pages])
        return np.moveaxis(pages, -1, 1) if pages.ndim == 4 and pages.shape[-1] == 3 else pages
    decode = imagecodecs.png_decode if data.startswith(b"\x89") else imagecodecs.bmp_decode
    return np.moveaxis(np.atleast_3d(decode(data)), -1, 0)[None]


@many(25)
@given(st.one_of(ome_files(), imagej_files(), plain_files(), pictures()))
def test_any_file_is_read_as_independent_readers_read_it_with_what_it_says(write, file):
    data, pixels, names, dyes, um = file
    m = read_micrograph(write("any", data))
    independent = read_elsewhere(data).reshape(-1, *pixels.shape[2:])
    assert np.array_equal(m.pixels, pixels) and m.names == [" ".join(n.split()) for n in names]
    assert np.array_equal(pixels.reshape(-1, *pixels.shape[2:]), independent[:pixels.shape[0] * pixels.shape[1]])
    assert m.dyes == dyes and m.um_per_px == (um and pytest.approx(um, rel=1e-5))
    if m.pixels.dtype == np.uint16: assert m.pixels.max() < 2**m.bits
    said = " ".join(m.notes)
    pages = data[:2] in (b"II", b"MM") and not any(names) and not dyes and pixels.shape[1] > 1
    assert ("what its" in said) == pages and ("alpha" in said) == (len(independent) > pixels.shape[1] * len(pixels))


# Files that are refused

class Trap:
    "Leaves a mark when somebody unpickles it."
    sprung = False

    @classmethod
    def spring(cls): cls.sprung = True

    def __reduce__(self): return Trap.spring, ()


trap = np.array([Trap()] * 2, dtype=object)


def xml(**sizes):
    "OME-XML up to the attributes of `Pixels`, whose tag is still open."
    attributes = " ".join(f'{k}="{v}"' for k, v in sizes.items())
    return f'<?xml version="1.0"?><OME xmlns="x"><Image><Pixels SizeX="20" SizeY="24" {attributes}'


def described(array, description): return tiff(array, metadata=None, description=description)


closed, ends = "/></Image></OME>", "</Pixels></Image></OME>"      # of XML without and with content
binary_only = '<OME xmlns="x"><BinaryOnly MetadataFile="plate.companion.ome" UUID="urn:uuid:2"/></OME>'
elsewhere = xml(SizeC=1).replace("<OME ", '<OME UUID="urn:uuid:1" ') + \
    '><TiffData><UUID FileName="first.ome.tif">urn:uuid:2</UUID></TiffData>' + ends
locked = bytearray(npz(images=grey))      # says that its member is encrypted
for start, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)): locked[locked.index(start) + flags] |= 1
locked = bytes(locked)
two_uuids = "><TiffData><UUID>a</UUID></TiffData><TiffData><UUID>b</UUID></TiffData>"
palette_tiff, cmyk_tiff = image_file(grey, "TIFF", mode="P"), image_file(channels_last(three), "TIFF", mode="CMYK")
mask, nan, inf = grey > 99, grey / np.float32(9), grey / 9.
nan[3, 4], inf[3, 4] = np.nan, 1e300
refused = {
    "text": (b"Dear all, the images are on the other drive.", "none of the kinds"),
    "a program": (b"MZ\x90\0" + bytes(99), "none of the kinds"),
    "nothing": (b"", "is empty"),
    "a GIF": (image_file(grey, "GIF"), "none of the kinds"),
    "a zip": (zipped("hello", "notes.txt"), "without an array"),
    "one pixel": (image_file(grey[:1, :1]), "1 by 1 pixels"),
    "seven pixels": (tiff(grey[:7]), "20 by 7 pixels"),
    "black": (image_file(grey * 0), "every pixel is 0"),
    "saturated": (npy(three * 0 + np.uint8(255)), "every pixel is 255"),
    "NaN": (tiff(nan), "NaN or infinity"),
    "infinity": (npy(inf), "NaN or infinity"),
    "17 channels": (npy(np.zeros((17, 30, 30), np.uint8)), "17 channels"),
    "17 channels in OME":
        (tiff(np.zeros((17, 24, 20), np.uint8), ome=True, metadata=dict(axes="CYX")), "17 channels"),
    "a z-stack": (tiff(three, ome=True, metadata=dict(axes="ZYX")), "z-stack of 3"),
    "an ImageJ stack": (tiff(three, imagej=True, metadata=dict(axes="ZYX")), "z-stack of 3"),
    "a film": (tiff(three, ome=True, metadata=dict(axes="TYX")), "time series of 3"),
    "a stack, its axes last": (described(three, '{"shape": [3, 24, 20], "axes": "ZYX"}'), "z-stack of 3"),
    "a stack, its axes first": (described(three, '{"axes": "ZYX", "shape": [3, 24, 20]}'), "z-stack of 3"),
    "many pages": (tiff(np.repeat(three, 3, 0), metadata=None), "9 pages"),
    "pages of colours":
        (tiff(channels_last(cells), photometric="rgb", metadata=None), "several pages of several channels"),
    "a palette": (image_file(grey, mode="P"), "palette"),
    "a palette TIFF": (palette_tiff, "palette"),
    "CMYK": (image_file(channels_last(three), "JPEG", mode="CMYK"), "CMYK"),
    "CMYK in a TIFF": (cmyk_tiff, "for print"),
    "one bit": (image_file(grey, mode="1"), "1 bit a pixel"),
    "one bit in a TIFF": (tiff(mask), "type bool"),
    "animated": (image_file(grey, save_all=True, append_images=[Image.fromarray(grey[::-1])]), "animated"),
    "light as dark": (tiff(grey, photometric="miniswhite"), "light as dark"),
    "JPEG in a TIFF": (tiff(channels_last(three), photometric="rgb", compression="jpeg"), "compressed in a way"),
    "complex": (npy(grey * 1j), "complex128"),
    "a mask": (npy(mask), "type bool"),
    "too large numbers": (npy(deep.astype(np.int64) * 2), "0 to 65,535"),
    "negative numbers": (npy(grey.astype(np.int16) - 9), "whole numbers from -9"),
    "words": (npy(np.full((9, 9), "a")), "type <U1"),
    "one axis": (npy(grey[0]), "shape (20,)"),
    "five axes": (npy(cells[None]), "shape (1, 4, 3, 24, 20)"),
    "no pixels": (npy(grey[:0]), "20 by 0 pixels"),
    "a pickle": (npy(trap), "pickled"),
    "a pickle in an NPZ": (npz(images=grey, other=trap), "pickled"),
    "several arrays": (npz(a=grey, b=grey), "several arrays (a, b)"),
    "a strange zip": (zipped(npy(grey), method=zipfile.ZIP_LZMA), "compressed in a way"),
    "one of several files": (described(three, xml(SizeC=3) + two_uuids + ends), "several files"),
    "a description elsewhere": (described(grey, binary_only), "is in another file (plate.companion.ome)"),
    "pixels elsewhere": (described(grey, elsewhere), "has its pixels in another file (first.ome.tif)"),
    "pages elsewhere": (described(grey, xml(SizeC=3) + closed), "describes 3 pages and holds 1"),
    "no image in OME": (described(grey, '<?xml version="1.0"?><OME xmlns="x"></OME>'), "describes no image"),
    "torn XML": (described(grey, "<OME><Image></OME>"), "not well-formed"),
    "a stack over time":
        (tiff(np.stack([three] * 2), ome=True, metadata=dict(axes="TZYX")), "3 planes, at 2 time points"),
    "images not alike": (ome_images((three, ""), (three[:1], "")), "not alike, with 3, 1 channels"),
    "an STK of planes": (stk(np.stack([deep] * 4), z=.5), "z-stack of 4 planes"),
    "an STK over time": (stk(np.stack([deep] * 4)), "stack (planes or time points) of 4"),
    "an old ImageJ stack": (tiff(three, metadata=None, description="ImageJ=1.29\nimages=3\n"), "stack of 3 images"),
    "a palette BMP": (saved(Image.fromarray(channels_last(three)).quantize(9).save, "BMP"), "palette"),
    "one bit in a BMP": (image_file(grey, "BMP", mode="1"), "1 bit a pixel"),
    "an NPY of the third kind": (b"\x93NUMPY\3\0" + npy(grey)[8:], "NPY of version 3.0"),
    "floats of 8 bits": (tiff_with(bytes(64 * 64), format=(339, 3)), "8 bits that no number here has"),
    "holes": (tiff_with(bytes(64 * 64), offset=(273, 0), bytes=(279, 0)), "leaves out some of its tiles"),
    "a locked zip": (locked, "uses a feature of NPZ that is not read"),
}


@pytest.mark.parametrize("data, words", refused.values(), ids=refused)
def test_a_file_that_is_no_micrograph_is_refused_with_a_reason(ask, write, data, words):
    error = ask(read_micrograph, write("image.dat", data))
    assert isinstance(error, InputError) and words in str(error) and str(error).startswith("image.dat ")
    assert not Trap.sprung


def test_only_what_damage_raises_is_called_damage():
    damage = [ValueError("x"), KeyError("x"), OSError("truncated"), EOFError(), SyntaxError("broken PNG file"),
              struct.error("x"), zlib.error("x"), zipfile.BadZipFile("x"), ZeroDivisionError(), RuntimeError("x")]
    other = [MemoryError(), NotImplementedError(), ImportError("no codec"), RecursionError(), TypeError("x"),
             OSError("Unsupported BMP compression (9)"), SyntaxError("cannot handle 12-bit layers"),
             ValueError("<COMPRESSION.JXL: 50002> requires the 'imagecodecs' package"),
             RuntimeError("File is encrypted")]
    assert all(failure(e, "TIFF") == "it begins as TIFF, but is damaged or cut short" for e in damage)
    assert not any("damaged" in failure(e, "TIFF") for e in other)
    assert len({failure(e, "TIFF") for e in other}) == len(failures) - 1
    assert failure(PermissionError(), None) == "it may not be opened" and failure(OSError(), None) == "it does not open"


@pytest.mark.parametrize("name", ["not there", "x" * 300, "a\nb", "a\0b", ""])
def test_a_file_that_is_not_there_is_refused(ask, write, name):
    assert isinstance(ask(read_micrograph, write("here", b"").parent / name), InputError)


complete = ("grey.png", "deep.png", "grey.tif", "pages.tif", "big.tif", "lzw.tif", "tiles.tif", "field.ome.tif",
            "imagej.tif", "cells.npy", "double.npy", "images.npz")
whole = {name: readable[name][0] for name in complete} | {
    "grey.jpg": image_file(grey, "JPEG"), "three.stk": readable["three.stk"][0],
    "colour.bmp": readable["colour.bmp"][0],
    "colour.jpg": image_file(channels_last(three), "JPEG", progressive=True),
    "written.ome.tif": saved(write_ome_tiff, cells, list("abc"), .65, {"a": 1}),
    "written.npz": saved(write_npz, dict(images=cells), {"a": 1})}


@pytest.mark.parametrize("name", whole)
def test_a_file_that_was_cut_short_is_never_read_as_something_else(ask, write, name):
    data = whole[name]
    full = read_micrograph(write(name, data))
    cuts = sorted({*range(1, len(data), max(1, len(data) // 60)), *range(len(data) - 40, len(data))})
    results = [ask(read_micrograph, write(name, data[:cut])) for cut in cuts]
    assert all(isinstance(result, InputError) for cut, result in zip(cuts, results) if cut < len(data) - 40)
    for m in results:      # the last bytes of a file may hold neither pixels nor metadata
        if isinstance(m, InputError): continue
        assert np.array_equal(m.pixels, full.pixels) and m.names == full.names and m.um_per_px == full.um_per_px


def check_micrograph(m):
    n, c, h, w = m.pixels.shape
    assert n and c == len(m.names) <= 16 and min(h, w) >= 8 and m.pixels.dtype in (np.uint8, np.uint16, np.float32)
    assert np.isfinite(m.pixels).all() and m.pixels.min() < m.pixels.max()
    assert m.bits is None if m.pixels.dtype == np.float32 else m.pixels.max() < 2**m.bits
    assert m.um_per_px is None or 0 < m.um_per_px < np.inf


byte_changes = st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=6)


@settings(max_examples=400)
@given(st.sampled_from(sorted(whole)), byte_changes, st.integers(0, 1 << 16))
def test_a_damaged_file_is_read_or_refused(ask, write, name, changes, cut):
    data = bytearray(whole[name])
    for at, byte in changes: data[at % len(data)] = byte
    path = write("damaged", bytes(data[:cut]) if cut < len(data) else bytes(data))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        micrograph, provenance = ask(read_micrograph, path), ask(read_provenance, path)
    if isinstance(micrograph, Micrograph): check_micrograph(micrograph)
    assert isinstance(provenance, (InputError, dict))


beginnings = [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0\x08\0\0\0", b"MM\0+\0\x08\0\0", b"\x93NUMPY\1\0",
              b"\x93NUMPY\2\0", b"PK\3\4"]


@given(st.sampled_from(beginnings), st.binary(max_size=200))
def test_noise_is_refused(ask, write, start, noise):
    assert isinstance(ask(read_micrograph, write("noise", start + noise)), InputError)


@given(st.text(max_size=60))
@example("\0<!DOCTYPE")
def test_a_tiff_with_any_description_is_read_or_refused(ask, write, text):
    wrappers = ("", ""), ("<OME>", "</OME>"), (xml(SizeC=1), closed), ("ImageJ=1\n", ""), ('{"shape": ', "}")
    for start, end in wrappers:
        m = ask(read_micrograph, write("described.tif", described(grey, (start + text + end).encode())))
        if isinstance(m, Micrograph): check_micrograph(m)


# Bombs

def deflated(megabytes, start=b""):
    press = zlib.compressobj(9)
    return press.compress(start) + b"".join(press.compress(bytes(1 << 20)) for _ in range(megabytes)) + press.flush()


def giant_jpeg():
    data = whole["grey.jpg"]
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", 60_000, 60_000) + data[at + 4:]


def png_text(content):
    "A compressed text chunk of a PNG."
    chunk = b"zTXta\0\0" + content
    return struct.pack(">I", len(content) + 3) + chunk + struct.pack(">I", zlib.crc32(chunk))


noise = rng.integers(0, 255, 4096, dtype=np.uint8).tobytes()
swollen = deflated(100, noise)
hundred_mb = lambda byte=b"\0": byte * 100_000_000
entities = ['<!ENTITY b "' + "ha" * 99 + '">']
entities += [f'<!ENTITY {b} "' + f"&{a};" * 10 + '">' for a, b in zip("bcdefgh", "cdefghi")]
laughs = f'<?xml version="1.0"?><!DOCTYPE a [{"".join(entities)}]><OME>&i;</OME>'
giant_tiles = dict(tw=(322, 60_000), tl=(323, 60_000), to=(324, 8), tb=(325, 4096))
empty_pages = lambda: b"".join(struct.pack("<HI", 0, 8 + 6 * (i + 1)) for i in range(100_000))
billion_pages = xml(SizeC=2) + '><TiffData IFD="0" PlaneCount="1000000000"/>' + ends
giant_tags = struct.pack("<H", 3) + struct.pack("<HHII", 270, 2, 9_000_000, 0) * 3 + bytes(10_000_000)
bombs = {
    "a PNG that claims 60,000 a side": lambda: png(60_000, 60_000),
    "a PNG that swells": lambda: png(64, 64, data=swollen),
    "a PNG whose text swells": lambda: png(64, 64, before=png_text(swollen)),
    "a JPEG that claims 60,000 a side": giant_jpeg,
    "a TIFF that claims 60,000 a side": lambda: tiff_with(noise, width=(256, 60_000), height=(257, 60_000)),
    "a TIFF whose strip swells": lambda: tiff_with(swollen, compression=(259, 8)),
    "a TIFF whose zstd swells":
        lambda: tiff_with(imagecodecs.zstd_encode(noise + bytes(1 << 27)), compression=(259, 50000)),
    "a TIFF of giant tiles": lambda: tiff_with(noise, **giant_tiles),
    "a TIFF that points at itself": lambda: tiff_with(noise, next_page=8 + len(noise)),
    "a TIFF of too many pages": lambda: b"II*\0\x08\0\0\0" + empty_pages(),
    "a TIFF of giant tags": lambda: b"II*\0\x08\0\0\0" + giant_tags,
    "a BigTIFF of endless tags":
        lambda: b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0" + struct.pack("<Q", 1 << 33) + bytes(99),
    "OME of a billion planes": lambda: described(grey, xml(SizeC=10**9) + closed),
    "OME of a billion times": lambda: described(grey, xml(SizeC=1, SizeT=10**9) + closed),
    "OME of a billion pages": lambda: described(grey, billion_pages),
    "OME of a billion laughs": lambda: described(grey, laughs),
    "an NPY that claims terabytes": lambda: npy_claiming((10**6, 10**6, 3)),
    "an NPY that claims more than can be counted": lambda: npy_claiming((10**30, 10**30)),
    "an NPY of a long header": lambda: b"\x93NUMPY\2\0" + struct.pack("<I", 40_000_000) + b" " * 40_000_000,
    "an NPZ that swells": lambda: zipped(npy_claiming((10_000, 10_000), content=hundred_mb())),
    "an NPZ with more than its header says": lambda: zipped(npy_claiming((64, 64), content=hundred_mb())),
    "an NPZ of a long header": lambda: zipped(b"\x93NUMPY\2\0" + struct.pack("<I", 100_000_000) + hundred_mb(b" ")),
    "an NPZ of a million members": lambda: b"PK\3\4" + b"PK\1\2" * 1_000_000,
    "a provenance that swells": lambda: zipped(npy_claiming((), "<U25000000", hundred_mb()), "provenance.npy"),
}


@pytest.mark.parametrize("name", bombs)
def test_a_bomb_is_refused_without_the_memory_it_asks_for(ask, write, name):
    path = write("bomb", bombs[name]())
    ask(read_micrograph, write("first", whole["lzw.tif"]))     # whatever is loaded once is loaded now
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    try:
        errors = ask(read_micrograph, path), ask(read_provenance, path)
        peak = tracemalloc.get_traced_memory()[1]
    finally: tracemalloc.stop()
    assert all(isinstance(error, InputError) for error in errors)
    assert peak < 50e6 and (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 50e6


def test_a_file_too_large_is_refused_by_its_size_alone(ask, tmp_path):
    with open(tmp_path / "large.tif", "wb") as file:
        file.write(b"II*\0\x08\0\0\0")
        file.truncate(2_000_000_000)
    assert "2,000 MB; up to 100 MB" in str(ask(read_micrograph, tmp_path / "large.tif"))


@pytest.mark.parametrize("bits, expected", [(14, 14), (0, 12), (-3, 12), (10**10, 12), (8, 12)])
def test_significant_bits_of_a_file_are_used_where_its_values_fit(write, bits, expected):
    description = xml(SizeC=1, SignificantBits=bits) + closed
    assert read_micrograph(write("bits.ome.tif", described(deep >> 4, description))).bits == expected


def test_limits_may_be_given(ask, write):
    path = write("three.npy", npy(three))
    assert isinstance(ask(read_micrograph, path, max_values=three.size - 1), InputError)
    assert isinstance(ask(read_micrograph, path, max_bytes=99), InputError)
    assert isinstance(ask(read_micrograph, path, max_values=three.size), Micrograph)


def test_a_file_does_not_lead_to_another(ask, write):
    write("secret.tif", tiff(three[:1]))
    plane = '<TiffData IFD="0" FirstC="{}" PlaneCount="1"><UUID FileName="{}.tif">{}</UUID></TiffData>'
    description = xml(SizeC=2) + ">" + plane.format(0, "here", "a") + plane.format(1, "secret", "b") + ends
    assert "several files" in str(ask(read_micrograph, write("here.tif", described(grey, description))))


def test_the_limits_of_pillow_are_unchanged():
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False and Image.MAX_IMAGE_PIXELS < 100e6


# Writing

example_provenance = {
    "model": "bbbc021", "perturbation": "β-taxol <&\"'", "dose_um": .3, "seeds": [1, 2], "nested": {"a": None}}
scalars = st.none() | st.booleans() | st.integers(-2**60, 2**60) | st.floats(allow_nan=False) | st.text()
json_values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3)
                           | st.dictionaries(st.text(), inner, max_size=3), max_leaves=6)


def written_in_every_format(write, provenance):
    return [write("a.png", saved(write_png, channels_last(three), provenance)),
            write("a.ome.tif", saved(write_ome_tiff, cells, list("abc"), .5, provenance)),
            write("a.npz", saved(write_npz, dict(images=cells, seeds=[1, 2]), provenance))]


@given(st.dictionaries(st.text(), json_values, max_size=4))
@example(example_provenance)
def test_every_format_keeps_the_provenance(write, provenance):
    for path in written_in_every_format(write, provenance): assert read_provenance(path) == provenance


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("n", [1, 4])
def test_written_cells_are_read_unchanged(write, dtype, n):
    images, names = cells[:n].astype(dtype), ["DNA", "β-tubulin", "a < b"]
    m = read_micrograph(write("again.ome.tif", saved(write_ome_tiff, images, names, .65, example_provenance)))
    assert np.array_equal(m.pixels, images) and m.pixels.dtype == dtype and m.names == names and m.um_per_px == .65
    png, _, npz = map(read_micrograph, written_in_every_format(write, example_provenance))
    assert np.array_equal(png.pixels, three[None]) and np.array_equal(npz.pixels, cells)


def test_other_software_sees_one_image_a_cell_with_its_channels(write):
    path = write("series.ome.tif", saved(write_ome_tiff, cells, list("abc"), None, example_provenance))
    with tifffile.TiffFile(path) as file:
        assert file.is_ome and [s.axes for s in file.series] == ["CYX"] * 4
        assert [s.name for s in file.series] == [f"Cell {i + 1}" for i in range(4)]
        assert np.array_equal([s.asarray() for s in file.series], cells)
    assert read_micrograph(path).um_per_px is None


def test_an_npz_is_plain_numpy_without_pickles(write, ask):
    path = write("plain.npz", saved(write_npz, dict(images=cells), example_provenance))
    with np.load(path, allow_pickle=False) as arrays:
        assert np.array_equal(arrays["images"], cells) and json.loads(str(arrays["provenance"])) == example_provenance
    assert "'odd'" in str(ask(write_npz, io.BytesIO(), dict(odd=trap), example_provenance))


@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "field.ome.tif", "images.npz", "cells.npy"])
def test_a_file_without_provenance_is_refused(ask, write, name):
    assert "no provenance" in str(ask(read_provenance, write(name, readable[name][0])))


def test_a_digest_depends_on_shape_type_and_values_alone():
    assert digest(cells) == digest(np.asfortranarray(cells)) == digest(cells.copy())
    changed = cells.reshape(3, 4, 24, 20), cells.astype(np.uint16), cells[::-1]
    assert len({digest(images) for images in (cells, *changed)}) == 4
    zeros = "c6833631c3b9f65411b84e92e82ef4acf10f75258e3a9f45383d8c3282eb5f91"
    assert digest(np.zeros((1, 2), np.uint8)) == zeros
