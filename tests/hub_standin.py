"""A Hugging Face Hub that runs in this process, so that downloads and pushes are tested without a network.

    with standin() as hub:                                  # huggingface_hub, in this process, now asks only `hub`
        hub.add("lab/cells", {"config.json": b"{}"})        # a model; "spaces/lab/page" is a Space, "datasets/lab/x"
        ...                                                 # a dataset
        hub.files["spaces/lab/page"]["app.py"]              # bytes of the latest state of main, whoever wrote them
        hub.requests                                        # "GET /api/models/lab/cells/revision/main", in order

`hub.endpoint`  where it listens, as HF_ENDPOINT says while the block lasts
`hub.files`     key -> {path: bytes}; the key of a model is its id, others begin with "spaces/" or "datasets/"
`hub.requests`  every request as "METHOD path"; `hub.log` has them whole, with token, headers and body
`hub.env`       environment of a subprocess that uses it too
`hub.add(key, files, private=False, gated=False, tag=None, branch="main")`   commits and returns the commit's hash
`hub.repository(key)`    the `Repository`: `.private`, `.sdk`, `.settings` (variables, secrets, hardware), `.commits`
`hub.close()`   the network goes away, in the middle of the block
`hub.fail(part, status)`    answer with a status whenever `part` is in the path; status 0 hangs until the block ends

Tokens: `writer` may write to what `lab` owns, `reader` reads only, any other is not accepted. `standin(token=...)` is
who is logged in, nobody by default. `lab` owns everything under "lab/"; "taken/..." belongs to somebody else.

The tests' HF_HUB_OFFLINE=1 is read when huggingface_hub is imported. So the block sets the library's constants as well
as the variables, switches off Xet and telemetry (which would ask huggingface.co), and restores all at its end. Nothing
else in the process is changed: the cache is a fresh folder, `hub.cache`."""
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
licences = set("""
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0
bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0
cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0
etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl mpl-2.0
odc-by odbl osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl unknown other""".split())
colours = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}

Request = namedtuple("Request", "method path token headers body")


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

    def state(self, revision:str):     # hash, files; None if there is no such revision
        oid = self.refs.get(revision, revision)
        return (oid, self.commits[oid]) if oid in self.commits else None


def space_errors(front:dict)->list:
    "What the Hub does not accept in a Space's front matter."
    from huggingface_hub import SpaceHardware
    if front.get("sdk") not in ("gradio", "docker", "static"): return ['"sdk" must be one of gradio, docker, static']
    colour_keys = [k for k in ("colorFrom", "colorTo") if front.get(k, "red") not in colours]
    errors = [f'"{k}" must be one of {sorted(colours)}' for k in colour_keys]
    if len(front.get("short_description", "")) > 60: errors.append('"short_description" is longer than 60')
    known_hardware = {h.value for h in SpaceHardware}
    if front.get("suggested_hardware", "cpu-basic") not in known_hardware: errors.append('unknown "suggested_hardware"')
    return errors


def is_large(path:str)->bool: return path.endswith((".safetensors", ".npz", ".png"))


def blob_id(path:str, data:bytes)->str:
    "What the Hub calls a file's content: the SHA-256 of a large one, git's own hash of others."
    if is_large(path): return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def file_entry(path:str, data:bytes, path_key:str)->dict:
    oid = blob_id(path, data)
    lfs = dict(lfs=dict(oid=oid, sha256=oid, size=len(data), pointerSize=134)) if is_large(path) else {}
    return {path_key: path, "size": len(data), "oid": oid, "blobId": oid, **lfs}


class HubError(Exception):
    def __init__(self, status:int, message:str, code:str=""):
        self.status, self.message, self.code = status, message, code


class Hub:
    def __init__(self, token:str|None):
        self.token, self.log, self.blobs, self.failures = token, [], {}, {}
        self.repositories, self.connections, self.closed = {}, [], threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), dict(hub=self)))
        self.server.daemon_threads, self.server.block_on_close = True, False
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs=dict(poll_interval=0.02), daemon=True).start()

    @property
    def requests(self)->list: return [f"{r.method} {r.path}" for r in self.log]
    @property
    def files(self)->dict: return {key: repository.state("main")[1] for key, repository in self.repositories.items()}
    @property
    def env(self)->dict:
        inherited = {k: v for k, v in os.environ.items() if k not in ("HF_TOKEN", "HF_HUB_OFFLINE")}
        token = dict(HF_TOKEN=self.token) if self.token else {}
        return inherited | token | dict(
            HF_ENDPOINT=self.endpoint, HF_HUB_OFFLINE="0", HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1",
            HF_HUB_CACHE=str(self.cache), HF_HOME=str(self.cache.parent / "home"))

    def repository(self, key:str)->Repository: return self.repositories[key]
    def fail(self, part:str, status:int): self.failures[part] = status

    def add(self, key:str, files:dict, private=False, gated=False, tag=None, branch="main")->str:
        repository = self.repositories.setdefault(key, Repository(key))
        repository.private, repository.gated = private, gated
        contents = {path: v if isinstance(v, bytes) else Path(v).read_bytes() for path, v in files.items()}
        oid = repository.commit(branch, contents)
        repository.refs.setdefault("main", oid)
        if tag: repository.refs[tag] = oid
        return oid

    def close(self):
        self.closed.set()
        self.server.shutdown()
        self.server.server_close()
        for connection in self.connections:
            try: connection.shutdown(socket.SHUT_RDWR)
            except OSError: pass      # the client closed it first


class Handler(BaseHTTPRequestHandler):
    hub:Hub
    protocol_version = "HTTP/1.1"
    def log_message(self, *args): pass
    def setup(self):
        super().setup()
        self.hub.connections.append(self.connection)

    def do_GET(self): self.answer()
    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def read(self)->bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def send(self, status:int, body:bytes, **headers):
        self.send_response(status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body))} | headers
        for name, value in headers.items(): self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD": self.wfile.write(body)

    def answer(self):
        self.body, quoted = self.read(), urlsplit(self.path).path
        self.path = unquote(quoted)
        self.request_token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.hub.log.append(Request(self.command, self.path, self.request_token, dict(self.headers), self.body))
        try: self.dispatch(quoted)
        except HubError as e:
            code = {"X-Error-Code": e.code} if e.code else {}
            self.send(e.status, json.dumps(dict(error=e.message)).encode(), **code, **{"X-Error-Message": e.message})
        except OSError: self.close_connection = True

    def dispatch(self, quoted:str):
        for part, status in self.hub.failures.items():
            if part in self.path and status: self.stop(status, "Something is wrong here.")
            if part in self.path: self.hub.closed.wait()
        if self.request_token not in (None, writer, reader):
            self.stop(401, "Invalid credentials in Authorization header")
        for pattern, method in routes:
            if match := re.fullmatch(pattern, f"{self.command} {quoted}"):
                return method(self, **{name: value and unquote(value) for name, value in match.groupdict().items()})
        self.stop(404, f"The stand-in knows no {self.command} {self.path}")

    def stop(self, status:int, message:str, code:str=""): raise HubError(status, message, code)
    def no_revision(self, revision): self.stop(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    def json(self, value, status:int=200): self.send(status, json.dumps(value).encode())
    def key(self, kind:str|None, repo:str)->str: return repo if kind in (None, "models") else f"{kind}/{repo}"

    def readable(self, kind, repo)->Repository:
        repository = self.hub.repositories.get(self.key(kind, repo))
        hidden = repository and repository.private and not (self.request_token and repo.startswith(owner + "/"))
        if repository and not hidden: return repository
        if self.request_token: self.stop(404, "Repository not found", "RepoNotFound")
        self.stop(401, "Invalid username or password.", "RepoNotFound")

    def state(self, kind, repo, revision):
        repository = self.readable(kind, repo)
        return repository, *(repository.state(revision) or self.no_revision(revision))

    def writable(self, kind, repo)->Repository:
        if self.request_token is None: self.stop(401, "Invalid username or password.")
        repository = self.readable(kind, repo)
        if self.request_token == writer and repo.startswith(owner + "/"): return repository
        self.stop(403, "Forbidden: you must use a write token to upload to a repository.")

    # reading

    def info(self, kind, repo, revision="main"):
        repository, oid, files = self.state(kind, repo, revision)
        space = dict(sdk=repository.sdk, runtime=self.runtime(repository)) if kind == "spaces" else {}
        siblings = [file_entry(path, data, "rfilename") for path, data in files.items()]
        self.json(dict(id=repo, modelId=repo, sha=oid, private=repository.private, tags=[], downloads=0, likes=0,
                       gated="manual" if repository.gated else False, siblings=siblings, **space))

    def tree(self, kind, repo, revision):
        _, _, files = self.state(kind, repo, revision)
        self.json([dict(type="file", **file_entry(path, data, "path")) for path, data in files.items()])

    def refs(self, kind, repo):
        refs = self.readable(kind, repo).refs.items()
        branches = [dict(name=name, ref=f"refs/heads/{name}", targetCommit=oid) for name, oid in refs]
        self.json(dict(branches=branches, tags=[], converts=[]))

    def resolve(self, repo, revision, path, kind=None):
        repository, oid, files = self.state(kind, repo, revision)
        if repository.gated and self.request_token != writer:
            self.stop(403 if self.request_token else 401, f"Access to model {repo} is restricted.", "GatedRepo")
        if path not in files: self.stop(404, "Entry not found", "EntryNotFound")
        etag, size = f'"{blob_id(path, files[path])}"', str(len(files[path]))
        self.send(200, files[path], **{"X-Repo-Commit": oid, "ETag": etag, "X-Linked-Etag": etag, "X-Linked-Size": size,
                                       "Content-Type": "application/octet-stream"})

    def whoami(self):
        if self.request_token is None: self.stop(401, "Invalid username or password.")
        role = "write" if self.request_token == writer else "read"
        access = dict(type="access_token", accessToken=dict(displayName="standin", role=role))
        self.json(dict(type="user", name=owner, orgs=[], auth=access))

    # writing

    def create(self):
        fields = json.loads(self.body)
        repo_type = fields.get("type")
        kind, repo = f"{repo_type or 'model'}s", f"{fields.get('organization') or owner}/{fields['name']}"
        key, url = self.key(kind, repo), f"{self.hub.endpoint}/{self.key(kind, repo)}"
        if self.request_token is None: self.stop(401, "Invalid username or password.")
        if self.request_token != writer or not repo.startswith(owner + "/"):
            self.stop(403, f"You don't have the rights to create a {repo_type} under this namespace")
        if key in self.hub.repositories:
            return self.json(dict(error=f"You already created this {repo_type} repo", url=url), 409)
        private = fields.get("visibility") == "private" or bool(fields.get("private"))
        self.hub.add(key, {".gitattributes": b"*.safetensors filter=lfs\n"}, private=private)
        repository, settings = self.hub.repository(key), ("hardware", "variables", "secrets", "sleepTimeSeconds")
        repository.sdk = fields.get("sdk")
        repository.settings |= {k: fields[k] for k in settings if k in fields}
        self.json(dict(url=url, name=repo, id=key))

    def validate(self):
        fields = json.loads(self.body)
        match = re.match(r"---\n(.*?)\n---\n", fields["content"], re.S)
        try: front = yaml.safe_load(match[1]) if match else {}
        except yaml.YAMLError as e:
            return self.json(dict(error="Invalid metadata", errors=[dict(message=str(e))], warnings=[]), 400)
        known = front.get("license", "other") in licences
        errors = [] if known else [f'"license" must be one of {sorted(licences)}']
        if fields.get("repoType") == "space": errors += space_errors(front)
        self.json(dict(errors=[dict(message=m) for m in errors], warnings=[]), 400 if errors else 200)

    def preupload(self, kind, repo, revision):
        _, files = self.writable(kind, repo).state(revision) or self.no_revision(revision)
        entries = []
        for path in (entry["path"] for entry in json.loads(self.body)["files"]):
            oid = blob_id(path, files[path]) if path in files else None
            mode = "lfs" if is_large(path) else "regular"
            entries.append(dict(path=path, uploadMode=mode, shouldIgnore=False, oid=oid))
        self.json(dict(files=entries))

    def batch(self, repo, kind=None):
        self.writable(kind, repo)
        upload = lambda oid: dict(actions=dict(upload=dict(href=f"{self.hub.endpoint}/blobs/{oid}")))
        actions = lambda oid: {} if oid in self.hub.blobs else upload(oid)
        objects = [(entry["oid"], entry["size"]) for entry in json.loads(self.body)["objects"]]
        self.json(dict(transfer="basic", objects=[dict(oid=oid, size=size, **actions(oid)) for oid, size in objects]))

    def put_blob(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid: self.stop(400, "The content is not what its hash says")
        self.hub.blobs[oid] = self.body
        self.send(200, b"")

    def commit(self, kind, repo, revision):
        repository = self.writable(kind, repo)
        _, files = repository.state(revision) or self.no_revision(revision)
        if revision not in repository.refs: self.stop(400, "A commit goes to a branch")
        files, lines = dict(files), [json.loads(line) for line in self.body.splitlines()]
        for operation, value in ((line["key"], line["value"]) for line in lines[1:]):
            if operation == "file": files[value["path"]] = base64.b64decode(value["content"])
            if operation == "lfsFile": files[value["path"]] = self.hub.blobs[value["oid"]]
            if operation == "deletedFile": files.pop(value["path"], None)
            if operation == "deletedFolder":
                folder = value["path"].rstrip("/") + "/"
                files = {path: data for path, data in files.items() if not path.startswith(folder)}
        oid = repository.commit(revision, files, lines[0]["value"]["summary"])
        url = f"{self.hub.endpoint}/{self.key(kind, repo)}/commit/{oid}"
        self.json(dict(success=True, commitOid=oid, commitUrl=url))

    def create_ref(self, kind, repo, ref_type, name):
        repository = self.writable(kind, repo)
        if name in repository.refs: self.stop(409, f"Reference already exists: {name}")
        start = json.loads(self.body or b"{}").get("startingPoint") or "main"
        repository.refs[name] = (repository.state(start) or self.no_revision(start))[0]
        self.json({})

    # what only Spaces have

    def runtime(self, repository)->dict:
        hardware = repository.settings.get("hardware", "cpu-basic")
        return dict(stage="RUNNING", hardware=dict(current=hardware, requested=hardware), storage=None, gcTimeout=None,
                    replicas=dict(requested=1))

    def space_runtime(self, repo): self.json(self.runtime(self.readable("spaces", repo)))

    def space_setting(self, repo, setting):
        repository, fields = self.writable("spaces", repo), json.loads(self.body or b"{}")
        if setting == "hardware": repository.settings["hardware"] = fields["flavor"]
        elif setting == "sleeptime": repository.settings["sleepTimeSeconds"] = fields["seconds"]
        else: repository.settings.setdefault(setting, []).append(fields)
        if setting in ("hardware", "sleeptime"): return self.json(self.runtime(repository))
        self.json({v["key"]: dict(value=v["value"]) for v in repository.settings.get("variables", [])})


kind, repo, revision = r"(?P<kind>models|datasets|spaces)", r"(?P<repo>[^/]+/[^/]+)", r"(?P<revision>.+?)"
prefix, path = r"(?:(?P<kind>datasets|spaces)/)?", r"(?P<path>[^/]+(?:/.+)?)"
settings = r"(?P<setting>hardware|sleeptime|variables|secrets)"
routes = [
    (r"GET /api/whoami-v2", Handler.whoami), (r"POST /api/repos/create", Handler.create),
    (r"POST /api/validate-yaml", Handler.validate), (rf"GET /api/{kind}/{repo}", Handler.info),
    (rf"GET /api/{kind}/{repo}/revision/{revision}", Handler.info),
    (rf"GET /api/{kind}/{repo}/tree/{revision}", Handler.tree), (rf"GET /api/{kind}/{repo}/refs", Handler.refs),
    (rf"POST /api/{kind}/{repo}/preupload/{revision}", Handler.preupload),
    (rf"POST /api/{kind}/{repo}/commit/{revision}", Handler.commit),
    (rf"POST /api/{kind}/{repo}/(?P<ref_type>branch|tag)/(?P<name>.+)", Handler.create_ref),
    (rf"POST /{prefix}{repo}\.git/info/lfs/objects/batch", Handler.batch),
    (r"PUT /blobs/(?P<oid>\w+)", Handler.put_blob), (rf"GET /api/spaces/{repo}/runtime", Handler.space_runtime),
    (rf"POST /api/spaces/{repo}/{settings}", Handler.space_setting),
    (rf"(?:GET|HEAD) /{prefix}{repo}/resolve/{revision}/{path}", Handler.resolve),
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
        url = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        stack.enter_context(patch.multiple(
            constants, ENDPOINT=hub.endpoint, HUGGINGFACE_CO_URL_TEMPLATE=url, HF_HUB_OFFLINE=False,
            HF_HUB_DISABLE_XET=True, HF_HUB_DISABLE_TELEMETRY=True, HF_HUB_DISABLE_IMPLICIT_TOKEN=False,
            HF_HUB_CACHE=str(hub.cache), HF_TOKEN_PATH=str(home / "home/token"),
            HF_STORED_TOKENS_PATH=str(home / "home/stored_tokens")))
        removed = "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"
        env = {k: v for k, v in os.environ.items() if k not in removed} | dict(HF_ENDPOINT=hub.endpoint)
        if token: env["HF_TOKEN"] = token
        stack.enter_context(patch.dict(os.environ, env, clear=True))
        stack.callback(close_session)
        stack.callback(lambda: hub.closed.is_set() or hub.close())
        close_session()
        yield hub
