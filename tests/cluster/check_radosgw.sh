#!/usr/bin/env bash
# A cache in a bucket of a real Ceph, encoded, trained from and verified as on a local disk: a Ceph of one node on
# localhost, without systemd, whose objects lie in memory. `PATH=$PWD/.venv/bin:$PATH bash tests/cluster/check_radosgw.sh`.
# Needs root, `apt-get install radosgw ceph-mon ceph-osd ceph-common`, and flcache with its test extra; two minutes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export OMP_NUM_THREADS=1 PYTHONPATH=$here/..:$here/../pipelines

say() { printf '== %s (%ds)\n' "$1" "$SECONDS"; }

fail() {
  echo "failed: $1" >&2
  tail -qn 20 ceph/*.log >&2 || true
  exit 1
}

started=()
start() { # start COMMAND...: in the background, until the end of this script
  "$@" >"ceph/$1.out" 2>&1 &
  started+=($!)
}

finish() {
  kill -KILL "${started[@]}" || true # nothing of it is kept
  wait "${started[@]}" || true
  rm -rf "$work"
} 2>/dev/null

until_it_works() { # until_it_works WHAT COMMAND...
  for _ in $(seq 120); do
    timeout 10 "${@:2}" >/dev/null 2>&1 && return
    sleep 0.5
  done
  fail "$1 did not come up"
}

work=$(mktemp -d)
trap finish EXIT
cd "$work"
mkdir -p ceph/mon ceph/osd
read -r mon mon_v1 port fsid osd < <(python - <<'PY'
import socket, uuid

sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
print(*(each.getsockname()[1] for each in sockets), uuid.uuid4(), uuid.uuid4())
PY
)
export CEPH_CONF=$work/ceph/ceph.conf
cat >"$CEPH_CONF" <<CONF
[global]
fsid = $fsid
mon host = v2:127.0.0.1:$mon,v1:127.0.0.1:$mon_v1
public network = 127.0.0.0/8
auth cluster required = none
auth service required = none
auth client required = none
ms mon client mode = crc
run dir = $work/ceph
admin socket = $work/ceph/\$name.asok
log file = $work/ceph/\$name.log
mon data = $work/ceph/mon
mon data avail crit = 1
osd data = $work/ceph/osd
osd objectstore = memstore
memstore device bytes = 1073741824
osd crush chooseleaf type = 0
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pg autoscale mode = off
mon allow pool size one = true
rgw crypt require ssl = false
rgw frontends = beast endpoint=127.0.0.1:$port
CONF

say "$(radosgw --version)"
monmaptool --create --fsid "$fsid" --addv a "[v2:127.0.0.1:$mon,v1:127.0.0.1:$mon_v1]" ceph/monmap >/dev/null
ceph-mon --mkfs -i a --monmap ceph/monmap
start ceph-mon -f -i a
until_it_works ceph-mon ceph osd stat
ceph osd new "$osd" >/dev/null
ceph-osd --mkfs -i 0 --osd-uuid "$osd" 2>/dev/null
start ceph-osd -f -i 0
until_it_works ceph-osd bash -c 'ceph osd stat | grep "1 up"'
radosgw-admin user create --uid t --display-name t --access-key A --secret S >/dev/null 2>&1 || fail "no user"
start radosgw -f --name client.rgw
export AWS_ENDPOINT_URL=http://127.0.0.1:$port AWS_ACCESS_KEY_ID=A AWS_SECRET_ACCESS_KEY=S
until_it_works radosgw bash -c ": >/dev/tcp/127.0.0.1/$port"
python -c 'import s3fs; s3fs.S3FileSystem().mkdir("bucket")'
say "ok: a bucket"

python - <<'PY'
from pathlib import Path
import yaml
from flcache.videos import write_dataset
from small_run import small_config

write_dataset(Path("videos"), train_videos=12, val_videos=4, frames=16, size=32)
Path("my.yaml").write_text(yaml.safe_dump(small_config(Path("videos").resolve(), Path.cwd())), encoding="utf-8")
PY
flcache encode --config my.yaml cache.dir=local 2>/dev/null
flcache encode --config my.yaml cache.dir=s3://bucket/latents cache.local_dir=disk 2>encode.log || fail "$(cat encode.log)"
python -c 'import s3fs; s3fs.S3FileSystem().get("bucket/latents", "fetched", recursive=True)'
diff -r local fetched || fail "the caches differ"
say "ok: $(find fetched -type f | wc -l) files, $(ls fetched/shards/*.tar | wc -l) tars among them, are those of the local run, byte for byte"

flcache verify s3://bucket/latents || fail "flcache verify"
say "ok: verified"

flcache train --config my.yaml cache.dir=local training.dir=from-local 2>/dev/null
flcache train --config my.yaml cache.dir=s3://bucket/latents cache.local_dir=disk-2 training.dir=from-bucket 2>train.log \
  || fail "$(cat train.log)"
python - <<'PY'
from pathlib import Path
from flcache.training import read_metrics

ours, theirs = ([line["loss"] for line in read_metrics(Path(it) / "metrics.jsonl")] for it in ("from-bucket", "from-local"))
assert ours == theirs and len(ours) == 6, (ours, theirs)
print(*ours)
PY
cmp from-local/checkpoints/step-00000006/model.safetensors from-bucket/checkpoints/step-00000006/model.safetensors
say "ok: losses and weights are those of training from the local disk"

python - <<'PY'
import os
from pathlib import Path
from flcache.remote import RemoteFiles, digest_of

files, large = RemoteFiles("s3://bucket/large"), Path("large")
large.write_bytes(os.urandom(2**20) * 110)  # s3fs sends it in parts, and its ETag is no md5
files.put_checked(large, "a", digest_of(large))
assert "-" in files.entry("a").token and files.move("a", "b") and list(files.entries()) == ["b"]
with open("back", "w+b") as back:
    files.fetch("b", large.stat().st_size, back.fileno())
assert digest_of(Path("back")) == digest_of(large)
files.remove("b")
PY
say "ok: 110 MiB in parts, moved and fetched"

python - <<'PY'
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
import boto3
from botocore.exceptions import ClientError
from flcache.errors import RemoteError
from flcache.remote import RemoteFiles

files, s3 = RemoteFiles("s3://bucket/new"), boto3.client("s3")
assert files.write_new("one", b"first") and not files.write_new("one", b"second") and files.read("one", 9) == b"first"


def put(name):
    try:
        return s3.put_object(Bucket="bucket", Key=name, Body=b"x", IfNoneMatch="*")["ResponseMetadata"]["HTTPStatusCode"]
    except ClientError as error:
        return error.response["ResponseMetadata"]["HTTPStatusCode"]


def write(name):
    try:
        return files.write_new(name, b"x")
    except RemoteError as error:
        return str(error).partition(": ")[2]


with ThreadPoolExecutor(8) as threads:
    for one, race in ((put, 0), (put, 1), (put, 2), (write, 3), (write, 4), (write, 5)):
        answers = Counter(threads.map(one, [f"{race}"] * 8))
        print(f"8 times {one.__name__} at once: {dict(answers)}", flush=True)
        assert answers in ({200: 1, 412: 7}, {True: 1, False: 7}), "one wins, and the others are told"
PY
say "ok: one of many writers of a new file wins, and the others know"
