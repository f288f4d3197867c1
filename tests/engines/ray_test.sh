#!/bin/bash
# A two-node Ray cluster on this machine in a network and process namespace of its own; one worker is killed.
# As root: unshare -n --pid --fork --mount-proc --kill-child tests/engines/ray_test.sh
# PYTHON is an interpreter with this suite and its `ray` extra.
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/../.." && pwd); PYTHON=${PYTHON:-$ROOT/.venv/bin/python}; RAY=$(dirname "$PYTHON")/ray
ip link set lo up
WORK=$(mktemp -d); cd "$WORK"
export PYTHONPATH=$ROOT RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$WORK/token
(umask 077; head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$WORK/token")
COMMON="--disable-usage-stats --object-store-memory=100000000 --num-cpus=1"
"$RAY" start --head --node-ip-address=127.0.0.1 --port=6379 --include-dashboard=false $COMMON >head.log 2>&1
"$RAY" start --address=127.0.0.1:6379 --node-ip-address=127.0.0.1 $COMMON >second.log 2>&1
"$RAY" status 2>&1 | grep -A3 Active
SMALL="teacher.hidden_size=16 teacher.intermediate_size=16 teacher.steps=40 teacher.check_every=20 teacher.pool=512 data.vocabulary=8 sequence_length=6 batch_size=8 samples=64 rank=4 measure.test_samples=64 measure.reference_samples=64"
sweep() {
  "$PYTHON" -m experiments.run -m $SMALL steps=100000 seed=0,1,2,3 +engine=ray_cluster study=engine \
    results_dir="$WORK/results" cache_dir="$WORK/cache" "hydra.sweep.dir=$WORK/hydra"
}
"$PYTHON" -m experiments.run $SMALL steps=20 study=warm results_dir="$WORK/results" cache_dir="$WORK/cache"
sweep >sweep.log 2>&1 & SWEEP=$!
for _ in $(seq 200); do
  C=$(find "$WORK/results/engine/runs" -name claim.json 2>/dev/null | head -1 || true); [ -n "$C" ] && break; sleep 0.5
done
[ -n "$C" ] || { echo "no run was claimed"; tail -5 sweep.log; exit 1; }
VICTIM=$("$PYTHON" -c 'import json,sys; print(json.load(open(sys.argv[1]))["pid"])' "$C")
echo "== SIGKILL to worker $VICTIM of $C"; kill -9 "$VICTIM"
wait $SWEEP && echo "== sweep: exit 0" || { echo "== sweep: exit $?"; tail -3 sweep.log; }
"$PYTHON" -m experiments.status study=engine results_dir="$WORK/results" || true
echo "== the same sweep again"; sweep >again.log 2>&1 && echo "== exit 0" || tail -5 again.log
"$PYTHON" -m experiments.status study=engine results_dir="$WORK/results"
echo "== rows: $(find "$WORK/results/engine/runs" -name row.json | wc -l) of 4"
