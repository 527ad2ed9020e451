"""A Hugging Face Hub that lives in this process, so that fetching and pushing are tested without a network.

    with standin() as hub:                                  # huggingface_hub, in this process, now asks only `hub`
        hub.add("lab/cells", {"config.json": b"{}"})        # a model; "spaces/lab/page" is a Space, "datasets/lab/x" a dataset
        ...
        hub.repos["spaces/lab/page"]["app.py"]              # bytes of the latest state of main, whoever put them there
        hub.requests                                        # "GET /api/models/lab/cells/revision/main", in order

`hub.endpoint`  where it listens, as HF_ENDPOINT says while the block lasts
`hub.repos`     key -> {path: bytes}; the key of a model is its id, others begin with "spaces/" or "datasets/"
`hub.requests`  every request as "METHOD path"; `hub.heard` has them whole, with token, headers and body
`hub.env`       environment of a subprocess that shall use it too
`hub.add(key, files, private=False, gated=False, tag=None, branch="main")`   commits and returns the commit's hash
`hub.about(key)`    the `Repository`: `.private`, `.sdk`, `.settings` (a Space's variables, secrets, hardware), `.commits`
`hub.close()`   the network goes away, in the middle of the block
`hub.fail(part, status)`    answer so whenever `part` is in the path; status 0 hangs until the block ends

Tokens: `writer` may write to what `lab` owns, `reader` reads only, any other is not accepted. `standin(token=...)` is who
is logged in, nobody by default. `lab` owns everything under "lab/"; "taken/..." belongs to somebody else.

The tests' HF_HUB_OFFLINE=1 is read when huggingface_hub is imported. So the block sets the library's constants as well as
the variables, switches off Xet and telemetry (which would ask huggingface.co), and puts all back at its end. Nothing
else in the process is touched: the cache is a fresh folder, `hub.cache`."""
import base64
import hashlib
import json
import os
import re
import socket
import tempfile
import threading
from collections import namedtuple
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest.mock import patch
from urllib.parse import unquote, urlsplit

import yaml

writer, reader = "hf_standin_writer", "hf_standin_reader"
owner = "lab"

# the identifiers on https://huggingface.co/docs/hub/repositories-licenses that are of data and code, not of one model
licences = set("""apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc
cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0
cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl
mpl-2.0 odc-by odbl osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl unknown other""".split())
colours = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}

Heard = namedtuple("Heard", "method path token headers body")


@dataclass
class Repository:
    key:str
    private:bool = False
    gated:bool = False
    sdk:str|None = None
    commits:dict = field(default_factory=dict)      # hash -> {path: bytes}
    refs:dict = field(default_factory=dict)         # branch or tag -> hash
    settings:dict = field(default_factory=dict)
    messages:list = field(default_factory=list)

    def commit(self, branch:str, files:dict, message:str="")->str:
        oid = hashlib.sha1(f"{self.key} {branch} {len(self.commits)}".encode()).hexdigest()
        self.commits[oid], self.refs[branch] = files, oid
        self.messages.append(message)
        return oid

    def at(self, revision:str):     # hash, files; None if there is no such revision
        oid = self.refs.get(revision, revision)
        return (oid, self.commits[oid]) if oid in self.commits else None


def wrong_of_space(said:dict)->list:
    "What the Hub would not accept of a Space's front matter."
    from huggingface_hub import SpaceHardware
    if said.get("sdk") not in ("gradio", "docker", "static"): return ['"sdk" must be one of gradio, docker, static']
    wrong = [f'"{k}" must be one of {sorted(colours)}' for k in ("colorFrom", "colorTo") if said.get(k, "red") not in colours]
    wrong += ['"short_description" is longer than 60'] * (len(said.get("short_description", "")) > 60)
    return wrong + ['"suggested_hardware" is not known'] * (said.get("suggested_hardware", "cpu-basic") not in {h.value for h in SpaceHardware})


def is_large(path:str)->bool: return path.endswith((".safetensors", ".npz", ".png"))


def blob_id(path:str, data:bytes)->str:
    "What the Hub calls a file's content: the SHA-256 of a large one, git's own hash of others."
    return hashlib.sha256(data).hexdigest() if is_large(path) else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def described(path:str, data:bytes, name:str)->dict:
    lfs = dict(lfs=dict(oid=blob_id(path, data), sha256=blob_id(path, data), size=len(data), pointerSize=134)) if is_large(path) else {}
    return {name: path, "size": len(data), "oid": blob_id(path, data), "blobId": blob_id(path, data), **lfs}


class Refused(Exception):
    def __init__(self, status:int, said:str, code:str=""): self.status, self.said, self.code = status, said, code


class Hub:
    def __init__(self, token:str|None):
        self.token, self.heard, self.blobs, self.failures, self.all, self.lines, self.over = token, [], {}, {}, {}, [], threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), dict(hub=self)))
        self.server.daemon_threads, self.server.block_on_close = True, False
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs=dict(poll_interval=0.02), daemon=True).start()

    @property
    def requests(self)->list: return [f"{h.method} {h.path}" for h in self.heard]
    @property
    def repos(self)->dict: return {key: repo.at("main")[1] for key, repo in self.all.items()}
    @property
    def env(self)->dict:
        said = {k: v for k, v in os.environ.items() if k not in ("HF_TOKEN", "HF_HUB_OFFLINE")}
        return said | dict(HF_ENDPOINT=self.endpoint, HF_HUB_OFFLINE="0", HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1",
                           HF_HUB_CACHE=str(self.cache), HF_HOME=str(self.cache.parent / "home")) | (dict(HF_TOKEN=self.token) if self.token else {})

    def about(self, key:str)->Repository: return self.all[key]
    def fail(self, part:str, status:int): self.failures[part] = status

    def add(self, key:str, files:dict, private=False, gated=False, tag=None, branch="main")->str:
        repo = self.all.setdefault(key, Repository(key))
        repo.private, repo.gated = private, gated
        oid = repo.commit(branch, {k: v if isinstance(v, bytes) else Path(v).read_bytes() for k, v in files.items()})
        repo.refs.setdefault("main", oid)
        if tag: repo.refs[tag] = oid
        return oid

    def close(self):
        self.over.set()
        self.server.shutdown()
        self.server.server_close()
        for line in self.lines:
            try: line.shutdown(socket.SHUT_RDWR)
            except OSError: pass      # the other side was first


class Handler(BaseHTTPRequestHandler):
    hub:Hub
    protocol_version = "HTTP/1.1"
    def log_message(self, *args): pass
    def setup(self):
        super().setup()
        self.hub.lines.append(self.connection)

    def do_GET(self): self.answer()
    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def read(self)->bytes:
        if self.headers.get("Transfer-Encoding") != "chunked": return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def send(self, status:int, body:bytes, **headers):
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json", "Content-Length": str(len(body))} | headers).items(): self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD": self.wfile.write(body)

    def answer(self):
        self.body, quoted = self.read(), urlsplit(self.path).path
        self.path = unquote(quoted)
        self.said_token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.hub.heard.append(Heard(self.command, self.path, self.said_token, dict(self.headers), self.body))
        try:
            for part, status in self.hub.failures.items():
                if part in self.path and status: self.stop(status, "Something is wrong here.")
                if part in self.path: self.hub.over.wait()
            if self.said_token not in (None, writer, reader): self.stop(401, "Invalid credentials in Authorization header")
            for pattern, method in routes:
                if found := re.fullmatch(pattern, f"{self.command} {quoted}"): return method(self, **{k: v and unquote(v) for k, v in found.groupdict().items()})
            self.stop(404, f"The stand-in knows no {self.command} {self.path}")
        except Refused as e:
            code = {"X-Error-Code": e.code} if e.code else {}
            self.send(e.status, json.dumps(dict(error=e.said)).encode(), **code, **{"X-Error-Message": e.said})
        except OSError: self.close_connection = True

    def stop(self, status:int, said:str, code:str=""): raise Refused(status, said, code)
    def json(self, value, status:int=200): self.send(status, json.dumps(value).encode())
    def key(self, kind:str|None, repo:str)->str: return repo if kind in (None, "models") else f"{kind}/{repo}"

    def readable(self, kind, repo)->Repository:
        found = self.hub.all.get(self.key(kind, repo))
        if found is None or found.private and not (self.said_token and repo.startswith(owner + "/")):
            self.stop(404 if self.said_token else 401, "Repository not found" if self.said_token else "Invalid username or password.", "RepoNotFound")
        return found

    def state(self, kind, repo, revision):
        found = self.readable(kind, repo)
        return found, *(found.at(revision) or self.stop(404, f"Invalid rev id: {revision}", "RevisionNotFound"))

    def writable(self, kind, repo)->Repository:
        if self.said_token is None: self.stop(401, "Invalid username or password.")
        found = self.readable(kind, repo)
        if self.said_token != writer or not repo.startswith(owner + "/"): self.stop(403, "Forbidden: you must use a write token to upload to a repository.")
        return found

    # reading

    def info(self, kind, repo, revision="main"):
        found, oid, files = self.state(kind, repo, revision)
        more = dict(sdk=found.sdk, runtime=self.runtime(found)) if kind == "spaces" else {}
        self.json(dict(id=repo, modelId=repo, sha=oid, private=found.private, gated="manual" if found.gated else False, tags=[], downloads=0, likes=0,
                       siblings=[described(path, data, "rfilename") for path, data in files.items()], **more))

    def tree(self, kind, repo, revision):
        _, _, files = self.state(kind, repo, revision)
        self.json([dict(type="file", **described(path, data, "path")) for path, data in files.items()])

    def refs(self, kind, repo):
        found = self.readable(kind, repo)
        self.json(dict(branches=[dict(name=n, ref=f"refs/heads/{n}", targetCommit=oid) for n, oid in found.refs.items()], tags=[], converts=[]))

    def resolve(self, repo, revision, path, kind=None):
        found, oid, files = self.state(kind, repo, revision)
        if found.gated and self.said_token != writer: self.stop(403 if self.said_token else 401, f"Access to model {repo} is restricted.", "GatedRepo")
        if path not in files: self.stop(404, "Entry not found", "EntryNotFound")
        etag = f'"{blob_id(path, files[path])}"'
        self.send(200, files[path], **{"X-Repo-Commit": oid, "ETag": etag, "X-Linked-Etag": etag, "X-Linked-Size": str(len(files[path])), "Content-Type": "application/octet-stream"})

    def whoami(self):
        if self.said_token is None: self.stop(401, "Invalid username or password.")
        self.json(dict(type="user", name=owner, orgs=[], auth=dict(type="access_token", accessToken=dict(displayName="standin", role="write" if self.said_token == writer else "read"))))

    # writing

    def create(self):
        said = json.loads(self.body)
        kind, repo = f"{said.get('type') or 'model'}s", f"{said.get('organization') or owner}/{said['name']}"
        key, url = self.key(kind, repo), f"{self.hub.endpoint}/{self.key(kind, repo)}"
        if self.said_token is None: self.stop(401, "Invalid username or password.")
        if self.said_token != writer or not repo.startswith(owner + "/"): self.stop(403, f"You don't have the rights to create a {said.get('type')} under this namespace")
        if key in self.hub.all: return self.json(dict(error=f"You already created this {said.get('type')} repo", url=url), 409)
        private = said.get("visibility") == "private" or bool(said.get("private"))
        self.hub.add(key, {".gitattributes": b"*.safetensors filter=lfs\n"}, private=private)
        self.hub.about(key).sdk = said.get("sdk")
        self.hub.about(key).settings |= {k: said[k] for k in ("hardware", "variables", "secrets", "sleepTimeSeconds") if k in said}
        self.json(dict(url=url, name=repo, id=key))

    def validate(self):
        asked = json.loads(self.body)
        front = re.match(r"---\n(.*?)\n---\n", asked["content"], re.S)
        try: said = yaml.safe_load(front[1]) if front else {}
        except yaml.YAMLError as e: return self.json(dict(error="Invalid metadata", errors=[dict(message=str(e))], warnings=[]), 400)
        wrong = [f'"license" must be one of {sorted(licences)}'] if said.get("license", "other") not in licences else []
        if asked.get("repoType") == "space": wrong += wrong_of_space(said)
        self.json(dict(errors=[dict(message=m) for m in wrong], warnings=[]), 400 if wrong else 200)

    def preupload(self, kind, repo, revision):
        files = (self.writable(kind, repo).at(revision) or self.stop(404, f"Invalid rev id: {revision}", "RevisionNotFound"))[1]
        there = lambda path: blob_id(path, files[path]) if path in files else None
        self.json(dict(files=[dict(path=f["path"], uploadMode="lfs" if is_large(f["path"]) else "regular", shouldIgnore=False, oid=there(f["path"]))
                              for f in json.loads(self.body)["files"]]))

    def batch(self, repo, kind=None):
        self.writable(kind, repo)
        actions = lambda oid: {} if oid in self.hub.blobs else dict(actions=dict(upload=dict(href=f"{self.hub.endpoint}/blobs/{oid}")))
        self.json(dict(transfer="basic", objects=[dict(oid=o["oid"], size=o["size"], **actions(o["oid"])) for o in json.loads(self.body)["objects"]]))

    def put_blob(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid: self.stop(400, "The content is not what its hash says")
        self.hub.blobs[oid] = self.body
        self.send(200, b"")

    def commit(self, kind, repo, revision):
        found = self.writable(kind, repo)
        _, files = found.at(revision) or self.stop(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        if revision not in found.refs: self.stop(400, "A commit goes to a branch")
        files, lines = dict(files), [json.loads(line) for line in self.body.splitlines()]
        for line in lines[1:]:
            said = line["value"]
            if line["key"] == "file": files[said["path"]] = base64.b64decode(said["content"])
            if line["key"] == "lfsFile": files[said["path"]] = self.hub.blobs[said["oid"]]
            if line["key"] == "deletedFile": files.pop(said["path"], None)
            if line["key"] == "deletedFolder": files = {k: v for k, v in files.items() if not k.startswith(said["path"].rstrip("/") + "/")}
        oid = found.commit(revision, files, lines[0]["value"]["summary"])
        self.json(dict(success=True, commitOid=oid, commitUrl=f"{self.hub.endpoint}/{self.key(kind, repo)}/commit/{oid}"))

    def ref(self, kind, repo, what, name):
        found = self.writable(kind, repo)
        if name in found.refs: self.stop(409, f"Reference already exists: {name}")
        start = json.loads(self.body or b"{}").get("startingPoint") or "main"
        found.refs[name] = (found.at(start) or self.stop(404, f"Invalid rev id: {start}", "RevisionNotFound"))[0]
        self.json({})

    # what only Spaces have

    def runtime(self, found)->dict:
        now = found.settings.get("hardware", "cpu-basic")
        return dict(stage="RUNNING", hardware=dict(current=now, requested=now), storage=None, gcTimeout=None, replicas=dict(requested=1))

    def space_runtime(self, repo): self.json(self.runtime(self.readable("spaces", repo)))

    def space_setting(self, repo, what):
        found, said = self.writable("spaces", repo), json.loads(self.body or b"{}")
        if what == "hardware": found.settings["hardware"] = said["flavor"]
        elif what == "sleeptime": found.settings["sleepTimeSeconds"] = said["seconds"]
        else: found.settings.setdefault(what, []).append(said)
        self.json(self.runtime(found) if what in ("hardware", "sleeptime") else {v["key"]: dict(value=v["value"]) for v in found.settings.get("variables", [])})


kind, repo, revision = r"(?P<kind>models|datasets|spaces)", r"(?P<repo>[^/]+/[^/]+)", r"(?P<revision>.+?)"
routes = [
    (r"GET /api/whoami-v2", Handler.whoami), (r"POST /api/repos/create", Handler.create), (r"POST /api/validate-yaml", Handler.validate),
    (rf"GET /api/{kind}/{repo}", Handler.info), (rf"GET /api/{kind}/{repo}/revision/{revision}", Handler.info),
    (rf"GET /api/{kind}/{repo}/tree/{revision}", Handler.tree), (rf"GET /api/{kind}/{repo}/refs", Handler.refs),
    (rf"POST /api/{kind}/{repo}/preupload/{revision}", Handler.preupload), (rf"POST /api/{kind}/{repo}/commit/{revision}", Handler.commit),
    (rf"POST /api/{kind}/{repo}/(?P<what>branch|tag)/(?P<name>.+)", Handler.ref),
    (rf"POST /(?:(?P<kind>datasets|spaces)/)?{repo}\.git/info/lfs/objects/batch", Handler.batch), (r"PUT /blobs/(?P<oid>\w+)", Handler.put_blob),
    (rf"GET /api/spaces/{repo}/runtime", Handler.space_runtime), (rf"POST /api/spaces/{repo}/(?P<what>hardware|sleeptime|variables|secrets)", Handler.space_setting),
    (rf"(?:GET|HEAD) /(?:(?P<kind>datasets|spaces)/)?{repo}/resolve/{revision}/(?P<path>[^/]+(?:/.+)?)", Handler.resolve),
]


@contextmanager
def standin(token:str|None=None):
    "A `Hub` that huggingface_hub uses while the block lasts; see the top of this file."
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session
    hub = Hub(token)
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        hub.cache = home / "hub"
        said = dict(ENDPOINT=hub.endpoint, HUGGINGFACE_CO_URL_TEMPLATE=hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
                    HF_HUB_OFFLINE=False, HF_HUB_DISABLE_XET=True, HF_HUB_DISABLE_TELEMETRY=True, HF_HUB_DISABLE_IMPLICIT_TOKEN=False,
                    HF_HUB_CACHE=str(hub.cache), HF_TOKEN_PATH=str(home / "home/token"), HF_STORED_TOKENS_PATH=str(home / "home/stored_tokens"))
        stack.enter_context(patch.multiple(constants, **said))
        env = {k: v for k, v in os.environ.items() if k not in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE")}
        stack.enter_context(patch.dict(os.environ, env | dict(HF_ENDPOINT=hub.endpoint) | (dict(HF_TOKEN=token) if token else {}), clear=True))
        stack.callback(close_session)
        stack.callback(lambda: hub.over.is_set() or hub.close())
        close_session()
        yield hub
