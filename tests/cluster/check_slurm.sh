#!/usr/bin/env bash
# The scripts of docs/slurm.md in a real Slurm: `PATH=$PWD/.venv/bin:$PATH bash tests/cluster/check_slurm.sh`.
# Needs root, `apt-get install slurm-wlm munge`, and flcache with its test extra; some minutes, most of it Slurm's waiting.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/slurm.sh"
export OMP_NUM_THREADS=1

say() { printf '== %s (%ds)\n' "$1" "$SECONDS"; }

fail() {
  echo "failed: $1" >&2
  tail -n 20 slurm-*.out >&2
  exit 1
}

block() { # block NUMBER: the bash block of that number in the page
  awk -v wanted="$1" '/^```bash/ {n++; inside = 1; next} /^```/ {inside = 0} inside && n == wanted' "$here/../../docs/slurm.md"
}

in_state() { # in_state STATE JOB: wait until the job is in it
  for _ in $(seq 3000); do
    scontrol show job "$2" 2>/dev/null | grep -q "JobState=$1 " && return
    sleep 0.2
  done
  scontrol show job "$2"
  fail "job $2 is not $1"
}

check_training() { # check_training NAME SCRIPT SIGNAL SCANCEL_OPTION: signalled once, it must end in the weights of `whole`
  say "$1: $3 in the middle, then queued again"
  rm -rf training
  local job step
  job=$(sbatch --parsable --time=5 "$2")
  until [ -s training/metrics.jsonl ]; do sleep 0.05; done
  scancel --signal="$3" "$4" "$job"
  until ls training/checkpoints/step-* >/dev/null 2>&1; do sleep 0.05; done
  step=$(basename training/checkpoints/step-*)
  echo "checkpoint $step"
  [ "$step" != step-00001000 ] || fail "the run had ended before the signal came"
  until [ "$(squeue --noheader --job "$job" --format '%T %r')" = "PENDING BeginTime" ]; do sleep 0.5; done
  sleep 5                                     # the node refuses a job that it ended in this second
  scontrol update "jobid=$job" starttime=now  # else it waits for two minutes
  for _ in $(seq 600); do [ -d training/checkpoints/step-00001000 ] || sleep 1; done
  in_state COMPLETED "$job"
  echo "restarts: $(scontrol show job "$job" | grep -o 'Restarts=[0-9]*'); its output:"
  grep -v "^ *[0-9,]* " "slurm-$job.out" | cut -c 1-150
  for file in model.safetensors optimizer.safetensors state.json; do
    cmp "$5/checkpoints/step-00001000/$file" "training/checkpoints/step-00001000/$file" || fail "$file differs"
  done
  echo "weights, moments and state of step 1000 are those of the uninterrupted run, byte for byte"
}

work=$(mktemp -d)
trap 'slurm_stop; rm -rf "$work"' EXIT
cd "$work"
say "Slurm $(slurmctld -V)"
slurm_start
sinfo

say "videos, local encode"
PYTHONPATH=$here/..:$here/../pipelines python - <<'PY'
from pathlib import Path
import yaml
from flcache.videos import write_dataset
from small_run import small_config

write_dataset(Path("videos"), train_videos=24, val_videos=6, frames=16, size=32)
content = small_config(Path("videos").resolve(), Path.cwd())
content["training"] |= {"steps": 1000, "checkpoint_every": 5000, "log_every": 5000}
Path("my.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
PY
flcache encode --config my.yaml cache.dir=local 2>/dev/null

say "array of four tasks"
block 1 >encode.sbatch
cat encode.sbatch
sbatch --wait encode.sbatch || fail "a task failed"
tail -qn 1 slurm-*_*.out
diff -r local/shards cache/shards || fail "the shards differ"
flcache verify cache
echo "$(ls cache/shards/*.tar | wc -l) tars and indices are those of the local run, byte for byte"

block 2 >train.sbatch
cat train.sbatch
flcache train --config my.yaml training.dir=whole 2>/dev/null
check_training "one process" train.sbatch TERM --full whole
check_training "one process, the script alone, as --signal=B:USR1@120 does" train.sbatch USR1 --batch whole

torchrun --nproc-per-node 2 --no-python flcache train --config my.yaml training.dir=whole-of-two 2>/dev/null
sed 's/^flcache train/torchrun --nproc-per-node 2 --no-python &/' train.sbatch >train-of-two.sbatch
check_training "two processes of torchrun" train-of-two.sbatch TERM --full whole-of-two
say "done"
