"The page: a Hugging Face Space and `python app.py` both start here."
import gc
import sys

gc.disable()      # what is imported stays: a fifth of the start is spent on looking for garbage in it
from mfm_app import cli, ui      # noqa: E402, F401

gc.freeze()
gc.enable()

if __name__ == "__main__": cli.main(["serve", *sys.argv[1:]])
