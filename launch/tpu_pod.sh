#!/usr/bin/env bash
# Trains on all hosts of a Cloud TPU VM pod that exists; it creates and deletes nothing.
#
#   launch/tpu_pod.sh NAME --zone=ZONE --install
#   launch/tpu_pod.sh NAME --zone=ZONE -- python -m dsb_jax.main --cluster=tpu --config=configs/inat2018.py \
#     --workdir=/mnt/shared/runs/inat2018
#   launch/tpu_pod.sh NAME --zone=ZONE --stop
#
# --install  copies the committed files of this clone to ~/dsb_jax on every host and makes an environment there
# -- …       runs a command there on every host; "python" is that of the environment. It goes on if the connection breaks
# --stop     sends SIGTERM to it on every host: it saves and exits with 143, and the same command goes on from there
# --dry-run  prints the calls of gcloud instead
#
# Data and workdir must be on a file system that all hosts have mounted, such as Filestore. A pod is made by, for example,
#   gcloud compute tpus tpu-vm create NAME --zone=ZONE --accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite
# shellcheck disable=SC2016 # what stands in single quotes is for the hosts to expand
set -euo pipefail

fail() {
  echo "error: $1" >&2
  exit 2
}

name='' where=() install=false stop=false dry_run=false
while [ $# -gt 0 ]; do
  case $1 in
    --zone=* | --project=*) where+=("$1") ;;
    --install) install=true ;;
    --stop) stop=true ;;
    --dry-run) dry_run=true ;;
    --) shift && break ;;
    -*) fail "unknown option $1" ;;
    *)
      [ -z "$name" ] || fail "unexpected argument $1; the command stands behind --"
      name=$1
      ;;
  esac
  shift
done
[ -n "$name" ] || fail "the name of the pod is missing"
$install || $stop || [ $# -gt 0 ] || fail "nothing to do: --install, --stop or a command behind --"

call() {
  if $dry_run; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

# Text of a shell script, run on every host.
on_all_hosts() {
  call gcloud compute tpus tpu-vm ssh "$name" ${where[@]+"${where[@]}"} --worker=all --command="$1"
}

if $install; then
  archive=$(mktemp -d)/dsb_jax.tar.gz
  trap 'rm -r "$(dirname "$archive")"' EXIT
  git -C "$(dirname "$0")/.." archive --format=tar.gz --output="$archive" HEAD
  call gcloud compute tpus tpu-vm scp "$archive" "$name:" ${where[@]+"${where[@]}"} --worker=all
  # The hosts' own Python may be older than 3.11.
  on_all_hosts 'set -e
    mkdir -p ~/dsb_jax && tar -xzf ~/dsb_jax.tar.gz -C ~/dsb_jax && cd ~/dsb_jax
    python3 -m pip install -q --user uv
    [ -d .venv ] || python3 -m uv venv -q --python 3.12 .venv
    python3 -m uv pip install -q --python .venv/bin/python -c requirements.lock -e ".[tpu]"
    echo "installed on $(hostname)"'
fi

if $stop; then
  on_all_hosts 'kill -TERM "$(cat ~/dsb_jax/run.pid)"'
fi

if [ $# -gt 0 ]; then
  # In a session of its own and with a file for its output, it needs no connection; what is shown is that file.
  on_all_hosts "cd ~/dsb_jax && export PATH=\"\$PWD/.venv/bin:\$PATH\"
    if kill -0 \"\$(cat run.pid 2> /dev/null)\" 2> /dev/null; then
      echo \"error: a command is running on \$(hostname); --stop ends it\" >&2
      exit 2
    fi
    : > run.log
    setsid $(printf '%q ' "$@") >> run.log 2>&1 < /dev/null &
    echo \$! > run.pid
    tail -n +1 --pid=\$! -f run.log | sed -u \"s/^/[\$(hostname)] /\"
    wait \$!
    code=\$?
    rm run.pid
    exit \$code"
fi
