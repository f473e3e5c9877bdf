"""A run folder in an object store, on a server that speaks S3, behind a proxy that breaks requests."""

from __future__ import annotations

import threading
import time

import pytest
from faulty_proxy import CUT, DROPPED, HALF, HUNG, Proxy

from runner.errors import FolderUnwritable, RunFolderHeld, SettingError
from runner.folder import objects, segments
from runner.folder.bucket import Bucket, Exists
from runner.folder.clouds import Patience, read_url
from runner.folder.ledger import Ledger, iterate_records, read_index
from runner.folder.objects import ObjectStore
from runner.folder.store import store_at

SHORT = Patience(answer=1.0, all=3.0, first_pause=0.01, tries=3)
DEADLINE = 60  # seconds; a busy machine is no fault


@pytest.fixture
def proxy(s3, bucket, monkeypatch):
    with Proxy(s3) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        yield proxy


@pytest.fixture
def at(bucket):
    """A store at a path of the bucket, with little patience."""

    def make(path="run", **options):
        return ObjectStore(read_url(f"s3://{bucket}/{path}"), patience=SHORT, **options)

    return make


def once(fault, method, part):
    """The first request of a kind fails."""
    left = [fault]
    return lambda asked, path: left.pop() if left and asked == method and part in path else None


def always(fault, method="", part=""):
    return lambda asked, path: fault if method in asked and part in path else None


def until(condition):
    """Waits for what another thread does."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def failed(action, error=FolderUnwritable):
    try:
        action()
    except error:
        return True
    return False


def record(number):
    return {"id": f"{number:064d}", "status": "done", "image": f"images/cat/{number}.png", "bytes": 3}


# ---- requests that fail


@pytest.mark.parametrize("fault", [DROPPED, CUT, HUNG, 503, 409])
@pytest.mark.parametrize("part", ["run/images", "run/records", "run/.lock"])
@pytest.mark.some(7)
def test_a_request_that_fails_once_changes_nothing(proxy, at, fault, part):
    proxy.fault = once(fault, "PUT", part)
    store = at()
    with store.hold():
        for number in range(3):
            store.put(f"images/{number}.png", b"abc")
            store.append("records.jsonl", b"%d\n" % number)
            store.flush()
    assert list(at().lines("records.jsonl")) == [b"0\n", b"1\n", b"2\n"]
    assert set(at().sizes(f"images/{number}.png" for number in range(3)).values()) == {3}
    with at().hold():  # the lock was given back
        pass


@pytest.mark.parametrize("fault", [DROPPED, CUT, HALF, 503])
def test_a_reading_that_fails_once_changes_nothing(proxy, at, limit, fault):
    store = at()
    with store.hold():
        store.append("records.jsonl", b"".join(b"%d\n" % number for number in range(10_000)))
    whole = list(store.lines("records.jsonl"))
    for part, large in (("list-type", 1 << 20), ("records/00000000", 1 << 20), ("records/00000000", 1)):
        limit(segments, LARGE=large)
        proxy.fault = once(fault, "GET", part)
        assert list(store.lines("records.jsonl")) == whole


@pytest.mark.parametrize("fault", [DROPPED, 503])
def test_a_store_that_is_down_ends_it_and_loses_nothing(proxy, at, fault):
    store = at()
    with store.hold():
        store.append("records.jsonl", b"one\n")
        proxy.fault = always(fault, "PUT", "run/records")
        with pytest.raises(FolderUnwritable, match=r"can't be used: .*; what was finished is safe"):
            store.flush()
        proxy.requests.clear()
        assert failed(lambda: store.put("records/x", b"")) and len(proxy.requests) == 1  # nobody waits twice
        store.append("records.jsonl", b"two\n")
        proxy.fault = always(None)
        store.flush()
        store.flush()
    assert list(at().lines("records.jsonl")) == [b"one\n", b"two\n"]


def answers_lost(part):
    """What is put there arrives, but no answer does, and nobody can look."""
    return lambda method, path: {"PUT": CUT, "GET": DROPPED}.get(method) if part in path else None


def test_a_segment_that_arrived_without_an_answer_is_known_again_when_there_is_more(proxy, at):
    store = at()
    with store.hold():
        store.append("records.jsonl", b"one\n")
        proxy.fault = answers_lost("run/records")
        with pytest.raises(FolderUnwritable):
            store.flush()
        proxy.fault = always(None)
        assert Bucket(read_url(str(store))).get("records/00000000.jsonl")[0] == b"one\n"
        store.append("records.jsonl", b"two\n")
        store.flush()
        store.flush()
    assert list(at().lines("records.jsonl")) == [b"one\n", b"two\n"]


def test_a_renewal_that_arrived_without_an_answer_is_known_again(proxy, at):
    store = at(lock_seconds=4)
    with store.hold():
        proxy.fault = answers_lost("run/.lock")
        before = Bucket(read_url(str(store)))
        proxy.requests.clear()
        until(lambda: sum(method == "PUT" for method, _ in proxy.requests) > 2)
        proxy.fault = always(None)
        held = before.get(".lock")[1].version
        until(lambda: before.get(".lock")[1].version != held)  # it is renewed again
        store.append("records.jsonl", b"one\n")
        store.flush()
    assert list(at().lines("records.jsonl")) == [b"one\n"]


def test_a_store_that_is_down_when_the_folder_is_left(proxy, at):
    store = at()
    with pytest.raises(FolderUnwritable), store.hold():
        store.append("records.jsonl", b"one\n")
        store.flush()
        store.append("records.jsonl", b"two\n")
        proxy.fault = always(503, "PUT", "records")
    proxy.fault = always(None)
    assert list(at().lines("records.jsonl")) == [b"one\n"]
    with at().hold():
        assert store.size("records.jsonl") == 4


@pytest.mark.parametrize(
    ("fault", "says"),
    [(403, r"access is denied.*\(403"), (503, r"overloaded or down \(503"), (DROPPED, "cut")],
)
@pytest.mark.parametrize(
    "action",
    [
        lambda store: store.put("a", b"x"),
        lambda store: store.open("a"),
        lambda store: store.size("a"),
        lambda store: list(store.lines("records.jsonl")),
        lambda store: store.hold().__enter__(),
    ],
    ids=["put", "open", "size", "lines", "hold"],
)
def test_messages_say_what_is_wrong_and_no_secret(proxy, at, fault, says, action):
    proxy.fault = always(fault)
    with pytest.raises(FolderUnwritable, match=says) as caught:
        action(at())
    assert "\n" not in str(caught.value)
    assert not any(word in str(caught.value) for word in ("verysecret", "AKIATEST", "http:", "<", "X-Amz", "127.0.0.1"))
    assert caught.value.__suppress_context__


def test_where_nobody_listens_or_is_no_bucket(bucket, monkeypatch):
    nowhere = ObjectStore(read_url("s3://no-such-bucket/run"), patience=SHORT)
    assert not nowhere.exists() and nowhere.size("a") == -1 and list(nowhere.list()) == list(nowhere.folders()) == []
    with pytest.raises(FolderUnwritable, match="'s3://no-such-bucket/run' can't be used: there is no such bucket"):
        nowhere.put("a", b"")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(FolderUnwritable, match="the connection was refused"):
        ObjectStore(read_url(f"s3://{bucket}/run"), patience=SHORT).exists()


# ---- the lock


def test_a_held_folder_says_by_whom_and_how_long(at):
    with (
        at().hold(),
        pytest.raises(RunFolderHeld, match=r"process \d+; .* is free in (59|60) s") as caught,
        at().hold(),
    ):
        pass
    assert caught.value.exit_code == 11
    with at().hold(lock=False):
        pass


def test_the_lock_of_a_process_that_died_runs_out(at, bucket):
    Bucket(read_url(f"s3://{bucket}/run")).put(".lock", b'{"held": true, "owner": "dead", "seconds": 1}')
    attempts = []

    def attempt():
        try:
            with at().hold():
                attempts.append(True)
        except RunFolderHeld:
            return False
        return True

    until(attempt)
    assert attempts == [True]


@pytest.mark.parametrize("content", [b"", b"[]", b'{"seconds": "x", "held": 1}'])
def test_a_lock_that_says_nothing_runs_out_too(at, bucket, content):
    Bucket(read_url(f"s3://{bucket}/run")).put(".lock", content)
    with pytest.raises(RunFolderHeld, match="an unknown machine"), at().hold():
        pass

    def attempt():
        with at(lock_seconds=1).hold():
            assert b'"held":true' in at().open(".lock").read()

    until(lambda: not failed(attempt, RunFolderHeld))


def test_one_of_many_takes_a_lock_that_ran_out(at, bucket):
    Bucket(read_url(f"s3://{bucket}/run")).put(".lock", b'{"seconds": 0}')
    ready, over, holds = threading.Barrier(4), threading.Barrier(4), []

    def attempt():
        store = at()
        ready.wait(DEADLINE)
        try:
            with store.hold():
                holds.append(True)
                over.wait(DEADLINE)
        except RunFolderHeld:
            holds.append(False)
            over.wait(DEADLINE)

    threads = [threading.Thread(target=attempt) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(holds) == [False, False, False, True]


def test_a_lock_is_renewed_longer_than_it_lasts(at):
    store = at(lock_seconds=3)
    with store.hold():
        until(lambda: b'"beat":7' in store.open(".lock").read())  # after more than three seconds
        with pytest.raises(RunFolderHeld), at().hold():
            pass
        store.flush()
    assert b'"held":false' in store.open(".lock").read()


@pytest.mark.parametrize("harm", [lambda bucket: bucket.put(".lock", b"{}"), lambda bucket: bucket.remove(".lock")])
def test_who_lost_the_lock_writes_nothing_more(at, bucket, harm):
    store = at(lock_seconds=0.4)
    with pytest.raises(FolderUnwritable, match=r"the lock of .* was removed or taken over"), store.hold():
        store.append("records.jsonl", b"one\n")
        store.flush()
        harm(Bucket(read_url(f"s3://{bucket}/run")))
        until(lambda: failed(store.flush))
        store.append("records.jsonl", b"two\n")
    assert list(at().lines("records.jsonl")) == [b"one\n"]


def test_the_lock_outlives_a_short_outage(proxy, at):
    store = at(lock_seconds=4)
    with store.hold():
        proxy.requests.clear()
        proxy.fault = always(503, "PUT")
        until(lambda: len(proxy.requests) > 2)
        proxy.fault = always(None)
        store.append("records.jsonl", b"one\n")
        store.flush()
    assert list(at().lines("records.jsonl")) == [b"one\n"]


def test_a_store_that_takes_every_put_is_told_apart(proxy, at):
    proxy.conditions = False
    with pytest.raises(FolderUnwritable, match=r"can't lock .* set lock=false"), at().hold():
        pass
    with at().hold(lock=False):
        at().put("a", b"x")


def test_a_store_without_conditional_puts(at, bucket, monkeypatch):
    monkeypatch.setenv("AWS_CONDITIONAL_PUT", "disabled")
    with pytest.raises(FolderUnwritable, match=r"no conditional puts; .* set lock=false"), at().hold():
        pass
    store = at()
    with store.hold(lock=False):
        store.append("records.jsonl", b"one\n")
        store.flush()
    assert list(at().lines("records.jsonl")) == [b"one\n"]


# ---- records


def test_another_writer_is_noticed(at):
    one, other = at(), at()
    with pytest.raises(FolderUnwritable, match=r"another run writes .* as well"), one.hold():
        one.append("records.jsonl", b"one\n")
        with other.hold(lock=False):
            other.append("records.jsonl", b"other\n")
        one.flush()
    assert list(at().lines("records.jsonl")) == [b"other\n"]


def test_full_groups_are_read_as_one_object(at, bucket, limit):
    limit(segments, GROUP=4)
    store, lines = at(), [b"%d\n" % number for number in range(11)]
    for part in (lines[:6], lines[6:]):  # a second run finishes the group that the first one began
        with store.hold():
            for line in part:
                store.append("records.jsonl", line)
                store.flush()
    raw = {meta.name: meta.size for meta in Bucket(read_url(f"s3://{bucket}/run")).list("records")}
    assert raw["records/00000000-00000003.jsonl"] == 8 and raw["records/00000004-00000007.jsonl"] == 8
    assert len(raw) == 13 and raw["records/00000010.jsonl"] == 3
    assert list(at().lines("records.jsonl")) == lines
    assert at().size("records.jsonl") == 23
    assert [name for name in at().list() if name != ".lock"] == ["records.jsonl"]


def test_a_folder_that_was_copied_goes_on(at, bucket, caplog):
    raw = Bucket(read_url(f"s3://{bucket}/run"))
    whole = b"".join(b'{"id":"%064d","status":"done","image":"%d.png","bytes":3}\n' % (n, n) for n in range(2))
    raw.put("records.jsonl", whole + b'{"torn')
    raw.put("records/00000007.jsonl", b"not a record\n")
    raw.put("records/notes.txt", b"mine")
    with Ledger(at()) as ledger:
        assert len(ledger.images()) == 2
        ledger.append(record(2))
    assert [each["id"][-1] for each in iterate_records(at())] == ["0", "1", "2"]
    assert at().size("records/00000008.jsonl") > 0
    assert "broken lines were skipped" in caplog.text


def test_a_torn_end_is_skipped(at, bucket, caplog):
    Bucket(read_url(f"s3://{bucket}/run")).put("records.jsonl", b'{"torn')
    with Ledger(at()) as ledger:
        assert not ledger.images()
    assert "torn and is skipped" in caplog.text


def test_what_is_recorded_is_believed_unless_it_is_looked_at(proxy, at):
    store = at()
    with Ledger(store) as ledger:
        for number in range(3):
            store.put(f"images/cat/{number}.png", b"abc")
            ledger.append(record(number) | {"sha256": "no"})
    store.remove("images/cat/1.png")
    proxy.requests.clear()
    index = read_index(at())
    assert all(index.is_done(record(number)["id"]) for number in range(3))
    assert not any("images" in path for _, path in proxy.requests)
    with Ledger(at(), deep=True) as deep:
        assert not any(deep.is_done(record(number)["id"]) for number in range(3))
    assert list(index.lost(3)) == ["images/cat/1.png"]


def test_many_sizes_are_read_off_a_list(proxy, at, limit):
    limit(objects, ASKED_EACH=5)
    store = at()
    for number in range(8):
        store.put(f"images/cat/{number}.png", b"x" * number)
    proxy.requests.clear()
    names = [f"images/cat/{number}.png" for number in range(10)]
    assert list(store.sizes(names).values()) == [0, 1, 2, 3, 4, 5, 6, 7, -1, -1]
    assert len(proxy.requests) == 1
    assert store.sizes([*names, "../x"])["../x"] == -1


def test_lists_have_pages(at):
    store = at()
    for number in range(3):
        store.put(f"images/{number}", b"")
    bucket = Bucket(store.place)
    assert [meta.name for meta in bucket.list("images")] == ["images/0", "images/1", "images/2"]


# ---- names


@pytest.mark.parametrize("name", ["a#b?c%20%/猫 dog/[x]{y}.png", "images/~*'\"|^`<>\\&+=;:@!,$/é.png", ".hidden/..x"])
def test_any_name_comes_back(at, name):
    store = at("odd #%/path")
    store.put(name, b"abc")
    assert store.open(name).read() == b"abc" and store.size(name) == 3
    assert list(store.list()) == [name]


def test_folders_do_not_mix(at, bucket):
    for path in ("a", "ab", "a/b"):
        at(path).put("x", path.encode())
    root = store_at(f"s3://{bucket}")
    assert list(at("a").list()) == ["b/x", "x"] and list(at("a/").folders()) == ["b"]
    assert list(root.list()) == ["a/b/x", "a/x", "ab/x"] and list(root.folders()) == ["a", "ab"]
    assert (root.name, at("a/b/").name, str(at("/a//b/"))) == (bucket, "b", f"s3://{bucket}/a/b")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("gcs://b/x", "did you mean 'gs'"),
        ("ftp://b/x", "known are: abfs, az"),
        ("s3://", "names no bucket"),
        ("s3:///x", "names no bucket"),
        ("s3:/b/x", "lacks a slash"),
        ("s3://key:verysecret@b/x", "credentials come from the environment"),
        ("s3://b/x?X-Amz-Signature=verysecret", "only bucket and path are read"),
        ("s3://b/../x", r"no '\.\.'"),
        ("s3://b/a\nb", "no control characters"),
    ],
)
def test_urls_that_are_refused(url, says):
    with pytest.raises(SettingError, match=says) as caught:
        store_at(url)
    assert "verysecret" not in str(caught.value)


def test_without_the_library_it_says_which_extra(installed, bucket):
    installed("obstore", there=False)
    with pytest.raises(SettingError, match=r"pip install 'manifest-runner\[store\]'"):
        store_at(f"s3://{bucket}/x")


def test_profiles_are_read(at, bucket, tmp_path, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    file = tmp_path / "credentials"
    file.write_text("[mine]\naws_access_key_id = a\naws_secret_access_key = b\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_PROFILE", "mine")
    at().put("a", b"x")
    assert at().size("a") == 1
    monkeypatch.setenv("AWS_PROFILE", "yours")
    with pytest.raises(SettingError, match="AWS_PROFILE=yours: boto3 finds no credentials"):
        at()


def test_google_and_azure_are_opened_by_their_own_names(monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "dmVyeXNlY3JldA==")
    names = [str(store_at(url)) for url in ("gs://bucket/a", "az://container/a b/", "AZURE://container")]
    assert names == ["gs://bucket/a", "az://container/a b", "azure://container"]


def test_another_process_may_put(at):
    with at().hold():
        store_at(str(at())).put("images/x.png", b"abc")
    assert list(at().list()) == ["images/x.png"]
    with pytest.raises(FolderUnwritable, match="can't be the name"):
        at().put("../x", b"")
    with pytest.raises(FolderUnwritable, match="can't grow"):
        at().append("other.txt", b"")


def test_a_conditional_put_knows_its_own_content(at, bucket):
    raw = Bucket(read_url(f"s3://{bucket}/run"))
    version = raw.create("x", b"one")
    assert raw.create("x", b"one") == version
    with pytest.raises(Exists):
        raw.create("x", b"two")
    assert raw.replace("x", b"two", version) != version
    with pytest.raises(Exists):
        raw.replace("x", b"three", version)
