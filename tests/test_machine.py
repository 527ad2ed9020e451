"The machine around the page: addresses, ports, proxies, folders and code pages, each refused in its own true sentence."
import errno
import http.server
import io
import os
import re
import shutil
import socket
import tempfile
import threading
from urllib.request import getproxies, proxy_bypass

import httpx
import pytest
from conftest import many
from hypothesis import given
from hypothesis import strategies as st

from mfm_app import cli, machine, ui
from mfm_app.core import InputError, refusal
from mfm_app.machine import (check_folders, check_machine, check_variables, check_writable, importing_gradio,
                             keep_from_proxy, listen_address, number_variables, past_proxies, print_anything,
                             wanted_ports)

variables = [*number_variables, "GRADIO_SERVER_NAME", "no_proxy", "NO_PROXY", "http_proxy", "HTTP_PROXY",
             "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    "No proxy, no port and no host in the environment, whatever the machine has."
    for name in variables: monkeypatch.delenv(name, raising=False)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener: return listener.getsockname()[1]


# Numbers in the environment

@pytest.mark.parametrize("name", number_variables)
@pytest.mark.parametrize("text", ["abc", "-1", "7860.5", "1e4", "99999999999999999999", "tcp://10.0.0.1:80", "７８６０"])
def test_a_variable_that_holds_no_number_is_named(monkeypatch, name, text):
    monkeypatch.setenv(name, text)
    assert refusal(check_variables).startswith(f"{name} must be a whole number from ")


@pytest.mark.parametrize("name", ["GRADIO_SERVER_PORT", "PORT"])
@pytest.mark.parametrize("number", ["0", "65536"])
def test_a_port_beyond_the_numbers_there_are_is_refused(monkeypatch, name, number):
    monkeypatch.setenv(name, number)
    assert refusal(wanted_ports) == f"{name} must be a whole number from 1 to 65,535, not '{number}'."


variable_texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


@many(25)
@given(variable_texts | st.integers().map(str))
def test_any_text_in_a_variable_is_a_port_or_one_sentence(ask, text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_SERVER_PORT", text)
        answer = ask(wanted_ports)
    stripped = text.strip()
    if not stripped: assert answer[0][0] == 7860
    elif re.fullmatch("[0-9]{1,11}", stripped) and 1 <= int(stripped) <= 65_535: assert answer[0][0] == int(stripped)
    else: assert isinstance(answer, InputError)


def test_the_ports_that_are_tried(monkeypatch):
    assert wanted_ports() == (range(7860, 7960), "")
    monkeypatch.setenv("PORT", "8080")
    assert wanted_ports() == ([8080], "PORT")      # whoever set it forwards to it and to no other
    monkeypatch.setenv("GRADIO_SERVER_PORT", "65500")
    assert wanted_ports() == (range(65_500, 65_536), "")
    assert wanted_ports(9000) == ([9000], "")
    for name in ("PORT", "GRADIO_SERVER_PORT"): monkeypatch.setenv(name, " ")
    assert wanted_ports() == (range(7860, 7960), "")


# Where the page listens

def raising(error):
    def f(*args, **kwargs): raise error
    return f


address_table = [      # what the system answers -> what is said
    (OSError(errno.EADDRINUSE, "Address already in use"), "Port 80 is in use; name a free one."),
    (PermissionError(errno.EACCES, "Permission denied"), "Port 80 is not open to this account; name one from 1024 on"),
    (PermissionError(errno.EPERM, "Operation not permitted"), "Port 80 is not open to this account"),
    (OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address"), "'127.0.0.1' is not an address of this machine"),
    (OSError(errno.EAFNOSUPPORT, "Address family not supported"), "'127.0.0.1' is not an address of this machine"),
    (OSError(errno.EMFILE, "Too many open files"), "Port 80 is refused by the system for '127.0.0.1': Too many open"),
]


@pytest.mark.parametrize("error, said", address_table)
def test_each_reason_not_to_listen_has_its_sentence(monkeypatch, error, said):
    monkeypatch.setattr(machine, "try_port", raising(error))
    message = refusal(listen_address, "127.0.0.1", 80)
    assert message.startswith(said) and ("in use" in message) == (error.errno == errno.EADDRINUSE)


@pytest.mark.parametrize("error", [
    socket.gaierror(socket.EAI_NONAME, "Name or service not known"), UnicodeError("label too long"),
    socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), ValueError("embedded null character")])
def test_a_host_that_does_not_resolve(monkeypatch, error):
    monkeypatch.setattr(socket, "getaddrinfo", raising(error))
    assert refusal(listen_address, "no-such-host.invalid", 7951).startswith(
        "This machine finds no host 'no-such-host.invalid'; a name or an IP address is allowed")
    monkeypatch.setenv("GRADIO_SERVER_NAME", "no-such-host.invalid")
    assert "'no-such-host.invalid', which GRADIO_SERVER_NAME names;" in refusal(listen_address, None, 7951)


@pytest.mark.parametrize("host", ["http://127.0.0.1", "127.0.0.1:7860", "a" * 70, "a..b", "x\0y"])
def test_what_is_no_host_is_refused(ask, host): assert "no host" in str(ask(listen_address, host))


def test_an_address_of_another_machine(monkeypatch):      # one that is kept for documentation
    assert refusal(listen_address, "192.0.2.1").startswith("'192.0.2.1' is not an address of this machine;")
    monkeypatch.setenv("GRADIO_SERVER_NAME", "192.0.2.1")
    assert refusal(listen_address).startswith("'192.0.2.1', which GRADIO_SERVER_NAME names, is not an address")


def test_a_port_in_use_and_the_next_one(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert refusal(listen_address, None, port) == f"Port {port} is in use; name a free one."
        monkeypatch.setenv("PORT", str(port))
        assert refusal(listen_address) == f"Port {port}, which PORT names, is in use; name a free one."
        monkeypatch.setenv("GRADIO_SERVER_PORT", str(port))
        assert listen_address()[1] > port
        monkeypatch.setenv("GRADIO_NUM_PORTS", "1")
        assert refusal(listen_address) == f"Port {port} is in use; name a free one."
    assert listen_address(None, port) == ("127.0.0.1", port)


def test_many_ports_in_use(monkeypatch):
    monkeypatch.setattr(machine, "try_port", raising(OSError(errno.EADDRINUSE, "Address already in use")))
    assert refusal(listen_address) == "The ports from 7860 to 7959 are in use; name a free one."


def test_a_name_of_two_addresses_is_served_on_the_one_that_is_here(monkeypatch):
    both = [(socket.AF_INET6, 1, 6, "", ("::1", 0, 0, 0)), (socket.AF_INET, 1, 6, "", ("127.0.0.1", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: both)
    tried = []
    def only(family):
        def try_port(tried_family, address, port):
            tried.append(tried_family)
            if tried_family != family: raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        return try_port
    monkeypatch.setattr(machine, "try_port", only(socket.AF_INET))
    assert listen_address("localhost", 7860) == ("127.0.0.1", 7860)
    monkeypatch.setattr(machine, "try_port", only(socket.AF_INET6))
    assert listen_address("localhost", 7860) == ("[::1]", 7860)      # in brackets, as in an address
    assert tried == [socket.AF_INET, socket.AF_INET, socket.AF_INET6]


# Before the model is loaded

@pytest.mark.parametrize("args, environment, said", [
    (["--port", "70000"], {}, "The port must be a whole number from 1 to 65,535"),
    (["--host", "192.0.2.1"], {}, "'192.0.2.1' is not an address of this machine"),
    ([], dict(GRADIO_SERVER_NAME="a..b"), "'a..b', which GRADIO_SERVER_NAME names;"),
    ([], dict(GRADIO_SERVER_PORT="abc"), "GRADIO_SERVER_PORT must be a whole number"),
    ([], dict(GRADIO_NUM_PORTS="many"), "GRADIO_NUM_PORTS must be a whole number"),
    ([], dict(PORT="0"), "PORT must be a whole number"),
    ([], dict(GRADIO_TEMP_DIR=__file__ + "/uploads"), "The folder of uploads cannot be read or written: Not a dir")])
def test_mfm_serve_refuses_before_it_loads_a_model(mfm, monkeypatch, args, environment, said):
    monkeypatch.setattr(cli, "load", raising(AssertionError("the model was loaded")))
    for name, value in environment.items(): monkeypatch.setenv(name, value)
    code, text = mfm("serve", *args)
    assert code == 2 and text.startswith("mfm: ") and said in text and len(text.splitlines()) == 1


def test_launch_refuses_before_it_loads_a_model(monkeypatch):
    monkeypatch.setattr(ui, "load", raising(AssertionError("the model was loaded")))
    for wrong in (dict(host="192.0.2.1"), dict(server_name="192.0.2.1")):
        assert "not an address of this machine" in refusal(ui.launch, **wrong)


# Past the proxies

@pytest.fixture
def own_page():
    "The address of a page on this machine."
    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
        def log_message(self, *args): pass
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.02), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


nowhere = "http://127.0.0.1:9"


@pytest.mark.parametrize("proxy", [
    dict(http_proxy=nowhere), dict(HTTP_PROXY=nowhere, HTTPS_PROXY=nowhere), dict(ALL_PROXY=nowhere),
    dict(ALL_PROXY="socks5://127.0.0.1:9"), dict(all_proxy="socks://127.0.0.1:9"), dict(https_proxy="nonsense://x"),
    dict(http_proxy=nowhere, no_proxy=".example.org"), dict(http_proxy=nowhere, NO_PROXY="a.example, b.example")])
def test_the_pages_own_address_is_asked_past_any_proxy(monkeypatch, own_page, proxy):
    for name, value in proxy.items(): monkeypatch.setenv(name, value)
    before = dict(os.environ)
    with pytest.raises((httpx.HTTPError, ImportError, ValueError)): httpx.get(own_page)
    with past_proxies(): assert httpx.get(own_page).status_code == 200
    assert dict(os.environ) == before


def test_the_environment_is_as_before_after_an_error(monkeypatch):
    monkeypatch.setenv("GRADIO_SERVER_PORT", "abc")
    monkeypatch.setenv("no_proxy", "here")
    before = dict(os.environ)
    with pytest.raises(ZeroDivisionError), importing_gradio():
        assert "GRADIO_SERVER_PORT" not in os.environ and getproxies()["no"] == "*"
        1 / 0
    assert dict(os.environ) == before


@pytest.mark.parametrize("listed", [{}, dict(no_proxy="a.example"), dict(NO_PROXY="a.example,10.0.0.0/8"),
                                    dict(no_proxy="*"), dict(no_proxy="127.0.0.1,localhost")])
def test_only_the_pages_own_address_is_kept_from_the_proxy(monkeypatch, own_page, listed):
    for name, value in (dict(http_proxy=nowhere) | listed).items(): monkeypatch.setenv(name, value)
    before = getproxies()
    keep_from_proxy("127.0.0.1")
    assert httpx.get(own_page).status_code == 200
    after = getproxies()
    assert {k: v for k, v in after.items() if k != "no"} == {k: v for k, v in before.items() if k != "no"}
    names = after["no"].split(",")
    assert set(before.get("no", "").split(",")) - {""} <= set(names) and len(names) == len(set(names))
    assert proxy_bypass("other.example") == (listed.get("no_proxy") == "*")


def test_without_a_proxy_nothing_is_changed():
    before = dict(os.environ)
    keep_from_proxy("127.0.0.1")
    assert dict(os.environ) == before


def test_tools_that_would_go_through_a_proxy_of_no_use_are_refused(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    said = refusal(ui.launch, mcp_server=True)
    assert said.startswith("Tools for language models ask the page's own address") and "SOCKS" in said


# Folders

def test_folders_of_the_page(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    assert refusal(check_folders).startswith("The temporary folder cannot be read or written: Not a directory; TMPDIR")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "file/uploads"))
    assert refusal(check_folders).startswith("The folder of uploads cannot be read or written: Not a directory; GRADIO")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "not/there/yet"))
    check_folders()
    assert [p.name for p in tmp_path.iterdir()] == ["file"]      # nothing is left
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1 << 40, 1 << 40, 9 << 20))
    assert refusal(check_folders) == ("The temporary folder has 9 MB left, where the page needs 64 MB; TMPDIR can name "
                                      "another folder.")
    none_usable = FileNotFoundError(errno.ENOENT, "No usable temporary directory found")
    monkeypatch.setattr(tempfile, "gettempdir", raising(none_usable))
    assert refusal(check_folders).startswith("No temporary folder can be written here; TMPDIR")


folder_table = [PermissionError(errno.EACCES, "Permission denied"), OSError(errno.EROFS, "Read-only file system"),
                OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EDQUOT, "Disk quota exceeded"),
                OSError(errno.ENAMETOOLONG, "File name too long"), OSError(errno.EIO, "Input/output error")]


@pytest.mark.parametrize("error", folder_table, ids=lambda e: e.strerror)
def test_each_reason_why_a_folder_cannot_be_written(monkeypatch, ask, tmp_path, error):
    monkeypatch.setattr(tempfile, "TemporaryFile", raising(error))
    assert str(ask(check_writable, tmp_path / "runs")) == (
        f"'{tmp_path.name}' cannot be read or written: {error.strerror}.")


@pytest.mark.skipif(os.name != "posix" or os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_of_somebody_else(tmp_path):
    tmp_path.chmod(0o500)
    assert refusal(check_writable, tmp_path / "run").endswith("cannot be read or written: Permission denied.")


def test_a_machine_on_which_nothing_is_wrong(): check_machine("127.0.0.1", free_port())


# Code pages

code_pages = ["utf-8", "cp932", "cp936", "cp949", "cp950", "cp437", "cp850", "cp1251", "cp1252", "latin-1", "ascii",
              "gb18030", "euc_jp", "shift_jis", "iso2022_jp", "mac_roman", "koi8_r"]


def written(text, encoding, prepare=print_anything):
    "The bytes that printing leads to."
    stream = io.TextIOWrapper(io.BytesIO(), encoding, newline="")
    prepare([stream])
    stream.write(text)
    stream.flush()
    return stream.buffer.getvalue()


def printed(text, encoding): return written(text, encoding).decode(encoding)


@pytest.mark.parametrize("encoding, shown", [
    ("utf-8", "5 µM"), ("latin-1", "5 µM"), ("cp1252", "5 µM"), ("cp932", "5 μM"), ("cp936", "5 μM"),
    ("cp949", "5 μM"), ("ascii", "5 uM"), ("koi8_r", "5 uM")])
def test_the_micro_sign_on_every_code_page(encoding, shown): assert printed("5 µM", encoding) == shown


@pytest.mark.parametrize("text, shown", [
    ("naïve × 2", "naive x 2"), ("β-catenin", "beta-catenin"), ("≥ 3 – 5…", ">= 3 - 5..."), ("細胞", r"\u7d30\u80de"),
    ("bad\udcff.png", r"bad\udcff.png")])
def test_what_ascii_lacks_is_spelled_or_escaped(text, shown): assert printed(text, "ascii") == shown


@many(25)
@given(st.text(), st.sampled_from(code_pages))
def test_whatever_is_printed_raises_nothing_and_keeps_what_the_page_has(text, encoding):
    shown = written(text, encoding)
    try: kept = written(text, encoding, lambda streams: None)
    except UnicodeEncodeError: assert shown
    else: assert shown == kept


def test_streams_without_a_code_page_are_left_alone(): print_anything([io.StringIO(), None])
