"Models by name: there and back through a Hub of our own, what is asked of it, and what is said when it cannot be."
import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import yaml
from hub_standin import licences, reader, standin, writer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mfm_app import hub as room
from mfm_app.card import hub_licences, model_card
from mfm_app.core import Condition, InputError
from mfm_app.finetune import with_molecules
from mfm_app.hub import Model, bundled, from_pretrained, load_model, push_to_hub, read_repository, save_model, save_pretrained
from mfm_app.molecules import EmbeddingTable

small = bundled.with_name("simulated")
files = {name: (small / name).read_bytes() for name in ("config.json", "model.safetensors", "README.md")}
others = {"pytorch_model.bin": b"never", "training.pt": b"never", "more/config.json": b"never", "embeddings.npz": b"never", "code.py": b"never"}


@pytest.fixture
def hub():
    "A Hub that has lab/cells, with a tag and more files than a model needs; nobody is logged in."
    with standin() as hub:
        hub.first = hub.add("lab/cells", files | others, tag="v1")
        yield hub


@pytest.fixture
def mine():
    "The same, where the one who may write is logged in."
    with standin(writer) as hub: yield hub


@pytest.fixture(scope="module")
def model(): return load_model(small)


def answers(model):
    "What a network says to a fixed question."
    x, t = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32), torch.tensor([0.2, 0.7])
    with torch.no_grad(): return model.net(x, t, Condition(y=torch.tensor([0, 2]), e=torch.tensor([0, 0]), c=torch.tensor([0, 0]), dose_um=torch.tensor([float("nan"), 3.])))


def touched(hub): return {r.split("/resolve/")[1].split("/", 1)[1] for r in hub.requests if "/resolve/" in r}


# There and back

def test_what_is_pushed_comes_back_the_same(mine, model):
    address = model.push_to_hub("lab/new", message="A first one")
    assert address == f"{mine.endpoint}/lab/new/commit/{mine.about('lab/new').refs['main']}" and mine.about("lab/new").messages[-1] == "A first one"
    assert len(mine.about("lab/new").commits) == 2      # made, and one commit with everything
    assert set(mine.repos["lab/new"]) == {".gitattributes", "config.json", "model.safetensors", "README.md"}
    again = Model.from_pretrained("lab/new")
    assert torch.equal(answers(again), answers(model)) and again.config == model.config
    assert again.sha256 == model.sha256 == load_model(small).sha256
    assert (again.name, again.source, again.revision) == ("new", "lab/new", mine.about("lab/new").refs["main"])


def test_a_folder_is_pushed_byte_for_byte_and_its_card_names_the_repository(mine):
    push_to_hub(small, "lab/new")
    there = mine.repos["lab/new"]
    assert all(there[name] == files[name] for name in ("config.json", "model.safetensors"))
    assert there["README.md"] == files["README.md"].replace(b"user/name", b"lab/new") and b'load("lab/new")' in there["README.md"]


@pytest.mark.parametrize("folder", [bundled, small], ids=lambda p: p.name)
def test_a_loaded_model_written_again_is_the_same_to_the_byte(folder, tmp_path):
    again = save_pretrained(load_model(folder), tmp_path / "again")
    assert {p.name: p.read_bytes() for p in again.iterdir()} == {p.name: p.read_bytes() for p in folder.iterdir()}


def test_a_model_stored_in_full_precision_stays_so(model, tmp_path):
    save_model(tmp_path / "full", model.net, model.config, torch.float32)
    first = load_model(tmp_path / "full")
    assert first.dtype == torch.float32 and load_model(first.save_pretrained(tmp_path / "again")).sha256 == first.sha256 != model.sha256


@pytest.fixture
def with_table(tmp_path):
    "The folder of a model that reads molecules from a table of embeddings."
    model, table = load_model(small), EmbeddingTable("own", ["CCO", "CCC"], np.eye(2, 16))
    model.net = with_molecules(model, table)
    save_model(tmp_path / "tabled", model.net, model.config, table=table)
    return tmp_path / "tabled"


def test_a_table_of_embeddings_goes_along_where_the_config_needs_it(mine, with_table, model):
    load_model(with_table).push_to_hub("lab/tabled")
    again = from_pretrained("lab/tabled")
    assert again.encode.name == "own" and np.array_equal(again.encode(["CCC"]), np.eye(2, 16, dtype=np.float32)[1:])
    assert touched(mine) >= {"embeddings.npz"} and "embeddings.npz" in mine.repos["lab/tabled"]
    model.push_to_hub("lab/tabled")      # one that needs none takes it away
    assert "embeddings.npz" not in mine.repos["lab/tabled"] and from_pretrained("lab/tabled").encode is None


def test_pushing_twice_makes_no_empty_commit(mine, model):
    assert model.push_to_hub("lab/new") == model.push_to_hub("lab/new") and len(mine.about("lab/new").commits) == 2


# Revisions

def test_a_branch_a_tag_and_a_commit_are_each_found(hub, model):
    other = hub.add("lab/cells", files | {"README.md": b"another"}, branch="try")
    for name, commit in (("lab/cells", hub.first), ("lab/cells@main", hub.first), ("lab/cells@v1", hub.first), ("lab/cells@try", other), (f"lab/cells@{other}", other)):
        assert from_pretrained(name).revision == commit
    assert from_pretrained("lab/cells", "try").revision == from_pretrained("lab/cells@try", "try").revision == other


def test_main_moves_and_a_tag_does_not(hub):
    assert from_pretrained("lab/cells").revision == hub.first
    later = hub.add("lab/cells", files | {"README.md": b"later"})
    assert from_pretrained("lab/cells").revision == later and from_pretrained("lab/cells@v1").revision == hub.first


def test_a_push_goes_to_a_branch_of_its_own(mine, model):
    model.push_to_hub("lab/new")
    load_model(small).push_to_hub("lab/new@try/this", message="Elsewhere")
    changed = model.config | dict(quality={})
    push_to_hub(Model(model.net, changed, "", "changed"), "lab/new", revision="try/this")
    assert mine.about("lab/new").refs["main"] != mine.about("lab/new").refs["try/this"]
    assert from_pretrained("lab/new@try/this").config["quality"] == {} != from_pretrained("lab/new").config["quality"]


# What is asked, and of whom

def test_a_models_files_are_asked_for_and_nothing_else(hub):
    from_pretrained("lab/cells")
    assert touched(hub) == {"config.json", "model.safetensors", "README.md"}
    assert [r for r in hub.requests if r.startswith("GET") and "/resolve/" in r][0].endswith("config.json")
    assert not any(h.method not in ("GET", "HEAD") or h.token for h in hub.heard)


def test_the_bundled_model_and_folders_ask_nobody(hub, tmp_path):
    for name in (None, small, str(small), bundled): from_pretrained(name)
    assert from_pretrained().source == from_pretrained(bundled).source == "bundled" and from_pretrained(small).source == "simulated"
    with pytest.raises(InputError): from_pretrained(tmp_path / "lab/cells")      # a path is never a repository
    save_pretrained(from_pretrained(small), tmp_path / "mine")
    assert not hub.requests


def test_a_folder_goes_before_a_repository_of_its_name(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(small, "lab/cells")
    assert from_pretrained("lab/cells").revision == "" and not hub.requests


def test_what_is_in_the_cache_is_not_fetched_again(hub):
    from_pretrained("lab/cells")
    hub.heard.clear()
    from_pretrained("lab/cells")
    assert not touched(hub)


@pytest.mark.parametrize("how", ["gone", "offline", "switched off", "out of order"])
def test_the_cache_will_do_without_the_hub(hub, monkeypatch, how):
    from huggingface_hub import constants
    first = [from_pretrained(name).sha256 for name in ("lab/cells", "lab/cells@v1")]
    hub.heard.clear()
    if how == "gone": hub.close()
    if how == "switched off": monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    if how == "out of order": hub.fail("/api/", 503)
    again = [from_pretrained(name, offline=how == "offline") for name in ("lab/cells", "lab/cells@v1", f"lab/cells@{hub.first}")]
    assert [m.sha256 for m in again[:2]] == first and {m.revision for m in again} == {hub.first}
    assert how == "out of order" or not hub.requests


def test_a_cache_of_ones_own(hub, tmp_path):
    from_pretrained("lab/cells", cache=tmp_path / "cache")
    assert (tmp_path / "cache/models--lab--cells").is_dir() and not (hub.cache / "models--lab--cells").exists()
    hub.close()
    assert from_pretrained("lab/cells", cache=tmp_path / "cache", offline=True).revision == hub.first


def test_a_process_of_its_own_goes_where_hf_endpoint_says(hub):
    said = "from mfm_app.hub import from_pretrained; print(from_pretrained('lab/cells@v1').revision)"
    done = subprocess.run([sys.executable, "-c", said], env=hub.env, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == hub.first, done.stderr
    assert touched(hub) == {"config.json", "model.safetensors", "README.md"}


# Whatever is wrong is said in one sentence

def refused(ask, words, f, *args, **kwargs):
    said = ask(f, *args, **kwargs)
    assert isinstance(said, InputError), said
    for word in words: assert word in str(said), said
    assert writer not in str(said) and reader not in str(said) and "Traceback" not in str(said) and "http://" not in str(said)


@pytest.mark.parametrize("name, words", [
    ("lab/none", ["lab/none", "hf auth login"]),
    ("lab/hidden", ["lab/hidden", "private", "hf auth login"]),
    ("lab/gated", ["lab/gated", "gated", "ask for access"]),
    ("lab/cells@v9", ["lab/cells", "'v9'", "tag"]),
    (f"lab/cells@{'0' * 40}", ["lab/cells", "0000"]),
    ("lab/empty", ["lab/empty", "not a model of mfm_app", "config.json"]),
    ("lab/half", ["lab/half", "model.safetensors"]),
    ("lab/foreign", ["lab/foreign", "not of mfm_app"]),
    ("lab/garbled", ["lab/garbled", "JSON"]),
    ("lab/nested", ["lab/nested", "JSON"]),
    ("lab/pickle", ["lab/pickle", "damaged or not a safetensors file"]),
    ("lab/cut", ["lab/cut", "damaged"]),
    ("lab/mixed", ["lab/mixed", "do not fit"]),
    ("lab/giant", ["lab/giant", "image_size", "512"]),
    ("lab/wide", ["lab/wide", "do not fit"]),
    ("lab/tabled", ["lab/tabled", "embeddings.npz"]),
    ("lab/unread", ["lab/unread", "molecules"]),
    ("lab/huge", ["lab/huge", "model size"]),
    ("lab/odd", ["lab/odd", "card"]),
])
def test_a_repository_that_cannot_be_read_is_refused_by_name(hub, ask, name, words):
    config = json.loads(files["config.json"])
    changed = lambda **new: files | {"config.json": json.dumps(config | new).encode()}
    torch.save(dict(weights=torch.ones(3)), checkpoint := io.BytesIO())
    hub.add("lab/hidden", files, private=True)
    hub.add("lab/gated", files, gated=True)
    hub.add("lab/empty", {".gitattributes": b""})
    hub.add("lab/half", {"config.json": files["config.json"], "pytorch_model.bin": b"x"})
    hub.add("lab/foreign", files | {"config.json": b'{"architectures": ["Bert"]}'})
    hub.add("lab/garbled", files | {"config.json": b"\xff not json"})
    hub.add("lab/nested", files | {"config.json": b"[" * 200_000})
    hub.add("lab/pickle", files | {"model.safetensors": checkpoint.getvalue()})
    hub.add("lab/cut", files | {"model.safetensors": files["model.safetensors"][:5000]})
    hub.add("lab/mixed", changed(backbone=config["backbone"] | dict(name="tiny/8")))
    hub.add("lab/giant", changed(backbone=config["backbone"] | dict(image_size=10**7)))
    hub.add("lab/wide", changed(backbone=config["backbone"] | dict(conv_width=10**7)))
    hub.add("lab/unread", changed(molecules=dict(encoder="words")))
    hub.add("lab/huge", changed(backbone=config["backbone"] | dict(name="huge/8")))
    hub.add("lab/odd", changed(quality=dict(counterfactual=[])))
    hub.add("lab/tabled", changed(molecules=dict(encoder=dict(kind="table", name="x", width=2), adaptor=None)))
    refused(ask, words, from_pretrained, name)
    assert not touched(hub) - {"config.json", "model.safetensors", "README.md"}


def test_weights_are_not_fetched_for_a_config_that_is_not_ours(hub, ask):
    hub.add("lab/foreign", files | {"config.json": b"{}"})
    refused(ask, ["lab/foreign"], from_pretrained, "lab/foreign")
    assert touched(hub) == {"config.json"}


def test_a_file_that_is_too_large_is_not_fetched(hub, ask, monkeypatch):
    monkeypatch.setitem(room.largest, "model.safetensors", 1 << 20)
    refused(ask, ["lab/cells", "model.safetensors", "1 MB"], from_pretrained, "lab/cells")
    assert not touched(hub)


@pytest.mark.parametrize("how, words", [
    ("gone", ["cannot be reached"]), ("silent", ["cannot be reached"]), ("unknown", ["cannot be reached"]), ("nonsense", ["cannot be reached"]), ("switched off", ["offline"]),
    ("busy", ["429"]), ("out of order", ["cannot be reached"]), ("another page", ["makes no sense"]), ("wrong token", ["token is not valid"]), ("forbidden", ["403"]),
    ("lost on the way", ["could not be carried", "with a network"]), ("odd token", ["token holds a character"])])
def test_a_hub_that_does_not_answer_as_it_should(hub, ask, monkeypatch, how, words):
    from huggingface_hub import constants
    monkeypatch.setattr(room, "patience", 0.3)
    if how == "gone": hub.close()
    if how == "silent": hub.fail("/api/", 0)
    if how == "unknown": monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    if how == "nonsense": monkeypatch.setenv("HF_ENDPOINT", "no address")
    if how == "switched off": monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    if how == "lost on the way": monkeypatch.setattr("huggingface_hub.HfApi.snapshot_download", Mock(side_effect=RuntimeError("Task error: error sending request")))
    if how == "odd token": monkeypatch.setenv("HF_TOKEN", "hf_ä")
    if how == "wrong token": monkeypatch.setenv("HF_TOKEN", "hf_of_somebody")
    for trouble, status in (("another page", 200), ("busy", 429), ("out of order", 503), ("forbidden", 403)):
        if how == trouble: hub.fail("/api/", status)
    refused(ask, ["lab/cells", *words], from_pretrained, "lab/cells")


def test_offline_and_not_in_the_cache(hub, ask):
    refused(ask, ["lab/cells", "at v1", "offline", "with a network"], from_pretrained, "lab/cells@v1", offline=True)
    from_pretrained("lab/cells")
    refused(ask, ["lab/cells", "at v1"], from_pretrained, "lab/cells@v1", offline=True)


def test_a_snapshot_of_which_a_file_is_gone(hub, ask):
    from_pretrained("lab/cells")
    for found in hub.cache.rglob("model.safetensors"): found.unlink()
    refused(ask, ["lab/cells"], from_pretrained, "lab/cells", offline=True)
    assert from_pretrained("lab/cells").revision == hub.first      # with a network it is fetched again


def test_a_cache_that_cannot_be_written(hub, ask, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    refused(ask, ["lab/cells", "cache"], from_pretrained, "lab/cells", cache=tmp_path / "file")
    from huggingface_hub import HfApi
    def full(*args, **kwargs): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "cache/blob"))
    monkeypatch.setattr(HfApi, "snapshot_download", full)
    refused(ask, ["lab/cells", "No space left on device", "HF_HUB_CACHE"], from_pretrained, "lab/cells")


def test_a_folder_that_cannot_be_written(model, ask, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    refused(ask, ["'file'"], save_pretrained, model, tmp_path / "file")
    refused(ask, ["'below'"], model.save_pretrained, tmp_path / "file/below")
    def full(*args): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(room, "save_file", full)
    refused(ask, ["'mine'", "No space left on device"], save_pretrained, model, tmp_path / "mine")
    assert not list((tmp_path / "mine").iterdir())


def test_a_disk_that_runs_full_leaves_the_old_model(model, ask, tmp_path, monkeypatch):
    shutil.copytree(small, tmp_path / "mine")
    before = {p.name: p.read_bytes() for p in (tmp_path / "mine").iterdir()}
    def full(*args): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(room, "save_file", full)
    other = Model(model.net, model.config | dict(data=dict(title="Another")), "", "other")
    refused(ask, ["'mine'", "No space left on device"], other.save_pretrained, tmp_path / "mine")
    assert {p.name: p.read_bytes() for p in (tmp_path / "mine").iterdir()} == before


def test_a_folder_that_cannot_be_read(ask, tmp_path, monkeypatch):
    shutil.copytree(small, tmp_path / "mine")
    def closed(self, *args, **kwargs): raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
    monkeypatch.setattr(Path, "is_file", closed)
    refused(ask, ["'mine'", "cannot be read", "Permission denied"], from_pretrained, tmp_path / "mine")
    monkeypatch.undo()
    refused(ask, ["cannot be read", "File name too long"], from_pretrained, tmp_path / ("x" * 300))


def test_a_folder_named_like_the_bundled_one_is_another_model(tmp_path):
    shutil.copytree(small, tmp_path / "bundled")
    mine = from_pretrained(tmp_path / "bundled")
    assert mine.sha256 == load_model(small).sha256 and mine.source == "./bundled" and from_pretrained().source == "bundled"


# Pushing without the right to

@pytest.mark.parametrize("token, repo, words", [
    (None, "lab/new", ["lab/new", "token", "hf auth login", "HF_TOKEN"]), (reader, "lab/new", ["lab/new", "403", "token that may"]), (reader, "lab/cells", ["lab/cells", "token that may"]),
    ("hf_of_somebody", "lab/new", ["lab/new", "token is not valid"]), (writer, "taken/cells", ["taken/cells", "403"]), (writer, "taken/new", ["taken/new", "403"]),
    (writer, "cells", ["user/name"]), (writer, "lab/new@refs/../x", ["lab/new", "revision"])])
def test_a_push_that_is_not_allowed(model, ask, token, repo, words):
    with standin(token) as hub:
        for taken in ("lab/cells", "taken/cells"): hub.add(taken, files)
        before = dict(hub.repos)
        refused(ask, words, push_to_hub, small, repo)
        assert hub.repos == before
        assert token is not None or not hub.requests


def test_a_token_may_be_given_and_is_not_kept(hub, model):
    model.push_to_hub("lab/new", token=writer)
    assert {h.token for h in hub.heard if "lab/new" in h.path and "/blobs/" not in h.path} == {writer}
    hub.heard.clear()
    from_pretrained("lab/new")
    assert {h.token for h in hub.heard} == {None}


def test_a_private_model_is_seen_by_its_owner_alone(mine, model, ask, monkeypatch):
    model.push_to_hub("lab/secret", private=True)
    assert mine.about("lab/secret").private and from_pretrained("lab/secret").sha256 == model.sha256
    model.push_to_hub("lab/secret", private=True)      # again, and without asking for it
    model.push_to_hub("lab/secret")
    assert mine.about("lab/secret").private
    monkeypatch.delenv("HF_TOKEN")
    refused(ask, ["lab/secret", "private"], from_pretrained, "lab/secret")


def test_what_shall_be_private_does_not_go_where_all_can_read(mine, ask):
    mine.add("lab/open", {"README.md": b"open"})
    refused(ask, ["lab/open", "public"], push_to_hub, small, "lab/open", private=True)
    assert mine.repos["lab/open"] == {"README.md": b"open"}


def test_what_cannot_be_read_is_not_pushed(mine, ask, tmp_path):
    shutil.copytree(small, tmp_path / "bad")
    (tmp_path / "bad/model.safetensors").write_bytes(b"nothing")
    refused(ask, ["'bad'", "damaged"], push_to_hub, tmp_path / "bad", "lab/new")
    refused(ask, ["'none'"], push_to_hub, tmp_path / "none", "lab/new")
    assert not mine.requests


@pytest.mark.parametrize("how, words", [("gone", ["cannot be reached"]), ("switched off", ["HF_HUB_OFFLINE"]), ("blobs refused", ["413", "too large"]), ("card refused", ["refuses"])])
def test_a_push_that_fails_on_the_way(mine, model, ask, monkeypatch, how, words):
    from huggingface_hub import constants
    if how == "gone": mine.close()
    if how == "switched off": monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    if how == "blobs refused": mine.fail("/blobs/", 413)
    if how == "card refused": mine.fail("/commit/", 400)
    refused(ask, ["lab/new", *words], model.push_to_hub, "lab/new")
    if how != "gone": assert set(mine.repos.get("lab/new", {".gitattributes": b""})) == {".gitattributes"}      # all or nothing


# Names

invalid = ["", " ", ".", "..", "../..", "cells", "a/b/c", "/lab/cells", "lab/", "/cells", "lab/cells/", "lab//cells", "~/cells", "./lab/cells", "lab/../cells", "lab/cells ", " lab/cells", "la b/cells",
           "lab/cells@", "lab/cells@@v1", "lab/cells@v 1", "lab/cells@../x", "lab/cells@/etc", "lab/cells@a//b", "lab/cells@.git", "lab/cells@v1/", "@v1", "lab@v1", "lab/@v1", "lab/-cells", "lab/cells-", "lab/.cells",
           "lab/ce--lls", "lab/ce..lls", "lab/cells.git", "lab/cells\n", "lab\\cells", "C:\\models\\cells", "https://huggingface.co/lab/cells", "hf://lab/cells", "lab/zellen-ä", "实验/cells", "lab/cells\0", "lab/" + "x" * 97,
           "x" * 100_000, "lab/cells?x=1", "lab/cells#x", "lab/%2e%2e", "lab/cells\ud800", "None/None/None"]


@pytest.mark.parametrize("name", invalid, ids=lambda n: ascii(n)[:30])
def test_what_is_no_name_is_refused_and_nobody_asked(hub, ask, name):
    refused(ask, [], from_pretrained, name)
    refused(ask, [], read_repository, name)
    assert not hub.requests


@pytest.mark.parametrize("wrong", [3, True, b"lab/cells", ["lab/cells"], 1.5, {}], ids=repr)
def test_what_is_no_text_is_refused(ask, wrong):
    refused(ask, ["text"], from_pretrained, wrong)


@pytest.mark.parametrize("wrong", [None, 3, b"lab"], ids=repr)
def test_what_is_no_model_is_not_pushed(mine, ask, wrong):
    refused(ask, ["model", type(wrong).__name__], push_to_hub, wrong, "lab/new")
    assert not mine.requests


def test_an_address_of_a_hub_may_end_in_a_stroke(mine, model, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", mine.endpoint + "/")
    model.push_to_hub("lab/new")
    assert not [h.path for h in mine.heard if h.path.startswith("//")]


def test_revisions_are_of_repositories_and_one_at_a_time(hub, ask):
    refused(ask, ["folder"], from_pretrained, None, "v1")
    refused(ask, ["folder"], from_pretrained, small, "v1")
    refused(ask, ["two revisions"], from_pretrained, "lab/cells@v1", "main")
    refused(ask, ["no revision"], from_pretrained, "lab/cells", "")
    refused(ask, ["no revision"], from_pretrained, "lab/cells", 7)
    assert not hub.requests


@pytest.fixture(scope="module")
def counted():
    with standin() as hub: yield hub


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(st.text(max_size=40), st.text("ab/@.-_~:\\ \n%", max_size=20), st.lists(st.sampled_from(["..", "lab", "cells", "@", "/", "v1", "-", ".git", "ä", " "]), max_size=8).map("".join)), st.one_of(st.none(), st.text(max_size=12)))
def test_any_text_is_a_name_by_the_hubs_rules_or_a_sentence(counted, ask, name, revision):
    from huggingface_hub.utils import validate_repo_id
    counted.heard.clear()
    read = ask(read_repository, name, revision)
    found = ask(from_pretrained, name, revision)
    if not os.path.isdir(name): assert isinstance(found, InputError)
    if isinstance(read, InputError):
        assert not counted.requests
        return
    repo, at = read
    validate_repo_id(repo)
    assert repo.count("/") == 1 and repo.isascii() and (at is None or re.fullmatch(r"[\w./+-]+", at) and ".." not in at)
    assert len({h.path for h in counted.heard}) == 1 and f"/api/models/{repo}" in counted.heard[0].path


changes = st.recursive(st.none() | st.booleans() | st.integers(-3, 10**9) | st.floats() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=5)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["format", "backbone", "adaptor", "predicts", "channels", "vocabulary", "data", "training", "quality", "molecules", "backbone.name", "backbone.channels",
                        "backbone.image_size", "backbone.stem", "backbone.conv_width", "adaptor.doses", "adaptor.time_scale", "vocabulary.perturbations", "vocabulary.experiments", "vocabulary.cell_types", "vocabulary.control", "vocabulary.dose_margin",
                        "training.history", "quality.table", "quality.counterfactual", "molecules.encoder", "molecules.table"]), changes)
def test_a_config_with_anything_in_it_is_read_or_refused(ask, tmp_path, where, what):
    folder = tmp_path / "odd"
    if not folder.is_dir(): shutil.copytree(small, folder)
    config = json.loads(files["config.json"])
    *above, key = where.split(".")
    (config.setdefault(above[0], {}) if above else config)[key] = what
    (folder / "config.json").write_text(json.dumps(config))
    read = ask(load_model, folder)
    if isinstance(read, Model): model_card(read.config)


# The card

@pytest.mark.parametrize("folder", [bundled, small], ids=lambda p: p.name)
def test_the_shipped_cards_say_what_their_configs_say(folder):
    assert (folder / "README.md").read_text(encoding="utf-8") == model_card(json.loads((folder / "config.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize("licence, read", [("CC-BY-4.0", "cc-by-4.0"), ("CC BY 4.0", "cc-by-4.0"), ("Apache-2.0", "apache-2.0"), ("unknown", "unknown"), (None, "none"), ("", "unknown"), ("In-house: 'no'\n---\nx: [", "in-house-no-x")])
def test_the_front_matter_is_what_the_hub_reads(mine, model, licence, read):
    card = model_card(model.config | dict(data=dict(licence=licence)))
    front = yaml.safe_load(card.split("---\n")[1])
    assert (front["license"], front.get("license_name")) in ((read, None), ("other", read))
    assert front["library_name"] == "mfm_app" and front["pipeline_tag"] == "unconditional-image-generation" and "flow-matching" in front["tags"]
    Model(model.net, model.config | dict(data=dict(licence=licence)), "", "x").push_to_hub("lab/new")      # the stand-in checks it as the Hub does


def test_every_licence_of_a_card_is_one_of_the_hubs(): assert hub_licences <= licences


@pytest.mark.parametrize("card", ["---\nlicense: made-up\n---\n# Mine", "---\nlicense: [\n---\n# Mine", "---\n- a\n- b\n---\n"])
def test_a_card_the_hub_does_not_accept_is_refused_before_anything_is_made(mine, ask, tmp_path, card):
    (shutil.copytree(small, tmp_path / "own") / "README.md").write_text(card)
    refused(ask, ["lab/new", "front matter", "delete README.md"], push_to_hub, tmp_path / "own", "lab/new")
    assert "lab/new" not in mine.repos


def test_only_the_place_of_the_name_is_filled_in(mine, tmp_path):
    (shutil.copytree(small, tmp_path / "own") / "README.md").write_text("# Mine\nload user/name, user/name@v1; superuser/names")
    push_to_hub(tmp_path / "own", "lab/new")
    assert mine.repos["lab/new"]["README.md"] == b"# Mine\nload lab/new, lab/new@v1; superuser/names"


def test_the_lines_on_the_card_draw_cells(model):
    said = re.search(r"```python\n(.*?)```", model_card(model.config, str(small)), re.S)[1]
    found = {}
    exec(said, found)
    assert found["images"].shape == (8, 3, 32, 32) and found["images"].dtype == np.uint8


def test_the_card_cites_the_method_and_the_data():
    card = (bundled / "README.md").read_text(encoding="utf-8").split("## How to cite")[1]
    assert "2603.26790" in card and "Caie et al." in card and "Ljosa et al." in card


# The command line

def mfm(capsys, *args):
    from mfm_app.cli import main
    try: main([str(a) for a in args])
    except SystemExit as e: code = e.code
    return code, capsys.readouterr()


def test_mfm_push_prints_where_it_went(mine, capsys):
    code, said = mfm(capsys, "push", small, "lab/new", "--private", "--message", "From a shell")
    assert code == 0 and said.out.strip() == f"{mine.endpoint}/lab/new/commit/{mine.about('lab/new').refs['main']}"
    assert mine.about("lab/new").private and mine.about("lab/new").messages[-1] == "From a shell"


def test_mfm_sample_reads_a_revision_of_a_repository(hub, capsys, tmp_path):
    code, said = mfm(capsys, "sample", "contractor", "--model", "lab/cells@v1", "--n", 2, "--steps", 2, "--out", tmp_path / "two.npz")
    assert code == 0 and touched(hub) == {"config.json", "model.safetensors", "README.md"}
    found = np.load(tmp_path / "two.npz")
    assert found["images"].shape == (2, 3, 32, 32) and json.loads(str(found["provenance"]))["weights_sha256"] == load_model(small).sha256
    code, said = mfm(capsys, "sample", "contractor", "--model", "lab/none")
    assert code == 2 and said.err.strip().splitlines()[-1].startswith("mfm: There is no folder lab/none here")


def test_a_folder_named_by_a_dot_has_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(shutil.copytree(small, tmp_path / "mine"))
    assert from_pretrained(".").name == from_pretrained(".").source == "mine"


@pytest.mark.parametrize("args, words", [(["nowhere", "lab/new"], "not a model folder"), ([small, "new"], "user/name"), ([small, "taken/new"], "403")])
def test_mfm_push_says_in_one_line_what_is_wrong(mine, capsys, args, words):
    code, said = mfm(capsys, "push", *args)
    last = said.err.strip().splitlines()[-1]
    assert code == 2 and last.startswith("mfm: ") and words in last and str(Path.cwd()) not in last


# The stand-in itself, where models do not use it

def test_the_stand_in_keeps_spaces_as_well(mine, tmp_path):
    from huggingface_hub import HfApi, SpaceHardware
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
    api = HfApi()
    assert api.create_repo("lab/page", repo_type="space", space_sdk="gradio", private=True).repo_id == "lab/page"
    with pytest.raises(HfHubHTTPError, match="already created"): api.create_repo("lab/page", repo_type="space", space_sdk="gradio")
    (tmp_path / "parts").mkdir()
    (tmp_path / "app.py").write_text("print()")
    (tmp_path / "parts/picture.png").write_bytes(b"png")
    commit = api.upload_folder(repo_id="lab/page", folder_path=tmp_path, repo_type="space")
    assert commit.commit_url == f"{mine.endpoint}/spaces/lab/page/commit/{commit.oid}"
    assert mine.repos == {"spaces/lab/page": {".gitattributes": mine.repos["spaces/lab/page"][".gitattributes"], "app.py": b"print()", "parts/picture.png": b"png"}} and mine.about("spaces/lab/page").sdk == "gradio"
    assert set(api.list_repo_files("lab/page", repo_type="space")) == {".gitattributes", "app.py", "parts/picture.png"} and api.space_info("lab/page").private
    api.add_space_variable("lab/page", "MODEL", "lab/cells@v1")
    api.add_space_secret("lab/page", "HF_TOKEN", "kept")
    assert api.request_space_hardware("lab/page", SpaceHardware.T4_SMALL).requested_hardware == "t4-small"
    kept = mine.about("spaces/lab/page").settings
    assert kept["hardware"] == "t4-small" and kept["variables"][0]["value"] == "lab/cells@v1" and len(kept["secrets"]) == 1
    with pytest.raises(RepositoryNotFoundError): api.model_info("lab/page")      # a Space is no model
    assert api.whoami()["name"] == "lab"
