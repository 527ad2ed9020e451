"The page: a Hugging Face Space and `python app.py` both start here."
import sys

from mfm_app.cli import main

if __name__ == "__main__": main(["serve", *sys.argv[1:]])
