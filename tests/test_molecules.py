"Molecules: what is read, what is refused and why, standard forms, fingerprints, lists of molecules, drawings."
import time
import tracemalloc
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem, DataStructs
from rdkit.Chem import AllChem, rdFingerprintGenerator
from rdkit.Chem.MolStandardize import rdMolStandardize

from mfm_app.core import InputError
from mfm_app.molecules import (EmbeddingTable, Molecule, Morgan, draw, encoder, max_block, max_bytes, max_rows, nearest,
                               read_embeddings, read_molecule, read_rows, standardise, standardise_mol, tanimoto,
                               write_embeddings)

drugs = dict(
    taxol="CC(=O)O[C@H]1C(=O)[C@]2(C)[C@@H](O)C[C@H]3OC[C@@]3(OC(=O)C)[C@H]2[C@H](OC(=O)c4ccccc4)"
          "[C@]5(O)C[C@H](OC(=O)[C@H](O)[C@@H](NC(=O)c6ccccc6)c7ccccc7)C(=C1C5(C)C)C",
    colchicine="COC1=CC=C2C(=CC1=O)[C@H](CCc3cc(OC)c(OC)c(OC)c23)NC(=O)C",
    caffeine="Cn1cnc2c1c(=O)n(C)c(=O)n2C",
    aspirin="CC(=O)Oc1ccccc1C(=O)O",
    nocodazole="COC(=O)Nc1nc2cc(ccc2[nH]1)C(=O)c3cccs3",
    epothilone="C/C(=C\\c1csc(C)n1)[C@@H]1C[C@@H]2O[C@@H]2CCC[C@H](C)[C@H](O)[C@@H](C)C(=O)C(C)(C)[C@@H](O)CC(=O)O1",
    betaine="C[N+](C)(C)CC(=O)[O-]",
    cisplatin="N[Pt](N)(Cl)Cl",
    sulfonamide="CC(C)(C)c1ccc(cc1)S(=O)(=O)Nc1ccccn1",
    nitro="O=[N+]([O-])c1ccc2[nH]ccc2c1")
blocks = [make(Chem.MolFromSmiles(s)) for s in drugs.values() for make in (Chem.MolToMolBlock, Chem.MolToV3KMolBlock)]
known = {"taxol": drugs["taxol"], "mitomycin c": "COC12C3NC3CN1C4=C(C2COC(=O)N)C(=O)C(=C(C)C4=O)N"}


def smiles_of(text): return read_molecule(text).smiles
def block(smiles, name=""): return name + Chem.MolToMolBlock(Chem.MolFromSmiles(smiles))


# What is read

@pytest.mark.parametrize("written, standard", [
    ("OCC", "CCO"), (" \u200bCCO\u202c\u00a0", "CCO"), ("C1=CC=CC=C1", "c1ccccc1"),
    ("CC(=O)Oc1ccccc1C(=O)[O-].[Na+]", "CC(=O)Oc1ccccc1C(=O)O"), ("[Na]OC(=O)c1ccccc1OC(C)=O", "CC(=O)Oc1ccccc1C(=O)O"),
    ("CC(=O)[O-].CC(=O)[O-].[Ca+2]", "CC(=O)O"), ("C[NH3+].[Cl-]", "CN"), ("CCO.CCO", "CCO"),
    ("[2H]C([2H])([2H])O", "CO"), ("[13CH3]C(=O)O", "CC(=O)O"), ("[2H][C@](C)(O)[H]", "CCO"),
    ("C[N+](C)(C)CC(=O)[O-]", "C[N+](C)(C)CC(=O)[O-]"), ("CN(=O)=O", "C[N+](=O)[O-]"), ("CS(C)=O", "C[S+](C)[O-]"),
    ("[CH3:1][CH2:2][OH:3]", "CCO"), ("C[C@H](N)C(=O)O", "C[C@H](N)C(=O)O"), ("F/C=C/F", "F/C=C/F"),
    ("CC(C)NCC(O)COc1ccc(CCOC)cc1.OC(=O)C(O)C(O)C(=O)O", "COCCc1ccc(OCC(O)CNC(C)C)cc1"),      # a smaller tartrate
    ("CN(C)C(=N)N=C(N)N.OC(=O)CC(O)(CC(=O)O)C(=O)O", "CN(C)C(=N)N=C(N)N"),      # a larger citrate
])
def test_a_molecule_is_brought_into_standard_form(written, standard): assert smiles_of(written) == standard


def test_all_texts_of_a_molecule_have_one_standard_form():
    for smiles in drugs.values():
        mol = Chem.MolFromSmiles(smiles)
        written = {Chem.MolToSmiles(mol, doRandom=True) for _ in range(10)}
        written |= {Chem.MolToMolBlock(mol), Chem.MolToV3KMolBlock(mol)}
        assert {smiles_of(text) for text in written} == {smiles_of(smiles)}


def test_mirror_images_and_tautomers_stay_apart():
    assert smiles_of("C[C@H](N)O") != smiles_of("C[C@@H](N)O")
    assert smiles_of("CC(=O)CC(C)=O") != smiles_of("CC(O)=CC(C)=O")


@pytest.mark.parametrize("written, words", [
    ("CC(=O)[O-].[Na+]", "sodium ion"), ("CC(=O)[O-].[Na+]", "neutralised"), ("CCCN.Cl", "hydrochloric acid"),
    ("CCCCO.O", "water"), ("[2H]C", "Isotope"), ("N[Pt](N)(Cl)Cl", "Pt"), ("C[N+](C)(C)C.[Cl-]", "+1"),
    ("C[CH2]", "unpaired"), ("c1ccccc1CCCCCC.CCC", "CCC"),
    ("OC(=O)/C=C/C(=O)O.NCCCCCCCCCCCCCCCCCC", "fumaric acid"),
])
def test_notes_name_what_was_changed(written, words): assert words in " ".join(read_molecule(written).notes)


def test_a_plain_molecule_needs_no_notes(): assert read_molecule("CCO") == Molecule("CCO")


def test_the_standard_form_agrees_with_all_rules_of_rdkit():
    for smiles in ["CCO", "c1ccncc1", "CC#N", "CSC", "ClC=CBr", *drugs.values()]:
        mol, parent = Chem.MolFromSmiles(smiles), Chem.MolFromSmiles(smiles)
        if "Pt" in smiles: continue
        rdMolStandardize.CleanupInPlace(parent)
        rdMolStandardize.ChargeParentInPlace(parent)
        assert standardise_mol(mol)[0] == Chem.CanonSmiles(Chem.MolToSmiles(parent))


def test_every_compound_of_the_real_cells_is_read(real_cells):
    written = set(real_cells.table["smiles"]) - {""}
    molecules = standardise(sorted(written))
    assert len(molecules) >= 27 and all(isinstance(m, Molecule) for m in molecules)


def test_a_mol_block_may_have_windows_line_ends_a_title_hydrogens_in_space_and_lost_blank_lines():
    unix = block("C[C@H](N)C(=O)O", "alanine")
    assert read_molecule(unix).name == "alanine" and read_molecule(unix.replace("\n", "\r\n")) == read_molecule(unix)
    assert smiles_of(block("CCO").strip()) == "CCO"
    mol = Chem.AddHs(Chem.MolFromSmiles("C[C@H](N)C(=O)O"))
    AllChem.EmbedMolecule(mol, randomSeed=1)
    assert smiles_of(Chem.MolToMolBlock(mol)) == "C[C@H](N)C(=O)O"


# What is refused

with_sgroup = block("CCCCO").replace("M  END", "M  STY  1   1 SRU\nM  SAL   1  2   2   3\nM  SMT   1 n\nM  END")
query_block = block("CCO").replace(" O   0", " A   0")
refused = [
    (None, "text"), (3.5, "text"), (b"CCO", "text"), ([], "text"), ("", "Nothing"), (" \n ", "Nothing"),
    ("C" * 1_001, "1,000"), ("C" * 300_000, "too many"), ("C" * 151, "150"), ("C" * 5_000, "1,000"),
    (block("C" * 140).replace("M  END", "M  END\n" + "x" * max_block), "too many"),
    ("CC(C", "not closed"), ("C1CC", "Ring 1"), ("CC)C", "Character 3"), ("[CH3", "character 1"), ("CC=", "ends in"),
    ("C==C", "Character 3"), ("ＣＣＯ", "Character 1"), ("C\0C", "Character 2"), ("\ud800", "Character 1"),
    ("CC O", "Character 3"), ("C[Xx]", "Character 2, '[Xx]', is no atom"), ("C1C1", "ring bonds"),
    ("hello", "Character 1"),
    ("CC(C)(C)(C)C", "Atom 2, C, has 5 bonds; carbon takes at most 4"), ("O(C)(C)C", "Atom 1, O"),
    ("C[N](C)(C)C", "nitrogen"), ("C[O-](C)C", "charge -1"), ("c1cccc1", "1, 2, 3, 4, 5"), ("cC", "outside a ring"),
    ("[U]" + "(C)" * 30, "30 bonds"), ("*CC", "'*'"), ("[*:1]CC", "'*'"), ("CC[1*]", "'*'"),
    (with_sgroup, "polymer"), (block("[*]CC"), "placeholder|named"), (query_block, "query"),
    ("[#6]C", "SMARTS"), ("[C,N]C", "SMARTS"), ("C~C", "SMARTS"), ("[!C]", "SMARTS"),
    ("CC>>CO", "reaction"), ("CC>O>CO", "reaction"), ("$RXN\n\n\n\n", "reaction"),
    ("[Zn+2].CC(=O)[O-].CC(=O)[O-]", "Zn"), ("[Pt+2].N.N.[Cl-].[Cl-]", "draw its bonds"),
    ("c1ccccc1CCC.c1ccncc1CO", "mixture"), ("[H][H]", "Nothing but"), ("[Na+].[Cl-]", "Nothing but"),
    ("[Fe]", "Nothing but"), ("[NH4+].[NH4+].[O-]S(=O)(=O)[O-]", "Nothing but"),
    ("C\nC", "mol block"), (block("CCO").replace("M  END", ""), "M END"),
    ("\n\n\n  0  0  0  0  0  0  0  0  0  0999 V2000\nM  END\n", "no atoms"),
    (block("CCO").replace("  3  2", "  9  2"), "malformed"), ("C12C3C4C1C5C2C3C45." * 15 + "C", "rings"),
]


@pytest.mark.parametrize("text, words", refused, ids=[repr(text)[:24] for text, _ in refused])
def test_bad_input_is_refused_in_one_clear_sentence(text, words, ask, capfd):
    error = ask(read_molecule, text)
    assert isinstance(error, InputError) and any(w in str(error) for w in words.split("|")), error
    assert str(error).isprintable() and capfd.readouterr() == ("", "")


def test_atoms_without_bonds_are_a_molecule_too(): assert smiles_of(block("C")) == "C" and smiles_of("O") == "O"


# Any input

tokens = st.sampled_from((
    "C c N n O o S P F Cl Br I B ( ) = # - / \\ 1 2 3 %10 %99 . $ -> : @ + [nH] [N+] [O-] [C@H] [C@@H] [Na+] [Cl-] "
    "[Fe] [Pt] [Si] [2H] [H] [Li] [P+] [CH2-] [Ca+2] [B-] [n+] [Se] [As] [13C] [Zn] [CH3:1] c1ccccc1 C(=O)O").split())
block_tokens = st.one_of(
    st.text("0123456789 -\nCNOAQL*#R", max_size=4),
    st.sampled_from(["999", "V3000", "M  CHG  1   1  15\n", "M  STY  1   1 SRU\n", "M  RGP  1   1   1\n",
                     "M  ISO  1   1   2\n", "M  END\n"]))


@st.composite
def mutated(sample, texts, parts):
    text = sample(st.sampled_from(texts))
    for _ in range(sample(st.integers(1, 4))):
        start, removed = sample(st.integers(0, len(text))), sample(st.sampled_from((0, 1, 1, 3, 10)))
        text = text[:start] + sample(parts) + text[start + removed:]
    return text


def check_reading(text, ask):
    "A text is refused, or has a standard form that stays what it is and has a fingerprint; either takes under 2 s."
    began = time.process_time()
    molecule = ask(read_molecule, text)
    assert time.process_time() - began < 2
    if isinstance(molecule, InputError): return
    assert smiles_of(molecule.smiles) == molecule.smiles and Morgan()([molecule.smiles]).shape == (1, 2048)


@settings(max_examples=150)
@given(st.one_of(st.text(max_size=60), st.none(), st.integers(), st.floats(), st.binary(max_size=20)))
def test_any_input_is_read_or_refused(ask, text): check_reading(text, ask)


short_chain = st.lists(tokens, max_size=12).map("".join)
long_chain = st.lists(tokens, min_size=100, max_size=300).map("".join)


@settings(max_examples=250)
@given(st.one_of(short_chain, long_chain))
def test_any_chain_of_smiles_tokens_is_read_or_refused(ask, text): check_reading(text[:1_000], ask)


@settings(max_examples=250)
@given(mutated(list(drugs.values()), tokens))
def test_any_misspelt_smiles_is_read_or_refused(ask, text): check_reading(text, ask)


@settings(max_examples=250)
@given(mutated(blocks, block_tokens))
def test_any_damaged_mol_block_is_read_or_refused(ask, text): check_reading(text, ask)


def ladder(n): return "".join(f"C%{i:02d}" for i in range(10, 10 + n)) * 2


cage = ("c12c3c4c5c1c1c6c7c2c2c8c3c3c9c4c4c%10c5c5c1c1c6c6c%11c7c2c2c7c8c3c3c8c9c4c4c9c%10c5c5c1c1c6c6c%11"
        "c2c2c7c3c3c8c4c4c9c5c1c1c6c2c3c41")


@pytest.mark.parametrize("text", [
    ladder(39), ladder(89), "(" * 1_000, "C" + "(C" * 330 + ")" * 330, "C%99" * 250, "[U]%10" * 160,
    "[C@H](O)" * 74 + "C", "C" + "/C=C" * 74, cage, "C." * 149 + "C", "[Na+].[Cl-]." * 60 + "C", "[N+](C)(C)C" * 37,
    "C(C(=O)[O-])" * 30 + "[N+](C)(C)C", "S(=O)" * 70 + "C", "[CH-]C=C[NH+]=C" * 28, "C(=[NH2+])[N-]" * 37,
    "c1ccc(cc1)" * 24 + "C", "C([H])([H])" * 90, "[" * 1_000, "1" * 1_000, "C1CC1" + "C2(CC2)" * 36],
    ids=lambda text: text[:16])
def test_no_molecule_takes_long(ask, text):
    began = time.process_time()
    molecule = ask(read_molecule, text)
    if not isinstance(molecule, InputError): draw(molecule.smiles)
    assert time.process_time() - began < 2


# Fingerprints

standard = [smiles_of(s) for s in drugs.values()]


def test_fingerprints_are_those_of_rdkit():
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=3, fpSize=1024)
    mols = [Chem.MolFromSmiles(s) for s in standard]
    bits, counts = Morgan(3, 1024)(standard), Morgan(3, 1024, counts=True)(standard)
    assert np.array_equal(bits, [generator.GetFingerprintAsNumPy(m) for m in mols])
    assert np.array_equal(counts, [generator.GetCountFingerprintAsNumPy(m) for m in mols])
    assert Morgan()(standard).dtype == np.uint8 and Morgan()([]).shape == (0, 2048)


def test_counts_count_and_stop_at_255():
    assert Morgan(0, 64, True)(["C" * 148]).max() == 146 and Morgan(8, 16, True)(["C" * 148 + "O"]).max() == 255


@pytest.mark.parametrize("counts", [False, True])
def test_tanimoto_is_that_of_rdkit(counts):
    ours = Morgan(counts=counts)(standard)
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    fingerprint = generator.GetCountFingerprint if counts else generator.GetFingerprint
    theirs = [fingerprint(Chem.MolFromSmiles(s)) for s in standard]
    assert np.allclose(tanimoto(ours, ours), [DataStructs.BulkTanimotoSimilarity(a, theirs) for a in theirs], atol=1e-6)
    some = [DataStructs.BulkTanimotoSimilarity(a, theirs[:3]) for a in theirs]
    assert np.allclose(tanimoto(ours, ours[:3]), some, atol=1e-6)


def test_tanimoto_of_empty_fingerprints_is_zero():
    empty = np.zeros((2, 16), np.uint8)
    assert (tanimoto(empty, empty) == 0).all() and tanimoto(empty[:0], empty).shape == (0, 2)


def test_neighbours_come_best_first_and_ties_in_order():
    library = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0]], np.uint8)
    neighbours = nearest(library[1], library, 3)
    assert [n.index for n in neighbours] == [1, 3, 0] and neighbours[0].tanimoto == 1
    assert len(nearest(library[1], library)) == 4


def test_a_longer_library_is_compared_in_parts():
    library = np.random.default_rng(0).integers(0, 2, (9_000, 32), dtype=np.uint8)
    both = library[:2].astype(int) @ library.T
    either = library[:2].sum(1)[:, None] + library.sum(1) - both
    assert np.allclose(tanimoto(library[:2], library), both / either, atol=1e-6)


@pytest.mark.parametrize("call", [
    lambda: Morgan(bits=3), lambda: Morgan(radius=1.5), lambda: Morgan()(["nonsense"]), lambda: Morgan()([None]),
    lambda: encoder(dict(kind="magic")), lambda: encoder(dict(kind="table", name="x", width=3)),
    lambda: tanimoto(np.zeros((1, 3)), np.zeros((1, 4)))])
def test_what_cannot_be_encoded_is_refused(call, ask): assert isinstance(ask(call), InputError)


def test_an_encoder_is_made_of_its_configuration():
    morgan = encoder(Morgan(3, 512, True).to_dict())
    assert (morgan.radius, morgan.width, morgan.counts) == (3, 512, True)
    table = EmbeddingTable("gps", ["C", "CC"], np.eye(2))
    assert encoder(table.to_dict(), table) is table
    with pytest.raises(InputError, match="gps"): encoder(table.to_dict(), EmbeddingTable("other", ["C"], np.eye(1)))


# Embeddings

def test_an_embedding_is_written_and_read(tmp_path):
    table = EmbeddingTable("gps", standard, np.random.default_rng(0).normal(size=(len(standard), 5)))
    write_embeddings(table, tmp_path / "gps.npz")
    restored = read_embeddings(tmp_path / "gps.npz")
    assert restored.to_dict() == table.to_dict() and restored.values.dtype == np.float32
    assert np.array_equal(restored(standard[::-1]), table.values[::-1])


def test_an_embedding_in_csv_has_its_keys_standardised(tmp_path):
    (tmp_path / "e.csv").write_text("SMILES,a,b\nOCC,1,2\n[Na+].CC(=O)[O-],3,4.5\n", encoding="utf-8-sig")
    table = read_embeddings(tmp_path / "e.csv")
    assert table(["CC(=O)O", "CCO"]).tolist() == [[3, 4.5], [1, 2]] and table.width == 2
    with pytest.raises(InputError, match="CCC"): table(["CCC"])


@pytest.mark.parametrize("text, words", [
    ("", "header"), ("a,b\n", "header"), ("smiles\nCC\n", "header"), ("smiles,a\nCC,x\n", "Line 2"),
    ("smiles,a\nCC,1\nCO,nan\n", "Line 3"), ("smiles,a\nCC,inf\n", "Line 2"), ("smiles,a\nCC,1,2\n", "Line 2"),
    ("smiles,a\nCC,1\nC(,1\n", "Line 3"), ("smiles,a\nOC,1\nCO,1\n", "Line 3"), ("smiles,a\n", "numbers"),
    ("smiles,a\nCC,1e99\n", "Line 2")])
def test_the_wrong_line_of_an_embedding_is_named(text, words, ask, tmp_path):
    (tmp_path / "e.csv").write_text(text)
    assert words in str(ask(read_embeddings, tmp_path / "e.csv"))


def test_a_bad_embedding_file_is_refused(ask, tmp_path):
    np.savez(tmp_path / "object.npz", smiles=np.array(["C"], object), values=np.eye(1))
    np.savez(tmp_path / "flat.npz", smiles=np.array(["C"]), values=np.ones(1))
    np.savez(tmp_path / "other.npz", a=np.ones(1))
    (tmp_path / "no.npz").write_bytes(b"x")
    (tmp_path / "no.csv").write_bytes(b"smiles,a\n\xff,1\n")
    (tmp_path / "no.pkl").write_bytes(b"")
    for name in ("object.npz", "flat.npz", "other.npz", "no.npz", "no.csv", "no.pkl", "absent.csv"):
        assert name in str(ask(read_embeddings, tmp_path / name))


# Lists

lines = """# a comment

CCO
OCC, 5, ethanol
OCC\t5 µM\tethanol
OCC ethanol 5uM
OCC;0,5
taxol
Taxol 0.3
mitomycin C, 3
mitomycin C 3 uM mine
"""


def test_lines_hold_a_molecule_then_a_dose_and_a_name():
    rows = list(read_rows(lines, known))
    assert [(r.place, r.dose_um, r.name) for r in rows] == [
        ("line 3", None, ""), ("line 4", 5, "ethanol"), ("line 5", 5, "ethanol"), ("line 6", 5, "ethanol"),
        ("line 7", 0.5, ""), ("line 8", None, "taxol"), ("line 9", 0.3, "Taxol"), ("line 10", 3, "mitomycin C"),
        ("line 11", 3, "mine")]
    assert all(r.molecule for r in rows) and rows[5].molecule.smiles == smiles_of(drugs["taxol"])
    assert rows[1].molecule.smiles == "CCO" and [r.text for r in rows[:2]] == ["CCO", "OCC, 5, ethanol"]


@pytest.mark.parametrize("line, words", [
    ("CCO, 0", "0.001 to 100"), ("CCO, -1", "0.001 to 100"), ("CCO, nan", "µM"), ("CCO inf", "µM"), ("CCO 1000", "100"),
    ("CCO 0.5 nM", "0.0005 µM"), ("CCO, 1e999", "µM"), ("CCO 5 mg/ml", "µM"), ("C(C", "not closed"), ("[C,N]CC", "SMARTS"),
    ("taxl", "'taxol'"), ("ＣＣＯ", "Character 1"), ("C" * 3_000, "2,000"), ("CCO\0", "no place")])
def test_the_problem_of_a_bad_line_is_named_and_the_rest_is_read(line, words):
    wrong, right = read_rows(line + "\nCCO\n", known)
    assert words in wrong.problem and wrong.molecule is None and len(wrong.text) <= 80 and wrong.text.isprintable()
    assert right.molecule.smiles == "CCO"


@pytest.mark.parametrize("text", [
    "SMILES,Dose_uM,Name\nCCO,5,x\n", "name;smiles;dose\nx;CCO;5,0\n",
    "id\tcanonical_smiles\tname\tconcentration (µM)\n1\tCCO\tx\t5\n",
    "\ufeffStructure,name,dose\r\n\"CCO\",\"x\",\"5\"\r\n"])
def test_a_table_is_read_by_its_header(text, tmp_path):
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    for source in (text, tmp_path / "a.csv"):
        row, = read_rows(source)
        assert (row.place, row.molecule.smiles, row.dose_um, row.name, row.problem) == ("line 2", "CCO", 5, "x", "")


def test_one_bad_row_of_a_table_does_not_stop_the_rest():
    rows = list(read_rows('smiles,dose_um,name\nCCO,5\n"CCO,5,x\nC(,5,x\nCCO,x,x\nCCO,,x\n,1,taxol\n,,\n', known))
    assert [bool(r.problem) for r in rows] == [True] * 4 + [False] * 2 + [True]
    assert "cells" in rows[0].problem and "quotation" in rows[1].problem
    assert rows[5].name == "taxol" and rows[-1].place == "line 8"


def test_a_table_of_known_names_needs_no_smiles():
    rows = read_rows("name,dose\ntaxol,1\nMitomycin C,2\nwater,1\n", known)
    assert [r.molecule is not None for r in rows] == [True, True, False]


def test_an_sdf_is_read_record_by_record(tmp_path):
    record = lambda smiles, title, dose: block(smiles, title) + f"> <dose_um>\n{dose}\n\n>  <x>\ny\n\n$$$$\n"
    text = record("CCO", "ethanol", 5) + "nonsense\n$$$$\n" + record("CCC", "", "abc")
    text += record("[Na+].CC(=O)[O-]", "", 1) + block("C")
    (tmp_path / "a.sdf").write_text(text, newline="\r\n")
    for source in (text, tmp_path / "a.sdf"):
        first, *others = read_rows(source)
        assert (first.place, first.molecule.smiles) == ("record 1 (line 1)", "CCO")
        assert (first.dose_um, first.name) == (5, "ethanol")
        assert [bool(r.problem) for r in others] == [True, True, False, False]
        assert others[2].molecule.smiles == "CC(=O)O" and others[0].place.startswith("record 2 (line 1")


def test_a_record_that_never_ends_is_one_bad_row(tmp_path):
    records = [block("CCO"), "x\n" * max_block, block("CC"), "y" * 3 * max_block]
    (tmp_path / "a.sdf").write_text("$$$$\n".join(records))
    rows = list(read_rows(tmp_path / "a.sdf"))
    assert [bool(r.problem) for r in rows] == [False, True, False, True] and "longer" in rows[1].problem


def test_a_mol_file_is_one_row(tmp_path):
    (tmp_path / "a.mol").write_text(block("CCO", "ethanol"))
    row, = read_rows(tmp_path / "a.mol")
    assert (row.molecule.smiles, row.name) == ("CCO", "ethanol")


@pytest.mark.parametrize("name, content, words", [
    ("a.csv", b"", "no molecules"), ("a.csv", b"smiles\n", "no molecules"), ("a.txt", b"\n# x\n", "no molecules"),
    ("a.sdf", b"\n", "no molecules"), ("a.csv", b"x,y\n1,2\n", "x,y"),
    ("a.csv", "smiles\nCCO\n".encode("utf-16"), "UTF-16"), ("a.csv", "smiles\nCCO\n".encode("utf-16-le"), "binary"),
    ("a.csv", "smiles,name\nCCO,\xe9thanol\n".encode("latin-1"), "0xe9"),
    ("a.csv", b"PK\x03\x04", "spreadsheet"), ("a.sdf", bytes(range(256)), "binary"), ("a.exe", b"x", ".csv"),
    ("a.smi", b"C\n" * (max_rows + 1), "20,000")])
def test_a_list_that_is_wrong_as_a_whole_is_refused_at_once(name, content, words, ask, tmp_path):
    (tmp_path / name).write_bytes(content)
    assert words in str(ask(read_rows, tmp_path / name))


def test_a_list_that_is_too_large_is_refused_unread(ask, tmp_path):
    with (tmp_path / "a.sdf").open("wb") as file: file.truncate(100 * 2**20)
    began = time.process_time()
    assert "50 MB" in str(ask(read_rows, tmp_path / "a.sdf")) and time.process_time() - began < 0.5
    assert "50 MB" in str(ask(read_rows, "C" * (max_bytes + 1)))
    for source in (None, 3, "", " \n", tmp_path, tmp_path / "absent.csv", tmp_path / "a\0.csv"):
        assert isinstance(ask(read_rows, source), InputError)


list_tokens = st.sampled_from([
    "smiles", "dose", "name", "CCO", "taxol", "5", "µM", ",", ";", "\t", '"', "\n", "\n", "$$$$\n", "M  END\n", "#",
    "> <dose>\n", "1e5", " "])


@settings(max_examples=150)
@given(st.one_of(st.text(max_size=200), st.lists(list_tokens | st.text(max_size=3)).map("".join)))
def test_any_list_is_read_or_refused(ask, text):
    rows = ask(lambda: list(read_rows(text, known)))
    if isinstance(rows, InputError): return
    for row in rows:
        assert bool(row.problem) != bool(row.molecule) and len(row.problem.splitlines()) <= 1
        assert len(row.text) <= 80 and row.text.isprintable()


def test_memory_stays_flat_over_a_long_sdf(tmp_path):
    record = block("CC(=O)Oc1ccccc1C(=O)O") + "$$$$\n"
    (tmp_path / "a.sdf").write_text(record * 1_500)
    rows = read_rows(tmp_path / "a.sdf")
    for _ in range(100): next(rows)
    tracemalloc.start()
    try: count, (_, peak) = 100 + sum(1 for row in rows if row.molecule), tracemalloc.get_traced_memory()
    finally: tracemalloc.stop()
    assert count == 1_500 and peak < 500_000 < (tmp_path / "a.sdf").stat().st_size


# Drawing

def test_a_drawing_is_well_formed_and_fits_its_background(ask):
    for smiles in drugs.values():
        on_light, on_dark = draw(smiles), draw(smiles, dark=True)
        assert on_light.startswith("<svg") and on_light != on_dark
        for svg in (on_light, on_dark):
            root = ET.fromstring(svg)
            assert root.find("{http://www.w3.org/2000/svg}title").text == smiles
            assert "<rect" not in svg and root.get("role") == "img" and root.get("width") == "240px"
    assert "#000000" in draw("CCO").upper() and "#000000" not in draw("CCO", dark=True).upper()
    for call in (lambda: draw("C("), lambda: draw(None), lambda: draw("C", width=0), lambda: draw("C", height="x")):
        assert isinstance(ask(call), InputError)


def test_a_drawn_mol_block_is_titled_by_its_smiles(): assert "<title>CCO</title>" in draw(block("CCO", "<b>&"))
