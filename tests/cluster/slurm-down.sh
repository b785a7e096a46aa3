#!/bin/bash
# Stop exactly what slurm-up.sh started (pid files under $D/run), in reverse order. Never kills by name.
set -u
D=${SLURM_TEST_DIR:-${TMPDIR:-/tmp}/mscd-slurm}
alive() { [ -s "$1" ] && kill -0 "$(cat "$1")" 2>/dev/null; }
stop() {  # pidfile expected-comm
  local f=$1 want=$2 p
  [ -s "$f" ] || return 0
  p=$(cat "$f")
  # by now a stale pid file may name an unrelated process: check before signalling
  if [ "$(cat /proc/$p/comm 2>/dev/null)" != "$want" ]; then rm -f "$f"; return 0; fi
  kill "$p"
  for i in $(seq 1 150); do [ "$(cat /proc/$p/comm 2>/dev/null)" = "$want" ] || break; sleep 0.1; done
  if [ "$(cat /proc/$p/comm 2>/dev/null)" = "$want" ]; then echo "pid $p ($want) ignored TERM for 15 s: KILL"; kill -9 "$p"; fi
  rm -f "$f"; echo "stopped $want ($p)"
}
# slurmstepd and job processes outlive slurmd, so cancel the jobs first and let them end
if alive $D/run/slurmctld.pid; then
  timeout 20 squeue -h -o %A 2>/dev/null | sort -u | xargs -r -n 50 timeout 20 scancel
  for i in $(seq 1 100); do [ -z "$(timeout 20 squeue -h 2>/dev/null)" ] && break; sleep 0.2; done
fi
for f in $D/run/slurmd-*.pid; do stop "$f" slurmd; done
stop $D/run/slurmctld.pid slurmctld
stop $D/run/slurmdbd.pid slurmdbd
stop $D/run/mariadbd.pid mariadbd
stop $D/run/munged.pid munged
for l in slurm.conf gres.conf slurmdbd.conf; do
  case "$(readlink /etc/slurm/$l 2>/dev/null)" in $D/*) rm -f /etc/slurm/$l;; esac
done
# read once, with no file in between: of two of these at once, one may find /etc/hosts just emptied and must leave it alone
hosts=$(cat /etc/hosts)
[[ $hosts != *'# slurm-up'* ]] || grep -v '# slurm-up$' <<<"$hosts" >/etc/hosts
[ "${1:-}" = --wipe ] && rm -rf "$D"
exit 0
