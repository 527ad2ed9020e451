"Models by name: pushed to and loaded from a Hub of our own, which requests are made, and the messages of its errors."
import errno
import io
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import yaml
from hub_standin import licences, reader, standin, writer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mfm_app import hub as hub_room
from mfm_app.card import hub_licences, model_card
from mfm_app.core import Condition, InputError
from mfm_app.finetune import with_molecules
from mfm_app.hub import (Model, bundled, from_pretrained, hub_errors, load_model, parse_repo_id, push_to_hub,
                         save_model, save_pretrained)
from mfm_app.molecules import EmbeddingTable

small = bundled.with_name("simulated")
model_files = {"config.json", "model.safetensors", "README.md"}
files = {name: (small / name).read_bytes() for name in model_files}
config = json.loads(files["config.json"])
unused = ("pytorch_model.bin", "training.pt", "more/config.json", "embeddings.npz", "code.py")
other_files = dict.fromkeys(unused, b"never")


@pytest.fixture
def hub():
    "A Hub with lab/cells, which has a tag and more files than a model needs; nobody is logged in."
    with standin() as hub:
        hub.first = hub.add("lab/cells", files | other_files, tag="v1")
        yield hub


@pytest.fixture
def writable_hub():
    "An empty Hub; a token that may write is logged in."
    with standin(writer) as hub: yield hub


@pytest.fixture(scope="module")
def model(): return load_model(small)


@pytest.fixture
def small_copy(tmp_path):
    "A copy of the small model's folder."
    return shutil.copytree(small, tmp_path / "mine")


def predictions(model):
    "The output of a network for a fixed input."
    x, t = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32), torch.tensor([0.2, 0.7])
    zeros, dose_um = torch.tensor([0, 0]), torch.tensor([float("nan"), 3.])
    with torch.no_grad(): return model.net(x, t, Condition(y=torch.tensor([0, 2]), e=zeros, c=zeros, dose_um=dose_um))


def downloaded(hub):
    "The names of the files that were asked for."
    return {r.split("/resolve/")[1].split("/", 1)[1] for r in hub.requests if "/resolve/" in r}


def bytes_of(folder): return {p.name: p.read_bytes() for p in folder.iterdir()}


# Pushed and loaded again

def test_a_pushed_model_is_loaded_unchanged(writable_hub, model):
    address = model.push_to_hub("lab/new", message="A first one")
    repository = writable_hub.repository("lab/new")
    assert address == f"{writable_hub.endpoint}/lab/new/commit/{repository.refs['main']}"
    assert repository.messages[-1] == "A first one"
    assert len(repository.commits) == 2      # the creation, and one for all files
    assert set(writable_hub.files["lab/new"]) == {".gitattributes", *model_files}
    again = Model.from_pretrained("lab/new")
    assert torch.equal(predictions(again), predictions(model)) and again.config == model.config
    assert again.sha256 == model.sha256 == load_model(small).sha256
    assert (again.name, again.source, again.revision) == ("new", "lab/new", repository.refs["main"])


def test_a_folder_is_pushed_byte_for_byte_and_its_card_names_the_repository(writable_hub):
    push_to_hub(small, "lab/new")
    pushed = writable_hub.files["lab/new"]
    assert all(pushed[name] == files[name] for name in ("config.json", "model.safetensors"))
    assert pushed["README.md"] == files["README.md"].replace(b"user/name", b"lab/new")
    assert b'load("lab/new")' in pushed["README.md"]


@pytest.mark.parametrize("folder", [bundled, small], ids=lambda p: p.name)
def test_a_loaded_model_is_saved_byte_for_byte(folder, tmp_path):
    assert bytes_of(save_pretrained(load_model(folder), tmp_path / "again")) == bytes_of(folder)


def test_a_model_stored_in_full_precision_stays_so(model, tmp_path):
    save_model(tmp_path / "full", model.net, model.config, torch.float32)
    first = load_model(tmp_path / "full")
    again = load_model(first.save_pretrained(tmp_path / "again"))
    assert first.dtype == torch.float32 and again.sha256 == first.sha256 != model.sha256


@pytest.fixture
def with_table(tmp_path):
    "The folder of a model that reads molecules from a table of embeddings."
    model, table = load_model(small), EmbeddingTable("own", ["CCO", "CCC"], np.eye(2, 16))
    model.net = with_molecules(model, table)
    save_model(tmp_path / "tabled", model.net, model.config, table=table)
    return tmp_path / "tabled"


def test_a_table_of_embeddings_is_pushed_where_the_config_needs_it(writable_hub, with_table, model):
    load_model(with_table).push_to_hub("lab/tabled")
    again = from_pretrained("lab/tabled")
    assert again.encode.name == "own" and np.array_equal(again.encode(["CCC"]), np.eye(2, 16, dtype=np.float32)[1:])
    assert downloaded(writable_hub) >= {"embeddings.npz"} and "embeddings.npz" in writable_hub.files["lab/tabled"]
    model.push_to_hub("lab/tabled")      # which needs none
    assert "embeddings.npz" not in writable_hub.files["lab/tabled"] and from_pretrained("lab/tabled").encode is None


def test_pushing_twice_makes_no_empty_commit(writable_hub, model):
    assert model.push_to_hub("lab/new") == model.push_to_hub("lab/new")
    assert len(writable_hub.repository("lab/new").commits) == 2


# Revisions

def test_a_branch_a_tag_and_a_commit_are_each_found(hub, model):
    other = hub.add("lab/cells", files | {"README.md": b"another"}, branch="try")
    commits = {"lab/cells": hub.first, "lab/cells@main": hub.first, "lab/cells@v1": hub.first,
               "lab/cells@try": other, f"lab/cells@{other}": other}
    for name, commit in commits.items(): assert from_pretrained(name).revision == commit
    assert from_pretrained("lab/cells", "try").revision == from_pretrained("lab/cells@try", "try").revision == other


def test_main_moves_and_a_tag_does_not(hub):
    assert from_pretrained("lab/cells").revision == hub.first
    later = hub.add("lab/cells", files | {"README.md": b"later"})
    assert from_pretrained("lab/cells").revision == later and from_pretrained("lab/cells@v1").revision == hub.first


def test_a_push_goes_to_a_branch_of_its_own(writable_hub, model):
    model.push_to_hub("lab/new")
    load_model(small).push_to_hub("lab/new@try/this", message="Elsewhere")
    changed = model.config | dict(quality={})
    push_to_hub(Model(model.net, changed, "", "changed"), "lab/new", revision="try/this")
    refs = writable_hub.repository("lab/new").refs
    assert refs["main"] != refs["try/this"]
    assert from_pretrained("lab/new@try/this").config["quality"] == {} != from_pretrained("lab/new").config["quality"]


# Which requests are made

def test_only_the_files_of_a_model_are_downloaded(hub):
    from_pretrained("lab/cells")
    assert downloaded(hub) == model_files
    assert [r for r in hub.requests if r.startswith("GET") and "/resolve/" in r][0].endswith("config.json")
    assert not any(r.method not in ("GET", "HEAD") or r.token for r in hub.log)


def test_the_bundled_model_and_folders_make_no_request(hub, tmp_path):
    for name in (None, small, str(small), bundled): from_pretrained(name)
    assert from_pretrained().source == from_pretrained(bundled).source == "bundled"
    assert from_pretrained(small).source == "simulated"
    with pytest.raises(InputError): from_pretrained(tmp_path / "lab/cells")      # a path is never a repository
    save_pretrained(from_pretrained(small), tmp_path / "mine")
    assert not hub.requests


@pytest.mark.parametrize("folder", sorted(bundled.parent.iterdir()), ids=lambda p: p.name)
def test_models_that_come_with_the_package_go_by_their_names(hub, folder, tmp_path, monkeypatch):
    by_name = from_pretrained(folder.name)
    assert by_name.sha256 == from_pretrained(folder).sha256 and by_name.name == folder.name
    assert by_name.source == ("bundled" if folder == bundled else folder.name)
    with pytest.raises(InputError, match="Only a repository of the Hub has revisions"):
        from_pretrained(folder.name, "v1")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(small if folder == bundled else bundled, tmp_path / folder.name)
    mine = from_pretrained(folder.name)
    assert mine.sha256 != by_name.sha256 and mine.source == f"./{folder.name}", "one's own folder goes before"
    assert not hub.requests


def test_a_folder_goes_before_a_repository_of_its_name(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(small, "lab/cells")
    assert from_pretrained("lab/cells").revision == "" and not hub.requests


def test_a_cached_model_is_not_downloaded_again(hub):
    from_pretrained("lab/cells")
    hub.log.clear()
    from_pretrained("lab/cells")
    assert not downloaded(hub)


@pytest.mark.parametrize("trouble", ["gone", "offline", "switched off", "out of order"])
def test_the_cache_is_used_without_the_hub(hub, monkeypatch, trouble):
    from huggingface_hub import constants
    first = [from_pretrained(name).sha256 for name in ("lab/cells", "lab/cells@v1")]
    hub.log.clear()
    if trouble == "gone": hub.close()
    if trouble == "switched off": monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    if trouble == "out of order": hub.fail("/api/", 503)
    names = "lab/cells", "lab/cells@v1", f"lab/cells@{hub.first}"
    again = [from_pretrained(name, offline=trouble == "offline") for name in names]
    assert [m.sha256 for m in again[:2]] == first and {m.revision for m in again} == {hub.first}
    assert trouble == "out of order" or not hub.requests


def test_a_cache_in_a_given_folder(hub, tmp_path):
    from_pretrained("lab/cells", cache=tmp_path / "cache")
    assert (tmp_path / "cache/models--lab--cells").is_dir() and not (hub.cache / "models--lab--cells").exists()
    hub.close()
    assert from_pretrained("lab/cells", cache=tmp_path / "cache", offline=True).revision == hub.first


def test_a_new_process_uses_the_hub_of_hf_endpoint(hub):
    code = "from mfm_app.hub import from_pretrained; print(from_pretrained('lab/cells@v1').revision)"
    done = subprocess.run([sys.executable, "-c", code], env=hub.env, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == hub.first, done.stderr
    assert downloaded(hub) == model_files


# Every error is one sentence

def refused(ask, words, f, *args, **kwargs):
    error = ask(f, *args, **kwargs)
    message = str(error)
    assert isinstance(error, InputError), message
    for word in words: assert word in message, message
    for word in (writer, reader, "Traceback", "http://"): assert word not in message


def checkpoint():
    "The bytes of a pickle."
    torch.save(dict(weights=torch.ones(3)), out := io.BytesIO())
    return out.getvalue()


def with_config(**parts): return files | {"config.json": json.dumps(config | parts).encode()}
def with_backbone(**parts): return with_config(backbone=config["backbone"] | parts)


table_encoder = dict(encoder=dict(kind="table", name="x", width=2), adaptor=None)
unreadable = dict(      # a repository's files, and words of the message
    empty=({".gitattributes": b""}, ["not a model of mfm_app", "config.json"]),
    half=({"config.json": files["config.json"], "pytorch_model.bin": b"x"}, ["model.safetensors"]),
    foreign=(files | {"config.json": b'{"architectures": ["Bert"]}'}, ["not of mfm_app"]),
    garbled=(files | {"config.json": b"\xff not json"}, ["JSON"]),
    nested=(files | {"config.json": b"[" * 200_000}, ["JSON"]),
    pickle=(files | {"model.safetensors": checkpoint()}, ["damaged or not a safetensors file"]),
    cut=(files | {"model.safetensors": files["model.safetensors"][:5000]}, ["damaged"]),
    mixed=(with_backbone(name="tiny/8"), ["do not fit"]),
    giant=(with_backbone(image_size=10**7), ["image_size", "512"]),
    wide=(with_backbone(conv_width=10**7), ["do not fit"]),
    huge=(with_backbone(name="huge/8"), ["model size"]),
    tabled=(with_config(molecules=table_encoder), ["embeddings.npz"]),
    unread=(with_config(molecules=dict(encoder="words")), ["molecules"]),
    odd=(with_config(quality=dict(counterfactual=[])), ["card"]))


@pytest.mark.parametrize("name", unreadable)
def test_a_repository_that_cannot_be_read_is_refused_by_name(hub, ask, name):
    contents, words = unreadable[name]
    hub.add(f"lab/{name}", contents)
    refused(ask, [f"lab/{name}", *words], from_pretrained, f"lab/{name}")
    assert not downloaded(hub) - model_files


@pytest.mark.parametrize("name, words", [
    ("lab/none", ["lab/none", "hf auth login"]), ("lab/hidden", ["lab/hidden", "private", "hf auth login"]),
    ("lab/gated", ["lab/gated", "gated", "ask for access"]), ("lab/cells@v9", ["lab/cells", "'v9'", "tag"]),
    (f"lab/cells@{'0' * 40}", ["lab/cells", "0000"])])
def test_a_repository_that_does_not_exist_or_is_closed_is_refused_by_name(hub, ask, name, words):
    hub.add("lab/hidden", files, private=True)
    hub.add("lab/gated", files, gated=True)
    refused(ask, words, from_pretrained, name)
    assert not downloaded(hub) - model_files


def test_weights_are_not_downloaded_for_a_config_of_another_program(hub, ask):
    hub.add("lab/foreign", files | {"config.json": b"{}"})
    refused(ask, ["lab/foreign"], from_pretrained, "lab/foreign")
    assert downloaded(hub) == {"config.json"}


def test_a_file_that_is_too_large_is_not_downloaded(hub, ask, monkeypatch):
    monkeypatch.setitem(hub_room.max_file_bytes, "model.safetensors", 1 << 20)
    refused(ask, ["lab/cells", "model.safetensors", "1 MB"], from_pretrained, "lab/cells")
    assert not downloaded(hub)


failing_statuses = {"another page": 200, "busy": 429, "out of order": 503, "forbidden": 403}


@pytest.mark.parametrize("trouble, words", [
    ("gone", ["cannot be reached"]), ("silent", ["cannot be reached"]), ("unknown", ["cannot be reached"]),
    ("nonsense", ["cannot be reached"]), ("switched off", ["offline"]), ("busy", ["429"]),
    ("out of order", ["cannot be reached"]), ("another page", ["makes no sense"]),
    ("wrong token", ["token is not valid"]), ("forbidden", ["403"]),
    ("lost on the way", ["could not be carried", "with a network"]), ("odd token", ["token holds a character"])])
def test_a_hub_that_does_not_answer_as_it_should(hub, ask, monkeypatch, trouble, words):
    from huggingface_hub import constants
    monkeypatch.setattr(hub_room, "hub_timeout", 0.3)
    lost = Mock(side_effect=RuntimeError("Task error: error sending request"))
    if trouble == "gone": hub.close()
    if trouble == "silent": hub.fail("/api/", 0)
    if trouble == "unknown": monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    if trouble == "nonsense": monkeypatch.setenv("HF_ENDPOINT", "no address")
    if trouble == "switched off": monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    if trouble == "lost on the way": monkeypatch.setattr("huggingface_hub.HfApi.snapshot_download", lost)
    if trouble == "odd token": monkeypatch.setenv("HF_TOKEN", "hf_ä")
    if trouble == "wrong token": monkeypatch.setenv("HF_TOKEN", "hf_of_somebody")
    if trouble in failing_statuses: hub.fail("/api/", failing_statuses[trouble])
    refused(ask, ["lab/cells", *words], from_pretrained, "lab/cells")


def hub_error(kind, status):
    "An error of `huggingface_hub` about an answer with this status."
    from huggingface_hub import errors
    request = network_errors().Request("GET", "https://hub.invalid/api")
    response = errors.Response(status, request=request)
    return getattr(errors, kind)("no", response=response, server_message="as the Hub says")


def network_errors():
    "The HTTP client that `huggingface_hub` uses, whichever it is."
    from huggingface_hub import errors
    return sys.modules[errors.HTTPError.__module__.split(".")[0]]


def of_network(name, text=""): return lambda: getattr(network_errors(), name)(text)


def of_hub(name, text=""):
    def make():
        from huggingface_hub import errors
        return getattr(errors, name)(text)
    return make


token_file = os.path.join(tempfile.gettempdir(), "token")
hub_table = [      # what is raised inside -> what is said
    (lambda: hub_error("HfHubHTTPError", 401), "answers 401 about lab/x: the token is not valid;"),
    (lambda: hub_error("HfHubHTTPError", 403), "answers 403 about lab/x: the token may not do this;"),
    (lambda: hub_error("HfHubHTTPError", 404), "answers 404 about lab/x: there is no such thing."),
    (lambda: hub_error("RepositoryNotFoundError", 404), "no folder lab/x here and no such public repository"),
    (lambda: hub_error("RevisionNotFoundError", 404), "lab/x has no revision 'main'"),
    (lambda: hub_error("GatedRepoError", 403), "lab/x is gated"),
    (lambda: hub_error("HfHubHTTPError", 408), "it waited too long; try again."),
    (lambda: hub_error("HfHubHTTPError", 418), "418 about lab/x: it does not take this request (as the Hub says)."),
    (lambda: hub_error("HfHubHTTPError", 422), "The Hub refuses this for lab/x: as the Hub says"),
    (lambda: hub_error("HfHubHTTPError", 429), "too many requests; wait a little"),
    (lambda: hub_error("HfHubHTTPError", 500), "answers 500 about lab/x: it is out of order; try again later."),
    (lambda: hub_error("HfHubHTTPError", 503), "it is out of order"),
    (lambda: hub_error("HfHubHTTPError", 504), "it waited too long"),
    (lambda: hub_error("HfHubHTTPError", 507), "there is no room left"),
    (of_network("ConnectError"), "The Hub cannot be reached for lab/x;"),
    (of_network("ConnectError", "[SSL: CERTIFICATE_VERIFY_FAILED] self-signed"), "is not trusted here (SSL_CERT_FILE"),
    (of_network("ReadTimeout"), "The Hub cannot be reached in time for lab/x;"),
    (of_network("ProxyError", "403 Forbidden"), "The proxy in the environment does not let requests through"),
    (lambda: ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), "The Hub cannot be reached for lab/x"),
    (lambda: TimeoutError("timed out"), "The Hub cannot be reached in time for lab/x;"),
    (lambda: socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "The Hub cannot be reached for lab/x;"),
    (lambda: ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version"), "The Hub cannot be reached for lab/x"),
    (lambda: ImportError("Using SOCKS proxy, but the 'socksio' package is not installed."),
     "The proxies in the environment keep lab/x from being asked for: Using SOCKS proxy, but the 'socksio'"),
    (lambda: ValueError("Unknown scheme for proxy URL URL('socks://127.0.0.1:9')"),
     "The proxies in the environment keep lab/x from being asked for: Unknown scheme"),
    (lambda: ModuleNotFoundError("No module named 'hf_xet'"), "needs a package that is not here: No module named"),
    (lambda: PermissionError(errno.EACCES, "Permission denied", token_file), "keeps the token cannot be read: Perm"),
    (lambda: PermissionError(errno.EACCES, "Permission denied", "blob"), "kept in the Hub's cache: Permission denied;"),
    (lambda: OSError(errno.ENOSPC, "No space left on device"), "kept in the Hub's cache: No space left on device;"),
    (lambda: IsADirectoryError(errno.EISDIR, "Is a directory", "blob"), "kept in the Hub's cache: Is a directory;"),
    (lambda: OSError("Consistency check failed: file should be of size 9"), "did not arrive whole; try again"),
    (of_hub("FileMetadataError"), "makes no sense (FileMetadataError)"),
    (of_hub("LocalTokenNotFoundError"), "lab/x needs a token, and there is none; log in"),
    (lambda: json.JSONDecodeError("Expecting value", "<html>", 0), "What came back about lab/x makes no sense (JSOND"),
    (lambda: RuntimeError("Task error: error sending request"), "could not be carried to or from the Hub"),
]


@pytest.mark.parametrize("make, said", hub_table, ids=lambda v: v[-40:] if isinstance(v, str) else "")
def test_each_error_on_the_way_to_the_hub_has_its_sentence(ask, make, said):
    def fail():
        with hub_errors("lab/x"): raise make()
    refused(ask, [said], fail)


def test_too_little_memory_is_not_the_hubs_fault():
    with pytest.raises(MemoryError), hub_errors("lab/x"): raise MemoryError


@pytest.mark.parametrize("name, said", [
    ("ProxyError", "the proxy in the environment does not let requests through to the Hub; fetch it once"),
    ("ConnectTimeout", "the Hub cannot be reached in time; fetch it once"),
    ("ConnectError", "the Hub cannot be reached; fetch it once")])
def test_why_a_model_that_is_not_in_the_cache_cannot_be_had(hub, ask, monkeypatch, name, said):
    def fail(*args, **kwargs): raise getattr(network_errors(), name)("")
    monkeypatch.setattr(hub_room, "repo_sizes", fail)
    refused(ask, ["lab/cells is not in the Hub's cache", said], from_pretrained, "lab/cells")


def test_a_socks_proxy_is_named(hub, ask, monkeypatch):
    from huggingface_hub import close_session
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    close_session()
    refused(ask, ["The proxies in the environment keep lab/cells", "SOCKS"], from_pretrained, "lab/cells")
    close_session()


# The files of a folder

def raising(error):
    def f(*args, **kwargs): raise error
    return f


weights_table = [      # what the reader of the weights raises -> what is said
    (hub_room.SafetensorError("Error while deserializing header: HeaderTooLarge"), "damaged or not a safetensors file"),
    (hub_room.SafetensorError("I/O error: Input/output error (os error 5)"), "'mine' cannot be read: Input/output"),
    (PermissionError(errno.EACCES, "Permission denied"), "'mine' cannot be read: Permission denied."),
    (OSError("No such device (os error 19)"), "'mine' cannot be read: No such device."),
    (ValueError("could not determine the shape"), "damaged or not a safetensors file"),
    (KeyError("F4"), "damaged or not a safetensors file")]


@pytest.mark.parametrize("error, said", weights_table, ids=lambda v: str(v)[:30])
def test_each_reason_why_weights_cannot_be_read(ask, small_copy, monkeypatch, error, said):
    monkeypatch.setattr(hub_room, "load_file", raising(error))
    refused(ask, ["'mine'", said], load_model, small_copy)


@pytest.mark.parametrize("where", ["load_file", "model_card", "build"])
def test_too_little_memory_is_no_damage(small_copy, monkeypatch, where):
    monkeypatch.setattr(hub_room, where, raising(MemoryError()))
    with pytest.raises(MemoryError): load_model(small_copy)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_that_is_missing_a_folder_or_a_link_to_nowhere(ask, small_copy, name):
    path = small_copy / name
    path.unlink()
    refused(ask, [f"'mine' is not a model folder: it has no {name}."], load_model, small_copy)
    path.symlink_to(small_copy / "gone")
    refused(ask, [f"{name} in 'mine' is a link to a file that is not there."], load_model, small_copy)
    path.unlink()
    path.mkdir()
    refused(ask, [f"{name} in 'mine' is a folder, where a file is needed."], load_model, small_copy)


def test_a_file_that_may_not_be_opened_is_not_called_missing(ask, small_copy, monkeypatch):
    denied = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    monkeypatch.setattr(Path, "open", raising(denied))      # safetensors says "No such file or directory"
    refused(ask, ["'mine' cannot be read: Permission denied."], load_model, small_copy)


def test_what_safetensors_says_of_a_full_disk(model, ask, tmp_path, monkeypatch):
    said = 'Error while serializing: I/O error: No space left on device (os error 28) at path "x"'
    full = hub_room.SafetensorError(said)
    monkeypatch.setattr(hub_room, "save_file", raising(full))
    refused(ask, ["'mine' cannot be written: No space left on device."], save_pretrained, model, tmp_path / "mine")
    with pytest.raises(OSError) as caught: save_model(tmp_path / "mine", model.net, model.config)
    assert caught.value.errno == errno.ENOSPC and not list((tmp_path / "mine").iterdir())


def test_offline_and_not_in_the_cache(hub, ask):
    words = ["lab/cells", "at v1", "offline", "with a network"]
    refused(ask, words, from_pretrained, "lab/cells@v1", offline=True)
    from_pretrained("lab/cells")
    refused(ask, ["lab/cells", "at v1"], from_pretrained, "lab/cells@v1", offline=True)


def test_a_snapshot_of_which_a_file_is_gone(hub, ask):
    from_pretrained("lab/cells")
    for path in hub.cache.rglob("model.safetensors"): path.unlink()
    refused(ask, ["lab/cells"], from_pretrained, "lab/cells", offline=True)
    assert from_pretrained("lab/cells").revision == hub.first      # with a network it is downloaded again


def disk_full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.path.join(tempfile.gettempdir(), "blob"))


def test_a_cache_that_cannot_be_written(hub, ask, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    refused(ask, ["lab/cells", "cache"], from_pretrained, "lab/cells", cache=tmp_path / "file")
    monkeypatch.setattr("huggingface_hub.HfApi.snapshot_download", disk_full)
    refused(ask, ["lab/cells", "No space left on device", "HF_HUB_CACHE"], from_pretrained, "lab/cells")


def test_a_folder_that_cannot_be_written(model, ask, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    refused(ask, ["'file'"], save_pretrained, model, tmp_path / "file")
    refused(ask, ["'below'"], model.save_pretrained, tmp_path / "file/below")
    monkeypatch.setattr(hub_room, "save_file", disk_full)
    refused(ask, ["'mine'", "No space left on device"], save_pretrained, model, tmp_path / "mine")
    assert not list((tmp_path / "mine").iterdir())


def test_a_disk_that_runs_full_leaves_the_old_model(model, ask, small_copy, monkeypatch):
    before = bytes_of(small_copy)
    monkeypatch.setattr(hub_room, "save_file", disk_full)
    other = Model(model.net, model.config | dict(data=dict(title="Another")), "", "other")
    refused(ask, ["'mine'", "No space left on device"], other.save_pretrained, small_copy)
    assert bytes_of(small_copy) == before


def test_a_folder_that_cannot_be_read(ask, small_copy, monkeypatch):
    def closed(self, *args, **kwargs): raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
    monkeypatch.setattr(Path, "is_file", closed)
    refused(ask, ["'mine'", "cannot be read", "Permission denied"], from_pretrained, small_copy)
    monkeypatch.undo()
    refused(ask, ["cannot be read", "File name too long"], from_pretrained, small_copy.with_name("x" * 300))


def test_a_folder_named_like_the_bundled_one_is_another_model(tmp_path):
    named = from_pretrained(shutil.copytree(small, tmp_path / "bundled"))
    assert named.sha256 == load_model(small).sha256 and named.source == "./bundled"
    assert from_pretrained().source == "bundled"


# Pushing without the right to

@pytest.mark.parametrize("token, repo, words", [
    (None, "lab/new", ["lab/new", "token", "hf auth login", "HF_TOKEN"]),
    (reader, "lab/new", ["lab/new", "403", "token that may"]), (reader, "lab/cells", ["lab/cells", "token that may"]),
    ("hf_of_somebody", "lab/new", ["lab/new", "token is not valid"]),
    (writer, "taken/cells", ["taken/cells", "403"]), (writer, "taken/new", ["taken/new", "403"]),
    (writer, "cells", ["user/name"]), (writer, "lab/new@refs/../x", ["lab/new", "revision"])])
def test_a_push_that_is_not_allowed(ask, token, repo, words):
    with standin(token) as hub:
        for existing in ("lab/cells", "taken/cells"): hub.add(existing, files)
        before = dict(hub.files)
        refused(ask, words, push_to_hub, small, repo)
        assert hub.files == before
        assert token is not None or not hub.requests


def test_a_token_may_be_given_and_is_not_kept(hub, model):
    model.push_to_hub("lab/new", token=writer)
    assert {r.token for r in hub.log if "lab/new" in r.path and "/blobs/" not in r.path} == {writer}
    hub.log.clear()
    from_pretrained("lab/new")
    assert {r.token for r in hub.log} == {None}


def test_a_private_model_is_seen_by_its_owner_alone(writable_hub, model, ask, monkeypatch):
    model.push_to_hub("lab/secret", private=True)
    assert writable_hub.repository("lab/secret").private and from_pretrained("lab/secret").sha256 == model.sha256
    model.push_to_hub("lab/secret", private=True)      # again, and without asking for it
    model.push_to_hub("lab/secret")
    assert writable_hub.repository("lab/secret").private
    monkeypatch.delenv("HF_TOKEN")
    refused(ask, ["lab/secret", "private"], from_pretrained, "lab/secret")


def test_a_private_push_to_a_public_repository_is_refused(writable_hub, ask):
    writable_hub.add("lab/open", {"README.md": b"open"})
    refused(ask, ["lab/open", "public"], push_to_hub, small, "lab/open", private=True)
    assert writable_hub.files["lab/open"] == {"README.md": b"open"}


def test_a_folder_that_cannot_be_read_is_not_pushed(writable_hub, ask, small_copy):
    (small_copy / "model.safetensors").write_bytes(b"nothing")
    refused(ask, ["'mine'", "damaged"], push_to_hub, small_copy, "lab/new")
    refused(ask, ["'none'"], push_to_hub, small_copy.with_name("none"), "lab/new")
    assert not writable_hub.requests


@pytest.mark.parametrize("trouble, words", [
    ("gone", ["cannot be reached"]), ("switched off", ["HF_HUB_OFFLINE"]), ("blobs refused", ["413", "too large"]),
    ("card refused", ["refuses"])])
def test_a_push_that_fails_on_the_way(writable_hub, model, ask, monkeypatch, trouble, words):
    from huggingface_hub import constants
    if trouble == "gone": writable_hub.close()
    if trouble == "switched off": monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    if trouble == "blobs refused": writable_hub.fail("/blobs/", 413)
    if trouble == "card refused": writable_hub.fail("/commit/", 400)
    refused(ask, ["lab/new", *words], model.push_to_hub, "lab/new")
    pushed = writable_hub.files.get("lab/new", {".gitattributes": b""})
    assert trouble == "gone" or set(pushed) == {".gitattributes"}      # all or nothing


# Names

invalid = [
    "", " ", ".", "..", "../..", "cells", "a/b/c", "/lab/cells", "lab/", "/cells", "lab/cells/", "lab//cells",
    "~/cells", "./lab/cells", "lab/../cells", "lab/cells ", " lab/cells", "la b/cells", "lab/cells@", "lab/cells@@v1",
    "lab/cells@v 1", "lab/cells@../x", "lab/cells@/etc", "lab/cells@a//b", "lab/cells@.git", "lab/cells@v1/", "@v1",
    "lab@v1", "lab/@v1", "lab/-cells", "lab/cells-", "lab/.cells", "lab/ce--lls", "lab/ce..lls", "lab/cells.git",
    "lab/cells\n", "lab\\cells", "C:\\models\\cells", "https://huggingface.co/lab/cells", "hf://lab/cells",
    "lab/zellen-ä", "实验/cells", "lab/cells\0", "lab/" + "x" * 97, "x" * 100_000, "lab/cells?x=1", "lab/cells#x",
    "lab/%2e%2e", "lab/cells\ud800", "None/None/None"]


@pytest.mark.parametrize("name", invalid, ids=lambda n: ascii(n)[:30])
def test_an_invalid_name_is_refused_without_a_request(hub, ask, name):
    refused(ask, [], from_pretrained, name)
    refused(ask, [], parse_repo_id, name)
    assert not hub.requests


@pytest.mark.parametrize("wrong", [3, True, b"lab/cells", ["lab/cells"], 1.5, {}], ids=repr)
def test_a_name_that_is_no_text_is_refused(ask, wrong):
    refused(ask, ["text"], from_pretrained, wrong)


@pytest.mark.parametrize("wrong", [None, 3, b"lab"], ids=repr)
def test_only_a_model_is_pushed(writable_hub, ask, wrong):
    refused(ask, ["model", type(wrong).__name__], push_to_hub, wrong, "lab/new")
    assert not writable_hub.requests


def test_the_address_of_a_hub_may_end_in_a_slash(writable_hub, model, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", writable_hub.endpoint + "/")
    model.push_to_hub("lab/new")
    assert not [r.path for r in writable_hub.log if r.path.startswith("//")]


def test_revisions_are_of_repositories_and_one_at_a_time(hub, ask):
    refused(ask, ["folder"], from_pretrained, None, "v1")
    refused(ask, ["folder"], from_pretrained, small, "v1")
    refused(ask, ["two revisions"], from_pretrained, "lab/cells@v1", "main")
    refused(ask, ["no revision"], from_pretrained, "lab/cells", "")
    refused(ask, ["no revision"], from_pretrained, "lab/cells", 7)
    assert not hub.requests


@pytest.fixture(scope="module")
def shared_hub():
    with standin() as hub: yield hub


name_pieces = st.sampled_from(["..", "lab", "cells", "@", "/", "v1", "-", ".git", "ä", " "])
names = st.one_of(st.text(max_size=40), st.text("ab/@.-_~:\\ \n%", max_size=20),
                  st.lists(name_pieces, max_size=8).map("".join))


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(names, st.one_of(st.none(), st.text(max_size=12)))
def test_any_text_is_a_name_by_the_hubs_rules_or_an_error(shared_hub, ask, name, revision):
    from huggingface_hub.utils import validate_repo_id
    shared_hub.log.clear()
    parsed = ask(parse_repo_id, name, revision)
    model = ask(from_pretrained, name, revision)
    if not os.path.isdir(name): assert isinstance(model, InputError)
    if isinstance(parsed, InputError):
        assert not shared_hub.requests
        return
    repo, at = parsed
    validate_repo_id(repo)
    assert repo.count("/") == 1 and repo.isascii()
    assert at is None or re.fullmatch(r"[\w./+-]+", at) and ".." not in at
    assert len({r.path for r in shared_hub.log}) == 1 and f"/api/models/{repo}" in shared_hub.log[0].path


scalars = st.none() | st.booleans() | st.integers(-3, 10**9) | st.floats() | st.text(max_size=5)
json_values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3)
                           | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=5)
config_keys = """format backbone adaptor predicts channels vocabulary data training quality molecules backbone.name
backbone.channels backbone.image_size backbone.stem backbone.conv_width adaptor.doses adaptor.time_scale
vocabulary.perturbations vocabulary.experiments vocabulary.cell_types vocabulary.control vocabulary.dose_margin
training.history quality.table quality.counterfactual molecules.encoder molecules.table""".split()


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(config_keys), json_values)
def test_a_config_with_anything_in_it_is_read_or_refused(ask, tmp_path, path, value):
    folder = tmp_path / "odd"
    if not folder.is_dir(): shutil.copytree(small, folder)
    changed = json.loads(files["config.json"])
    *parents, key = path.split(".")
    (changed.setdefault(parents[0], {}) if parents else changed)[key] = value
    (folder / "config.json").write_text(json.dumps(changed))
    loaded = ask(load_model, folder)
    if isinstance(loaded, Model): model_card(loaded.config)


# The card

@pytest.mark.parametrize("folder", [bundled, small], ids=lambda p: p.name)
def test_the_shipped_cards_are_written_from_their_configs(folder):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert (folder / "README.md").read_text(encoding="utf-8") == model_card(config)


def test_the_warm_start_is_read_under_its_former_and_its_present_name(model):
    encoder = dict(kind="morgan", radius=2, bits=2048, counts=False)
    former, present = dict(lesson=dict(imitate=123)), dict(finetune=dict(warm_start=123))
    cards = [model_card(model.config | dict(molecules=dict(encoder=encoder, **part))) for part in (former, present)]
    assert cards[0] == cards[1] and "for 123 steps" in cards[0]


@pytest.mark.parametrize("licence, expected", [
    ("CC-BY-4.0", "cc-by-4.0"), ("CC BY 4.0", "cc-by-4.0"), ("Apache-2.0", "apache-2.0"), ("unknown", "unknown"),
    (None, "none"), ("", "unknown"), ("In-house: 'no'\n---\nx: [", "in-house-no-x")])
def test_the_front_matter_is_what_the_hub_reads(writable_hub, model, licence, expected):
    licensed = model.config | dict(data=dict(licence=licence))
    front = yaml.safe_load(model_card(licensed).split("---\n")[1])
    assert (front["license"], front.get("license_name")) in ((expected, None), ("other", expected))
    assert front["library_name"] == "mfm_app" and front["pipeline_tag"] == "unconditional-image-generation"
    assert "flow-matching" in front["tags"]
    Model(model.net, licensed, "", "x").push_to_hub("lab/new")      # the stand-in checks it as the Hub does


def test_every_licence_of_a_card_is_one_of_the_hubs(): assert hub_licences <= licences


@pytest.mark.parametrize("card", ["---\nlicense: made-up\n---\n# Mine", "---\nlicense: [\n---\n# Mine",
                                  "---\n- a\n- b\n---\n"])
def test_a_card_the_hub_does_not_accept_is_refused_before_anything_is_made(writable_hub, ask, small_copy, card):
    (small_copy / "README.md").write_text(card)
    refused(ask, ["lab/new", "front matter", "delete README.md"], push_to_hub, small_copy, "lab/new")
    assert "lab/new" not in writable_hub.files


def test_only_the_placeholder_of_the_name_is_replaced(writable_hub, small_copy):
    (small_copy / "README.md").write_text("# Mine\nload user/name, user/name@v1; superuser/names")
    push_to_hub(small_copy, "lab/new")
    assert writable_hub.files["lab/new"]["README.md"] == b"# Mine\nload lab/new, lab/new@v1; superuser/names"


def test_the_code_on_the_card_generates_cells(model):
    code = re.search(r"```python\n(.*?)```", model_card(model.config, str(small)), re.S)[1]
    scope = {}
    exec(code, scope)
    assert scope["images"].shape == (8, 3, 32, 32) and scope["images"].dtype == np.uint8


def test_the_card_cites_the_method_and_the_data():
    citation = (bundled / "README.md").read_text(encoding="utf-8").split("## Citation")[1]
    assert "2603.26790" in citation and "Caie et al." in citation and "Ljosa et al." in citation


# The command line

def mfm(capsys, *args):
    from mfm_app.cli import main
    try: main([str(a) for a in args])
    except SystemExit as e: code = e.code
    return code, capsys.readouterr()


def test_mfm_push_prints_the_address_of_the_commit(writable_hub, capsys):
    code, printed = mfm(capsys, "push", small, "lab/new", "--private", "--message", "From a shell")
    repository = writable_hub.repository("lab/new")
    assert code == 0 and printed.out.strip() == f"{writable_hub.endpoint}/lab/new/commit/{repository.refs['main']}"
    assert repository.private and repository.messages[-1] == "From a shell"


def test_mfm_sample_reads_a_revision_of_a_repository(hub, capsys, tmp_path):
    sample = "sample", "contractor", "--model"
    options = "--n", 2, "--steps", 2, "--out", tmp_path / "two.npz"
    code, _ = mfm(capsys, *sample, "lab/cells@v1", *options)
    assert code == 0 and downloaded(hub) == model_files
    written = np.load(tmp_path / "two.npz")
    assert written["images"].shape == (2, 3, 32, 32)
    assert json.loads(str(written["provenance"]))["weights_sha256"] == load_model(small).sha256
    code, printed = mfm(capsys, *sample, "lab/none")
    assert code == 2 and printed.err.strip().splitlines()[-1].startswith("mfm: There is no folder lab/none here")


def test_a_folder_named_by_a_dot_has_a_name(small_copy, monkeypatch):
    monkeypatch.chdir(small_copy)
    assert from_pretrained(".").name == from_pretrained(".").source == "mine"


@pytest.mark.parametrize("args, words", [
    (["nowhere", "lab/new"], "not a model folder"), ([small, "new"], "user/name"), ([small, "taken/new"], "403")])
def test_mfm_push_reports_an_error_in_one_line(writable_hub, capsys, args, words):
    code, printed = mfm(capsys, "push", *args)
    last = printed.err.strip().splitlines()[-1]
    assert code == 2 and last.startswith("mfm: ") and words in last and str(Path.cwd()) not in last


# The stand-in itself, where models do not use it

def test_the_stand_in_keeps_spaces_as_well(writable_hub, tmp_path):
    from huggingface_hub import HfApi, SpaceHardware
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
    api, space, new = HfApi(), dict(repo_type="space"), dict(repo_type="space", space_sdk="gradio")
    assert api.create_repo("lab/page", private=True, **new).repo_id == "lab/page"
    with pytest.raises(HfHubHTTPError, match="already created"): api.create_repo("lab/page", **new)
    (tmp_path / "parts").mkdir()
    (tmp_path / "app.py").write_text("print()")
    (tmp_path / "parts/picture.png").write_bytes(b"png")
    commit = api.upload_folder(repo_id="lab/page", folder_path=tmp_path, **space)
    assert commit.commit_url == f"{writable_hub.endpoint}/spaces/lab/page/commit/{commit.oid}"
    assert list(writable_hub.files) == ["spaces/lab/page"]
    assert writable_hub.repository("spaces/lab/page").sdk == "gradio"
    pushed = dict(writable_hub.files["spaces/lab/page"])
    assert pushed.pop(".gitattributes") and pushed == {"app.py": b"print()", "parts/picture.png": b"png"}
    assert set(api.list_repo_files("lab/page", **space)) == {".gitattributes", *pushed}
    assert api.space_info("lab/page").private
    api.add_space_variable("lab/page", "MODEL", "lab/cells@v1")
    api.add_space_secret("lab/page", "HF_TOKEN", "kept")
    assert api.request_space_hardware("lab/page", SpaceHardware.T4_SMALL).requested_hardware == "t4-small"
    settings = writable_hub.repository("spaces/lab/page").settings
    assert settings["hardware"] == "t4-small" and settings["variables"][0]["value"] == "lab/cells@v1"
    assert len(settings["secrets"]) == 1
    with pytest.raises(RepositoryNotFoundError): api.model_info("lab/page")      # a Space is no model
    assert api.whoami()["name"] == "lab"
