"""A Weights & Biases server for tests: what the client of wandb 0.31 asks of one, on the loopback interface, in memory.

GraphQL operations are told apart by name and answered with what the client reads; one that is not here is answered with
an error and kept in `unknown`.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import wandb

ENTITY = "somebody"
KEY = "k" * 40
Answer = dict[str, Any]


@dataclass
class Sent:
    """What a client has sent of one run."""

    name: str
    fields: Answer = field(default_factory=dict)
    """The variables of `upsertBucket`: displayName, groupName, tags, jobType, config, sweep, ..."""
    lines: list[Answer] = field(default_factory=list)
    summary: Answer = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    complete: bool = False
    exitcode: int | None = None
    preempting: bool = False

    @property
    def config(self) -> Answer:
        return {key: value["value"] for key, value in json.loads(self.fields["config"]).items()}

    def step_metrics(self) -> dict[str, str]:
        """The axis of each metric that `define_metric` gave one. The client numbers fields: 1 name, 2 glob, 5 axis."""
        defined = json.loads(self.fields["config"])["_wandb"]["value"]["m"]
        return {entry.get("1") or entry["2"]: defined[entry["5"] - 1]["1"] for entry in defined if "5" in entry}

    @property
    def history(self) -> list[Answer]:
        """Logged values by step, without what wandb adds (names with an underscore)."""
        return [{key: value for key, value in line.items() if key[0] != "_"} for line in self.lines]


@dataclass
class Artifact:
    name: str
    type: str
    aliases: list[str]
    run: str
    manifest: bytes = b""
    files: dict[str, bytes] = field(default_factory=dict)
    committed: bool = False


class Server(ThreadingHTTPServer):
    """Answers until `close`; `runs`, `artifacts` and `unknown` hold what came in."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.runs: dict[str, Sent] = {}
        self.artifacts: dict[str, Artifact] = {}
        self.alerts: list[Answer] = []
        self.views: dict[str, Answer] = {}
        """Workspaces and reports by their id: `name`, `displayName`, `type`, `spec` (JSON), ..."""
        self.unknown: list[str] = []
        self.sweep: Answer = {}
        """`config` (YAML) and `points`: the parameters of runs that an agent has still to start."""
        self.lock = threading.Lock()
        self.gone = False

    def vanish(self) -> None:
        """Answers nobody any more, those neither with whom it is talking."""
        self.gone = True
        self.shutdown()
        self.server_close()

    def graphql(self, query: str, given: Answer) -> Answer:
        operation = re.match(r"\s*(?:query|mutation) (\w+)", query)
        if operation is not None and operation[1] in OPERATIONS:
            return {"data": OPERATIONS[operation[1]](self, given)}
        self.unknown.append(query)
        return {"errors": [{"message": f"not in this server: {query.split('{')[0].strip()}"}], "data": None}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that ends resets the connections it has kept open."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def run(self, name: str) -> Sent:
        return self.runs.setdefault(name, Sent(name))


def bucket(run: Sent) -> Answer:
    lines = [json.dumps(line) for line in run.lines]
    return {
        "id": f"id-{run.name}",
        "name": run.name,
        "displayName": run.fields.get("displayName"),
        "description": None,
        "config": run.fields.get("config", "{}"),
        "sweepName": run.fields.get("sweep"),
        "project": project(),
        "summaryMetrics": json.dumps(run.summary),
        "logLineCount": 0,
        "eventsLineCount": 0,
        "historyLineCount": len(lines),
        "historyTail": json.dumps(lines[-1:]),
        "eventsTail": "[]",
        "tags": run.fields.get("tags"),
        "notes": None,
        "wandbConfig": json.dumps({"t": {}} if run.fields.get("config") else {}),  # "t": it was started
    }


def project() -> Answer:
    return {"id": "project-0", "name": "dcal", "entity": {"id": "entity-0", "name": ENTITY}}


def viewer(server: Server, given: Answer) -> Answer:
    teams: Answer = {"edges": []}
    return {
        "viewer": {
            "id": "user-0", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}", "teams": teams,
            "admin": False, "name": ENTITY, "deletedAt": None, "apiKeys": {"edges": []},
        }
    }  # fmt: skip


def upsert_bucket(server: Server, given: Answer) -> Answer:
    name = given.get("name") or given["id"].removeprefix("id-")
    inserted = name not in server.runs
    run = server.run(name)
    run.fields.update({key: value for key, value in given.items() if value is not None})
    return {"upsertBucket": {"bucket": bucket(run), "inserted": inserted}}


def resume_status(server: Server, given: Answer) -> Answer:
    run = server.runs.get(given["name"])
    return {"model": {**project(), "bucket": bucket(run) if run else None}}


def run_files(server: Server, given: Answer) -> Answer:
    files = [{"name": name, "uploadUrl": f"{server.url}/run/{given['run']}/{name}"} for name in given["files"]]
    return {"createRunFiles": {"runID": f"id-{given['run']}", "uploadHeaders": [], "files": files}}


def create_artifact(server: Server, given: Answer) -> Answer:
    wanted = given["input"]
    key = f"artifact-{len(server.artifacts)}"
    names = [alias["alias"] for alias in wanted.get("aliases") or []]
    server.artifacts[key] = Artifact(
        wanted["artifactCollectionName"], wanted["artifactTypeName"], names, wanted["runName"]
    )
    artifact = {"id": key, "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
    return {"createArtifact": {"artifact": artifact}}


def artifact_files(server: Server, given: Answer) -> Answer:
    edges = []
    for file in given["input"]["artifactFiles"]:
        url = f"{server.url}/artifact/{file['artifactID']}/{file['name']}"
        node = {"storagePath": None, "uploadUrl": url, "uploadHeaders": [], "uploadMultipartUrls": None}
        edges.append({"node": {**node, "artifact": {"id": file["artifactID"]}}})
    return {"createArtifactFiles": {"files": {"edges": edges}}}


def create_manifest(server: Server, given: Answer) -> Answer:
    return {"createArtifactManifest": manifest(server, given["artifactID"])}


def update_manifest(server: Server, given: Answer) -> Answer:
    return {"updateArtifactManifest": manifest(server, given["artifactManifestID"].removeprefix("manifest-"))}


def manifest(server: Server, key: str) -> Answer:
    file = {"id": f"file-{key}", "uploadUrl": f"{server.url}/manifest/{key}", "uploadHeaders": []}
    return {"artifactManifest": {"id": f"manifest-{key}", "file": file}}


def commit_artifact(server: Server, given: Answer) -> Answer:
    server.artifacts[given["artifactID"]].committed = True
    return {"commitArtifact": {"artifact": {"id": given["artifactID"], "digest": "0"}}}


def alert(server: Server, given: Answer) -> Answer:
    server.alerts.append(given)
    return {"notifyScriptableRunAlert": {"success": True}}


def upsert_view(server: Server, given: Answer) -> Answer:
    """A workspace (`project-view`) or a report (`runs`): a new one without an id."""
    key = given.get("id") or f"view-{len(server.views)}"
    inserted = key not in server.views
    names = {"entityName": given["entityName"], "name": given["projectName"]}
    server.views[key] = {**given, "id": key, "project": {"id": "project-0", **names}}
    return {"upsertView": {"view": server.views[key], "inserted": inserted}}


def list_reports(server: Server, given: Answer) -> Answer:
    edges = [{"node": view, "cursor": key} for key, view in server.views.items() if view["type"] == "runs"]
    return {"project": {"allViews": {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}}}}


def list_projects(server: Server, given: Answer) -> Answer:
    node = {
        "id": "project-0",
        "name": "dcal",
        "entityName": ENTITY,
        "createdAt": "",
        "isBenchmark": False,
        "user": None,
    }
    return {"models": {"edges": [{"node": node, "cursor": ""}], "pageInfo": {"endCursor": None, "hasNextPage": False}}}


def find_view(server: Server, given: Answer) -> Answer:
    found = [view for view in server.views.values() if view["name"] == given["viewName"]]
    return {"project": {"allViews": {"edges": [{"node": view} for view in found]}}}


def heartbeat(server: Server, given: Answer) -> Answer:
    """A run for an agent that has none, and the exit when there are no more."""
    commands = []
    if not json.loads(given.get("runState") or "{}"):
        with server.lock:
            points = server.sweep["points"]
            command: Answer = {"type": "exit"}
            if points:
                args = {key: {"value": value} for key, value in points.pop(0).items()}
                command = {"type": "run", "run_id": f"drawn-{len(points)}", "program": "dcal-train", "args": args}
            commands.append(command)
    return {"agentHeartbeat": {"agent": {"id": "agent-0"}, "commands": json.dumps(commands)}}


def sweep_runs(server: Server, given: Answer) -> Answer:
    sweep = {"id": "sweep-0", "name": "sweep-0", "state": "RUNNING", "config": server.sweep["config"]}
    return {"project": {"sweep": {**sweep, "runs": {"edges": []}}}}


OPERATIONS: dict[str, Callable[[Server, Answer], Answer]] = {
    "Viewer": viewer,
    "ServerFeaturesQuery": lambda server, given: {"serverInfo": {"features": []}},
    "UpsertBucket": upsert_bucket,
    "RunResumeStatus": resume_status,
    "CreateRunFiles": run_files,
    "MarkRunFilesUploaded": lambda server, given: {"markRunFilesUploaded": {"success": True}},
    "XXHashDigestsEnabled": lambda server, given: {"entity": {"xxhashDigestsEnabled": False}},
    "OrganizationCoreWeaveOrganizationID": lambda server, given: {"entity": {"organization": None}},
    "FetchArtifactDigestAlgorithm": lambda server, given: {"project": {"artifactType": None}},
    "ArtifactType": lambda server, given: {"project": {"artifact": None}},
    "CreateArtifact": create_artifact,
    "CreateArtifactFiles": artifact_files,
    "CreateArtifactManifest": create_manifest,
    "UpdateArtifactManifest": update_manifest,
    "CommitArtifact": commit_artifact,
    "NotifyScriptableRunAlert": alert,
    "View": find_view,
    "ProjectViews": list_reports,
    "GetProjects": list_projects,
    "GetDefaultEntity": viewer,
    "UpsertView2": upsert_view,
    "upsertView": upsert_view,
    "ProjectInternalId": lambda server, given: {"project": {"id": "project-0", "internalId": "0"}},
    "CreateAgent": lambda server, given: {"createAgent": {"agent": {"id": "agent-0"}}},
    "Heartbeat": heartbeat,
    "SweepWithRuns": sweep_runs,
}


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def parse_request(self) -> bool:
        if self.server.gone:
            self.close_connection = True
            return False
        return super().parse_request()

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def reply(self, content: Answer) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.reply({})

    def do_POST(self) -> None:
        body = self.body()
        if self.path.startswith("/graphql"):
            content = json.loads(body)
            self.reply(self.server.graphql(content["query"], content.get("variables") or {}))
        elif self.path.endswith("/file_stream"):
            self.file_stream(json.loads(body))
            self.reply({"exitcode": None, "limits": {}})
        else:  # the client's own telemetry
            self.reply({})

    def file_stream(self, content: Answer) -> None:
        name = self.path.split("/")[-2]  # /files/<entity>/<project>/<run>/file_stream
        run = self.server.run(name)
        for file, chunk in (content.get("files") or {}).items():
            lines = [json.loads(line) for line in chunk["content"]] if file.startswith("wandb-") else []
            if file == "wandb-history.jsonl":
                run.lines[chunk["offset"] : chunk["offset"] + len(lines)] = lines
            elif file == "wandb-summary.json":
                run.summary = lines[-1]
        run.preempting |= bool(content.get("preempting"))
        if content.get("complete"):
            run.complete, run.exitcode = True, content.get("exitcode")

    def do_PUT(self) -> None:
        data = self.body()
        kind, key, *rest = self.path.removeprefix("/").split("/")
        if kind == "run":
            self.server.run(key).files["/".join(rest)] = data
        elif kind == "manifest":
            self.server.artifacts[key].manifest = data
        else:
            self.server.artifacts[key].files["/".join(rest)] = data
        self.reply({})

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@contextmanager
def answering(monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[Server]:
    """The server to which the client of this process and of those that it starts is connected; it must know all."""
    # the client keeps the address of the server it has last spoken to, and in a variable that of its own process, which
    # must be gone before variables are set aside: it would come back without the process
    wandb.teardown()
    for variable in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("HOME", str(home))  # a .netrc of the user's is none of ours
    with serving() as running:
        monkeypatch.setenv("WANDB_BASE_URL", running.url)
        yield running
    wandb.teardown()
    assert not running.unknown, running.unknown[0]


@contextmanager
def serving() -> Iterator[Server]:
    """A server in a thread of its own."""
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
