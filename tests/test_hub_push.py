"""Uploading a classifier: what a hub gets, and what it never gets. The hub is one of our own."""

import base64
import json
import threading
import traceback
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import flip, make_texts, sample_gold
from helpers import columns, snapshot, whet, whet_process
from whet import LabelRefiner, WhetError, WhetWarning
from whet.hub import upload

hub = pytest.importorskip("huggingface_hub.constants", reason="needs the extra embed")

TOKEN = "hf_canary0123456789"


class Hub(ThreadingHTTPServer):
    """A hub in memory that keeps every request."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.requests, self.repos, self.status = [], {}, None

    def files(self, repo, revision="main"):
        return self.repos[repo]["branches"][revision]


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def answer(self, content, status=200):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.handle_one("")

    def do_POST(self):
        self.handle_one(self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode())

    def handle_one(self, body):
        server, path = self.server, self.path.partition("?")[0]
        headers = {name.lower(): value for name, value in self.headers.items()}
        server.requests.append((self.command, self.path, headers, body))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer({"error": "Invalid username or password."}, 401)
        if server.status:
            return self.answer({"error": "no"}, server.status)
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization'] or 'me'}/{asked['name']}"
            fresh = {"private": asked["visibility"] == "private", "branches": {"main": {}}}
            known = name in server.repos
            server.repos.setdefault(name, fresh)
            return self.answer({"url": f"{server.url}/{name}"}, 409 if known else 200)
        parts = path.removeprefix("/api/models/").split("/")
        return self.of_repo("/".join(parts[:2]), parts[2:], body)

    def of_repo(self, name, verb, body):
        repo = self.server.repos.get(name)
        if repo is None:
            return self.answer({"error": "Repository not found"}, 404)
        branches = repo["branches"]
        if verb[:1] == ["branch"]:
            branches[verb[1]] = dict(branches["main"])
            return self.answer({})
        revision = verb[1] if verb else "main"
        if verb[:1] == ["preupload"]:
            files = json.loads(body)["files"]
            modes = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files
            ]
            return self.answer({"files": modes})
        if verb[:1] == ["commit"]:
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    branches[revision][value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "deletedFile":
                    del branches[revision][value["path"]]
            url = f"{self.server.url}/{name}/commit/1"
            return self.answer({"success": True, "commitOid": "1" * 40, "commitUrl": url})
        siblings = [{"rfilename": file} for file in branches[revision]]
        return self.answer(
            {"id": name, "private": repo["private"], "siblings": siblings, "sha": "1" * 40}
        )


@pytest.fixture
def server(monkeypatch):
    with Hub() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(hub, "ENDPOINT", running.url)
        monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield running
        running.shutdown()


@pytest.fixture(scope="module")
def refiner():
    truth = np.random.default_rng(0).integers(0, 2, 150)
    names = np.array(["money", "sport"])
    gold = [None if g is None else names[g] for g in sample_gold(truth, 60)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WhetWarning)
        return LabelRefiner(rounds=1).fit(make_texts(truth), names[flip(truth, 0.8)], gold)


@pytest.fixture
def folder(refiner, tmp_path):
    refiner.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


# --- what is uploaded -----------------------------------------------------------------------------


def test_a_linear_classifier_arrives_whole_and_private(server, refiner, tmp_path):
    address = refiner.push_to_hub("me/mine", token=TOKEN)
    assert address == f"{server.url}/me/mine"
    assert server.repos["me/mine"]["private"] is True
    refiner.save_pretrained(tmp_path / "here")
    assert server.files("me/mine") == snapshot(tmp_path / "here")
    card = server.files("me/mine")["README.md"].decode()
    assert "150 texts with an annotator's labels and 60 gold labels" in card
    assert "`tsp` in 1 round" in card
    assert "used for annotator model, students and their weights; accuracy estimates" in card
    assert f"| refined | {refiner.estimate_['refined']} |" in card
    assert "` money `" in card
    (tmp_path / "back").mkdir()
    for name, content in server.files("me/mine").items():
        (tmp_path / "back" / name).write_bytes(content)
    texts = make_texts([0, 1, 1])
    back = LabelRefiner.from_pretrained(tmp_path / "back")
    np.testing.assert_array_equal(back.predict_proba(texts), refiner.predict_proba(texts))


def test_a_fine_tuned_classifier_arrives_and_a_linear_one_replaces_it(
    server, refiner, tmp_path, monkeypatch
):
    for module in ("torch", "transformers", "peft", "accelerate"):
        pytest.importorskip(module, reason="needs the extra train")
    from tiny_models import corpus, save_model
    from whet.finetune.settings import Settings

    texts, truth = corpus(60)
    tuned = LabelRefiner(
        "uu",
        encoder=f"hf:{save_model(tmp_path / 'base')}",
        finetune=Settings(epochs=1, max_length=32),
    ).fit(texts, flip(truth, 0.8), sample_gold(truth, 30))
    tuned.push_to_hub("me/mine", token=TOKEN)
    names = set(server.files("me/mine"))
    assert {"config.json", "model.safetensors", "finetune.json", "refiner.json"} < names
    assert {Path(name).suffix for name in names} <= {".json", ".safetensors", ".md"}
    card = server.files("me/mine")["README.md"].decode()
    assert "Texts: 60. Rounds: 1. Gold rows: 30, used for:" in card
    assert f"refined: {tuned.estimate_['refined']}" in card
    assert "refined by the method `uu`" in card
    tuned.save_pretrained(tmp_path / "model")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    ended = whet(["push", str(tmp_path / "model"), "me/mine"])
    assert ended.out.count("\n") == 1, ended  # its id is as good in TRL
    file = tmp_path / "model/finetune.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"reward_model_id": None}))
    ended = whet(["push", str(tmp_path / "model"), "me/mine"])
    assert "not a reward model of TRL by its id, because its finetune.json" in ended.out
    refiner.push_to_hub("me/mine", token=TOKEN)
    left = set(server.files("me/mine"))
    assert "coef" in str(server.files("me/mine")["model.safetensors"][:400])
    assert not {"finetune.json", "refiner.json"} & left


def test_the_command_uploads_a_run(server, tmp_path):
    pq.write_table(pa.table(columns()), tmp_path / "corpus.parquet")
    flags = ["--text", "text", "--pseudo", "llm", "--gold", "gold", "--rounds", "1"]
    refined = whet(
        ["refine", str(tmp_path / "corpus.parquet"), *flags, "--out", str(tmp_path / "run")]
    )
    assert refined.code == 0, refined.err
    environment = {
        "HF_ENDPOINT": server.url,
        "HF_TOKEN": TOKEN,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "home"),
    }
    ended = whet_process(["push", str(tmp_path / "run"), "team/mine"], environment)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == f"{tmp_path}/run/model is at {server.url}/team/mine\n"
    assert server.repos["team/mine"]["private"] is True
    assert server.files("team/mine") == snapshot(tmp_path / "run/model")
    again = ["push", str(tmp_path / "run/model"), "team/mine", "--revision", "v2"]
    assert whet_process(again, environment).code == 0
    assert server.files("team/mine", "v2") == server.files("team/mine")


# --- who may see it -------------------------------------------------------------------------------


def test_public_only_when_asked_for(server, refiner):
    refiner.push_to_hub("me/open", private=False, token=TOKEN)
    assert server.repos["me/open"]["private"] is False
    files = dict(server.files("me/open"))
    server.files("me/open").clear()
    with pytest.raises(WhetError, match="repository 'me/open' is public: name another one, or say"):
        refiner.push_to_hub("me/open", token=TOKEN)
    assert server.files("me/open") == {}
    refiner.push_to_hub("me/open", private=False, token=TOKEN)
    assert server.files("me/open") == files


def test_the_token_is_in_the_header_alone(server, refiner):
    refiner.push_to_hub("me/mine", token=TOKEN)
    for command, path, headers, body in server.requests:
        assert headers.pop("authorization") == f"Bearer {TOKEN}"
        assert TOKEN not in f"{command} {path} {headers} {body}"
    assert all(TOKEN.encode() not in content for content in server.files("me/mine").values())


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model_head.pkl", "pytorch_model.bin", "code.py", "notes.txt"])
def test_other_files_are_refused(name, server, folder):
    (folder / name).write_text("boo")
    with pytest.raises(WhetError, match=f"{name} is not uploaded: only safetensors, JSON, cards"):
        upload(folder, "me/mine", token=TOKEN)
    assert server.requests == []


def test_links_and_folders_are_refused(server, folder, tmp_path):
    (tmp_path / "secret.json").write_text("{}")
    (folder / "more.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(WhetError, match=r"more\.json is not uploaded"):
        upload(folder, "me/mine", token=TOKEN)
    (folder / "more.json").unlink()
    (folder / "deep.json").mkdir()
    with pytest.raises(WhetError, match=r"deep\.json is not uploaded"):
        upload(folder, "me/mine", token=TOKEN)
    assert server.requests == []


def test_a_folder_that_is_no_classifier_is_refused(server, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    ended = whet(["push", str(tmp_path), "me/mine"])
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "is not a whet classifier: name a folder that whet refine wrote" in ended.err
    assert server.requests == []


def refusal(folder, repo="me/mine", token=TOKEN):
    """Return the sentence, after a look for the token in all that a traceback shows."""
    with pytest.raises(WhetError) as caught:
        upload(folder, repo, token=token)
    shown = "".join(traceback.format_exception(caught.value))
    assert token.strip() not in shown
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_token_that_may_not_write_is_one_sentence(server, folder):
    said = refusal(folder, token="hf_wrong98765")
    assert said.startswith("the hub does not let you write to 'me/mine' (401): log in with")
    assert server.repos == {}
    server.status = 403
    assert "(403): log in with 'hf auth login', or set HF_TOKEN" in refusal(folder)


def test_a_token_that_is_no_header_is_not_shown(server, folder):
    refusal(folder, token=f"{TOKEN}\nX: y")
    assert server.repos == {}


@pytest.mark.parametrize("repo", ["a/b/c", "me/-mine-", "me/what?"])
def test_a_name_that_cannot_be_is_one_sentence(repo, server, folder):
    assert refusal(folder, repo).startswith(f"the hub does not take {repo!r} (")
    assert server.repos == {}


def test_an_error_of_the_hub_is_one_sentence(server, folder):
    server.status = 400
    assert "the hub does not take 'me/mine' (" in refusal(folder)


def test_a_hub_out_of_reach_is_one_sentence(server, folder, monkeypatch):
    monkeypatch.setattr(hub, "ENDPOINT", "http://127.0.0.1:9")
    said = refusal(folder)
    assert said.startswith("the hub cannot be reached (")
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refusal(folder)


def test_the_command_says_it_in_one_line(server, folder, tmp_path):
    environment = {"HF_ENDPOINT": server.url, "HF_TOKEN": "hf_wrong98765", "HF_HUB_OFFLINE": "0"}
    ended = whet_process(["push", str(folder), "me/mine"], environment)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("whet: the hub does not let you write to 'me/mine' (401)")
    assert ended.err.count("\n") == 1
    assert "hf_wrong98765" not in ended.err
