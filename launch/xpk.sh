#!/usr/bin/env bash
# Trains on TPUs of a GKE cluster that XPK has made: launch/gke.yaml without writing YAML. It creates one workload.
#
#   launch/xpk.sh --config=configs/inat2018.py --workdir=/mnt/shared/runs/inat2018
#   xpk workload list --cluster=CLUSTER
#   xpk workload delete --cluster=CLUSTER --workload=dsb
#
# The arguments are those of dsb_jax.main. The image has this package and its extra "tpu" installed (launch/gke.yaml says
# how). The workdir must be on a volume that all hosts share: "xpk storage attach … --type=gcpfilestore --auto-mount=true"
# mounts one into every workload.
#
# SIGTERM makes all processes save and exit with 143, which XPK starts again, as all codes from 127 on, at most
# --max-restarts times. An error, which exits with 1, ends the workload.
set -euo pipefail

cluster=${CLUSTER:?the name of the cluster} # edit, or set in the environment, like all that follows
image=${IMAGE:?the image, as in REGION-docker.pkg.dev/PROJECT/REPOSITORY/dsb_jax:TAG}
workload=${WORKLOAD:-dsb}
tpu_type=${TPU_TYPE:-v5litepod-16}
slices=${SLICES:-1}
: "${1:?the arguments of dsb_jax.main, at least --config}"

# "exec", so that the signal that XPK's shell passes on reaches Python.
xpk workload create \
  --cluster="$cluster" \
  --workload="$workload" \
  --tpu-type="$tpu_type" \
  --num-slices="$slices" \
  --docker-image="$image" \
  --max-restarts=50 \
  --termination-grace-period-seconds=120 \
  --command="exec python -m dsb_jax.main --cluster=tpu $(printf '%q ' "$@")"
