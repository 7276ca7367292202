#!/usr/bin/env bash
# What a GPU is asked when one is at hand for a few minutes: stages in order of worth, each within a time limit.
#
#   benchmarks/gpu.sh DATA OUT [--device cpu] [--tiny] [--only STAGE ...] [--long-minutes M] [--long-steps N]
#
# DATA holds photos/ (some 20 HR photos or more), val/ (photos to judge by), and perhaps results/, the OUT of another day:
# what is there is not measured again.  All results lie in OUT, written as they come.  Stages:
#   tests     the tests that need a GPU                                            2 minutes
#   speed     benchmarks/speed.py: against the reference loop, DIV2K's scale, profile, rounding, graph   4 minutes
#   stylegan  benchmarks/stylegan_size.py: 512², forward and backward, before and after   2 minutes
#   long      benchmarks/long_gpu.py: full-size EDSR on all the photos and on small sets  what is left
# `--device cpu --tiny` is a dry run of every stage, in about two minutes.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
data=${1:?give the folder with photos/ and val/}; out=${2:?give a folder for the results}; shift 2
device=cuda tiny="" stages="tests speed stylegan long" minutes=4 steps=30000
while [ $# -gt 0 ]; do
  case $1 in
    --device) device=$2; shift 2;;
    --tiny) tiny=--tiny; shift;;
    --only) stages=""; shift; while [ $# -gt 0 ] && [ "${1#--}" = "$1" ]; do stages="$stages $1"; shift; done;;
    --long-minutes) minutes=$2; shift 2;;
    --long-steps) steps=$2; shift 2;;
    *) echo "unknown option $1"; exit 2;;
  esac
done
mkdir -p "$out"
[ -d "$data/results" ] && cp -n "$data"/results/* "$out"/
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 TQDM_DISABLE=1 SR_DISTILL_CACHE=${SR_DISTILL_CACHE:-$(mktemp -d)}
python=${PYTHON:-python3}

stage() {   # NAME SECONDS COMMAND ...: runs it within its limit; what it prints goes to OUT/NAME.txt as well
  local name=$1 limit=$2 began=$SECONDS; shift 2
  case " $stages " in *" $name "*) ;; *) return;; esac
  if grep -qs "^$name ended well" "$out/stages.txt"; then echo "== $name: done on another day"; return; fi
  echo "== $name"
  timeout -k 10 "$limit" "$@" 2>&1 | tee "$out/$name.txt"
  local status=${PIPESTATUS[0]}
  case $status in 0) status="ended well";; 124|137) status="ran out of its $limit seconds";; *) status="failed with $status";; esac
  echo "$name $status after $((SECONDS - began)) s" | tee -a "$out/stages.txt"
}

limits() { if [ "$device" = cuda ]; then echo "$1"; else echo 600; fi; }
kind=$([ "$device" = cuda ] && echo cuda || echo "not cuda")
tests=$(grep -l "pytest.mark.cuda" tests/test_*.py)
[ -n "$tiny" ] && tests=tests/test_kernels.py
stage tests "$(limits 130)" $python -m pytest -q -m "$kind" -p no:cacheprovider -n 0 --durations=5 $tests
stage speed "$(limits 250)" $python benchmarks/speed.py "$data/photos" "$out" --device $device --gpu-sections $tiny
stage stylegan "$(limits 150)" $python benchmarks/stylegan_size.py "$out" --device $device --minutes 2 $tiny ${tiny:+--resolution 64}
stage long "$(limits $((minutes * 60 + 30)))" $python benchmarks/long_gpu.py "$data/photos" "$data/val" "$out" --device $device --minutes "$minutes" --steps "$steps" $tiny
rm -rf "$out"/work-*
cat "$out/stages.txt"
