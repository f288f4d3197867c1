#!/bin/bash
# A real Slurm with accounting on this machine, loopback only: a sweep through sbatch, one job requeued, one killed
# with SIGKILL, and the same sweep once more.
# As root. PYTHON is an interpreter with this suite and its `slurm` extra; SLURM_STATE a folder for the daemons.
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd); ROOT=$(cd "$HERE/../.." && pwd)
export SLURM_STATE=${SLURM_STATE:-$(mktemp -d)} PYTHON=${PYTHON:-$ROOT/.venv/bin/python} PYTHONPATH=$ROOT
command -v slurmctld >/dev/null && command -v slurmdbd >/dev/null && command -v mariadbd >/dev/null || "$HERE/slurm_install.sh" slurmdbd mariadb-server
trap '"$HERE/slurm_down.sh"; [ -s "$SLURM_STATE/db/mariadb.pid" ] && kill "$(cat "$SLURM_STATE/db/mariadb.pid")" || true' EXIT
"$HERE/slurm_acct_up.sh"; "$HERE/slurm_up.sh"
export SLURM_CONF=$SLURM_STATE/slurm.conf
sacctmgr -i add cluster local >/dev/null 2>&1 || true
WORK=${WORK:-$(mktemp -d)}; cd "$WORK"
SMALL="teacher.hidden_size=16 teacher.intermediate_size=16 teacher.steps=40 teacher.check_every=20 teacher.pool=512 data.vocabulary=8 sequence_length=6 batch_size=8 samples=64 rank=4 measure.test_samples=64 measure.reference_samples=64"
COMMON="+engine=${ENGINE:-slurm} study=engine results_dir=$WORK/results cache_dir=$WORK/cache"
sweep() {
  "$PYTHON" -m experiments.run -m $SMALL steps="${STEPS:-400000}" seed=0,1,2 $COMMON hydra.launcher.partition=debug hydra.launcher.mem_gb=1
}
"$PYTHON" -m experiments.run $SMALL steps=20 study=warm results_dir="$WORK/results" cache_dir="$WORK/cache"
sweep >"$WORK/sweep.log" 2>&1 & SWEEP=$!
# Wait until a job has trained for long enough that stopping it pays, then take it away as a preempting Slurm would.
for _ in $(seq 300); do
  F=$(find "$WORK/results/engine/runs" -name metrics.jsonl -size +300c 2>/dev/null | head -1 || true); [ -n "$F" ] && break; sleep 1
done
sleep 12
squeue -o '%i %T %r'
VICTIM=$(squeue -h -t R -o %i | head -1)
echo "== requeue of $VICTIM"
scontrol requeue "$VICTIM"; sleep 5
find "$WORK/results/engine" -name paused.json -exec cat {} +
squeue -o '%i %T %r'
for _ in $(seq 60); do VICTIM=$(squeue -h -t R -o %i | grep -vx "$VICTIM" | head -1); [ -n "$VICTIM" ] && break; sleep 1; done
sleep 5
echo "== SIGKILL to $VICTIM"
scancel --signal=KILL --full "$VICTIM"; sleep 3
squeue -o '%i %T %r'
wait $SWEEP && echo "== sweep: exit 0" || { echo "== sweep: exit $?"; tail -2 "$WORK/sweep.log"; }
"$PYTHON" -m experiments.status study=engine results_dir="$WORK/results" || true
echo "== the same sweep again"; sweep >"$WORK/again.log" 2>&1 && echo "== exit 0" || tail -5 "$WORK/again.log"
sacct -X -D --format=JobID,State,ExitCode,Elapsed
"$PYTHON" -m experiments.status study=engine results_dir="$WORK/results"
echo "== rows: $(find "$WORK/results/engine/runs" -name row.json | wc -l) of 3"
