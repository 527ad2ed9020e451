"The page: a Hugging Face Space and `python app.py` both start here."
from mfm_app.cli import serve

if __name__ == "__main__": serve()
