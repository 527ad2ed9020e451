"Molecules a second, SMILES to fingerprints and standard forms; `python bench/molecules.py` prints a Markdown table."
import os
import sys
import time
from itertools import islice, product

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import rdFingerprintGenerator

from mfm_app.core import markdown_table
from mfm_app.molecules import Molecule, Morgan, nearest, standardise

scaffolds = [
    "c1c({0})cc2c(c1)nc({1})nc2N{2}", "c1c({0})ccc(c1)C(=O)Nc1ccc({1})nc1{2}", "O=C1N({0})c2ccc({1})cc2CC1{2}",
    "c1({0})sc({1})nc1C(=O)N1CCN(CC1){2}", "c1({0})n[nH]c2c1cc({1})cc2OCC{2}",
    "C1CC({0})CCN1S(=O)(=O)c1ccc({1})c({2})c1",
    "c1({0})cnc2n1nc({1})cc2NC{2}", "O=C(NC({0})C(=O)N1CCCC1{1})OCc1ccc({2})cc1", "c1({0})oc2cc({1})ccc2c1C(=O)CC{2}",
    "C1C({0})Oc2cc({1})ccc2C1=NOC{2}", "c1({0})nnc(SCC(=O)Nc2ccc({1})cc2)n1C{2}", "COc1cc({0})c2c(c1)C(CN{1})CC2O{2}"]
substituents = [
    "C", "CC", "C(C)C", "CCC", "C9CC9", "CC(F)(F)F", "CCOC", "c9ccccc9", "Cc9ccccc9", "c9ccc(F)cc9", "c9ccncc9",
    "C9CCOCC9", "C9CCCCC9", "CC(=O)N(C)C", "CCN9CCOCC9", "c9ccc(Cl)c(Cl)c9", "CC#N", "CCCO",
    "CC(C)(C)C", "c9cccs9", "CCc9c[nH]c8ccccc89"]


def molecules(n):
    "SMILES of `n` different molecules of the size of drugs: each scaffold with each choice of three substituents."
    written = (scaffold.format(*groups) for groups in product(substituents, repeat=3) for scaffold in scaffolds)
    return list(islice(written, n))


def timed(f, *args):
    "The result of `f(*args)`, and the seconds it took."
    start = time.perf_counter()
    result = f(*args)
    return result, time.perf_counter() - start


def rdkit_fingerprints(smiles):
    "RDKit's generator in a loop on one core."
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    return np.stack([generator.GetFingerprintAsNumPy(Chem.MolFromSmiles(s)) for s in smiles])


if __name__ == "__main__":
    smiles = molecules(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
    tenth = smiles[::10]
    standard, standardise_s = timed(standardise, tenth)
    bits, morgan_s = timed(Morgan(), smiles)
    rdkit_bits, rdkit_s = timed(rdkit_fingerprints, smiles)
    _, nearest_s = timed(nearest, bits[0], bits)
    atoms = [Chem.MolFromSmiles(m.smiles).GetNumHeavyAtoms() for m in standard if isinstance(m, Molecule)]
    assert np.array_equal(bits, rdkit_bits) and len(atoms) == len(tenth)
    heavy = f"{min(atoms)} to {max(atoms)} heavy atoms (median {np.median(atoms):g})"
    print(f"{len(smiles):,} different molecules of {heavy}, {os.cpu_count()} cores, RDKit {rdBase.rdkitVersion}\n")
    rows = [("`Morgan()`, radius 2, 2,048 bits, from SMILES", len(smiles), morgan_s),
            ("RDKit's generator in a loop over `MolFromSmiles`", len(smiles), rdkit_s),
            ("`standardise`", len(tenth), standardise_s),
            ("`nearest`, one against all", len(smiles), nearest_s)]
    cells = [(name, f"{n:,}", f"{seconds:.1f}", f"{n / seconds:,.0f}") for name, n, seconds in rows]
    print(markdown_table(["", "molecules", "seconds", "molecules/s"], cells, "lrrr"))
