"Molecules: what is read, what is refused and why, standard forms, fingerprints, lists of molecules, drawings."
import csv
import io
import math
import time
import tracemalloc
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from conftest import many
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rdkit import Chem, DataStructs
from rdkit.Chem import AllChem, rdFingerprintGenerator
from rdkit.Chem.MolStandardize import rdMolStandardize

from mfm_app.core import InputError
from mfm_app.molecules import (EmbeddingTable, Known, Molecule, Morgan, bases, chain_acids, dose_columns, dose_unit,
                               draw, encoder, max_block, max_bytes, max_rows, mineral_acids, nearest, read_doses,
                               read_embeddings, read_molecule, read_quantity, read_rows, ring_acids, solvents,
                               standardise, standardise_mol, sulfonic_acids, tanimoto, write_embeddings)

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


# CXSMILES

@pytest.mark.parametrize("written, standard, words", [
    ("C[C@H](N)O |&1:1,r|", "C[C@H](N)O", "the one that is written"),
    ("C[C@H](N)O |o1:1|", "C[C@H](N)O", "the one that is written"), ("C[C@H](N)O |a:1|", "C[C@H](N)O", "|a:1|"),
    ("C/C=C/C |t:1|", "C/C=C/C", "extension"), ("CCO |$;;OMe$|", "CCO", "extension"), ("CCO |$_|;;$|", "CCO", None),
    ("CCO |(1,2,;2,3,;3,3,)|", "CCO", "extension"), ("CN1C2CCC1CC(C2)O |r,THB:9:1:4:7.8|", "CN1C2CCC1CC(O)C2", "THB"),
    ("[CH2]C |^1:0|", "[CH2]C", "unpaired"), ("CCO |lp:2:2| ethanol", "CCO", "extension"),
    ("C[NH3+].[Cl-] |r|", "CN", "Dropped hydrochloric acid")])
def test_the_extension_of_a_cxsmiles_is_read_and_noted(written, standard, words, ask):
    molecule = ask(read_molecule, written)
    if words is None: assert isinstance(molecule, InputError)
    else: assert molecule.smiles == standard and words in " ".join(molecule.notes)


@pytest.mark.parametrize("written, words", [
    ("*CC.CC |m:0:3.4|", "'*'"), ("CC.CC |m:0:3.4|", "attachments that vary"), ("CCO |LN:1:1.3|", "polymer"),
    ("CCCO |Sg:n:1:3:ht|", "polymer"), ("CCC |s:1:2|", "query"), ("CCC |rb:1:2|", "query"), ("CCC |u:1|", "query"),
    ("CC |RG:_R1={C}|", "R groups"), ("CCO |$_AP1;;$|", "attachment points"), ("*CC |$_R1;;$|", "'*'"),
    ("CCO |nonsense|", "cannot be read"), ("C[C@H](N)O |&1:1", "no bar"), ("CC>>CO |r|", "reaction"),
    ("CC(C)(C)(C)C |r|", "5 bonds"), ("c1cccc1 |c:0|", "aromatic")])
def test_what_an_extension_makes_of_a_molecule_is_refused_for_what_it_is(written, words, ask):
    error = ask(read_molecule, written)
    assert isinstance(error, InputError) and words in str(error), error


organic = {name: smiles for name, smiles in drugs.items() if name != "cisplatin"} | dict(
    docetaxel="CC(=O)O[C@@]12CO[C@@H]1C[C@H](O)[C@]3(C)[C@@H]2[C@H](OC(=O)c4ccccc4)[C@]5(O)C[C@H](OC(=O)[C@H](O)"
              "[C@@H](NC(=O)OC(C)(C)C)c6ccccc6)C(=C([C@@H](O)C3=O)C5(C)C)C",
    pyrantel="CN1CCCN=C1/C=C/c1cccs1", metformin="CN(C)C(=N)NC(N)=N", memantine="CC12CC3CC(C)(C1)CC(N)(C3)C2",
    stilbene="Oc1ccc(cc1)/C(CC)=C(/CC)c1ccc(O)cc1", retinoic_acid="CC1=C(C(C)(C)CCC1)/C=C/C(C)=C/C=C/C(C)=C/C(O)=O")
written_smiles = st.builds(
    lambda smiles, seed: Chem.MolToRandomSmilesVect(Chem.MolFromSmiles(smiles), 1, seed)[0],
    st.sampled_from(sorted(organic.values())), st.integers(1, 10**6))


@many(25)
@given(written_smiles, st.data())
def test_any_extension_about_stereochemistry_or_labels_leaves_the_molecule_as_rdkit_reads_it(smiles, data):
    mol = Chem.MolFromSmiles(smiles)
    centres = [a.GetIdx() for a in mol.GetAtoms() if a.GetChiralTag() != Chem.ChiralType.CHI_UNSPECIFIED]
    kinds = [Chem.StereoGroupType.STEREO_AND, Chem.StereoGroupType.STEREO_OR, Chem.StereoGroupType.STEREO_ABSOLUTE]
    mixed, editable = data.draw(st.lists(st.sampled_from(centres), unique=True)) if centres else [], Chem.RWMol(mol)
    if mixed:
        group = Chem.CreateStereoGroup(data.draw(st.sampled_from(kinds)), editable, mixed)
        editable.SetStereoGroups([group])
    if data.draw(st.booleans()): AllChem.Compute2DCoords(editable)
    if data.draw(st.booleans()): editable.GetAtomWithIdx(0).SetProp("atomLabel", "first")
    plain, *extension = (text := Chem.MolToCXSmiles(editable)).split(" ", 1)
    molecule = read_molecule(text)
    assert molecule.smiles == smiles_of(plain)
    assert any("extension" in note for note in molecule.notes) == bool(extension)


# Salts

acids = dict(benzoate="OC(=O)c1ccccc1", pamoate="OC(=O)c1cc2ccccc2c(Cc2c(O)c(cc3ccccc23)C(O)=O)c1O",
             oleate="CCCCCCCC/C=C\\CCCCCCCC(O)=O", acetamidobenzoate="CC(=O)Nc1ccc(cc1)C(O)=O")


@pytest.mark.parametrize("drug, ion, name", [
    ("pyrantel", "pamoate", "pamoic acid"), ("metformin", "pamoate", "pamoic acid"),
    ("memantine", "pamoate", "pamoic acid"), ("memantine", "oleate", "oleic acid"),
    ("metformin", "acetamidobenzoate", "acetamidobenzoic acid")])
def test_the_drug_is_kept_where_the_counter_ion_is_the_larger_part(drug, ion, name):
    molecule = read_molecule(f"{organic[drug]}.{acids[ion]}")
    assert molecule.smiles == Chem.CanonSmiles(organic[drug]) and f"Dropped {name}." in molecule.notes


@pytest.mark.parametrize("written, drug", [
    ("CN(C)CCO.CC(=O)Nc1ccc(cc1)C(O)=O", "CN(C)CCO"), (f"NCCO.{acids['oleate']}", "NCCO"),      # both are counter-ions
    ("C[N+](C)(C)CCO.[O-]C(=O)c1ccccc1O", "OC(=O)c1ccccc1O"), ("Cn1c2nc(Cl)[nH]c2c(=O)n(C)c1=O.CNC1CCCCC1CCC", None),
    ("CNCC(O)C(O)C(O)C(O)CO.CC(C)Cc1ccc(cc1)C(C)C(O)=O", "CC(C)Cc1ccc(cc1)C(C)C(O)=O")])
def test_where_all_are_counter_ions_the_base_or_the_one_that_is_a_drug_too_is_kept(written, drug):
    kept = smiles_of(written)
    assert kept == Chem.CanonSmiles(drug or written.split(".")[1])


ions = solvents | mineral_acids | sulfonic_acids | chain_acids | ring_acids | bases


@many(25)
@given(written_smiles, st.lists(st.sampled_from(sorted(ions)), min_size=1, max_size=2, unique=True),
       st.integers(1, 2), st.randoms())
def test_any_salt_or_solvate_has_the_parent_of_its_drug(smiles, names, times, order):
    parts = [smiles, *times * [ions[name] for name in names]]
    order.shuffle(parts)
    assume(Chem.MolFromSmiles(".".join(parts)).GetNumHeavyAtoms() <= 150)
    molecule = read_molecule(".".join(parts))
    assert molecule.smiles == smiles_of(smiles)
    assert all(name.replace("_", " ") in " ".join(molecule.notes) for name in names)


# Metals

@pytest.mark.parametrize("complex, ways", [
    ("N[Pt](N)(Cl)Cl", ["N.N.Cl[Pt]Cl", "[NH3+][Pt-2]([NH3+])(Cl)Cl", "[NH3]->[Pt](<-[NH3])(Cl)Cl", "Cl[Pt]Cl.N.N.O",
                        "[NH2-].[NH2-].Cl[Pt+2]Cl", "[NH3][Pt]([NH3])(Cl)Cl",
                        "[H]N([H])([H])[Pt](Cl)(Cl)N([H])([H])[H]"]),
    ("N[Pt]1(N)OC(=O)C2(CCC2)C(=O)O1", ["N.N.O=C1O[Pt]OC(=O)C12CCC2"]),
    ("O=C1O[Pt]2(N[C@@H]3CCCC[C@H]3N2)OC1=O", ["O=C1O[Pt]OC1=O.N[C@@H]1CCCC[C@H]1N"]),
    ("CC(=O)O[Pt](N)(Cl)(Cl)(NC1CCCCC1)OC(C)=O", ["CC(=O)O[Pt](Cl)(Cl)OC(C)=O.N.NC1CCCCC1"])])
def test_a_platinum_complex_is_one_molecule_however_its_amines_are_written(complex, ways):
    assert {smiles_of(way) for way in ways} == {smiles_of(complex)} == {Chem.CanonSmiles(complex)}
    assert all("bonded to their metal" in " ".join(read_molecule(way).notes) for way in ways if "." in way)


@pytest.mark.parametrize("written, words", [
    ("Cl[Pt]Cl.N", "ammonia stands beside Pt"), ("N.Cc1ccccn1.Cl[Pt]Cl", "beside Pt"),
    ("Cl[Cu]Cl.NC(=S)NN", "beside Cu"), ("CCP(CC)CC.[Au]SC1CCCCO1", "beside Au"), ("[Cl-].[Cl-].N[Pt+2]N", "beside Pt"),
    ("c1ccccc1[Hg+].[Cl-]", "beside Hg"), ("[Pt+2].[O-]C(=O)C([O-])=O.NC1CCCCC1N", "Pt stands beside"),
    ("[K].I", "Nothing but")])
def test_ligands_beside_their_metal_are_never_dropped(written, words, ask):
    assert words in str(ask(read_molecule, written))


def test_a_salt_of_a_metal_complex_keeps_the_complex():
    assert smiles_of("[Na+].CC[Hg]Sc1ccccc1C([O-])=O") == smiles_of("CC[Hg]Sc1ccccc1C(O)=O")
    assert "Fe" in smiles_of("[Cl-].CC1=C2C=C3C=CC4=[N]3[Fe+]35N2C(=C1)C=C1C=CC(=[N]13)C=C1C=CC(=C4)N15")


# Stereochemistry

@many(15)
@given(written_smiles, st.booleans())
def test_stereochemistry_survives_the_editor_both_ways(smiles, v3000):
    mol = Chem.MolFromSmiles(smiles)
    AllChem.Compute2DCoords(mol)
    drawn = Chem.MolToV3KMolBlock(mol) if v3000 else Chem.MolToMolBlock(mol)
    assert smiles_of(drawn) == smiles_of(smiles) == smiles_of(Chem.MolToSmiles(Chem.MolFromMolBlock(drawn)))


@pytest.mark.parametrize("name, centres, double_bonds", [("taxol", 11, 0), ("docetaxel", 11, 0), ("stilbene", 0, 1),
                                                         ("retinoic_acid", 0, 4), ("epothilone", 7, 1)])
def test_no_stereocentre_and_no_double_bond_is_lost(name, centres, double_bonds):
    standard = smiles_of(block(organic[name]))
    mol = Chem.MolFromSmiles(standard)
    bonds = [b for b in mol.GetBonds() if b.GetStereo() != Chem.BondStereo.STEREONONE]
    assert (len(Chem.FindMolChiralCenters(mol)), len(bonds)) == (centres, double_bonds)
    assert standard == Chem.CanonSmiles(organic[name])


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
    ("CCO 0.5 nM", "0.0005 µM"), ("CCO, 1e999", "µM"), ("CCO 5 mg/ml", "µM"), ("C(C", "not closed"),
    ("[C,N]CC", "SMARTS"),
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


@pytest.mark.parametrize("text, dose_um", [
    ("5", 5), (5, 5), (5e-7, 5e-7), ("0.3 µM", 0.3), ("500nM", 0.5), ("2 mM", 2000), ("5e-7 M", 0.5), ("7 pM", 7e-6),
    ("3 fM", 3e-9), ("1,5", 1.5), ("3 μmol/L", 3), ("3 µmol L⁻¹", 3), ("2 micromolar", 2), ("2 mcM", 2), ("0", 0),
    ("", None), (" ", None), (".5 uM", 0.5), ("4 nmol per liter", 0.004)])
def test_a_quantity_is_read_with_its_unit(text, dose_um): assert read_quantity(text) == dose_um


@pytest.mark.parametrize("text, unit, words", [
    ("5 mg/mL", "", "mass"), ("5", "µg/mL", "mass"), ("5", "ng_ml", "mass"), ("5", "mg/kg", "mass"),
    ("5 %", "", "share"),
    ("5 % v/v", "", "share"), ("5 U/mL", "", "activity"), ("5 nmol", "", "amount"), ("5 µL", "", "volume"),
    ("5", "log10 M", "logarithm"), ("5", "pIC50", "logarithm"), ("5 x", "", "no unit of a dose"),
    ("5 nM", "uM", "another unit"), ("1,000", "", "thousands"), ("-1", "", "0 up"), ("nan", "", "no number"),
    ("<5", "", "no number"), ("5-10", "", "no number"), ("５", "", "no number"), ("1e999", "", "0 up")])
def test_what_is_no_concentration_is_refused_with_the_reason(text, unit, words, ask):
    assert words in str(ask(read_quantity, text, unit))


@pytest.mark.parametrize("title, unit", [
    ("dose", ""), (" Dose ", ""), ("concentration", ""), ("pert_dose", ""), ("Image_Metadata_Concentration", ""),
    ("dose_nM", "nm"), ("Dose (nM)", "nm"), ("conc_nM", "nm"), ("Concentration (M)", "m"), ("Dose_uM", "um"),
    ("doseUM", "um"),
    ("Dose [µg/mL]", "ug/ml"), ("Final concentration, µM", "um"), ("Dose\n(nM)", "nm"), ("dose.uM", "um"), ("µM", "µM"),
    ("dose_umol_per_l", "umol_per_l"), ("log10 dose", "log"), ("pert_dose_unit", None), ("dose_level", None),
    ("dose (molar)", "molar"), ("Molar concentration", ""),
    ("stock_conc_mM", None), ("name", None), ("wavelength_nm", None), ("nm", None), ("pert_time", None)])
def test_the_title_of_a_column_says_whether_it_has_doses_and_in_which_unit(title, unit): assert dose_unit(title) == unit


def test_the_unit_may_stand_in_a_column_beside_the_dose(ask):
    columns = dose_columns(["smiles", "pert_dose", "pert_dose_unit", "pert_time", "pert_time_unit"])
    assert read_doses(columns, ["C", "500", "nM", "24", "h"]) == 0.5
    assert read_doses(columns, ["C", "", "uM", "", ""]) is None
    assert "mass" in str(ask(read_doses, columns, ["C", "500", "mg/mL", "", ""]))
    both = dose_columns(["dose_uM", "dose_nM"])
    assert read_doses(both, ["0.5", "500"]) == 0.5 and "0.5 and 50" in str(ask(read_doses, both, ["0.5", "50000"]))


spellings = {1.: ["uM", "µM", "μM", "um", "micromolar", "umol/L", "mcM"], 1e-3: ["nM", "nmol/l", "nanomolar", "NM"],
             1e3: ["mM", "mmol/L", "millimolar"], 1e6: ["M", "mol/L", "molar"], 1e-6: ["pM", "picomolar"]}
unit_and_factor = st.sampled_from([(unit, factor) for factor, units in spellings.items() for unit in units])
in_range = st.floats(0.002, 90).map(lambda value: float(f"{value:.3g}"))


@many(25)
@given(in_range, unit_and_factor, st.sampled_from(["cell", "title", "beside"]),
       st.sampled_from(["dose", "Concentration"]))
def test_a_dose_is_the_same_wherever_its_unit_stands(dose_um, unit, place, word):
    name, factor = unit
    number = repr(dose_um / factor)
    titles, cells = dict(cell=([word], [f"{number} {name}"]), title=([f"{word} ({name})"], [number]),
                         beside=([word, f"{word}_unit"], [number, name]))[place]
    assert math.isclose(read_doses(dose_columns(titles), cells), dose_um, rel_tol=1e-9)


# Kinds of lists

def rows_of(tmp_path, name, text, known=None):
    (tmp_path / name).write_bytes(text.encode())
    return list(read_rows(tmp_path / name, known))


def test_a_column_of_cxsmiles_is_read_with_and_without_quotation_marks(tmp_path):
    rows = rows_of(tmp_path, "a.csv", 'smiles,name\n"C[C@H](N)O |&1:1,r|",one\nC[C@H](N)O |&1:1,r|,two\n')
    rows += read_rows("C[C@H](N)O |&1:1,r| 5 nM, three\nC[C@H](N)O\t|&1:1,r|\t5\tfour\nC[C@H](N)O |&1:1")
    assert [r.molecule and r.molecule.smiles for r in rows] == ["C[C@H](N)O"] * 4 + [None]
    assert [r.name for r in rows[:4]] == ["one", "two", "three", "four"] and "no bar" in rows[4].problem
    assert all("|&1:1,r|" in " ".join(r.notes) for r in rows[:4]) and rows[2].dose_um == 0.005


@pytest.mark.parametrize("header, dose", [
    ("dose_nM", "500"), ("Dose (nM)", "500"), ("Concentration (M)", "5e-7"), ("conc_nM", "500"), ("pert_dose", "0.5"),
    ('"Dose\n(nM)"', "500"), ("dose", "500 nM"), ("dose,dose_unit", "500,nM")])
def test_the_dose_of_a_table_is_in_the_unit_of_its_header(header, dose, tmp_path):
    row, = rows_of(tmp_path, "a.csv", f"smiles,{header}\nCCO,{dose}\n")
    assert row.dose_um == 0.5 and (header == "pert_dose" or "is 0.5 µM." in row.notes[0])


def test_a_column_that_may_be_a_dose_but_is_not_read_is_named_and_a_mass_is_refused(tmp_path, ask):
    row, = rows_of(tmp_path, "a.csv", "smiles,dose_level\nCCO,3\n")
    assert row.dose_um is None and row.notes == ("No dose was read from the column 'dose_level'.",)
    assert "mass" in str(ask(rows_of, tmp_path, "a.csv", "smiles,Dose (ug/mL)\nCCO,3\n"))


def test_the_columns_that_are_not_read_are_named_once(tmp_path):
    rows = list(rows_of(tmp_path, "a.csv", "plate,smiles,well,dose_um,name\nP1,CCO,A1,2,a\nP1,CCN,A2,3,b\n"))
    assert [row.notes for row in rows] == [("The columns 'plate', 'well' were not read in this list.",), ()]
    wide = ",".join(f"feature {i}" for i in range(40))
    row, = rows_of(tmp_path, "a.csv", f"smiles,{wide}\nCCO{',1' * 40}\n")
    assert row.notes[0].startswith("The columns 'feature 0', ") and "'feature 4', 35 more were not" in row.notes[0]
    row, = rows_of(tmp_path, "a.csv", "smiles,batch\nCCO,1\n")
    assert row.notes == ("The column 'batch' was not read in this list.",)


def test_the_fields_of_an_sdf_that_are_not_read_are_named_once(tmp_path):
    block = Chem.MolToMolBlock(Chem.MolFromSmiles("CCO"))
    record = f"{block}> <dose_um>\n2\n\n> <supplier>\nX\n\n> <name>\nethanol\n\n$$$$\n"
    first, second = rows_of(tmp_path, "a.sdf", record * 2)
    assert first.notes == ("The field 'supplier' was not read in this list.",) and second.notes == ()
    assert (first.name, first.dose_um) == ("ethanol", 2)


def test_a_number_after_the_smiles_is_the_name_in_a_smi_file_and_a_dose_in_a_pasted_list(tmp_path):
    text = "CCO\t71\nCCN 5\nc1ccccc1\t241\nCCC 5 uM propane\n"
    smi, pasted = rows_of(tmp_path, "a.smi", text), list(read_rows(text))
    assert [(r.name, r.dose_um) for r in smi] == [("71", None), ("5", None), ("241", None), ("propane", 5)]
    assert "71 was taken as the name" in smi[0].notes[0] and "71 was taken as a dose" in pasted[0].notes[0]
    assert [r.dose_um for r in pasted] == [71, 5, None, 5] and ".smi" in pasted[2].problem


def test_a_table_of_names_says_which_are_known_and_which_lack_a_structure(tmp_path):
    control = Known("DMSO", why="'DMSO' is the control; leave it out.")
    compounds = known | {"AZ-A": "", "DMSO": control, "paclitaxel": Known("taxol", drugs["taxol"])}
    text = ("compound,concentration,moa\nAZ-A,0.3,Aurora\nDMSO,0,DMSO\ntaxoll,0.3,\nPaclitaxel,300 nM,\n"
            "mitomycin-C,1,\n")
    rows = rows_of(tmp_path, "moa.csv", text, compounds)
    assert rows[0].problem == "The structure of 'AZ-A' is not known; give its SMILES."
    assert rows[1].problem == control.why
    assert rows[2].problem.startswith("'taxoll' is no known compound, such as 'taxol'")
    assert rows[3].name == "Paclitaxel" and rows[3].notes == ("Paclitaxel is taxol here.", "300 nM is 0.3 µM.")
    assert rows[4].molecule and not rows[4].notes


def test_comments_before_the_header_are_skipped_and_may_be_the_header(tmp_path):
    hub = ("!Release\t2020\n!Licence\tsee site\nbroad_id\tpert_iname\tsmiles\n"
           "BRD-K1\tethanol\tCCO\nBRD-K2\tamine\tCCN\n")
    for text in (hub, hub.replace("!", "# "), "# made\n#smiles\tname\nCCO\tethanol\n# more\nCCN\tamine\n"):
        rows = rows_of(tmp_path, "hub.txt", text)
        assert [(r.molecule.smiles, r.name) for r in rows] == [("CCO", "ethanol"), ("CCN", "amine")]


def test_a_cell_may_have_line_breaks_in_quotation_marks_and_a_stray_mark_spoils_one_row(tmp_path):
    text = 'smiles,name\nCCO,"eth\nanol"\nCCN,ok\n"CCC,bad\nCCCC,butane\nCCCO,"x\n# y\n\nz"\n'
    for ending in ("\n", "\r\n"):
        rows = rows_of(tmp_path, "a.csv", text.replace("\n", ending))
        assert [(r.place, r.molecule and r.molecule.smiles, r.name) for r in rows] == [
            ("line 2", "CCO", "eth anol"), ("line 4", "CCN", "ok"), ("line 5", None, ""), ("line 6", "CCCC", "butane"),
            ("line 7", "CCCO", "x # y z")]


@many(20)
@given(st.lists(st.tuples(written_smiles, st.integers(0, 10**9) | st.sampled_from(["71.5", "1e3", "NSC 185", "x y"])),
                min_size=1, max_size=5), st.sampled_from("\t "))
def test_any_smi_file_has_names_in_its_second_column(tmp_path_factory, lines, blank):
    path = tmp_path_factory.getbasetemp() / "any.smi"
    path.write_text("".join(f"{smiles}{blank}{name}\n" for smiles, name in lines))
    rows = list(read_rows(path))
    assert [(r.molecule.smiles, r.name, r.dose_um) for r in rows] == [
        (Chem.CanonSmiles(smiles), str(name), None) for smiles, name in lines]


cell_text = st.text("abcXYZ 09,;\t\"'\n-()", max_size=12)
titles_of = dict(smiles=["smiles", "SMILES", " Canonical SMILES ", "Isomeric_SMILES", "structure"],
                 name=["name", "Compound", "pert_iname", "Compound name"],
                 dose=["dose", "Concentration", "pert_dose", "Dose"], other=["moa", "comment", "vendor, place"])
comments = st.lists(st.sampled_from(["!Version\t1", "# smiles were made, by hand", "!", "#", ""]), max_size=3)


@st.composite
def tables(draw):
    "A table as text, and its rows as written: SMILES, name, dose in µM; some fields are in other words or places."
    delimiter, ending = draw(st.sampled_from(",;\t")), draw(st.sampled_from(["\n", "\r\n"]))
    (unit, factor), place = draw(unit_and_factor), draw(st.sampled_from(["cell", "title", "beside", "none"]))
    titles = {column: draw(st.sampled_from(allowed)) for column, allowed in titles_of.items()}
    if place == "beside": titles["unit"] = titles["dose"] + "_unit"
    if place == "title": titles["dose"] += draw(st.sampled_from([f" ({unit})", f" [{unit}]", f"_{unit}"]))
    if place == "none": factor = 1.
    order = draw(st.permutations(sorted(titles)).filter(lambda order: order[0] != "other"))
    rows = draw(st.lists(st.tuples(written_smiles, cell_text, in_range, cell_text), min_size=1, max_size=4))
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter, lineterminator=ending, quoting=draw(st.sampled_from([0, 1])))
    for comment in draw(comments): file.write(comment + ending)
    writer.writerow([titles[column] for column in order])
    for smiles, name, dose_um, other in rows:
        dose = repr(dose_um / factor).replace(".", "," if delimiter == ";" and draw(st.booleans()) else ".")
        if place == "cell": dose += f" {unit}"
        cells = dict(smiles=smiles, name=name, dose=dose, unit=unit, other=other)
        writer.writerow([cells[column] for column in order])
    return file.getvalue(), [row[:3] for row in rows]


@many(25)
@given(tables(), st.sampled_from([".csv", ".tsv", ".txt"]), st.booleans())
def test_any_table_is_read_row_by_row_as_it_was_written(tmp_path_factory, table, suffix, bom):
    text, written = table
    assume(suffix != ".txt" or "$$$$" not in text)
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    path.write_bytes(text.encode("utf-8-sig" if bom else "utf-8"))
    rows = list(read_rows(path))
    assert len(rows) == len(written)
    for row, (smiles, name, dose_um) in zip(rows, written):
        assert row.problem == "" and row.molecule.smiles == Chem.CanonSmiles(smiles)
        assert row.name == " ".join(name.split()) and math.isclose(row.dose_um, dose_um, rel_tol=1e-9)


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
