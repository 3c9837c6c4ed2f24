"""The batch interface: half the price, resumable at any moment, and nothing is paid twice."""

import asyncio
import json
import threading

import pytest

from whet import WhetError
from whet.annotate import batch
from whet.annotate.annotator import Annotator, read_rows, run_async
from whet.annotate.batch import buy_batches
from whet.annotate.budget import Budget
from whet.annotate.cache import AnswerCache
from whet.annotate.openai import OpenAIBackend
from whet.annotate.prices import Price
from whet.annotate.protocol import Stop
from whet.annotate.task import Task
from whet.streams import RowStream

web = pytest.importorskip("aiohttp.web", reason="the extra [llm] is not installed")

TASK = Task("spam", "Is the message spam?", {"spam": "", "ham": ""})
TEXTS = [f"{'WIN' if i % 3 == 0 else 'hello'} {i}" for i in range(30)]
WANTED = ["spam" if i % 3 == 0 else "ham" for i in range(30)]


class BatchServer:
    """Files and batches of OpenAI's interface; a batch is done after ``looks`` looks at it."""

    def __init__(self, looks=2):
        self.looks = looks
        self.files, self.batches, self.seen = {}, {}, []
        self.status, self.fail, self.lose_reply = "completed", (), False
        self.say = lambda text, again: "spam" if "WIN" in text else "ham"

    def __enter__(self):
        self.loop = asyncio.new_event_loop()
        started = threading.Event()

        async def start():
            app = web.Application(client_max_size=1 << 28)
            app.router.add_post("/v1/files", self.upload)
            app.router.add_get("/v1/files/{id}/content", self.content)
            app.router.add_post("/v1/batches", self.create)
            app.router.add_get("/v1/batches", self.listed)
            app.router.add_get("/v1/batches/{id}", self.look)
            self.runner = web.AppRunner(app)
            await self.runner.setup()
            site = web.TCPSite(self.runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/v1"
            started.set()

        def run():
            self.loop.create_task(start())
            self.loop.run_forever()

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()
        assert started.wait(10)
        return self

    def __exit__(self, *_):
        asyncio.run_coroutine_threadsafe(self.runner.cleanup(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)

    async def upload(self, request):
        fields = await request.post()
        assert fields["purpose"] == "batch"
        name = f"file-{len(self.files)}"
        self.files[name] = fields["file"].file.read().decode()
        return web.json_response({"id": name})

    async def create(self, request):
        made = await request.json()
        assert (made["endpoint"], made["completion_window"]) == ("/v1/chat/completions", "24h")
        lines = [json.loads(line) for line in self.files[made["input_file_id"]].splitlines()]
        name = f"batch-{len(self.batches)}"
        self.batches[name] = {"looks": 0, "lines": lines, "metadata": made["metadata"], "id": name}
        self.seen += [line["custom_id"] for line in lines]
        if self.lose_reply:
            request.transport.abort()
            raise asyncio.CancelledError
        return web.json_response({"id": name, "status": "validating"})

    async def listed(self, request):
        shown = [{"id": n, "metadata": b["metadata"]} for n, b in self.batches.items()]
        return web.json_response({"data": shown})

    async def look(self, request):
        made = self.batches[request.match_info["id"]]
        made["looks"] += 1
        over = made["looks"] >= self.looks
        body = {
            "id": made["id"],
            "status": self.status if over else "in_progress",
            "request_counts": {"total": len(made["lines"]), "completed": 0},
        }
        if over and self.status == "completed":
            name = f"out-{made['id']}"
            self.files[name] = "\n".join(self.answer(line) for line in made["lines"])
            body["output_file_id"] = name
        return web.json_response(body)

    def answer(self, line):
        messages = line["body"]["messages"]
        text = next(
            m["content"] for m in messages if "<text>" in m["content"] and m["role"] == "user"
        )
        said = self.say(text, messages[-1]["content"] != text)
        response = {
            "status_code": 200,
            "body": {
                "choices": [
                    {"message": {"content": json.dumps({"label": said})}, "finish_reason": "stop"}
                ],
                "usage": {"prompt_tokens": 100, "completion_tokens": 10},
            },
        }
        if any(f"hello {n}\n" in text for n in self.fail):
            response = {"status_code": 400, "body": {"error": {"message": "too long"}}}
        return json.dumps({"custom_id": line["custom_id"], "response": response})

    async def content(self, request):
        return web.Response(text=self.files[request.match_info["id"]])


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(batch, "POLL", 0.01)
    with BatchServer() as running:
        yield running


def run(server, cache, budget=None):
    """Annotate by batches; return outcomes and stop."""
    backend = OpenAIBackend("m", base_url=server.url, key_env=None, budget=budget, cache=cache)
    annotator = Annotator(TASK, backend, cache=cache)
    rows = read_rows(RowStream({"text": TEXTS}), TASK)

    def talks():
        return (annotator.conversation(TASK, unit) for unit in rows.units(1))

    stop = run_async(buy_batches(backend, cache, talks, lambda *_: None))
    return list(annotator.outcomes(rows, stop)), stop


def labels(outcomes):
    return [getattr(outcome, "name", None) for outcome in outcomes]


def test_a_batch_labels_all_rows_once(server, tmp_path):
    with AnswerCache(tmp_path / "c.sqlite") as cache:
        outcomes, stop = run(server, cache)
        assert (labels(outcomes), stop) == (WANTED, None)
        assert len(server.seen) == len(set(server.seen)) == 30
        outcomes, _ = run(server, cache)
        assert labels(outcomes) == WANTED
        assert len(server.batches) == 1  # nothing was left to ask
        assert cache.facts("batch: ") == {}


def test_requests_are_those_of_direct_calls(server, tmp_path):
    with AnswerCache(tmp_path / "c.sqlite") as cache:
        run(server, cache)
        backend = OpenAIBackend("m", base_url=server.url, key_env=None, cache=cache)
        annotator = Annotator(TASK, backend, cache=cache)
        assert annotator.annotate(TEXTS).labels == WANTED  # the server has no completions
        assert backend.budget.spent.calls == 0


def test_an_answer_without_a_class_is_asked_again_in_the_next_batch(server, tmp_path):
    server.say = lambda text, again: "ham" if again else "maybe" if "WIN" in text else "ham"
    with AnswerCache(tmp_path / "c.sqlite") as cache:
        outcomes, _ = run(server, cache)
    assert labels(outcomes) == ["ham"] * 30
    assert [len(b["lines"]) for b in server.batches.values()] == [30, 10]


def test_rejected_lines_abstain_and_are_asked_by_the_next_run(server, tmp_path):
    server.fail = (1, 4)
    with AnswerCache(tmp_path / "c.sqlite") as cache:
        outcomes, _ = run(server, cache)
        assert [i for i, o in enumerate(outcomes) if labels([o]) == [None]] == [1, 4]
        assert "too long" in str(outcomes[1])
        server.fail = ()
        outcomes, _ = run(server, cache)
        assert labels(outcomes) == WANTED
        assert [len(b["lines"]) for b in server.batches.values()] == [30, 2]


async def killed_here(*_):
    raise KeyboardInterrupt


def test_a_batch_whose_reply_was_lost_is_not_made_twice(server, tmp_path):
    server.lose_reply = True
    with AnswerCache(tmp_path / "c.sqlite") as cache:
        assert labels(run(server, cache)[0]) == WANTED
    assert len(server.batches) == 1


@pytest.mark.parametrize("moment", ["while it is made", "while it is waited for"])
def test_a_killed_run_finds_its_batch_again(server, tmp_path, monkeypatch, moment):
    with AnswerCache(tmp_path / "c.sqlite") as cache:
        if moment == "while it is made":
            server.lose_reply = True
            monkeypatch.setattr(batch._Batches, "_find", killed_here)
            with pytest.raises(KeyboardInterrupt):
                run(server, cache)
            monkeypatch.undo()
            monkeypatch.setattr(batch, "POLL", 0.01)
            server.lose_reply = False
        else:
            server.looks = 10**9
            monkeypatch.setattr(batch, "POLL", 3600.0)

            async def killed():
                backend = OpenAIBackend("m", base_url=server.url, key_env=None, cache=cache)
                annotator = Annotator(TASK, backend, cache=cache)
                rows = read_rows(RowStream({"text": TEXTS}), TASK)

                def talks():
                    return (annotator.conversation(TASK, unit) for unit in rows.units(1))

                work = asyncio.create_task(buy_batches(backend, cache, talks, lambda *_: None))
                while not any(b["looks"] for b in server.batches.values()):
                    await asyncio.sleep(0.01)
                work.cancel()

            asyncio.run(killed())
            monkeypatch.setattr(batch, "POLL", 0.01)
            server.looks = 2
        assert len(cache.facts("batch: ")) == 1
        outcomes, _ = run(server, cache)
        assert labels(outcomes) == WANTED
        assert len(server.batches) == 1
        assert cache.facts("batch: ") == {}


def test_half_the_price_is_booked_and_the_limit_holds(server, tmp_path):
    price = Price(1000.0, 1000.0)  # a tenth of a cent a token
    with AnswerCache(tmp_path / "a.sqlite") as cache:
        budget = Budget(price)
        run(server, cache, budget)
        assert budget.spent.calls == 30
        assert budget.spent.cost == pytest.approx(30 * 110 * 0.001 / 2)
    with AnswerCache(tmp_path / "b.sqlite") as cache:
        budget = Budget(price, max_cost=4.0)
        outcomes, stop = run(server, cache, budget)
        assert stop is not None
        assert "--max-cost 4 would be passed" in stop.reason
        assert 0 < budget.spent.cost <= 4.0
        done = [outcome for outcome in labels(outcomes) if outcome]
        assert 0 < len(done) < 30
        assert "not asked" in str(outcomes[-1])


def test_several_batches_where_one_is_full(server, tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "MOST_REQUESTS", 8)
    with AnswerCache(tmp_path / "c.sqlite") as cache:
        assert labels(run(server, cache)[0]) == WANTED
    assert [len(b["lines"]) for b in server.batches.values()] == [8, 8, 8, 6]


@pytest.mark.parametrize("status", ["failed", "expired", "cancelled"])
def test_a_batch_without_answers_ends_the_run(server, tmp_path, status):
    server.status = status
    with (
        AnswerCache(tmp_path / "c.sqlite") as cache,
        pytest.raises(Stop, match=f"is {status} without any answer"),
    ):
        run(server, cache)


def test_batches_are_for_the_openai_back_end(tmp_path):
    from whet.cli._asking import Asking, Flags

    (tmp_path / "a.csv").write_text("text,old\nWIN,biased\n")
    flags = Flags(
        task="media_bias",
        backend=f"replay:{tmp_path / 'a.csv'}#old",
        out=tmp_path / "b.csv",
        batch=True,
    )
    with Asking(tmp_path / "a.csv", flags) as asking:
        annotator = Annotator(asking.rows.task, asking.backend, cache=asking.cache)
        with pytest.raises(WhetError, match="--batch needs --backend openai"):
            asking.buy(annotator)
