"What is given away: what was promised, all of it, and nothing else; against a stand-in that speaks the hub's language."

import base64
import hashlib
import io
import json
import os
import shutil
import subprocess
import threading
from contextlib import redirect_stderr, redirect_stdout
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml
from conftest import CLI
from test_publish import adapter_on

import simpsons_llm.talk.publish as P
import simpsons_llm.talk.push as U
from simpsons_llm.machine.cli import main
from simpsons_llm.machine.job import MANIFEST, read_json, write_json
from simpsons_llm.model.base import TINY

TOKEN = "hf_standin"


class Hub:
    "A hub on this machine: repositories, and what was committed to them."

    def __init__(self, public=(), writes=True):
        self.repos, self.files, self.blobs, self.asked, self.writes = dict.fromkeys(public, False), {}, {}, [], writes
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self, what, code=200):
                body = json.dumps(what).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def serve(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if "chunked" in self.headers.get("Transfer-Encoding", ""):
                    while n := int(self.rfile.readline(), 16):
                        body += self.rfile.read(n)
                        self.rfile.readline()
                    self.rfile.readline()
                hub.asked.append(f"{self.command} {self.path}")
                lfs = self.path.startswith("/lfs/")
                if not lfs and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    return self.answer({"error": "who are you?"}, 401)
                if not lfs and not hub.writes:
                    return self.answer({"error": "read only"}, 403)
                self.answer(*hub.does(self.command, self.path, body, hub.url))

            do_GET = do_POST = do_PUT = serve
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def does(self, verb, path, body, url):
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            if name in self.repos:
                return {"error": "there is one already", "url": f"{url}/{name}"}, 409
            self.repos[name] = asked.get("visibility") == "private" or asked.get("private", False)
            return {"url": f"{url}/{name}", "id": name}, 200
        if verb == "GET" and path.startswith("/api/models/"):
            name = path.removeprefix("/api/models/").split("?")[0].removesuffix("/revision/main")
            return {"id": name, "private": self.repos[name], "siblings": [], "tags": []}, 200
        if path == "/api/validate-yaml":
            sent = json.loads(body)
            facts = yaml.safe_load(sent["content"].split("---\n")[1])
            wrong = [] if facts.get("license") else [{"message": "license is missing"}]
            return {"errors": wrong, "warnings": []}, 400 if wrong else 200
        if "/preupload/" in path:
            large = (".safetensors", ".gguf")
            modes = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith(large) else "regular",
                    "shouldIgnore": False,
                }
                for f in json.loads(body)["files"]
            ]
            return {"files": modes}, 200
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**o, "actions": {"upload": {"href": f"{url}/lfs/{o['oid']}", "header": {}}}}
                for o in json.loads(body)["objects"]
            ]
            return {"transfer": "basic", "objects": objects}, 200
        if path.startswith("/lfs/"):
            oid = path.removeprefix("/lfs/")
            assert hashlib.sha256(body).hexdigest() == oid
            self.blobs[oid] = body
            return {}, 200
        if "/commit/" in path:
            for row in map(json.loads, body.decode().splitlines()):
                if row["key"] == "file":
                    self.files[row["value"]["path"]] = base64.b64decode(row["value"]["content"])
                if row["key"] == "lfsFile":
                    self.files[row["value"]["path"]] = self.blobs[row["value"]["oid"]]
            return {"success": True, "commitOid": "c0ffee", "commitUrl": f"{url}/me/homer/commit/c0ffee"}, 200
        return {"error": f"{verb} {path} is not played here"}, 404


@pytest.fixture
def hub():
    made = Hub()
    yield made
    made.server.shutdown()


def in_a_process(hub, *words, token=TOKEN):
    "The command in a process of its own, with the stand-in for a hub."
    env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "HF_TOKEN": token}
    return subprocess.run([*CLI, "push", *map(str, words)], env=env, capture_output=True, text=True)


def push(hub, *words, token=TOKEN):
    "The same within this process, which is quicker."
    from huggingface_hub import constants

    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as m, redirect_stdout(out), redirect_stderr(err):
        m.setattr(constants, "ENDPOINT", hub.url)
        m.setattr(constants, "HF_HUB_DISABLE_XET", True)
        m.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
        m.setenv("HF_TOKEN", token) if token else m.delenv("HF_TOKEN", raising=False)
        code = main(["push", *map(str, words)])
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A finished run with an export in it, and with all that must not go."
    run = tmp_path_factory.mktemp("run") / "x"
    adapter_on(TINY, run / "adapter", speakers={"Homer Simpson": 4})
    summary = {
        "status": "done",
        "base_model": TINY,
        "valid_loss_nats_best": 3.5,
        "valid_loss_nats_base": 4.0,
        "data": str(run),
        "ranks": [{"host": "my-host"}],
    }
    write_json(run / "summary.json", summary)
    for name in ("checkpoints/1/optimizer.pt", "data/train.jsonl", "rank0.ipynb"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("SECRET")
    P.export(run, run / "export")
    (run / "export" / "prompts.txt").write_text("SECRET")
    return run


def test_the_hub_receives_what_lies_in_the_folder(hub, run):
    "Small files within the commit, weights by LFS; byte for byte, but for card and notes, which are made ready."
    done = in_a_process(hub, run / "export", "--to", "me/homer", "--private")
    assert done.returncode == 0, done.stderr
    assert hub.repos == {"me/homer": True} and f"{hub.url}/me/homer/commit/c0ffee" in done.stdout
    made = {"README.md", P.NOTES}
    stays = {*made, "prompts.txt", MANIFEST}
    wanted = {p.name: p.read_bytes() for p in (run / "export").iterdir() if p.name not in stays}
    assert {k: v for k, v in hub.files.items() if k not in made} == wanted
    assert made < set(hub.files) and "model.safetensors" in hub.files and len(hub.blobs) == 1
    everything = b"".join(hub.files.values())
    assert not any(word in everything for word in (b"SECRET", b"my-host", str(run.parent).encode()))
    notes = json.loads(hub.files[P.NOTES])
    assert notes["template"] == "script" and notes["run"]["valid_loss_nats_best"] == 3.5
    head = yaml.safe_load(hub.files["README.md"].decode().split("---\n")[1])
    assert head["model-index"][0]["results"][0]["metrics"][0]["value"] == 3.5
    sizes = dict(line.split("  ")[1:] for line in done.stdout.splitlines() if line.startswith("  "))
    assert {n: f"{len(b):,} bytes" for n, b in hub.files.items()} == sizes  # what was shown is what went


def test_an_adapter_goes_with_a_card_of_its_own(hub, run):
    done = push(hub, run, "--to", "me/homer", "--private")
    assert done.returncode == 0, done.stderr
    assert set(hub.files) == {"README.md", "adapter_config.json", "adapter_model.safetensors", P.NOTES}
    weights = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    assert hub.files["adapter_model.safetensors"] == weights
    assert b"library_name: peft" in hub.files["README.md"] and (run / "README.md").is_file()
    (run / "README.md").write_text((run / "README.md").read_text().replace("FILL IN", "It is mine"))
    assert push(hub, run, "--to", "me/open").returncode == 0  # what was written by hand is what goes
    assert b"It is mine" in hub.files["README.md"] and hub.repos["me/open"] is False
    (run / "README.md").unlink()


def test_a_card_reads_as_the_hub_reads_it(run):
    from huggingface_hub import ModelCard

    measured = {"loss_nats_tuned": {"value": 3.25, "low": 3.0, "high": 3.5, "n": 9}, "about": {"sides": ["tuned"]}}
    measured["about"]["settings"] = {"split": "valid"}
    card = (run / "export" / "README.md").read_text()
    data = ModelCard(U.with_figures(card, "homer", U.find_gift(run / "export").trained, measured)).data
    (result,) = data.eval_results
    assert data.model_name == "homer" and (result.metric_type, result.metric_value) == ("loss", 3.25)
    assert result.dataset_split == "valid" and data.library_name == "transformers"


def test_a_rehearsal_asks_nobody(hub, run):
    before = {p: p.stat().st_mtime_ns for p in (run / "export").iterdir()}
    done = push(hub, run / "export", "--to", "me/homer", "--dry-run", token=None)
    assert done.returncode == 0 and hub.asked == [] and "nothing was sent" in done.stdout
    assert "model.safetensors" in done.stdout and "stays here: prompts.txt" in done.stdout and "fill in" in done.stdout
    assert before == {p: p.stat().st_mtime_ns for p in (run / "export").iterdir()}


def test_a_card_that_the_hub_does_not_take_is_told(hub, run, tmp_path):
    shutil.copytree(run / "export", tmp_path / "e")
    card = (tmp_path / "e" / "README.md").read_text()
    (tmp_path / "e" / "README.md").write_text(card.replace("license: other\n", ""))
    done = push(hub, tmp_path / "e", "--to", "me/homer", "--private")
    assert done.returncode == 2 and "license is missing" in done.stderr and not hub.files, done.stderr


@pytest.mark.parametrize(
    "words, token, meant",
    [
        (("export", "--to", "me/homer"), TOKEN, "FILL IN"),
        (("export", "--to", "me/homer", "--private"), None, "no token"),
        (("export", "--to", "homer", "--private"), TOKEN, "user/name"),
        (("export", "--to", "a/b/c", "--private"), TOKEN, "user/name"),
        (("export", "--to", "me/homer", "--private"), "hf_wrong", "401"),
        (("data", "--to", "me/homer", "--private"), TOKEN, "no adapter"),
        (("nowhere", "--to", "me/homer", "--private"), TOKEN, "no folder"),
    ],
)
def test_mistakes_are_told_in_a_sentence(hub, run, words, token, meant):
    done = push(hub, run / words[0], *words[1:], token=token)
    assert done.returncode == 2 and meant in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not hub.files and "Traceback" not in done.stderr


def test_a_public_place_is_not_taken_for_a_private_one(run):
    hub = Hub(public=["me/homer"])
    done = push(hub, run / "export", "--to", "me/homer", "--private")
    assert done.returncode == 2 and "everybody can read it" in done.stderr and not hub.files
    hub.server.shutdown()
    closed = Hub(writes=False)
    done = push(closed, run / "export", "--to", "me/homer", "--private")
    assert done.returncode == 2 and "may not write" in done.stderr
    closed.server.shutdown()
    closed.url = "http://127.0.0.1:9"
    done = push(closed, run / "export", "--to", "me/homer", "--private")  # nobody listens
    assert done.returncode == 2 and "nothing was sent" in done.stderr, done.stderr


@pytest.mark.parametrize("status", ["running", "failed", None])
def test_a_run_that_is_not_finished_stays(run, tmp_path, status, capsys):
    shutil.copytree(run / "adapter", tmp_path / "y" / "adapter")
    if status:
        write_json(tmp_path / "y" / "summary.json", {**read_json(run / "summary.json"), "status": status})
    assert main(["push", str(tmp_path / "y"), "--to", "me/homer", "--dry-run"]) == 2
    assert (status or "without a run's summary") in capsys.readouterr().err


def test_a_path_of_this_machine_ends_the_matter(run, tmp_path):
    shutil.copytree(run / "export", tmp_path / "e")
    for name in ("README.md", "config.json"):
        before = (tmp_path / "e" / name).read_text()
        (tmp_path / "e" / name).write_text(before.replace("{", '{"x": "/home/me/y.csv",', 1) + "see /home/me/y.csv")
        with pytest.raises(ValueError, match=f"{name} tells of this machine: /home/me/y.csv"):
            U.push(tmp_path / "e", "me/homer", dry_run=True)
        (tmp_path / "e" / name).write_text(before)
    assert U.push(tmp_path / "e", "me/homer", dry_run=True)["files"]
