"Molecules a second, from SMILES to fingerprints and to standard form. `python bench/molecules.py` prints a Markdown table."
import os
import sys
import time
from itertools import islice, product

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import rdFingerprintGenerator

from mfm_app.molecules import Molecule, Morgan, nearest, standardise

scaffolds = ["c1c({0})cc2c(c1)nc({1})nc2N{2}", "c1c({0})ccc(c1)C(=O)Nc1ccc({1})nc1{2}", "O=C1N({0})c2ccc({1})cc2CC1{2}",
             "c1({0})sc({1})nc1C(=O)N1CCN(CC1){2}", "c1({0})n[nH]c2c1cc({1})cc2OCC{2}", "C1CC({0})CCN1S(=O)(=O)c1ccc({1})c({2})c1",
             "c1({0})cnc2n1nc({1})cc2NC{2}", "O=C(NC({0})C(=O)N1CCCC1{1})OCc1ccc({2})cc1", "c1({0})oc2cc({1})ccc2c1C(=O)CC{2}",
             "C1C({0})Oc2cc({1})ccc2C1=NOC{2}", "c1({0})nnc(SCC(=O)Nc2ccc({1})cc2)n1C{2}", "COc1cc({0})c2c(c1)C(CN{1})CC2O{2}"]
carbons = ["C", "CC", "C(C)C", "CCC", "C9CC9", "CC(F)(F)F", "CCOC", "c9ccccc9", "Cc9ccccc9", "c9ccc(F)cc9", "c9ccncc9", "C9CCOCC9",
           "C9CCCCC9", "CC(=O)N(C)C", "CCN9CCOCC9", "c9ccc(Cl)c(Cl)c9", "CC#N", "CCCO", "CC(C)(C)C", "c9cccs9", "CCc9c[nH]c8ccccc89"]


def molecules(n):
    "`n` different molecules of the size of drugs: each scaffold with each choice of three groups."
    return list(islice((scaffold.format(*groups) for groups in product(carbons, repeat=3) for scaffold in scaffolds), n))


def seconds(f, *args):
    began = time.perf_counter()
    found = f(*args)
    return found, time.perf_counter() - began


def looped(smiles):
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    return np.stack([generator.GetFingerprintAsNumPy(Chem.MolFromSmiles(s)) for s in smiles])


if __name__ == "__main__":
    smiles = molecules(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
    some = smiles[::10]
    standard, standard_seconds = seconds(standardise, some)
    heavy = [Chem.MolFromSmiles(m.smiles).GetNumHeavyAtoms() for m in standard if isinstance(m, Molecule)]
    bits, our_seconds = seconds(Morgan(), smiles)
    theirs, loop_seconds = seconds(looped, smiles)
    _, nearest_seconds = seconds(nearest, bits[0], bits)
    assert np.array_equal(bits, theirs) and len(heavy) == len(some)
    print(f"{len(smiles):,} different molecules of {min(heavy)} to {max(heavy)} heavy atoms (median {np.median(heavy):g}), {os.cpu_count()} cores, RDKit {rdBase.rdkitVersion}\n")
    print("| | molecules | seconds | molecules/s |\n|---|---|---|---|")
    for name, n, took in (("`Morgan()`, radius 2, 2,048 bits, from SMILES", len(smiles), our_seconds),
                          ("RDKit's generator in a loop over `MolFromSmiles`", len(smiles), loop_seconds),
                          ("`standardise`", len(some), standard_seconds), ("`nearest`, one against all", len(smiles), nearest_seconds)):
        print(f"| {name} | {n:,} | {took:.1f} | {n / took:,.0f} |")
