#!/usr/bin/env bash
# What a GPU is asked when one is at hand for a few minutes: stages in order of worth, each within a time limit.
#
#   benchmarks/gpu.sh DATA OUT [--device cpu] [--tiny] [--only STAGE ...] [--minutes M] [--long-steps N]
#
# DATA holds photos/ (some 20 HR photos or more), val/ (photos to judge by), perhaps Set5/ and Set14/ to judge by as well, and
# perhaps results/, the OUT of another day.
# All results lie in OUT, written as they come: what is there is not measured again, and a stage that did not get through
# goes on where it stopped.  Stages, with their limits; the last one takes what is left of --minutes (default 13):
#   tests     the tests that need a GPU: kernels, parts, layers, models and whole runs as on the CPU   150 s
#   speed     benchmarks/speed.py: reference loop, DIV2K's scale, profile, training, rounding, graph   250 s
#   stylegan  benchmarks/stylegan_size.py: 512², forward and backward, before and after         150 s
#   long      benchmarks/long_gpu.py: full-size EDSR on all photos and on 350 kB                what is left
# Where one command may take ten minutes only, give --minutes 9 first, and the same command again for the rest.
# OUT/stages.txt says how each stage ended.  `--device cpu --tiny` is a dry run of every stage, some three minutes of one core.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
data=${1:?give the folder with photos/ and val/}; out=${2:?give a folder for the results}; shift 2
device=cuda tiny="" stages="tests speed stylegan long" minutes=13 steps=20000
while [ $# -gt 0 ]; do
  case $1 in
    --device) device=$2; shift 2;;
    --tiny) tiny=--tiny; shift;;
    --only) stages=""; shift; while [ $# -gt 0 ] && [ "${1#--}" = "$1" ]; do stages="$stages $1"; shift; done;;
    --minutes) minutes=$2; shift 2;;
    --long-steps) steps=$2; shift 2;;
    *) echo "unknown option $1"; exit 2;;
  esac
done
for stage in $stages; do
  case " tests speed stylegan long " in *" $stage "*) ;; *) echo "there is no stage $stage: tests, speed, stylegan or long"; exit 2;; esac
done
for part in photos val; do [ -d "$data/$part" ] || { echo "$data has no folder $part/: give photos/ and val/"; exit 2; }; done
mkdir -p "$out"
[ -d "$data/results" ] && cp -rn "$data"/results/. "$out"/
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 TQDM_DISABLE=1 SR_DISTILL_CACHE=${SR_DISTILL_CACHE:-$(mktemp -d)}
python=${PYTHON:-python3}
left() { awk -v m="$minutes" -v s="$SECONDS" 'BEGIN { printf "%d", 60 * m - s }'; }

stage() {   # NAME SECONDS COMMAND ...: runs it within its limit and what is left; what it prints goes to OUT/NAME.txt as well
  local name=$1 limit=$2 began=$SECONDS; shift 2
  case " $stages " in *" $name "*) ;; *) return;; esac
  if grep -qs "^$name ended well" "$out/stages.txt"; then echo "== $name: done on another day"; return; fi
  [ "$(left)" -lt "$limit" ] && limit=$(left)
  if [ "$limit" -lt 1 ]; then echo "$name was not begun: no time is left" | tee -a "$out/stages.txt"; return; fi
  echo "== $name, at most $limit s"
  timeout -k 10 "$limit" "$@" 2>&1 | tee -a "$out/$name.txt"
  local status=${PIPESTATUS[0]}
  case $status in
    0) status="ended well";;
    75) status="is not through, the rest is for another day,";;
    124|137) status="ran out of its $limit seconds";;
    *) status="failed with $status";;
  esac
  echo "$name $status after $((SECONDS - began)) s on $device" | tee -a "$out/stages.txt"
}

kind=$([ "$device" = cuda ] && echo cuda || echo "not cuda")
tests=$(grep -l "pytest.mark.cuda" tests/test_*.py)
[ -n "$tiny" ] && tests=tests/test_kernels.py
several=$($python -c "import xdist" 2>/dev/null && echo "-n 4")   # processes, where pytest-xdist is installed
stage tests 150 $python -m pytest -q -m "$kind" -p no:cacheprovider $several --durations=5 $tests
stage speed 250 $python benchmarks/speed.py "$data/photos" "$out" --device $device --gpu-sections $tiny
stage stylegan 150 $python benchmarks/stylegan_size.py "$out" --device $device --minutes 2 $tiny ${tiny:+--resolution 64}
judges=("$data/val")
for folder in "$data"/[Ss]et*; do [ -d "$folder" ] && judges+=("$folder"); done
long=(benchmarks/long_gpu.py "$data/photos" "$out" --tests "${judges[@]}" --device $device --steps "$steps" $tiny)
stage long "$(left)" $python "${long[@]}" --seconds "$(($(left) - 20))"
# a training that ran out of time is not in the results, but those before it are
case " $stages " in *" long "*) [ -d "$out/long-$device" ] && $python "${long[@]}" --seconds .001 > /dev/null;; esac
echo "== $out/stages.txt"
cat "$out/stages.txt"
