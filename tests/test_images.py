"Any file at the door: what is in it comes back, what cannot be read is refused in one line, and no claim is believed before it is checked."
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

from mfm_app.core import InputError
from mfm_app.images import Micrograph, read_micrograph, read_provenance, write_npz, write_ome_tiff, write_png
from mfm_app.preprocess import as_fraction, crop_around, guess_channels, match_intensities, percentiles, rescale

rng = np.random.default_rng(0)
grey, deep = rng.integers(0, 256, (24, 20), dtype=np.uint8), rng.integers(0, 65536, (24, 20), dtype=np.uint16)
three = rng.integers(0, 256, (3, 24, 20), dtype=np.uint8)
cells = rng.integers(0, 256, (4, 3, 24, 20), dtype=np.uint8)
last = lambda array: np.moveaxis(array, -3, -1)


# Files, written here

def saved(write, *args, **kwargs):
    "The bytes that a writer leaves in a buffer."
    write(out := io.BytesIO(), *args, **kwargs)
    return out.getvalue()


def picture(array, kind="PNG", mode=None, **kwargs):
    image = Image.fromarray(np.ascontiguousarray(array))
    return saved((image.convert(mode) if mode else image).save, kind, **kwargs)


def tiff(array, **kwargs): return saved(tifffile.imwrite, array, **{"photometric": "minisblack", **kwargs})
def npy(array): return saved(np.save, array)
def npz(**arrays): return saved(np.savez_compressed, **arrays)


def png(width, height, depth=8, colour=0, data=b"", before=b""):
    "A PNG whose header says what it is told to."
    def chunk(kind, content): return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def npy_claiming(shape, dtype="|u1", content=b""):
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + content


def tiff_saying(data=b"", count=None, then=0, **tags):
    "A TIFF of one strip, written tag by tag."
    said = dict(width=(256, 64), height=(257, 64), bits=(258, 8), compression=(259, 1), photometric=(262, 1), at=(273, 8), samples=(277, 1),
                rows=(278, tags.get("height", (0, 64))[1]), bytes=(279, len(data) if count is None else count))
    tag_list = sorted({**said, **tags}.values())
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tag_list)) \
        + b"".join(struct.pack("<HHII", code, 4, 1, value) for code, value in tag_list) + struct.pack("<I", then)


def zipped(content, name="images.npy", method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(out := io.BytesIO(), "w", method) as archive: archive.writestr(name, content)
    return out.getvalue()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "Make a file of these bytes."
    folder = tmp_path_factory.mktemp("images")
    def make(name, content):
        (path := folder / name).write_bytes(content)
        return path
    return make


# What is read

ten_bits = np.packbits((deep[..., None] >> 6) >> np.arange(9, -1, -1, dtype=np.uint16) & 1).tobytes()
ome = dict(axes="CYX", Channel=dict(Name=["DAPI", "β-tubulin", "Actin"]), PhysicalSizeX=650, PhysicalSizeXUnit="nm")
readable = {
    "grey.png": (picture(grey), grey[None, None], [""], 8),
    "deep.png": (picture(deep), deep[None, None], [""], 16),
    "colour.png": (picture(last(three)), three[None], ["red", "green", "blue"], 8),
    "grey.tif": (tiff(grey), grey[None, None], [""], 8),
    "deep.tif": (tiff(deep), deep[None, None], [""], 16),
    "big.tif": (tiff(deep, bigtiff=True, byteorder=">"), deep[None, None], [""], 16),
    "float.tif": (tiff(deep / np.float32(7)), deep[None, None] / np.float32(7), [""], None),
    "packed.tif": (tiff_saying(ten_bits, width=(256, 20), height=(257, 24), bits=(258, 10)), (deep >> 6)[None, None], [""], 10),
    "pages.tif": (tiff(three), three[None], [""] * 3, 8),
    "planes.tif": (tiff(three, photometric="rgb", planarconfig="separate"), three[None], [""] * 3, 8),
    "colour.tif": (tiff(last(three), photometric="rgb"), three[None], ["red", "green", "blue"], 8),
    "lzw.tif": (tiff(three, compression="lzw", predictor=True), three[None], [""] * 3, 8),
    "tiles.tif": (tiff(three, compression="deflate", tile=(16, 16)), three[None], [""] * 3, 8),
    "cells.tif": (tiff(cells), cells, [""] * 3, 8),
    "field.ome.tif": (tiff(three, ome=True, metadata=ome), three[None], ["DAPI", "β-tubulin", "Actin"], 8),
    "camera.ome.tif": (tiff(three.astype(np.uint16), ome=True, metadata=dict(axes="CYX", SignificantBits=14)), three[None], [""] * 3, 14),
    "imagej.tif": (tiff(three.astype(np.uint16) * 99, imagej=True, resolution=(2, 2), metadata=dict(axes="CYX", unit="um", Labels=list("abc"))),
                   three[None] * np.uint16(99), list("abc"), 16),
    "two.npy": (npy(grey), grey[None, None], [""], 8),
    "first.npy": (npy(three), three[None], [""] * 3, 8),
    "last.npy": (npy(last(three)), three[None], [""] * 3, 8),
    "cells.npy": (npy(cells), cells, [""] * 3, 8),
    "cells_last.npy": (npy(last(cells)), cells, [""] * 3, 8),
    "eight.npy": (npy(cells[0, :, :8, :8].transpose(1, 2, 0)), cells[:1, :, :8, :8], [""] * 3, 8),
    "fortran.npy": (npy(np.asfortranarray(deep)), deep[None, None], [""], 16),
    "bytes.npy": (npy(deep.astype(">u2")), deep[None, None], [""], 16),
    "long.npy": (npy(deep.astype(np.int64)), deep[None, None], [""], 16),
    "short.npy": (npy(grey.astype(np.int32)), grey[None, None], [""], 8),
    "double.npy": (npy(grey / 255), (grey / 255).astype(np.float32)[None, None], [""], None),
    "images.npz": (npz(images=cells, other=grey), cells, [""] * 3, 8),
    "only.npz": (npz(whatever=cells, text=np.array("about")), cells, [""] * 3, 8),
    "stored.npz": (saved(np.savez, images=grey), grey[None, None], [""], 8),
}


@pytest.mark.parametrize("name", readable)
def test_what_is_in_a_file_comes_back(place, name):
    data, pixels, names, bits = readable[name]
    got = read_micrograph(place(name, data))
    assert got.pixels.dtype == pixels.dtype or got.pixels.dtype.kind == "u"
    assert np.array_equal(got.pixels, pixels) and got.names == names and got.bits == bits


def test_a_jpeg_comes_back_nearly_and_says_so(place):
    smooth = np.tile(np.arange(0, 240, 10, dtype=np.uint8)[:, None], (1, 20))
    got = read_micrograph(place("smooth.jpg", picture(smooth, "JPEG", quality=95)))
    assert np.abs(got.pixels[0, 0].astype(int) - smooth).max() < 12 and "JPEG" in got.notes[0]


@pytest.mark.parametrize("name, um", {"field.ome.tif": .65, "imagej.tif": .5, "grey.tif": None, "grey.png": None}.items())
def test_a_pixel_has_the_size_that_the_file_says(place, name, um):
    assert read_micrograph(place(name, readable[name][0])).um_per_px == (um and pytest.approx(um))


half = np.r_[np.zeros((12, 20), np.uint8), grey[:12]]
noted = {
    "twelve bits": (tiff(deep >> 4), "taken as 12 bits"),
    "alpha": (picture(np.dstack([last(three), grey])), "alpha"),
    "alpha in a TIFF": (tiff(last(np.r_[three, grey[None]]), photometric="rgb", extrasamples=["unassalpha"]), "alpha"),
    "grey with alpha": (picture(np.dstack([grey, grey])), "alpha"),
    "grey thrice": (picture(np.dstack([grey] * 3)), "taken as one channel"),
    "axes": (npy(last(three)), "(H, W, C)"),
    "a blank channel": (npy(np.stack([grey, grey * 0])), "Channel 2 is the same everywhere"),
    "a saturated channel": (npy(np.stack([grey, grey | (grey > 99) * np.uint8(255)])), "Channel 2 is saturated"),
    "other numbers": (npy(grey.astype(np.int64)), "taken as uint8"),
}


@pytest.mark.parametrize("data, words", noted.values(), ids=noted)
def test_what_is_odd_is_noted(place, data, words):
    assert any(words in note for note in read_micrograph(place("odd", data)).notes)


def test_reduced_copies_are_left_out_with_a_note(place):
    with tifffile.TiffWriter(out := io.BytesIO(), ome=True) as file:
        file.write(three, photometric="minisblack", metadata=dict(axes="CYX"), subifds=1)
        file.write(three[:, ::2, ::2], photometric="minisblack", subfiletype=1)
        file.write(three[:, :10, :10], photometric="minisblack", metadata=dict(axes="CYX", Name="label"))
    got = read_micrograph(place("pyramid.ome.tif", out.getvalue()))
    assert np.array_equal(got.pixels, three[None]) and any("left out" in note for note in got.notes)


def test_channels_of_an_ome_tiff_are_in_the_order_that_its_xml_says(place):
    xml = tifffile.tiffcomment(place("order.ome.tif", tiff(three, ome=True, metadata=ome)))
    turned = "".join(f'<TiffData IFD="{2 - c}" FirstC="{c}" PlaneCount="1"/>' for c in range(3))
    path = place("order.ome.tif", tiff(three, description=xml.replace('<TiffData IFD="0" PlaneCount="3"/>', turned).encode(), metadata=None))
    assert np.array_equal(read_micrograph(path).pixels, three[None, ::-1])


def test_lzw_is_left_to_libtiff(place, monkeypatch):
    monkeypatch.delattr(tifffile.TiffPage, "asarray")      # which would use a decoder that damaged data can bring down, and the process with it
    got = read_micrograph(place("lzw.tif", readable["lzw.tif"][0]))
    assert np.array_equal(got.pixels, three[None])


def test_a_file_is_known_by_its_content_not_its_name(place):
    assert np.array_equal(read_micrograph(place("grey.jpg", picture(grey))).pixels[0, 0], grey)


# What is refused

class Trap:
    "Leaves a mark when somebody unpickles it."
    sprung = False

    @classmethod
    def spring(cls): cls.sprung = True

    def __reduce__(self): return Trap.spring, ()


trap = np.array([Trap()] * 2, dtype=object)
xml = lambda **sizes: '<?xml version="1.0"?><OME xmlns="x"><Image><Pixels SizeX="20" SizeY="24" ' + " ".join(f'{k}="{v}"' for k, v in sizes.items())
mask, nan, inf = grey > 99, grey / np.float32(9), grey / 9.
nan[3, 4], inf[3, 4] = np.nan, 1e300
refused = {
    "text": (b"Dear all, the images are on the other drive.", "none of the kinds"),
    "a program": (b"MZ\x90\0" + bytes(99), "none of the kinds"),
    "nothing": (b"", "is empty"),
    "a GIF": (picture(grey, "GIF"), "none of the kinds"),
    "a zip": (zipped("hello", "notes.txt"), "without an array"),
    "one pixel": (picture(grey[:1, :1]), "1 by 1 pixels"),
    "seven pixels": (tiff(grey[:7]), "20 by 7 pixels"),
    "black": (picture(grey * 0), "every pixel is 0"),
    "saturated": (npy(three * 0 + np.uint8(255)), "every pixel is 255"),
    "NaN": (tiff(nan), "NaN or infinity"),
    "infinity": (npy(inf), "NaN or infinity"),
    "17 channels": (npy(np.zeros((17, 30, 30), np.uint8)), "17 channels"),
    "17 channels in OME": (tiff(np.zeros((17, 24, 20), np.uint8), ome=True, metadata=dict(axes="CYX")), "17 channels"),
    "a z-stack": (tiff(three, ome=True, metadata=dict(axes="ZYX")), "z-stack of 3"),
    "an ImageJ stack": (tiff(three, imagej=True, metadata=dict(axes="ZYX")), "z-stack of 3"),
    "a film": (tiff(three, ome=True, metadata=dict(axes="TYX")), "time series of 3"),
    "a stack by its axes, said last": (tiff(three, metadata=None, description='{"shape": [3, 24, 20], "axes": "ZYX"}'), "z-stack of 3"),
    "a stack by its axes, said first": (tiff(three, metadata=None, description='{"axes": "ZYX", "shape": [3, 24, 20]}'), "z-stack of 3"),
    "many pages": (tiff(np.repeat(three, 3, 0), metadata=None), "9 pages"),
    "pages of colours": (tiff(last(cells), photometric="rgb", metadata=None), "several pages of several channels"),
    "a palette": (picture(grey, mode="P"), "palette"),
    "a palette TIFF": (picture(grey, "TIFF", mode="P"), "palette"),
    "CMYK": (picture(last(three), "JPEG", mode="CMYK"), "CMYK"),
    "CMYK in a TIFF": (picture(last(three), "TIFF", mode="CMYK"), "for print"),
    "16-bit colours": (png(24, 20, 16, 2), "16-bit colours"),
    "one bit": (picture(grey, mode="1"), "1 bit a pixel"),
    "one bit in a TIFF": (tiff(mask), "type bool"),
    "animated": (picture(grey, save_all=True, append_images=[Image.fromarray(grey[::-1])]), "animated"),
    "light as dark": (tiff(grey, photometric="miniswhite"), "light as dark"),
    "JPEG in a TIFF": (tiff(last(three), photometric="rgb", compression="jpeg"), "compressed in a way"),
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
    "one of several files": (tiff(three, metadata=None, description=xml(SizeC=3)
                                  + "><TiffData><UUID>a</UUID></TiffData><TiffData><UUID>b</UUID></TiffData></Pixels></Image></OME>"), "several files"),
}


@pytest.mark.parametrize("data, words", refused.values(), ids=refused)
def test_what_is_no_micrograph_is_refused_and_told_why(ask, place, data, words):
    error = ask(read_micrograph, place("image.dat", data))
    assert isinstance(error, InputError) and words in str(error) and str(error).startswith("image.dat ") and not Trap.sprung


@pytest.mark.parametrize("name", ["not there", "x" * 300, "a\nb", "a\0b", ""])
def test_a_file_that_is_not_there_is_refused(ask, place, name):
    assert isinstance(ask(read_micrograph, place("here", b"").parent / name), InputError)


whole = {**{name: readable[name][0] for name in ("grey.png", "deep.png", "grey.tif", "pages.tif", "big.tif", "lzw.tif", "tiles.tif", "field.ome.tif", "imagej.tif",
                                                 "cells.npy", "double.npy", "images.npz")},
         "grey.jpg": picture(grey, "JPEG"), "colour.jpg": picture(last(three), "JPEG", progressive=True),
         "written.ome.tif": saved(write_ome_tiff, cells, list("abc"), .65, {"a": 1}), "written.npz": saved(write_npz, dict(images=cells), {"a": 1})}


@pytest.mark.parametrize("name", whole)
def test_a_file_that_was_cut_short_is_never_read_as_something_else(ask, place, name):
    data = whole[name]
    full = read_micrograph(place(name, data))
    cuts = sorted({*range(1, len(data), max(1, len(data) // 60)), *range(len(data) - 40, len(data))})
    got = [ask(read_micrograph, place(name, data[:cut])) for cut in cuts]
    assert all(isinstance(one, InputError) for cut, one in zip(cuts, got) if cut < len(data) - 40)
    for one in got:      # what ends a file may hold no pixels and no words
        if not isinstance(one, InputError): assert np.array_equal(one.pixels, full.pixels) and one.names == full.names and one.um_per_px == full.um_per_px


def looks_right(m):
    n, c, h, w = m.pixels.shape
    assert n and c == len(m.names) <= 16 and min(h, w) >= 8 and m.pixels.dtype in (np.uint8, np.uint16, np.float32)
    assert np.isfinite(m.pixels).all() and m.pixels.min() < m.pixels.max()
    assert m.bits is None if m.pixels.dtype == np.float32 else m.pixels.max() < 2**m.bits
    assert m.um_per_px is None or 0 < m.um_per_px < np.inf


@settings(max_examples=400)
@given(st.sampled_from(sorted(whole)), st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=6), st.integers(0, 1 << 16))
def test_a_damaged_file_is_read_or_refused(ask, place, name, changes, cut):
    data = bytearray(whole[name])
    for at, byte in changes: data[at % len(data)] = byte
    path = place("damaged", bytes(data[:cut]) if cut < len(data) else bytes(data))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got, told = ask(read_micrograph, path), ask(read_provenance, path)
    if isinstance(got, Micrograph): looks_right(got)
    assert isinstance(told, (InputError, dict))


@given(st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff",
                        b"II*\0\x08\0\0\0", b"MM\0+\0\x08\0\0", b"\x93NUMPY\1\0", b"\x93NUMPY\2\0", b"PK\3\4"]), st.binary(max_size=200))
def test_noise_is_refused(ask, place, start, noise):
    assert isinstance(ask(read_micrograph, place("noise", start + noise)), InputError)


@given(st.text(max_size=60))
@example("\0<!DOCTYPE")
def test_whatever_a_tiff_says_of_itself_it_is_read_or_refused(ask, place, text):
    for start, end in (("", ""), ("<OME>", "</OME>"), (xml(SizeC=1), "/></Image></OME>"), ("ImageJ=1\n", ""), ('{"shape": ', "}")):
        data = tiff(grey, description=(start + text + end).encode(), metadata=None)
        if isinstance(got := ask(read_micrograph, place("told.tif", data)), Micrograph): looks_right(got)


# Bombs

def deflated(megabytes, start=b""):
    press = zlib.compressobj(9)
    return press.compress(start) + b"".join(press.compress(bytes(1 << 20)) for _ in range(megabytes)) + press.flush()


noise = rng.integers(0, 255, 4096, dtype=np.uint8).tobytes()
swollen = deflated(100, noise)
laughs = "<!DOCTYPE a [" + "".join(f'<!ENTITY {b} "{f"&{a};" * 10 if i else "ha" * 99}">' for i, (a, b) in enumerate(zip("abcdefgh", "bcdefghi"))) + "]>"
bombs = {
    "a PNG that claims 60,000 a side": lambda: png(60_000, 60_000),
    "a PNG that swells": lambda: png(64, 64, data=swollen),
    "a PNG whose text swells": lambda: png(64, 64, before=struct.pack(">I", len(swollen) + 3) + b"zTXta\0\0" + swollen + struct.pack(">I", zlib.crc32(b"zTXta\0\0" + swollen))),
    "a JPEG that claims 60,000 a side": lambda: (lambda data, at: data[:at] + struct.pack(">HH", 60_000, 60_000) + data[at + 4:])(
        whole["grey.jpg"], whole["grey.jpg"].index(b"\xff\xc0") + 5),
    "a TIFF that claims 60,000 a side": lambda: tiff_saying(noise, width=(256, 60_000), height=(257, 60_000)),
    "a TIFF whose strip swells": lambda: tiff_saying(swollen, compression=(259, 8)),
    "a TIFF whose zstd swells": lambda: tiff_saying(imagecodecs.zstd_encode(noise + bytes(1 << 27)), compression=(259, 50000)),
    "a TIFF of giant tiles": lambda: tiff_saying(noise, tw=(322, 60_000), tl=(323, 60_000), to=(324, 8), tb=(325, 4096)),
    "a TIFF that points at itself": lambda: tiff_saying(noise, then=8 + len(noise)),
    "a TIFF of too many pages": lambda: b"II*\0\x08\0\0\0" + b"".join(struct.pack("<HI", 0, 8 + 6 * (i + 1)) for i in range(100_000)),
    "a TIFF of giant tags": lambda: b"II*\0\x08\0\0\0" + struct.pack("<H", 3) + struct.pack("<HHII", 270, 2, 9_000_000, 0) * 3 + bytes(10_000_000),
    "a BigTIFF of endless tags": lambda: b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0" + struct.pack("<Q", 1 << 33) + bytes(99),
    "OME of a billion planes": lambda: tiff(grey, metadata=None, description=xml(SizeC=10**9) + "/></Image></OME>"),
    "OME of a billion times": lambda: tiff(grey, metadata=None, description=xml(SizeC=1, SizeT=10**9) + "/></Image></OME>"),
    "OME of a billion pages": lambda: tiff(grey, metadata=None, description=xml(SizeC=2) + '><TiffData IFD="0" PlaneCount="1000000000"/></Pixels></Image></OME>'),
    "OME of a billion laughs": lambda: tiff(grey, metadata=None, description='<?xml version="1.0"?>' + laughs + "<OME>&i;</OME>"),
    "an NPY that claims terabytes": lambda: npy_claiming((10**6, 10**6, 3)),
    "an NPY that claims more than can be counted": lambda: npy_claiming((10**30, 10**30)),
    "an NPY of a long header": lambda: b"\x93NUMPY\2\0" + struct.pack("<I", 40_000_000) + b" " * 40_000_000,
    "an NPZ that swells": lambda: zipped(npy_claiming((10_000, 10_000), content=bytes(100_000_000))),
    "an NPZ with more than it says": lambda: zipped(npy_claiming((64, 64), content=bytes(100_000_000))),
    "an NPZ of a long header": lambda: zipped(b"\x93NUMPY\2\0" + struct.pack("<I", 100_000_000) + b" " * 100_000_000),
    "an NPZ of a million members": lambda: b"PK\3\4" + b"PK\1\2" * 1_000_000,
    "a provenance that swells": lambda: zipped(npy_claiming((), "<U25000000", bytes(100_000_000)), "provenance.npy"),
}


@pytest.mark.parametrize("name", bombs)
def test_a_bomb_is_refused_without_the_memory_it_asks_for(ask, place, name):
    path = place("bomb", bombs[name]())
    ask(read_micrograph, place("first", whole["lzw.tif"]))     # whatever is loaded once is loaded now
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    try: got, told, peak = ask(read_micrograph, path), ask(read_provenance, path), tracemalloc.get_traced_memory()[1]
    finally: tracemalloc.stop()
    assert isinstance(got, InputError) and isinstance(told, InputError)
    assert peak < 50e6 and (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 50e6


def test_a_file_too_large_is_refused_by_its_size_alone(ask, tmp_path):
    with open(tmp_path / "large.tif", "wb") as file:
        file.write(b"II*\0\x08\0\0\0")
        file.truncate(2_000_000_000)
    assert "2,000 MB; up to 100 MB" in str(ask(read_micrograph, tmp_path / "large.tif"))


@pytest.mark.parametrize("bits, taken", [(14, 14), (0, 12), (-3, 12), (10**10, 12), (8, 12)])
def test_significant_bits_are_believed_where_they_make_sense(place, bits, taken):
    told = xml(SizeC=1, SignificantBits=bits) + "/></Image></OME>"
    assert read_micrograph(place("bits.ome.tif", tiff(deep >> 4, metadata=None, description=told))).bits == taken


def test_limits_are_the_callers(ask, place):
    path = place("three.npy", npy(three))
    assert isinstance(ask(read_micrograph, path, max_values=three.size - 1), InputError) and isinstance(ask(read_micrograph, path, max_bytes=99), InputError)
    assert isinstance(ask(read_micrograph, path, max_values=three.size), Micrograph)


def test_a_file_does_not_lead_to_another(ask, place):
    place("secret.tif", tiff(three[:1]))
    told = xml(SizeC=2) + '><TiffData IFD="0" FirstC="0" PlaneCount="1"><UUID FileName="here.tif">a</UUID></TiffData>' \
        '<TiffData IFD="0" FirstC="1" PlaneCount="1"><UUID FileName="secret.tif">b</UUID></TiffData></Pixels></Image></OME>'
    assert "several files" in str(ask(read_micrograph, place("here.tif", tiff(grey, metadata=None, description=told))))


def test_pillows_own_guards_stay_as_they_are():
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False and Image.MAX_IMAGE_PIXELS < 100e6


# Channels

@pytest.mark.parametrize("names, wanted, found", [
    (["DNA", "Actin", "Tubulin"], ["DNA", "Actin", "Tubulin"], [0, 1, 2]),
    (["TUBULIN", "dapi", "f_actin"], ["DNA", "Actin", "Tubulin"], [1, 2, 0]),
    (["w1DAPI", "w2 anti-beta-Tubulin (DM1A)", "w4 Rhodamine-Phalloidin"], ["DNA", "Actin", "Tubulin"], [0, 2, 1]),
    (["Hoechst 33342", "Alexa Fluor 568 phalloidin", "microtubules"], ["DNA", "Actin", "Tubulin"], [0, 1, 2]),
    (["DRAQ5"], ["DNA"], [0]), (["H-33342"], ["DNA"], [0]), (["DM1A"], ["Tubulin"], [0]), (["Nuclei"], ["dna"], [0]),
    (["ConA 488", "WGA + phalloidin", "MitoTracker Deep Red", "SYTO 14", "Hoechst"], ["DNA", "ER", "RNA", "AGP", "Mito"], [4, 0, 3, 1, 2]),
    (["DNA", "ER", "RNA", "AGP", "Mito"], ["DNA", "Actin"], [0, 3]),
    (["", "", ""], ["DNA", "Actin", "Tubulin"], [0, 1, 2]),
    (["Channel:0:0", "C=1", "ch 2"], ["DNA", "Actin", "Tubulin"], [0, 1, 2]),
    (["", ""], ["DNA", "Actin", "Tubulin"], [None, None, None]),
    (["red", "green", "blue"], ["DNA", "Actin", "Tubulin"], [None, None, None]),
    (["alpha-actinin", "marker", "fluorescer"], ["Actin", "ER", "DNA"], [None, None, None]),
    (["phalloidin"], ["Actin", "AGP"], [0, None]),
    (["GFP", "Lamin B1"], ["lamin-b1"], [1]),
])
def test_channels_are_found_by_the_names_of_stains(names, wanted, found): assert guess_channels(names, wanted) == found


@given(st.lists(st.text(max_size=12) | st.sampled_from(["DAPI", "actin", "F-actin", ""]), max_size=6),
       st.lists(st.text(max_size=12) | st.sampled_from(["DNA", "Actin"]), max_size=6))
def test_no_channel_is_given_twice(names, wanted):
    found = guess_channels(names, wanted)
    given_away = [i for i in found if i is not None]
    assert len(found) == len(wanted) and len(set(given_away)) == len(given_away) and set(given_away) <= set(range(len(names)))


# Scale

def test_rescaling_keeps_means_and_removes_what_is_too_fine():
    chequered = np.indices((64, 48)).sum(0)[None, None] % 2 * np.uint8(200)
    small = rescale(chequered, .25)
    assert small.shape == (1, 1, 16, 12) and small.dtype == np.float32 and np.abs(small - 100).max() < 15
    assert rescale(chequered, 1.5).shape == (1, 1, 96, 72) and np.array_equal(rescale(deep[None, None], 1), deep[None, None])


@pytest.mark.parametrize("factor", [0, -1, float("nan"), float("inf"), 1e-6, 1e6])
def test_a_scale_that_makes_no_sense_is_refused(ask, factor):
    assert isinstance(ask(rescale, three[None], factor), InputError)


@given(st.integers(-40, 60), st.integers(-40, 60), st.integers(1, 30))
def test_a_crop_shows_what_lies_around_its_centre_and_background_outside(y, x, size):
    crop = crop_around(three, [(y, x)], size)[0]
    ground = np.percentile(three.reshape(3, -1), 1, axis=1).astype(np.uint8)
    for i in range(0, size, 7):
        for j in range(0, size, 5):
            a, b = y - size // 2 + i, x - size // 2 + j
            assert np.array_equal(crop[:, i, j], three[:, a, b] if 0 <= a < 24 and 0 <= b < 20 else ground)


def test_no_centres_make_no_crops(): assert crop_around(three, np.zeros((0, 2)), 8).shape == (0, 3, 8, 8)


# Intensities

def test_a_fraction_is_of_the_full_scale():
    assert as_fraction(Micrograph(np.array([[[[0, 4095]]]], np.uint16), bits=12)).tolist() == [[[[0, 1]]]]
    assert as_fraction(Micrograph(np.array([[[[0, 51]]]], np.uint8), bits=8)).max() == np.float32(.2)
    within = np.array([[[[.25, .5]]]], np.float32)
    assert np.array_equal(as_fraction(Micrograph(within)), within)
    assert as_fraction(Micrograph(np.array([[[[-3e38, 0, 3e38]]]], np.float32))).tolist() == [[[[0, .5, 1]]]]


@given(st.sampled_from([np.uint8, np.uint16, np.float32]), st.integers(0, 90), st.integers(120, 255), st.integers(0, 99))
def test_matched_intensities_have_the_wanted_percentiles(dtype, low, high, seed):
    images = np.random.default_rng(seed).uniform(5, 240, (3, 2, 40, 40)).astype(dtype)
    if dtype == np.uint16: images *= 200
    matched = match_intensities(images, [(low, high), (10, 200)])
    assert matched.dtype == np.uint8 and np.abs(percentiles(matched) - [(low, high), (10, 200)]).max() < 1.6
    brighter = images[:, 0].mean((1, 2)).argsort()
    assert np.diff(matched[brighter, 0].astype(float).mean((1, 2))).min() > -.5, "one line for all images keeps their order"


def test_a_channel_without_contrast_is_named(ask):
    blank = np.stack([grey, grey * 0 + 7])[None]
    assert "'Actin'" in str(ask(match_intensities, blank, [(0, 255)] * 2, ["DNA", "Actin"])) and "Channel 2" in str(ask(match_intensities, blank, [(0, 255)] * 2))


# Leaving

said = {"model": "bbbc021", "perturbation": "β-taxol <&\"'", "dose_um": .3, "seeds": [1, 2], "nested": {"a": None}}
json_values = st.recursive(st.none() | st.booleans() | st.integers(-2**60, 2**60) | st.floats(allow_nan=False) | st.text(),
                           lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=6)


def all_written(place, provenance):
    return [place("a.png", saved(write_png, last(three), provenance)), place("a.ome.tif", saved(write_ome_tiff, cells, list("abc"), .5, provenance)),
            place("a.npz", saved(write_npz, dict(images=cells, seeds=[1, 2]), provenance))]


@given(st.dictionaries(st.text(), json_values, max_size=4))
@example(said)
def test_provenance_travels_with_every_kind_of_file(place, provenance):
    for path in all_written(place, provenance): assert read_provenance(path) == provenance


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("n", [1, 4])
def test_written_cells_are_read_again(place, dtype, n):
    images = cells[:n].astype(dtype)
    got = read_micrograph(place("again.ome.tif", saved(write_ome_tiff, images, ["DNA", "β-tubulin", "a < b"], .65, said)))
    assert np.array_equal(got.pixels, images) and got.pixels.dtype == dtype and got.names == ["DNA", "β-tubulin", "a < b"] and got.um_per_px == .65
    png, _, npz = map(read_micrograph, all_written(place, said))
    assert np.array_equal(png.pixels, three[None]) and np.array_equal(npz.pixels, cells)


def test_other_software_sees_one_image_a_cell_with_its_channels(place):
    path = place("series.ome.tif", saved(write_ome_tiff, cells, list("abc"), None, said))
    with tifffile.TiffFile(path) as file:
        assert file.is_ome and [s.axes for s in file.series] == ["CYX"] * 4 and [s.name for s in file.series] == [f"Cell {i + 1}" for i in range(4)]
        assert np.array_equal([s.asarray() for s in file.series], cells)
    assert read_micrograph(path).um_per_px is None


def test_an_npz_is_plain_numpy_without_pickles(place, ask):
    with np.load(place("plain.npz", saved(write_npz, dict(images=cells), said)), allow_pickle=False) as arrays:
        assert np.array_equal(arrays["images"], cells) and json.loads(str(arrays["provenance"])) == said
    assert "'odd'" in str(ask(write_npz, io.BytesIO(), dict(odd=trap), said))


@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "field.ome.tif", "images.npz", "cells.npy"])
def test_a_file_without_provenance_says_so(ask, place, name):
    assert "no provenance" in str(ask(read_provenance, place(name, readable[name][0])))
